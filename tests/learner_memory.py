"""How much memory of tensors is held while something runs: counted by storages, so that it is the same on every run."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Memory(TorchDispatchMode):
    """Bytes of the tensors made within, at most at once (`peak`) and now (`held`). What was there before does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._before: dict[int, StorageWeakRef] = {}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def held(self) -> int:
        return sum(size for storage, size in self._made.values() if not storage.expired())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs or {})):
            ref = StorageWeakRef(storage)
            if ref.cdata not in self._made:
                self._before[ref.cdata] = ref  # a reference, even a weak one, keeps its number from being given again
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            ref = StorageWeakRef(storage)
            if ref.cdata not in self._before:
                self._made[ref.cdata] = ref, storage.nbytes()
        self.peak = max(self.peak, self.held)
        return made


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    tensors = (x for x in tree_leaves(tree) if isinstance(x, torch.Tensor))
    return [x.untyped_storage() for x in tensors if x.device.type != "meta"]


def largest_layer(model: torch.nn.Module) -> int:
    """Bytes of the largest layer: all of a decoder layer, or a tensor that is in none."""
    layers: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        key = name if index is None else ".".join(parts[: index + 1])
        layers[key] = layers.get(key, 0) + parameter.numel() * parameter.element_size()
    return max(layers.values())

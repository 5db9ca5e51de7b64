"""Memory of tensors, counted by their storages: the same on every run, on the meta device as on any other."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Storages(TorchDispatchMode):
    """Counts the storages that operations make on a device while it is entered, views once, until they are gone.

    What a kernel takes for itself within one operation, and what a caching allocator keeps back, is not seen.

    Attributes:
        held: bytes there are now.
        peak: the most there were at once; may be set back to `held`.
    """

    def __init__(self, device: str, known: Iterable[torch.Tensor] = ()) -> None:
        """
        Args:
            device: its type; shapes on the meta device are no memory of a program that computes elsewhere.
            known: tensors that were there before and do not count.
        """
        super().__init__()
        self.held = 0
        self.peak = 0
        self._device = device
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in known:
            self._see(tensor.untyped_storage(), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self._device:
                storage = tensor.untyped_storage()
                if id(storage) not in self._seen:
                    self._see(storage, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return made

    def _see(self, storage: torch.UntypedStorage, size: int) -> None:
        # torch keeps one Python object for a storage as long as there is one: its end is the storage's.
        self._seen[id(storage)] = weakref.ref(storage, partial(self._gone, id(storage), size))
        self.held += size

    def _gone(self, key: int, size: int, _: object) -> None:
        del self._seen[key]
        self.held -= size

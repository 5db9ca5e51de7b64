"""Weights on their way from the learner to the engines, as numpy: what crosses Ray's object store without a copy."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

PROBED_TENSORS = 8
# In the place of a piece of an update: all of it was sent.
WHOLE = {"whole": True}
# Below this share of an update (`rlpost.learner.survival`) what engines or files hold is another policy than was trained.
LEAST_SURVIVING = 0.9


@dataclass(frozen=True)
class Probe:
    """A tensor of the learner's, to compare with what an engine holds: checkpoint shape and CRC-32 of its bytes."""

    shape: tuple[int, ...]
    checksum: int


@dataclass(frozen=True)
class Held:
    """A tensor as an engine holds it: its shape, and its dtype by torch's name of it."""

    shape: tuple[int, ...]
    dtype: str


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A CPU tensor as an array; bfloat16, which numpy does not know, as its uint16 bits."""
    import torch

    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """The inverse of `to_numpy`. The array may be read-only; the tensor must not be written to."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes: two sides hold the same bits when it agrees."""
    return zlib.crc32(np.ascontiguousarray(array).data)


def held_wide(readable: Mapping[str, Held]) -> set[str]:
    """What engines hold in float32 whatever their dtype (states of linear attention, biases of routers), by `tail`."""
    return {tail(name) for name, held in readable.items() if held.dtype == "float32"}


def tail(name: str) -> str:
    """The end of a tensor's name, which engine and checkpoint have in common where prefixes differ."""
    return ".".join(name.rsplit(".", 2)[-2:])


class Probing:
    """Probes of up to `PROBED_TENSORS` tensors, others with each version: chosen before any is sent, read as they pass.

    They are of the bits that an engine makes of a tensor when it holds it in another dtype.

    Args:
        shapes: of what will be sent, by name.
        readable: what engines can be asked for.

    Raises:
        ValueError: nothing of it could be read back.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], readable: Mapping[str, Held], version: int) -> None:
        candidates = [n for n, held in sorted(readable.items()) if n in shapes and _fits(tuple(shapes[n]), held.shape)]
        if not candidates:
            raise ValueError(
                f"no tensor of the learner ({sorted(shapes)[:3]} ...) can be read back from the engine "
                f"({sorted(readable)[:3]} ...): an update could not be checked"
            )
        self._dtypes = {name: readable[name].dtype for name in chosen(candidates, version)}
        self._read: dict[str, Probe] = {}

    def watch(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The same tensors, as they are sent. Those that were chosen, and no others, leave their device to be read."""
        import torch

        for name, tensor in tensors:
            if name in self._dtypes:
                array = to_numpy(tensor.to(getattr(torch, self._dtypes[name])).cpu())
                self._read[name] = Probe(array.shape, checksum(array))
            yield name, tensor

    def probes(self) -> dict[str, Probe]:
        """Of all that were chosen.

        Raises:
            RuntimeError: one of them was not sent.
        """
        if missing := sorted(self._dtypes.keys() - self._read.keys()):
            raise RuntimeError(
                f"the engines' {', '.join(missing)} were to be checked, and were not among what was sent"
            )
        return self._read


def chosen(names: Sequence[str], version: int) -> list[str]:
    """Up to `PROBED_TENSORS` of the names, others with each version."""
    return [names[i] for i in np.random.default_rng(version).permutation(len(names))[:PROBED_TENSORS]]


def probed(arrays: Mapping[str, np.ndarray], version: int) -> dict[str, Probe]:
    """Probes for the `chosen` of these tensors, as engines hold them."""
    return {name: Probe(arrays[name].shape, checksum(arrays[name])) for name in chosen(sorted(arrays), version)}


def _fits(shape: tuple[int, ...], held: tuple[int, ...]) -> bool:
    """Whether the engine's tensor is the checkpoint's, or that with rows of padding (a vocabulary) behind it."""
    return len(shape) == len(held) and shape[1:] == held[1:] and 0 < shape[0] <= held[0]

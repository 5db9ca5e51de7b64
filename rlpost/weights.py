"""Weights on their way from the learner to the engines, as numpy: what crosses Ray's object store without a copy."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

PROBED_TENSORS = 8
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


def make_probes(arrays: dict[str, np.ndarray], readable: Mapping[str, Held], version: int) -> dict[str, Probe]:
    """Probes for up to `PROBED_TENSORS` of the tensors engines can be asked for, others with each version.

    They are of the bits that an engine makes of an array when it holds it in another dtype.
    """
    import torch

    candidates = [n for n, held in sorted(readable.items()) if n in arrays and _fits(arrays[n].shape, held.shape)]
    if not candidates:
        raise ValueError(
            f"no tensor of the learner ({sorted(arrays)[:3]} ...) can be read back from the engine "
            f"({sorted(readable)[:3]} ...): an update could not be checked"
        )
    kept = {
        name: to_numpy(to_tensor(arrays[name]).to(getattr(torch, readable[name].dtype)))
        for name in chosen(candidates, version)
    }
    return {name: Probe(array.shape, checksum(array)) for name, array in kept.items()}


def chosen(names: Sequence[str], version: int) -> list[str]:
    """Up to `PROBED_TENSORS` of the names, others with each version."""
    return [names[i] for i in np.random.default_rng(version).permutation(len(names))[:PROBED_TENSORS]]


def probed(arrays: Mapping[str, np.ndarray], version: int) -> dict[str, Probe]:
    """Probes for the `chosen` of these tensors, as engines hold them."""
    return {name: Probe(arrays[name].shape, checksum(arrays[name])) for name in chosen(sorted(arrays), version)}


def _fits(shape: tuple[int, ...], held: tuple[int, ...]) -> bool:
    """Whether the engine's tensor is the checkpoint's, or that with rows of padding (a vocabulary) behind it."""
    return len(shape) == len(held) and shape[1:] == held[1:] and 0 < shape[0] <= held[0]

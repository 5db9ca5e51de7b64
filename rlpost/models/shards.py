"""Weights written as they come: safetensors whose headers are known before the first tensor is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlpost.models.weights import INDEX
from rlpost.weights import to_numpy

if TYPE_CHECKING:
    import torch

# Bytes of a file at most, as huggingface_hub has it.
SHARD_SIZE = 5 * 10**9


def write_shards(
    folder: Path,
    described: Mapping[str, torch.Tensor],
    tensors: Iterable[tuple[str, torch.Tensor]],
    shard_size: int = SHARD_SIZE,
) -> None:
    """Write weights as huggingface_hub splits them, over those that were there, and hold no more than one tensor.

    A file is shorter than its header says, and an index is not there, until the last tensor is written.

    Args:
        described: every tensor, on the meta device.
        tensors: the same in the same order, with their numbers, on any device.

    Raises:
        ValueError: what comes is not what was described.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    plan = split_torch_state_dict_into_shards(dict(described), max_shard_size=shard_size)
    for old in [folder / INDEX, *folder.glob("model*.safetensors")]:
        old.unlink(missing_ok=True)
    for file, names in plan.filename_to_tensors.items():
        (folder / file).write_bytes(_header({name: described[name] for name in names}))
    coming = iter(described.items())
    for name, tensor in tensors:
        wanted, kind = next(coming, (None, None))
        if name != wanted or kind is None or (kind.dtype, kind.shape) != (tensor.dtype, tensor.shape):
            raise ValueError(f"{name}, {tensor.dtype} {tuple(tensor.shape)}, came where {wanted} was to come, {kind}")
        with (folder / plan.tensor_to_filename[name]).open("ab") as shard:
            shard.write(to_numpy(tensor.cpu()).reshape(-1).data)
    if missing := [name for name, _ in coming]:
        raise ValueError(f"{len(missing)} of {len(described)} tensors did not come, {missing[0]} the first of them")
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _header(described: Mapping[str, torch.Tensor]) -> bytes:
    """What a file of safetensors begins with: the length of its JSON as 8 bytes, little endian, and the JSON.

    It is padded to whole words; the offsets count from behind it.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in described.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _name(tensor), "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _name(tensor: torch.Tensor) -> str:
    """Of a dtype, as safetensors calls it."""
    return {"torch.float32": "F32", "torch.bfloat16": "BF16"}[str(tensor.dtype)]

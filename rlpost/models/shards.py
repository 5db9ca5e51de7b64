"""Weights written as they come: safetensors whose headers are known before the first tensor is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rlpost.models.weights import INDEX
from rlpost.weights import to_numpy

if TYPE_CHECKING:
    import torch


def write_shards(
    folder: Path, described: Mapping[str, torch.Tensor], tensors: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Write weights as huggingface_hub splits them, over those that were there, and hold no more than one tensor.

    Args:
        described: every tensor, on the meta device.
        tensors: the same, with their numbers, on any device; best in the same order.

    Raises:
        ValueError: one is missing, comes twice, or is not what was described.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    plan = split_torch_state_dict_into_shards(dict(described))
    for old in [folder / INDEX, *folder.glob("model*.safetensors")]:
        old.unlink(missing_ok=True)
    files = {name: folder / file for file, names in plan.filename_to_tensors.items() for name in names}
    starts: dict[str, int] = {}
    for file, names in plan.filename_to_tensors.items():
        with (folder / file).open("wb") as new:
            starts |= _begin(new, {name: described[name] for name in names})
    missing = dict(described)
    for name, tensor in tensors:
        expected = missing.pop(name, None)
        if expected is None or (expected.dtype, expected.shape) != (tensor.dtype, tensor.shape):
            raise ValueError(
                f"{name}, {tensor.dtype} {tuple(tensor.shape)}, comes twice or was described as {expected}"
            )
        with files[name].open("r+b") as shard:
            shard.seek(starts[name])
            shard.write(to_numpy(tensor.cpu()).reshape(-1).data)
    if missing:
        raise ValueError(f"{len(missing)} of {len(described)} tensors did not come, such as {sorted(missing)[:3]}")
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _begin(file: BinaryIO, described: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Write the header of a file of safetensors, and make it as long as it will be. Returns where each tensor begins.

    The format: the length of the header as 8 bytes, little endian; the header, JSON, padded to whole words; the data.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name, tensor in described.items():
        starts[name] = start = end
        end += tensor.nbytes
        header[name] = {"dtype": _name(tensor), "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + end)
    return {name: 8 + len(text) + start for name, start in starts.items()}


def _name(tensor: torch.Tensor) -> str:
    """Of a dtype, as safetensors calls it."""
    return {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}[str(tensor.dtype)]

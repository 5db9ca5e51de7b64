"""What a checkpoint on disk holds, from the headers of its safetensors: no weight is read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

INDEX = "model.safetensors.index.json"
# Pickles are programs, and a program that comes with a model is not run.
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class WeightsError(ValueError):
    """A checkpoint that cannot be read. The message says which file and what is wrong with it."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint: its type as safetensors calls it (BF16, F32, ...), and its shape."""

    dtype: str
    shape: tuple[int, ...]


def tensors_on_disk(folder: Path) -> dict[str, Tensor]:
    """The tensors by name, of `model.safetensors` or of the files that its index names.

    Raises:
        WeightsError: there are none, a file is missing or cut off, or what is there is of another format.
    """
    files = _files(folder)
    found: dict[str, Tensor] = {}
    for file in files:
        found |= _header(file)
    if not found:
        raise WeightsError(f"{files[0]} holds no tensor")
    return found


def parameter_count(folder: Path) -> int:
    """Numbers in all tensors of a checkpoint on disk.

    Raises:
        WeightsError: as `tensors_on_disk`.
    """
    return sum(math.prod(tensor.shape) for tensor in tensors_on_disk(folder).values())


def _files(folder: Path) -> list[Path]:
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.is_file():  # what transformers looks for first
        return [whole]
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise WeightsError(f"{index} is no index of weights, perhaps cut off: {error}") from None
        if missing := [name for name in named if not (folder / name).is_file()]:
            raise WeightsError(
                f"{len(missing)} of {len(named)} files of weights are missing, {missing[0]} among them: the download or "
                "the copy is not whole"
            )
        return [folder / name for name in named]
    if parts := sorted(folder.glob("*.safetensors")):
        raise WeightsError(
            f"it has {parts[0].name}, but neither model.safetensors nor {INDEX}: the download or the copy is not whole"
        )
    if pickles := sorted(file for pattern in PICKLES for file in folder.glob(pattern)):
        raise WeightsError(
            f"its weights are pickles ({pickles[0].name}), which are programs and are not run: convert them where you "
            "trust them, with transformers' save_pretrained, and give that folder"
        )
    raise WeightsError("it has no weights: there is no model.safetensors")


def _header(file: Path) -> dict[str, Tensor]:
    """The header of one file, whose size must be what the header says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 0 < length <= size - 8:
            raise WeightsError(f"{file} is cut off, or no safetensors: it has {size:,} bytes")
        try:
            header = json.loads(stream.read(length))
            entries = {name: value for name, value in header.items() if name != "__metadata__"}
            end = max((value["data_offsets"][1] for value in entries.values()), default=0)
            found = {name: Tensor(value["dtype"], tuple(value["shape"])) for name, value in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{file} is no safetensors: its header cannot be read: {error!r}") from None
    if size != 8 + length + end:
        raise WeightsError(f"{file} is cut off: it has {size:,} bytes of {8 + length + end:,}")
    return found

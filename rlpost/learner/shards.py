"""How DeepSpeed writes and reads the files of a checkpoint here: as tensors and plain data, never as code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from rlpost import torch_files


def load(path: Path, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """What is in a file of DeepSpeed's.

    Raises:
        ValueError: it would run code.
    """
    return torch_files.load(path, (LossScaler, ZeroStageEnum, fragment_address), map_location, mmap)


class Shards(TorchCheckpointEngine):
    """DeepSpeed asks the engine's `checkpoint_engine` for every file of `save_checkpoint` and `load_checkpoint`."""

    def save(self, state_dict: Any, path: str) -> None:
        torch.save(state_dict, path)

    def load(self, path: str, map_location: Any = None) -> Any:
        return load(Path(path), map_location)

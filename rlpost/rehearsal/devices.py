"""The devices a process was given, by name alone, and torch as it looks on a machine that has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from rlpost.rehearsal import VARIABLE

TRANSFER_MODULES = tuple(
    f"vllm.distributed.weight_transfer.{name}"
    for name in ("base", "nccl_common", "nccl_engine", "packed_tensor", "ipc_engine")
)


def index() -> int:
    """Which of this process's GPUs it computes on: in a tensor-parallel engine, that of the worker's number."""
    from vllm.distributed import parallel_state

    return int(parallel_state.get_world_group().local_rank) if parallel_state.model_parallel_is_initialized() else 0


def gpu() -> str:
    """The GPU of this process: the same for two processes if they share it.

    Raises:
        RuntimeError: Ray gave the process none.
    """
    given = [number for number in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if number]
    if index() >= len(given):
        raise RuntimeError(
            f"worker {index()} of a process that was given {len(given)} GPUs has none: no transfer of GPUs"
        )
    return f"{os.environ[VARIABLE]}/{given[index()]}"


class _Stream:
    """What is queued on it is done already."""

    def __init__(self, device: Any = None) -> None:
        self.cuda_stream = 0

    def synchronize(self) -> None:
        return None


class Cuda:
    """Of `torch.cuda` what transfers call."""

    Stream = _Stream

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def current_stream(device: Any = None) -> _Stream:
        return _Stream()

    @staticmethod
    @contextmanager
    def stream(stream: _Stream) -> Iterator[None]:
        yield

    @staticmethod
    def synchronize(device: Any = None) -> None:
        return None

    @staticmethod
    def ipc_collect() -> None:
        return None

    @staticmethod
    def get_device_properties(device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(uuid=gpu())


class Accelerator:
    """Of `torch.accelerator` what transfers call."""

    @staticmethod
    def current_device_index() -> int:
        return index()

    @staticmethod
    def synchronize(device: Any = None) -> None:
        return None


class Torch(ModuleType):
    """torch, with devices that compute on the CPU."""

    cuda, accelerator = Cuda, Accelerator

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def empty(*size: Any, device: Any = None, **how: Any) -> torch.Tensor:
        return torch.empty(*size, device="cpu" if str(device).startswith("cuda") else device, **how)

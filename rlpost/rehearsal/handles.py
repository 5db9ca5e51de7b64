"""In the place of CUDA IPC: tensors that two processes of one node share, by handles in the shape of CUDA's."""

from __future__ import annotations

import os
from typing import Any

import torch

from rlpost.rehearsal import VARIABLE


def reduce_tensor(tensor: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
    """What opens a tensor elsewhere, and the arguments for that. The tensor's storage is shared memory from here on.

    As of CUDA's handles the seventh argument is the number of the device, and nothing keeps the memory alive.
    """
    storage = tensor.untyped_storage()
    handle = (os.environ[VARIABLE], *storage._share_filename_cpu_())
    size, stride = tuple(tensor.size()), tensor.stride()
    return rebuild_tensor, (torch.Tensor, size, stride, tensor.storage_offset(), type(storage), tensor.dtype, 0, handle)


def rebuild_tensor(
    cls: Any, size: Any, stride: Any, offset: int, storage_cls: Any, dtype: torch.dtype, device: Any, handle: Any
) -> torch.Tensor:
    """Open what `reduce_tensor` shared.

    Raises:
        RuntimeError: another node did.
    """
    node, *shared = handle
    if node != os.environ[VARIABLE]:
        raise RuntimeError(f"CUDA IPC: invalid handle: it is of node {node} and was opened on {os.environ[VARIABLE]}")
    storage = torch.UntypedStorage._new_shared_filename_cpu(*shared)
    return torch.empty(0, dtype=dtype).set_(storage, offset, size, stride)

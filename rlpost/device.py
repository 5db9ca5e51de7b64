"""What a machine does only when it has GPUs, and nothing else: everything beyond this file runs on CPU, tests included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


def names() -> list[str]:
    """The GPUs this process sees."""
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if present() else []


def present() -> bool:
    """Whether this process sees a GPU that torch can use."""
    import torch

    return torch.cuda.is_available()


def memory_in_use() -> list[str]:
    """What each GPU of this machine has in use, by whomever: asked of the driver, without a context of this process's."""
    try:
        import pynvml
    except ImportError:  # not among what is installed for CPU
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, so no GPU
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
    finally:
        pynvml.nvmlShutdown()
    return [f"GPU {i} {one.used / 2**30:.1f} of {one.total / 2**30:.1f} GiB" for i, one in enumerate(found)]


def take(on_gpu: bool) -> torch.device:
    """The device this process computes on. An actor sees no GPU but its own, so that is the first."""
    import torch

    if not on_gpu:
        return torch.device("cpu")
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def collectives(on_gpu: bool) -> Literal["nccl", "gloo"]:
    """The backend of torch.distributed between learner ranks."""
    return "nccl" if on_gpu else "gloo"


def settle(tensors: Iterable[torch.Tensor]) -> None:
    """Wait until work that was queued for these tensors is done, so that any stream may read them."""
    import torch

    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.current_stream().synchronize()


def lend(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, whose memory is not used again before what the current stream is asked for until then is done."""
    import torch

    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream())
    return tensor

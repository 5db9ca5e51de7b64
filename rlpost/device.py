"""What a machine does only when it has GPUs, and nothing else: everything beyond this file runs on CPU, tests included."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


def present() -> bool:
    """Whether this process sees a GPU that torch can use."""
    import torch

    return torch.cuda.is_available()


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine; sizes in GiB."""

    name: str
    used_gb: float
    total_gb: float


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver of this machine, and the GPUs it knows."""

    version: str
    gpus: tuple[Gpu, ...]


def driver() -> Driver | None:
    """What the driver says of this machine's GPUs, whoever uses them, without a context of this process's; None: there is
    no driver."""
    try:
        import pynvml
    except ImportError:  # not among what is installed for CPU
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        sizes = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
        version = pynvml.nvmlSystemGetDriverVersion()
    finally:
        pynvml.nvmlShutdown()
    gpus = (Gpu(n, one.used / 2**30, one.total / 2**30) for n, one in zip(names, sizes, strict=True))
    return Driver(version, tuple(gpus))


def memory_in_use() -> list[str]:
    """What each GPU of this machine has in use, in words."""
    found = driver()
    gpus = found.gpus if found is not None else ()
    return [f"GPU {i} {gpu.used_gb:.1f} of {gpu.total_gb:.1f} GiB" for i, gpu in enumerate(gpus)]


def nccl() -> str | None:
    """The version of NCCL that torch has; None: it has none."""
    import torch

    return ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda is not None else None


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


def wide_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """float32 (N, K) of (N, M) and (M, K) of a narrower dtype, whose products and sums are not rounded to it."""
    import torch

    if left.is_cuda:  # as fast as a product that is rounded, and without a copy of either in float32
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


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

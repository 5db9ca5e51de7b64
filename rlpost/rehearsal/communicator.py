"""In the place of vLLM's `PyNcclCommunicator`: broadcasts by gloo, and the mistakes that NCCL does not forgive."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore

from rlpost.rehearsal.devices import gpu

DTYPES = {
    dtype: number
    for number, dtype in enumerate(
        (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32)
    )
}


class Communicator:
    """A rank of a group. Where NCCL would wait for ever, go wrong in silence or end the process, this raises, on all ranks.

    Args:
        group: vLLM's `StatelessProcessGroup`: rank, world_size and the store that its ranks share.
        device: number of the device, which none here is.
        deadline: seconds for the others to come, and for each broadcast.

    Raises:
        RuntimeError: a rank is taken by more than one process or by none, or two processes are on one GPU.
    """

    def __init__(self, group: Any, device: Any, library_path: str | None = None, deadline: float = 60.0) -> None:
        from vllm.distributed.utils import init_gloo_process_group

        self.rank, self.world_size, self.device = group.rank, group.world_size, torch.device("cpu")
        self.available, self.disabled = True, False
        self._calls = 0
        store = PrefixStore("stand_in", group.store)
        self._refuse_wrong_group(store, deadline)
        self._gloo = init_gloo_process_group(
            PrefixStore("gloo", store), self.rank, self.world_size, timedelta(seconds=deadline)
        )

    def _refuse_wrong_group(self, store: Any, deadline: float) -> None:
        number = store.add(f"processes/{self.rank}", 1)
        store.set(f"gpu/{self.rank}/{number}", gpu())
        store.add("processes", 1)
        end = time.monotonic() + deadline
        while store.add("processes", 0) < self.world_size and time.monotonic() < end:
            time.sleep(0.01)
        processes = {rank: store.add(f"processes/{rank}", 0) for rank in range(self.world_size)}
        if set(processes.values()) != {1}:
            raise RuntimeError(f"NCCL: rank {self.rank} of {self.world_size} joined; processes by rank: {processes}")
        gpus = [store.get(f"gpu/{rank}/1").decode() for rank in range(self.world_size)]
        if len(set(gpus)) < len(gpus):
            raise RuntimeError(
                f"NCCL: Duplicate GPU detected: ranks 0 to {self.world_size - 1} are on {', '.join(gpus)}"
            )

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        """From rank `src` into the tensors of all others.

        Raises:
            RuntimeError: ranks differ in what they broadcast; a tensor does not lie in one piece.
        """
        if not tensor.is_contiguous():
            raise RuntimeError("NCCL: reads elements from a tensor's first on, and this one does not lie in one piece")
        self._calls += 1
        call = torch.tensor([self._calls, src, tensor.numel(), DTYPES[tensor.dtype]])
        calls = [torch.empty_like(call) for _ in range(self.world_size)]
        self._gloo.allgather(calls, call).wait()
        if any(not torch.equal(other, call) for other in calls):
            asked = "; ".join(f"rank {rank}: {c.tolist()}" for rank, c in enumerate(calls))
            raise RuntimeError(f"NCCL: ranks differ in (call, source, elements, dtype) of a broadcast: {asked}")
        if tensor.numel():
            self._gloo.broadcast(tensor.view(-1).view(torch.uint8), src).wait()

"""vLLM's own weight transfer from the learner's side: to engines that know nothing of each other, and with an end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from vllm.distributed.weight_transfer.base import WeightSource, WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from rlpost.faults import DeadlineError, begun

T = TypeVar("T")
ANSWER = 5.0  # seconds for an engine to say what it does


class EngineLostError(RuntimeError):
    """An engine failed in a transfer of weights."""


class IndependentEngines:
    """vLLM's `VLLMWeightSyncClient` for engines of their own, each of which takes itself for the only one.

    vLLM's client for Ray is meant for the replicas of one data-parallel engine: all get the same request, and a worker
    knows its replica's number. Here all numbers are 0, so that the ranks of each engine's workers have to be said.

    Args:
        engines: handles of `rlpost.rollout.engine.Engine`.
        workers: of one engine.
        deadline: seconds to join.
    """

    def __init__(self, engines: Sequence[Any], workers: int, deadline: float) -> None:
        self._engines, self._workers, self._deadline = engines, workers, deadline
        self._pending: dict[Any, int] = {}
        self.failed: Future[None] = Future()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        def request(engine: int) -> WeightTransferInitRequest:
            ranks = {"rank_offset": 1 + engine * self._workers} if "rank_offset" in init_info else {}
            return WeightTransferInitRequest(init_info={**init_info, **ranks})

        self._all(lambda i, e: e.init_weight_transfer_engine.remote(request(i), self._deadline), "join the transfer")

    def start_weight_update(self) -> None:
        self._all(lambda _, e: e.start_weight_update.remote(), "start a weight update")

    def update_weights(self, update_info: Any) -> None:
        request = WeightTransferUpdateRequest(update_info=update_info)
        self._all(lambda _, e: e.update_weights.remote(request), "take weights")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all(lambda _, e: e.finish_weight_update.remote(), "finish a weight update")

    def _all(self, call: Callable[[int, Any], Any], what: str) -> None:
        """Call every engine and wait for all: for how long is up to `watched`."""
        import ray

        self._pending = pending = {call(i, e): i for i, e in enumerate(self._engines)}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            try:
                ray.get(done)
            except Exception as error:
                lost = EngineLostError(f"engine {pending[done]} could not {what}: {getattr(error, 'cause', error)}")
                if not self.failed.done():
                    self.failed.set_exception(lost)
                raise lost from error
            del pending[done]

    def late(self) -> str:
        """Of each engine that has not answered the latest call, how far it has come."""
        import ray

        def said(engine: Any) -> str:
            try:
                return str(ray.get(engine.joining.remote(), timeout=ANSWER))
            except Exception as error:  # noqa: BLE001 - what is asked for is what can be said of it
                return f"does not answer ({type(error).__name__})"

        return "; ".join(f"engine {i} {said(self._engines[i])}" for i in sorted(self._pending.values()))


class Transfer:
    """A sender that has found its engines."""

    def __init__(self, sender: Any, client: IndependentEngines) -> None:
        self._sender, self._client = sender, client

    def send(self, deadline: float) -> None:
        """One update, from the source it was connected with. All ranks.

        Raises:
            EngineLostError: an engine failed; the transfer cannot be used any more.
            DeadlineError: after so many seconds.
        """
        watched(self._sender.send_weights, self._client, deadline, "the engines to take weights")


def connect(
    backend: str,
    engines: Sequence[Any],
    workers: int,
    rank: int,
    master: tuple[str, int],
    source: WeightSource,
    buffer: int,
    deadline: float,
) -> Transfer:
    """Set vLLM's transfer up. Called on every learner rank, of which 0 sends.

    Args:
        backend: `nccl` or `ipc`.
        workers: of one engine.
        rank: of the learner's.
        master: host and port where rank 0 is going to listen.
        buffer: bytes that are sent at once: at least those of the largest tensor. NCCL has two such buffers.
        deadline: seconds for the engines to join.

    Raises:
        EngineLostError: one could not join.
        DeadlineError: not all have come, and what each is doing.
    """
    buffers: dict[str, Any] = {"packed": True, "packed_buffer_size_bytes": buffer}
    info: Any = (
        NCCLTrainerInitInfo(
            rank=rank,
            master_address=master[0],
            master_port=master[1],
            world_size=1 + workers * len(engines),
            **buffers,
        )
        if backend == "nccl"
        else IPCTrainerInitInfo(rank=rank, **buffers)
    )
    client = IndependentEngines(engines, workers, deadline)
    return Transfer(
        watched(
            lambda: WeightTransferTrainerFactory.trainer_init(info, client=client, source=source),
            client,
            deadline,
            "the engines to join the weight transfer",
        ),
        client,
    )


def watched(work: Callable[[], T], client: IndependentEngines, deadline: float, what: str) -> T:
    """`work`, given up when an engine fails or the time is over: it may be in a collective that nobody will join.

    Raises:
        what `work` raises; EngineLostError; DeadlineError.
    """
    began = time.monotonic()
    done = begun(work, "weight transfer")
    ends: list[Future[Any]] = [done, client.failed]
    wait(ends, timeout=deadline, return_when=FIRST_COMPLETED)
    if done.done():
        return done.result()
    if client.failed.done():
        client.failed.result()
    raise DeadlineError(f"waited {time.monotonic() - began:.0f} s for {what}: {client.late() or 'all have answered'}")

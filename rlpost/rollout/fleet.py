"""The engines as the driver sees them: where to send a prompt, and how all of them get new weights."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlpost.actors import crew
from rlpost.config import DType
from rlpost.faults import failpoint, wait
from rlpost.rollout.engine import Engine
from rlpost.rollout.request import EngineSpec, SampleRequest
from rlpost.types import Rollout

if TYPE_CHECKING:
    from rlpost.learner.group import LearnerGroup
    from rlpost.weights import Probe


class Fleet:
    """Starts the engines, hands groups to the least busy, and moves all of them from version to version.

    Args:
        slots: for each engine its place: (placement group, bundle index) or None for anywhere.
    """

    def __init__(
        self,
        spec: EngineSpec,
        slots: Sequence[tuple[Any, int] | None],
        cpus: float,
        gpus: float,
        sync_deadline: float,
        start_deadline: float,
    ) -> None:
        self.spec = spec
        self.version = 0
        self.sync_deadline = sync_deadline
        self._start_deadline = start_deadline
        actor = ray.remote(Engine)
        self.engines = [
            actor.options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_concurrency=10_000,  # groups wait inside the engine, which batches them
                scheduling_strategy=PlacementGroupSchedulingStrategy(*slot) if slot else "DEFAULT",
            ).remote(spec, number)
            for number, slot in enumerate(slots)
        ]
        self.crew = crew("engine", self.engines)
        self._running = [0] * len(self.engines)
        self._starting = [e.start.remote() for e in self.engines]

    @property
    def dtype(self) -> DType:
        """What the engines compute in."""
        return self.spec.dtype

    def ready(self) -> dict[str, Any]:
        """Wait until every engine has its model. Returns what the first says of itself (`Engine.start`).

        Raises:
            AdaptersRefusedError: the engines cannot serve the adapters they were to.
        """
        started = wait(self._starting, self._start_deadline, "the engines to load the model")
        readable = wait([e.readable.remote() for e in self.engines], self._start_deadline, "the engines' tensor names")
        self._readable = {n: s for n, s in readable[0].items() if all(r.get(n) == s for r in readable)}
        return started[0]

    def connect(self, learner: LearnerGroup) -> None:
        """Set up the transport of weights, where it needs setting up."""
        if self.spec.adapters is None and self.spec.weight_transfer != "object_store":
            learner.connect(self.spec.weight_transfer, self.engines, self.spec.tensor_parallel, self.dtype)

    def submit(self, request: SampleRequest) -> Future[list[Rollout]]:
        """Sample a group on the engine with the fewest running groups."""
        index = min(range(len(self.engines)), key=self._running.__getitem__)
        self._running[index] += 1
        future: Future[list[Rollout]] = self.engines[index].generate.remote(request).future()

        def done(_: Future[list[Rollout]]) -> None:
            self._running[index] -= 1

        future.add_done_callback(done)
        return future

    def sync(self, learner: LearnerGroup, version: int, dtype: DType) -> dict[str, float]:
        """Give every engine the learner's weights, or its adapters alone, and let it serve them as `version`.

        An engine that did not take them serves nothing: it raises, here and on any request.

        Returns:
            {"sync/survived": which share of what was trained the engines now hold}, empty before anything was.
        """
        if failpoint("sync.skip", version):
            probes: dict[str, Any] | None = None
        elif self.spec.adapters is not None:  # a few megabytes, whatever way the base would take
            arrays, probes = learner.adapters(dtype, version)
            self._all("load_adapters", arrays, version, what="load adapters")
        elif self.spec.weight_transfer == "object_store":
            parts, probes = learner.weights(dtype, self._readable, version)
            self._all("load_weights", version, *parts, what="load weights")
        else:
            probes = learner.send_weights(dtype, self._readable, version, self.sync_deadline)
        self._all("accept_version", version, probes, what="accept a weight version")
        self.version = version
        share = None if probes is None else learner.survived()
        return {} if share is None else {"sync/survived": share}

    def load_adapters(self, arrays: dict[str, np.ndarray], probes: dict[str, Probe], version: int) -> None:
        """Serve given adapters, without a learner."""
        self._all("load_adapters", ray.put(arrays), version, what="load adapters")
        self._all("accept_version", version, probes, what="accept a weight version")
        self.version = version

    def _all(self, method: str, *args: Any, what: str) -> list[Any]:
        return wait([getattr(e, method).remote(*args) for e in self.engines], self.sync_deadline, f"engines to {what}")

    def shutdown(self) -> None:
        for engine in self.engines:
            ray.kill(engine)

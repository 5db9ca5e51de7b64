"""The learner as the driver sees it: a group of DeepSpeed ranks that act as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlpost.config import DType
from rlpost.faults import wait
from rlpost.learner.batch import Batch, plan
from rlpost.learner.rank import LearnerRank, LearnerSpec, StepPlan
from rlpost.meter import Meter


class LearnerGroup:
    """Starts the ranks, deals batches to them, and speaks to all of them at once.

    Args:
        slots: for each rank its place: (placement group, bundle index) or None for anywhere.
    """

    def __init__(
        self,
        spec: LearnerSpec,
        slots: Sequence[tuple[Any, int] | None],
        cpus: float,
        gpus: float,
        start_deadline: float,
    ) -> None:
        self.spec = spec
        self.deadline = spec.learner.deadline
        actor = ray.remote(LearnerRank)
        self.ranks = [
            actor.options(
                num_cpus=cpus,
                num_gpus=gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(*slot) if slot else "DEFAULT",
            ).remote(rank, len(slots), spec.threads, spec.on_gpu)
            for rank, slot in enumerate(slots)
        ]
        master = wait(self.ranks[0].address.remote(), start_deadline, "learner rank 0 to start")
        self._starting = [r.start.remote(spec, master) for r in self.ranks]
        self._start_deadline = start_deadline

    def ready(self) -> dict[str, Any]:
        """Wait until every rank has its model. Returns what rank 0 says of it (`LearnerRank.start`)."""
        return wait(self._starting, self._start_deadline, "the learner ranks to load the model")[0]

    def _all(self, method: str, *args: Any, what: str) -> list[Any]:
        return wait([getattr(r, method).remote(*args) for r in self.ranks], self.deadline, what)

    def update(self, batch: Batch, version: int) -> Meter:
        """Learn from a batch: `optimizer_steps_per_batch` optimizer steps over contiguous shares of it.

        Args:
            batch: all sequences; those with `learn` False are left out of the loss, never of the forward pass.
            version: the weight version the learner holds.
        """
        lo, world = self.spec.learner, len(self.ranks)
        steps = np.array_split(np.arange(len(batch)), lo.optimizer_steps_per_batch)
        shares: list[list[int]] = [[] for _ in range(world)]
        plans: list[list[StepPlan]] = [[] for _ in range(world)]
        for indices in steps:
            part = batch.select(indices)
            if not part.learned_tokens:
                continue
            cut = plan(part.lengths, world, lo.layout, lo.tokens_per_micro_batch, lo.row_tokens)
            for rank, micro_batches in enumerate(cut):
                # Indices of this step's sequences become indices into the rank's own batch.
                order = sorted({i for m in micro_batches for i in m.sequences})
                local = {i: len(shares[rank]) + k for k, i in enumerate(order)}
                shares[rank] += [int(indices[i]) for i in order]
                plans[rank].append(
                    StepPlan(
                        [m.renumbered(local) for m in micro_batches],
                        sequences=int(part.learn.sum()),
                        tokens=part.learned_tokens,
                    )
                )
        if not plans[0]:
            raise ValueError("no sequence of the batch may be learned from")
        meters = wait(
            [
                rank.update.remote(batch.select(share), rank_plans, version)
                for rank, share, rank_plans in zip(self.ranks, shares, plans, strict=True)
            ],
            self.deadline,
            "the learner ranks to update",
        )
        return Meter.merge(meters).divided(("loss", "policy_loss"), by=len(plans[0]))

    def log_probs(self, batch: Batch) -> list[np.ndarray]:
        """float32 log-probs of each sequence's response under the current weights, in the batch's order."""
        lo = self.spec.learner
        (micro_batches,) = plan(batch.lengths, 1, lo.layout, lo.tokens_per_micro_batch, lo.row_tokens)
        # Every rank runs the same forwards: under ZeRO-3 each is a collective.
        found = self._all("log_probs", batch, micro_batches, what="the learner's log-probs")[0]
        order = [i for m in micro_batches for i in m.sequences]
        return [found[order.index(i)] for i in range(len(batch))]

    def weights(self, dtype: DType, readable: dict[str, tuple[int, ...]], version: int) -> tuple[Any, dict[str, Any]]:
        """A reference to all weights in Ray's object store, and probes to check an engine by."""
        pairs = [r.weights.options(num_returns=2).remote(dtype, readable, version) for r in self.ranks]
        wait([probes for _, probes in pairs], self.deadline, "the learner to gather its weights")
        arrays, probes = pairs[0]
        return arrays, ray.get(probes)

    def connect(self, backend: str, engines: list[Any], world_size: int) -> None:
        """Set vLLM's own transfer (`nccl` or `ipc`) up between rank 0 and the engines' workers."""
        master = wait(self.ranks[0].address.remote(), self.deadline, "an address for the weight transfer")
        self._all("connect", backend, engines, world_size, master, what="the weight transfer to connect")

    def send_weights(self, dtype: DType, readable: dict[str, tuple[int, ...]], version: int) -> dict[str, Any]:
        """Send all weights to the connected engines. Returns probes to check them by."""
        return self._all("send_weights", dtype, readable, version, what="the weights to be sent")[0]

    def save(self, folder: Path) -> None:
        self._all("save", str(folder), what="the learner to save")

    def load(self, folder: Path) -> dict[str, int]:
        states = self._all("load", str(folder), what="the learner to load a checkpoint")
        if any(s != states[0] for s in states):
            raise RuntimeError(f"learner ranks restored different states from {folder}: {states}")
        return states[0]

    def save_model(self, folder: Path) -> None:
        self._all("save_model", str(folder), what="the learner to save its weights")

    def shutdown(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)

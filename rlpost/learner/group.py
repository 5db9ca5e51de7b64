"""The learner as the driver sees it: a group of DeepSpeed ranks that act as one."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlpost.actors import crew
from rlpost.config import DType, Learner
from rlpost.faults import wait
from rlpost.learner.batch import Batch, MicroBatch, plan
from rlpost.learner.rank import LearnerRank
from rlpost.learner.spec import LearnerSpec, StepPlan
from rlpost.meter import Meter
from rlpost.weights import Held

ANSWER = 60.0  # seconds for ranks to say what they waited for
JOIN_DEADLINE = 60.0  # seconds for engines to join a weight transfer: they are up, and have nothing else to do


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
        self.crew = crew("learner rank", self.ranks)
        master = wait(self.ranks[0].rendezvous.remote(), start_deadline, "learner rank 0 to start")
        self._starting = [r.start.remote(spec, master, patience(spec.learner, start_deadline)) for r in self.ranks]
        self._start_deadline = start_deadline

    def ready(self) -> dict[str, Any]:
        """Wait until every rank has its model. Returns what rank 0 says of it (`LearnerRank.start`)."""
        return wait(self._starting, self._start_deadline, "the learner ranks to load the model")[0]

    def _all(self, method: str, *args: Any, what: str, within: float = 0.0) -> list[Any]:
        """Call all ranks. `within` so many seconds a rank ends by itself, and knows better what to say of it."""
        refs = [getattr(r, method).remote(*args) for r in self.ranks]
        return wait(refs, max(self.deadline, within + ANSWER), what)

    def score(self, batch: Batch, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """What the learner and its anchors say of every response token, under the weights as they are now.

        Args:
            wanted: of `old_logp`, `entropy`, `routes` and `anchors.<name>`.

        Returns:
            by name, in the batch's order, float32 (sum of response lengths); as `routes` the experts the policy chose,
            uint8 or uint16 (sum of lengths, layers, top_k).
        """
        names = sorted(wanted)
        if not names:
            return {}
        lo = self.spec.learner
        cut = plan(batch.lengths, len(self.ranks), lo.layout, lo.tokens_per_micro_batch, lo.row_tokens)
        found = wait(
            [
                rank.score.remote(batch.select(order), [m.renumbered(local) for m in micro_batches], names)
                for rank, micro_batches in zip(self.ranks, cut, strict=True)
                for order, local in [_own(micro_batches)]
            ],
            self.deadline,
            "the learner ranks to score",
        )
        order = np.argsort([i for micro_batches in cut for m in micro_batches if not m.muted for i in m.sequences])

        def whole(name: str) -> np.ndarray:
            arrays = [array for values in found for array in values[name]]
            return np.concatenate([arrays[k] for k in order])

        return {name: whole(name) for name in names}

    def log_probs(self, batch: Batch, name: str = "old_logp") -> list[np.ndarray]:
        """float32 log-probs of each sequence's response under the current weights, in the batch's order.

        Args:
            name: what `score` calls them: the policy's, or `anchors.<name>`.
        """
        return np.split(self.score(batch, [name])[name], np.cumsum(batch.response_lengths)[:-1])

    def update(self, batch: Batch, version: int, coefs: Mapping[str, float] | None = None) -> Meter:
        """Learn from a batch: `optimizer_steps_per_batch` optimizer steps over shares of it.

        Args:
            version: the weight version the learner holds.
            coefs: of the terms that have one coefficient for all sequences.
        """
        lo, world = self.spec.learner, len(self.ranks)
        shares: list[list[int]] = [[] for _ in range(world)]
        plans: list[list[StepPlan]] = [[] for _ in range(world)]
        bare = batch.without_routes()
        for indices in bare.shares(lo.optimizer_steps_per_batch):
            part = bare.select(indices)
            if not part.learned_tokens:
                continue
            cut = plan(part.lengths, world, lo.layout, lo.tokens_per_micro_batch, lo.row_tokens, part.units)
            counts = part.counts()
            for rank, micro_batches in enumerate(cut):
                order, local = _own(micro_batches)
                local = {i: len(shares[rank]) + k for i, k in local.items()}
                shares[rank] += [int(indices[i]) for i in order]
                plans[rank].append(StepPlan([m.renumbered(local) for m in micro_batches], counts))
        if not plans[0]:
            raise ValueError("no sequence of the batch may be learned from")
        meters = wait(
            [
                rank.update.remote(batch.select(share), rank_plans, version, coefs or {})
                for rank, share, rank_plans in zip(self.ranks, shares, plans, strict=True)
            ],
            self.deadline,
            "the learner ranks to update",
        )
        merged = Meter.merge(meters)
        sums = [name for name in merged.entries if name in ("loss", "policy_loss") or name.startswith("loss/")]
        return merged.divided(sums, by=len(plans[0]))

    def move_anchor(self, name: str, amount: float, clear_optimizer: bool) -> None:
        """anchor <- (1 - amount) anchor + amount policy on all ranks; then, if asked, the optimizer forgets."""
        self._all("move_anchor", name, amount, clear_optimizer, what=f"anchor {name} to move")

    def weights(self, dtype: DType, readable: dict[str, Held], version: int) -> tuple[list[Any], dict[str, Any]]:
        """References to all weights in Ray's object store, a part each, and probes to check an engine by."""
        found: tuple[list[Any], dict[str, Any]] = self._all(
            "weights", dtype, readable, version, what="the learner to gather its weights"
        )[0]
        return found

    def adapters(self, dtype: DType, version: int) -> tuple[Any, dict[str, Any]]:
        """A reference to the adapters alone, as engines serve them, and probes: `LearnerRank.adapters`."""
        pairs = [r.adapters.options(num_returns=2).remote(dtype, version) for r in self.ranks]
        wait([probes for _, probes in pairs], self.deadline, "the learner to gather its adapters")
        arrays, probes = pairs[0]
        return arrays, ray.get(probes)

    def survived(self) -> float | None:
        """Which share of what was trained the latest weights for the engines hold: `rlpost.learner.survival`."""
        share: float | None = wait(self.ranks[0].survived.remote(), self.deadline, "what survived the weight update")
        return share

    def connect(
        self, backend: str, engines: list[Any], workers: int, dtype: DType, deadline: float = JOIN_DEADLINE
    ) -> None:
        """Set vLLM's own transfer (`nccl` or `ipc`) up between the ranks and the engines, which compute in `dtype`.

        Args:
            workers: of each engine.
            deadline: seconds for the engines to join.
        """
        master = wait(self.ranks[0].address.remote(), self.deadline, "an address for the weight transfer")
        what = "the weight transfer to connect"
        self._all("connect", backend, engines, workers, dtype, master, deadline, what=what, within=deadline)

    def send_weights(self, dtype: DType, readable: dict[str, Held], version: int, deadline: float) -> dict[str, Any]:
        """Send all weights to the connected engines, within a deadline. Returns probes to check them by."""
        what = "the weights to be sent"
        return self._all("send_weights", dtype, readable, version, deadline, what=what, within=deadline)[0]

    def unshared(self, folder: Path) -> str | None:
        """What is wrong when ranks, on which machines, do not see what the driver makes in a folder."""
        # Of a name that no other machine's disk can have: one of the same path may be there too.
        with tempfile.TemporaryDirectory(prefix=".shared-", dir=folder) as made:
            seen = self._all("sees", made, what=f"the learner to look for {folder}")
        blind = [f"rank {rank} on {machine}" for rank, (sees, machine) in enumerate(seen) if not sees]
        if not blind:
            return None
        return f"{folder} cannot be seen by {', '.join(blind)}: runs_dir must be on a file system that all nodes share"

    def save(self, folder: Path, step: int = 0) -> None:
        """Write what was trained and each rank's state, of a step, into a folder."""
        self._all("save", str(folder), step, what="the learner to save")

    def load_weights(self, folder: Path, taken: int, anchors: bool) -> None:
        """See `LearnerRank.load_weights`."""
        self._all("load_weights", str(folder), taken, anchors, what="the learner to load the weights of a checkpoint")

    def load(self, folder: Path, anchors: bool = True) -> dict[str, float]:
        states = self._all("load", str(folder), anchors, what="the learner to load a checkpoint")
        if any(s != states[0] for s in states):
            raise RuntimeError(f"learner ranks restored different states from {folder}: {states}")
        return states[0]

    def save_model(self, folder: Path) -> float | None:
        """Write merged weights. Returns which share of adapters survives in their dtype; None without any."""
        share: float | None = self._all("save_model", str(folder), what="the learner to save its weights")[0]
        return share

    def shutdown(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)


def patience(learner: Learner, start_deadline: float) -> float:
    """Seconds a rank waits for another: at least as long as the driver, which knows what to say, waits for all.

    Before the first collective each node may have weights to download, and in a save rank 0 writes while others wait.
    """
    return max(start_deadline, learner.deadline)


def _own(micro_batches: Sequence[MicroBatch]) -> tuple[list[int], dict[int, int]]:
    """The sequences of a rank's micro-batches, and the number each has in the rank's own batch."""
    order = sorted({i for m in micro_batches for i in m.sequences})
    return order, {i: k for k, i in enumerate(order)}

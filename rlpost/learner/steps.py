"""What a learner rank does with a batch: score it under the weights as they are, and learn from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlpost.faults import strike
from rlpost.learner.batch import Batch, MicroBatch
from rlpost.learner.learning_rate import Course, learning_rate
from rlpost.learner.spec import LearnerSpec, StepPlan
from rlpost.meter import Meter


class Steps:
    """The steps of a rank that is started (`rlpost.learner.rank`). All ranks at once, as each holds collectives.

    Attributes:
        engine: DeepSpeed's, around a `Policy`.
        anchors: `References`.
        terms: the `Objective`.
        optimizer_steps: taken so far; with `course` and `begin` they say the learning rate.
    """

    rank: int
    world: int
    spec: LearnerSpec
    device: Any
    engine: Any
    anchors: Any
    terms: Any
    optimizer_steps: int
    begin: int
    course: Course

    def score(
        self, batch: Batch, micro_batches: list[MicroBatch], wanted: Sequence[str]
    ) -> dict[str, list[np.ndarray]]:
        """Log-probs and entropies under the weights as they are now. All ranks, with as many micro-batches each.

        Args:
            wanted: of `old_logp`, `entropy`, `routes` and `anchors.<name>`.

        Returns:
            by name, for each sequence of the micro-batches that are not muted, in order: float32 (response length,);
            as `routes` the experts the policy chose, uint8 or uint16 (length, layers, top_k).
        """
        import torch

        found: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
        own = [name for name in wanted if not name.startswith("anchors.")]
        with torch.no_grad():
            for micro in micro_batches:
                rows: dict[str, Any] = {}
                grid = self._grid(batch, micro)
                if own:
                    recorded = "routes" in own  # what the routers choose by themselves
                    scored = self._forward(self.engine, grid, live=recorded, record=recorded)
                    rows = {"old_logp": scored.logp, "entropy": scored.entropy}
                for name in set(wanted) - set(own):
                    rows[name] = self._forward(self.anchors.policy(name.removeprefix("anchors.")), grid).logp
                if micro.muted:
                    continue
                for name, values in found.items():
                    if name == "routes":
                        values += self._recorded(batch, micro, grid)
                        continue
                    wide = grid.spread(rows[name]).float().cpu().numpy()
                    values += [wide[b, : int(batch.response_lengths[i])] for b, i in enumerate(micro.sequences)]
        return found

    def _recorded(self, batch: Batch, micro: MicroBatch, grid: Any) -> list[np.ndarray]:
        """The experts the latest forward used, by sequence."""
        used = self.engine.module.routers.recorded[grid.real].cpu().numpy()
        used = used.astype(np.uint16) if used.dtype == np.int16 else used
        return np.split(used, np.cumsum(batch.lengths[micro.sequences])[:-1])

    def update(self, batch: Batch, steps: list[StepPlan], version: int, coefs: Mapping[str, float]) -> Meter:
        """Learn from this rank's share of a batch: one optimizer step for each plan.

        Args:
            batch: this rank's sequences; the plans' indices point into it.
            version: the weight version the learner holds now, to know which sampled tokens are fresh.
            coefs: of the terms that have one coefficient for all sequences.

        Returns:
            metrics of this rank; `Meter.merge` over ranks gives those of the batch.
        """
        import torch

        from rlpost.learner.replay import RouterStats

        meter, replay = Meter(), self.engine.module.replay
        # What the routers did in this update. Every rank adds its part to the sum, also one that was dealt nothing.
        self._routed = None if replay is None else RouterStats(replay.layers, replay.experts, self.device)
        for number, plan in enumerate(steps):
            meter.update(self._optimizer_step(batch, plan, coefs, version, first=number == 0))
        if self._routed is not None:
            torch.distributed.all_reduce(self._routed.totals)  # loads of experts add up over ranks, entropies do not
            if self.rank == 0:
                meter.update(self._routed.meter())
        return meter

    def _grid(self, batch: Batch, micro: MicroBatch) -> Any:
        """The micro-batch as tensors; with a grid of routes, if an empty one, wherever there are routers."""
        from rlpost.learner.batch import make_grid

        return self._routed_grid(make_grid(batch, micro, self.spec.pad_id, self.device))

    def _routed_grid(self, grid: Any) -> Any:
        replay = self.engine.module.replay
        return grid if replay is None or grid.routes is not None else replace(grid, routes=grid.live(replay))

    def _forward(self, policy: Any, grid: Any, full: Any = (), live: bool = False, record: bool = False) -> Any:
        """`LogProbs` of the grid's response tokens, with the divergences asked for.

        Args:
            live: the policy's routers choose, whatever was chosen before. They do so in anchors always.
            record: keep the experts the policy used.
        """
        given: dict[str, Any] = {"segments": grid.segments}
        if policy is self.engine and policy.module.replay is not None:
            given |= {"routes": grid.live(policy.module.replay) if live else grid.routes, "record": record}
        return policy(
            grid.input_ids, grid.position_ids, grid.predictors, grid.targets, self.spec.temperature, full=full, **given
        )

    def _loss_inputs(self, batch: Batch, micro: MicroBatch, coefs: Mapping[str, float]) -> Any:
        """The micro-batch as the objective takes it; forward passes of the policy, and of anchors held whole."""
        import torch

        from rlpost.objective import LossInputs, TermInputs

        grid = self._grid(batch, micro)
        exact = self.terms.exact
        full = [self.anchors.against(anchor, grid, divergence) for anchor, divergence in exact.values()]
        logp, entropy, divergences = self._forward(self.engine, grid, full)
        rows = batch.select(micro.sequences)

        wide = {name: grid.place(values) for name, values in rows.per_token.items()}
        by_family: dict[str, dict[str, Any]] = {"anchors": {}, "where": {}}
        for name, values in wide.items():
            family, dot, label = name.partition(".")
            if dot:
                by_family[family][label] = values
        behavior = grid.place(rows.behavior_logp)
        logp, entropy = grid.spread(logp), grid.spread(entropy)
        old = behavior if self.terms.proximal == "behavior" else wide.get("old_logp", logp.detach())
        by_row = {
            name.removeprefix("coef."): torch.from_numpy(values).to(self.device)
            for name, values in rows.per_sequence.items()
        }
        return (
            LossInputs(
                tokens=TermInputs(
                    logp=logp,
                    old_logp=old,
                    behavior_logp=behavior,
                    anchors={**by_family["anchors"], "old_policy": old},
                    advantages=grid.place(rows.advantages),
                    weights=wide.get("weights", torch.ones_like(behavior)),
                    mask=grid.place(rows.mask, False) & (not micro.muted),
                    entropy=entropy,
                    group=torch.from_numpy(rows.group).to(self.device),
                    full={label: grid.spread(value) for label, value in zip(exact, divergences, strict=True)},
                ),
                source=torch.from_numpy(rows.source.astype(np.int64)).to(self.device),
                keep=wide.get("keep"),
                where=by_family["where"],
                coefs={**coefs, **by_row},
            ),
            grid.place(rows.versions, fill=-1),
            wide.get("old_logp"),
        )

    def _optimizer_step(
        self, batch: Batch, plan: StepPlan, coefs: Mapping[str, float], version: int, first: bool
    ) -> Meter:
        from rlpost.objective import Denominators, mismatch_metrics

        meter = Meter()
        denominators = {name: Denominators(*count, self.spec.response_limit) for name, count in plan.counts.items()}
        norm: float | None = None
        lr = learning_rate(self.spec.learner, self.optimizer_steps, self.course, self.begin)
        for k, micro in enumerate(plan.micro_batches):
            if first and k == 0 and self._compares(version):
                meter.update(self._live_mismatch(batch, micro))
            strike("rank.forward", version + 1, self.rank)
            inputs, versions, scored = self._loss_inputs(batch, micro, coefs)
            if self._routed is not None and not micro.muted:
                self._routed.add(self.engine.module.routers)
            loss, metrics = self.terms.loss(inputs, denominators)
            meter.update(metrics)
            if scored is not None or first:  # later steps of a batch have moved away from what sampled it
                tokens = inputs.tokens
                learner = tokens.logp.detach() if scored is None else scored
                sampled = tokens.mask & (versions >= 0)
                meter.update(_mismatch(learner, tokens.behavior_logp, sampled, versions == version))
                if first and k == 0 and self._compares(version):
                    meter.update(mismatch_metrics(learner, tokens.behavior_logp, sampled, "mismatch_replay"))
            # DeepSpeed averages gradients over ranks; our loss is already one share of a global sum.
            strike("rank.backward", version + 1, self.rank)
            self.engine.set_gradient_accumulation_boundary(k == len(plan.micro_batches) - 1)
            self.engine.backward(loss * self.world)
            if k == len(plan.micro_batches) - 1:
                for group in self.engine.optimizer.param_groups:
                    group["lr"] = lr
                norm = self._grad_norm()
                strike("rank.optimizer", version + 1, self.rank)
            self.engine.step()
        norm = self.engine.get_global_grad_norm() if norm is None else norm
        meter.max("grad_norm", float(norm))
        meter.max("lr", lr)
        self.optimizer_steps += 1
        return meter

    def _compares(self, version: int) -> bool:
        """Whether the step from this version measures what replay does."""
        every = self.spec.routing.compare_every
        return self.spec.routing.replay == "r3" and every > 0 and version % every == 0

    def _live_mismatch(self, batch: Batch, micro: MicroBatch) -> Meter:
        """Engine against learner on the micro-batch's sampled tokens, as it would be without replay."""
        import torch

        from rlpost.objective import mismatch_metrics

        grid, rows = self._grid(batch, micro), batch.select(micro.sequences)
        with torch.no_grad():
            logp = grid.spread(self._forward(self.engine, grid, live=True).logp)
        sampled = grid.place(rows.mask, False) & (grid.place(rows.versions, -1) >= 0) & (not micro.muted)
        return mismatch_metrics(logp, grid.place(rows.behavior_logp), sampled, "mismatch_live")

    def move_anchor(self, name: str, amount: float, clear_optimizer: bool) -> None:
        """anchor <- (1 - amount) anchor + amount policy; then, if asked, the optimizer forgets. All ranks."""
        import torch

        self.anchors.move(name, amount, self.engine.module)
        if not clear_optimizer:
            return
        optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        for state in optimizer.state.values():  # moments and step counts; the weights and their float32 copies stay
            for key, value in state.items():
                state[key] = torch.zeros_like(value) if isinstance(value, torch.Tensor) else 0

    def _grad_norm(self) -> float | None:
        """Norm of the reduced gradient before clipping, where DeepSpeed does not keep it: plain float32 optimizers."""
        import torch

        if hasattr(self.engine.optimizer, "_global_grad_norm"):
            return None
        grads = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))


def _mismatch(learner_logp: Any, behavior_logp: Any, sampled: Any, fresh: Any) -> Meter:
    """Engine against learner over all sampled tokens, and over those the learner's own weights sampled.

    Only the second is pure numerics: stale tokens differ because the policy has moved since.
    """
    from rlpost.objective import mismatch_metrics

    fresh_only = mismatch_metrics(learner_logp, behavior_logp, sampled & fresh)
    names = {f"mismatch/{name}": f"mismatch/{name}_fresh" for name in ("logp_abs_max", "kl")}
    return mismatch_metrics(learner_logp, behavior_logp, sampled).update(fresh_only.renamed(names))

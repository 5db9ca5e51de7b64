"""What the loop works on: a run's parts, what it asks of them, and the state of a checkpoint."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlpost import checkpoint
from rlpost.actors import resident_mb
from rlpost.config import Config, TestSet
from rlpost.data import PromptSets, fill, judge_group, order_of
from rlpost.data.chat import save_chat_template, saved_template
from rlpost.learner.batch import Batch
from rlpost.learner.group import LearnerGroup
from rlpost.observe import Recorder, Watch
from rlpost.rollout.fleet import Fleet
from rlpost.rollout.request import Sampling
from rlpost.rollout.sampler import GroupSampler, InFlight
from rlpost.routing import admitted
from rlpost.run.credit import Lesson
from rlpost.run.evaluation import Results, by_name, evaluate
from rlpost.run.metrics import step_metrics
from rlpost.run.probe import probe_batch, probe_to_json
from rlpost.run.timetable import Timetable
from rlpost.stop import STOP
from rlpost.types import Group, Pending, Prompt, Sample

if TYPE_CHECKING:
    from rlpost.objective import Move
    from rlpost.run.likelihood import LikelihoodReward
    from rlpost.run.roles import Roles
    from rlpost.verify import VerifierPool
    from rlpost.verify.remote import ClusterPool

# Evaluation draws from its own stream of seeds, the same at every evaluation: before and after differ by the weights.
EVALUATION_SEED = 1_000_003


@dataclass(frozen=True)
class Snapshot:
    """The driver's state as a step left it, which no later step changes.

    Attributes:
        state, roles: as of `Run.state_dict` and `Run.roles`.
        flights: what was in flight; what comes of it later counts.
        pending: what an earlier process left in flight and was not submitted again yet.
    """

    step: int
    state: dict[str, Any]
    roles: dict[str, Any]
    flights: list[InFlight]
    pending: list[Pending]


class Run:
    """What `rlpost.loop.train` works on. Made by `rlpost.run.start.running`, which also takes it down again."""

    def __init__(
        self,
        config: Config,
        recorder: Recorder,
        store: checkpoint.Store,
        prompts: PromptSets,
        learner: LearnerGroup,
        fleet: Fleet,
        pool: VerifierPool | ClusterPool,
        base: str,
        tokenizer: Any,
        roles: Roles,
        likelihood: LikelihoodReward | None,
    ) -> None:
        self.config = config
        self.recorder = recorder
        self.store = store
        self.prompts = prompts
        self.learner = learner
        self.fleet = fleet
        self.pool = pool
        self.base = base
        self.tokenizer = tokenizer
        judges = {config.judge_of(source) for source in config.data.train_sources.values()}
        self.referee = judges.pop() if len(judges) == 1 else None  # then a rollout knows its own
        self.credit, self.references, self.wanted = roles.credit, roles.references, roles.wanted
        self.likelihood = likelihood
        weights = {name: source.weight for name, source in config.data.train_sources.items()}
        self.order = order_of(
            prompts.by_source, weights, config.learner.prompts_per_step, config.seed, config.data.shuffle
        )
        self.strategy = roles.strategy
        self.strategy.begin(self.order)
        self.sampler = GroupSampler(fleet, pool, config.seed, config.rollout.deadline)
        fp32 = config.model.dtype == fleet.dtype == "float32"
        self.watch = Watch(config.alarms, fp32, config.routing.replay, adapters=config.model.lora is not None)
        self.sampling = Sampling(
            temperature=config.rollout.temperature,
            max_tokens=config.rollout.max_tokens,
            stop=tuple(config.rollout.stop),
        )
        self.step = 0
        self.version = 0
        self.submitted = 0
        self.drawn: dict[int, list[Prompt]] = {}  # by step what is in flight, but for refills
        self.pending: dict[int, list[Pending]] = {}  # by step what a checkpoint had in flight of it
        self.tried: Counter[str] = Counter()  # by prompt id, samples that the strategy took outside of steps
        self.routing_metrics: dict[str, float] = {}
        self.finished: Snapshot | None = None  # as the last step left it, or a checkpoint; none before
        self.intact = False  # whether the learner is at the step of `finished`
        self.close_step: Callable[[], None] | None = None  # of a step that is learned and not reported yet
        self.timetable = Timetable(config)

    @property
    def stop_requested(self) -> bool:
        """Somebody asked for a stop, which waits until the step is done and saved."""
        return STOP.requested

    @property
    def last(self) -> int:
        """The step the run ends with: with the one of the newest prompts, once `data.mix.until` has come true."""
        until, epochs = self.config.data.mix.until, Fraction(str(self.config.epochs or 1))
        enough = {"forever": lambda _: False, "first_ends": any, "all_end": all}[until]
        if enough(seen >= epochs for seen in self.order.seen().values()):
            return max(self.step, *self.drawn) if self.drawn else self.step
        return self.config.last_step

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is written of this step, which is done. Raises what went wrong with the one before."""
        self.store.check()
        return self.config.saves(step) or self.timetable.due

    def say(self, phase: str) -> None:
        self.recorder.console.phase(phase)

    # ------------------------------------------------------------------------------------------------- groups

    def judge(self, group: Group) -> str:
        """ "keep", or why the policy for groups leaves this one out: "no_signal" or "incomplete"."""
        return judge_group(group.rewards, self.config.data.groups)

    def rewarded(self, groups: Sequence[Group]) -> list[Group]:
        """These groups with the rewards that need a scoring forward added to those of the verifiers."""
        if self.likelihood is None:
            return list(groups)
        return self.likelihood.apply(groups, self._score_answers)

    def chosen(self, groups: Sequence[Group]) -> list[Group]:
        """The groups that are learned from, as `data.groups` and a filter of the likelihood reward have it."""
        judged = [self.judge(g) for g in groups]
        kept = [groups[i] for i in fill(judged, self.config.learner.prompts_per_step, self.config.data.groups)]
        if self.likelihood is None:
            return kept
        return [g for g, ok in zip(kept, self.likelihood.keep(kept), strict=True) if ok]

    def _score_answers(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        assert self.config.objective.likelihood is not None
        scorer = self.config.objective.likelihood.scorer
        name = "old_logp" if scorer == "learner" else f"anchors.{scorer}"
        return self.learner.log_probs(Batch.from_samples(samples), name)

    def scored(self, batch: Batch) -> Batch:
        """The batch with what has to be known of it before the update: log-probs, and routes the learner chose."""
        scores = self.learner.score(batch, self.wanted)
        routes = scores.pop("routes", None)
        batch = batch.carrying(per_token=scores)
        return batch if routes is None else batch.routed(routes)

    def samples(self, groups: Sequence[Group], step: int) -> list[Sample]:
        """All that is learned from: the groups' own samples, and what the strategy and the reward add."""
        samples = self.strategy.samples(groups, self.referee, step)
        if self.config.routing.replay == "r3":
            samples, self.routing_metrics = admitted(samples, self.config.routing.invalid)
        if self.likelihood is None:
            return samples
        return self.likelihood.restricted(samples, groups) + self.likelihood.samples(groups)

    # ----------------------------------------------------------------------------------------------- adaptation

    def adapt(self, metrics: dict[str, float]) -> None:
        """Let coefficients and anchors react to a step that was learned from."""
        self.credit.observe(metrics)
        self._move({name: r.after_step(self.step, metrics) for name, r in self.references.items()})

    def _move(self, moves: dict[str, Move | None]) -> None:
        for name, move in moves.items():
            if move is not None:
                if move.why:
                    self.recorder.console.info(f"step {self.step}: anchor {name} moves to the policy: {move.why}")
                self.intact = False  # until the step is done; after an evaluation, until the next one is
                self.learner.move_anchor(name, move.amount, move.clear_optimizer)

    # ----------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, when: str) -> dict[str, Results]:
        """pass@k on each test set with the weights the engines serve; recorded under `when`.

        Returns:
            by the name of the test set. What is recorded of a set with a name is called `name/pass@1`.
        """
        self.say(f"evaluating ({when})")
        found = {name: self._ask(name, test) for name, test in self.config.test_sets.items()}
        for results in found.values():
            if results.caveat:
                self.recorder.console.warn(results.caveat)
        intervals = by_name({name: r.intervals for name, r in found.items()})
        counts = by_name({name: r.counts for name, r in found.items()})
        self.recorder.evaluation(when, self.step, intervals, counts)
        if self.step:
            values = {name: interval[0] for name, interval in intervals.items()}
            self.store.score(self.step, values)
            self._retain()  # by the scores as they are now
            self._move({name: r.after_evaluation(self.step, values) for name, r in self.references.items()})
        return found

    def _ask(self, name: str, test: TestSet) -> Results:
        """pass@k on one test set."""
        ev = self.config.evaluation
        return evaluate(
            self.sampler,
            self.prompts.tests[name][: test.prompts],
            samples=test.samples_per_prompt,
            k=test.k,
            sampling=Sampling(ev.temperature, test.max_tokens, ev.top_p, self.sampling.stop),
            seed=self.config.seed + EVALUATION_SEED,
            judge=self.config.judge_of(self.config.data.test_or_held_out(name)),
            alarms=self.config.alarms,
            step=self.step,
            name=name,
        )

    # -------------------------------------------------------------------------------------------------- reports

    def report(
        self,
        groups: Sequence[Group],
        kept: Sequence[Group],
        lesson: Lesson | None,
        learner: dict[str, float],
        times: dict[str, float],
    ) -> None:
        """Write a finished step's rollouts and metrics, then raise if they set off an alarm."""
        rollouts = [r for g in groups for r in g.rollouts]
        credit = lesson.credited if lesson is not None else {}
        metrics = {
            **resident_mb([*self.fleet.crew, *self.learner.crew]),
            **self.pool.stats(),  # since the last step, evaluations included: times, time-outs, restarts
            **self.fleet.stats(),  # as well: engines replaced
            **step_metrics(self, groups, kept, lesson, times["time/total"]),  # of this step's own samples
            **self.strategy.metrics(),
            **(self.likelihood.metrics() if self.likelihood is not None else {}),
            **self.routing_metrics,
            **learner,
            **times,
        }
        self.recorder.rollouts(
            self.step,
            rollouts,
            {g.prompt.id: g.prompt for g in groups},
            [credit.get((r.group, r.sample)) for r in rollouts],
            [(r.group, r.sample) in credit for r in rollouts],
        )
        self.recorder.step(self.step, metrics)
        self.timetable.stepped(times["time/total"])
        try:
            for alarm in self.watch.check(self.step, metrics):
                self.recorder.warned(alarm)
        finally:  # with or without an alarm the step is done
            self.snapshot()

    # ---------------------------------------------------------------------------------------------- checkpoints

    def snapshot(self) -> None:
        """Remember the driver's state as this step leaves it: `save` writes it, also when the next one has begun."""
        pending = [p for step in sorted(self.pending) for p in self.pending[step]]
        state, roles = deepcopy(self.state_dict()), deepcopy(self.roles())
        self.intact = True
        self.finished = Snapshot(self.step, state, roles, self.sampler.in_flight(), pending)

    def save(self, alarm: bool = False) -> checkpoint.Checkpoint:
        """Write a checkpoint of the last finished step, which is sealed while the run goes on; then the oldest goes.

        The learner must be at that step (`intact`). What is in flight is saved as far as it is sampled.

        Args:
            alarm: whether it is saved on the way out of one.
        """
        self.say("saving a checkpoint")
        done = self.finished
        began = time.monotonic()
        assert done is not None, "there is no step to save"
        probe = probe_batch(self.prompts, self.config.rollout.max_tokens)
        logp = self.learner.log_probs(probe)
        self.sampler.settle(done.flights)
        pending = [*(flight.pending() for flight in done.flights), *done.pending]

        def fill(draft: Path) -> None:
            if unshared := self.learner.unshared(draft):
                raise checkpoint.CheckpointError(unshared)
            self.learner.save(draft, done.step)
            template, _ = saved_template(self.config.data, self.config.data.train_sources.values())
            save_chat_template(draft / "model", template, self.tokenizer)
            checkpoint.save_roles(draft, done.roles)
            if pending:
                checkpoint.flight.save(draft, self.store.run, done.step, self._made_with(), pending)
            (draft / "probe.json").write_text(json.dumps(probe_to_json(probe, logp, self.config.rollout.temperature)))

        kept = self.config.checkpoint

        def told() -> None:
            self.recorder.event("checkpoint", written.path.name, step=done.step)
            self.timetable.saved(time.monotonic() - began)

        state = {**done.state, "flight": len(pending)}
        written = self.store.begin(done.step, state, fill, alarm, kept.keep, kept.best, kept.keep_every, told)
        self.timetable.saved(time.monotonic() - began)
        return written

    def _retain(self) -> None:
        kept = self.config.checkpoint
        self.store.retain(kept.keep, kept.best, kept.keep_every)

    def state_dict(self) -> dict[str, Any]:
        """The driver's own state."""
        return {
            "step": self.step,
            "last": self.last,
            "length": self.config.length,
            "version": self.version,
            "order": self.order.state_dict(),
            "drawn": {str(step): [p.id for p in prompts] for step, prompts in self.drawn.items()},
            "tried": dict(self.tried),
            "watch": self.watch.state_dict(),
            "sampler": self.sampler.state_dict(),
            "base": self.base,
            "ranks": self.config.learner.ranks,
            "zero_stage": self.config.learner.zero_stage,
        }

    def roles(self) -> dict[str, Any]:
        """State of the roles, which may hold arrays: coefficients, anchors' triggers, the data strategy, rewards."""
        return {
            "credit": self.credit.state_dict(),
            "references": {name: r.state_dict() for name, r in self.references.items()},
            "strategy": self.strategy.state_dict(),
            "likelihood": self.likelihood.state_dict() if self.likelihood is not None else {},
        }

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Take up where a checkpoint left off."""
        state = saved.state()
        takes, steps = self.config.resume.takes, self.config.learner.optimizer_steps_per_batch
        if takes("optimizer"):
            self._restore_learner(saved, steps, anchors=takes("roles"))
        else:
            self.learner.load_weights(saved.path, saved.step * steps, anchors=takes("roles"))
        roles = checkpoint.load_roles(saved.path)
        if takes("roles"):
            self.credit.load_state_dict(roles["credit"], saved.step)
            for name, reference in self.references.items():
                reference.load_state_dict(roles["references"][name])
            if self.likelihood is not None:
                self.likelihood.load_state_dict(roles["likelihood"])
            self.watch.load_state_dict(state["watch"])
        if takes("data"):
            self.strategy.load_state_dict(roles["strategy"])
            self._restore_data(saved, state)
        self.sampler.load_state_dict(state["sampler"])
        self.step = self.submitted = saved.step
        self.version = state["version"]
        self.snapshot()

    def _restore_learner(self, saved: checkpoint.Checkpoint, steps: int, anchors: bool) -> None:
        restored = self.learner.load(saved.path, anchors)
        if restored["optimizer_steps"] > saved.step * steps:
            raise checkpoint.CheckpointError(
                f"{saved.path}: the learner is at optimizer step {restored['optimizer_steps']}, the driver at step "
                f"{saved.step} with {steps} each"
            )
        self.recorder.console.info(
            f"learning rate: {restored['last_lr']:.3g} at optimizer step {restored['optimizer_steps']:g}, "
            f"{restored['lr']:.3g} comes next"
        )

    def _restore_data(self, saved: checkpoint.Checkpoint, state: dict[str, Any]) -> None:
        self.order.load_state_dict(state["order"])
        by_id = {p.id: p for p in self.order.prompts}
        drawn = [by_id[i] for step in sorted(state["drawn"], key=int) for i in state["drawn"][step]]
        wanted = self.config.learner.prompts_per_step  # which may be another than it was
        self.drawn = {saved.step + 1 + at // wanted: drawn[at : at + wanted] for at in range(0, len(drawn), wanted)}
        self.tried = Counter(state["tried"])
        found, why = self._in_flight(saved, state, by_id)
        for pending in found:
            self.pending.setdefault(pending.step, []).append(pending)
        if lost := len(drawn) - sum(p.group is not None for p in found):
            self.recorder.console.warn(
                f"{lost} of the {len(drawn)} groups that were in flight at step {saved.step} are sampled again, of the same "
                f"prompts with the weights of that step: {why}"
            )

    def _in_flight(
        self, saved: checkpoint.Checkpoint, state: dict[str, Any], prompts: dict[str, Prompt]
    ) -> tuple[list[Pending], str]:
        """What of a checkpoint's rollouts in flight can be taken, and why the rest cannot."""
        if not state.get("flight"):
            return [], "the checkpoint was written without them"
        flight = checkpoint.flight.load(saved.path, saved.manifest.run, saved.step)
        now = self._made_with()
        if other := [key for key, value in flight.made_with.items() if now.get(key) != value]:
            return [], f"{', '.join(other)} changed"
        return flight.pending(prompts), "they were not done, or their prompts changed"

    def _made_with(self) -> dict[str, Any]:
        """What decides how a prompt's samples come out, and whether a step may learn from them: plain JSON data."""
        keys = ("samples_per_prompt", "temperature", "max_tokens", "stop", "max_staleness")
        return {
            **{f"rollout.{key}": getattr(self.config.rollout, key) for key in keys},
            "learner.prompts_per_step": self.config.learner.prompts_per_step,
            "routing.replay": self.config.routing.replay,
            "verifiers": [v.model_dump(mode="json") for v in self.config.verifiers],
        }

    def kill(self) -> None:
        """The `driver.kill` failpoint."""
        os.kill(os.getpid(), signal.SIGKILL)

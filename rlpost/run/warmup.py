"""Supervised learning on worked examples: the learner of a run with another objective, saved on its way and taken up again.

Its checkpoints lie in the folder of the run that does it, whoever else wants the same model.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from rlpost import cluster
from rlpost.checkpoint import Checkpoint, Store
from rlpost.config import Config, ConfigError, Learner, Objective, Optimizer, Sft, Term
from rlpost.data import PromptOrder
from rlpost.data.chat import save_chat_template, saved_template
from rlpost.learner.batch import Batch
from rlpost.learner.group import LearnerGroup
from rlpost.learner.spec import LearnerSpec
from rlpost.models.source import ModelSource
from rlpost.observe import Recorder
from rlpost.rehearsal import switch
from rlpost.run.failed import starting
from rlpost.run.lost import accounted
from rlpost.run.start import start_learner
from rlpost.run.timetable import Timetable
from rlpost.stop import STOP
from rlpost.types import Prompt
from rlpost.weights import LEAST_SURVIVING


class Warmup:
    """A warm-up of a run.

    Args:
        start: folder or id of the weights to begin with.
        examples: with the tokens of their completions.
        made_from: says all that its result depends on: a checkpoint of another is not gone on with.
    """

    def __init__(
        self,
        config: Config,
        sft: Sft,
        start: str,
        tokenizer: Any,
        examples: list[tuple[Prompt, np.ndarray]],
        made_from: str,
        recorder: Recorder,
    ) -> None:
        self.config, self.sft, self.start, self.tokenizer = config, sft, start, tokenizer
        self.examples, self.made_from, self.recorder = examples, made_from, recorder
        self.store = Store(recorder.folder.warmup, recorder.folder.run_id)
        self.order = PromptOrder([p for p, _ in examples], config.seed, shuffle=True)

    def teach(self, into: Path) -> float | None:
        """Take all steps that are left and write the model.

        Returns:
            which share of adapters survives in `model.dtype`, merged; None without adapters.

        Raises:
            KeyboardInterrupt: a stop, with a checkpoint of the last step.
        """
        console = self.recorder.console
        with ExitStack() as stack:
            placement = cluster.place(self.config, cluster.RANKS)
            stack.callback(placement.release)
            group = start_learner(self.config, self._spec(), placement)
            stack.callback(group.shutdown)
            console.phase("warm-up: starting the learner")
            begin = starting(
                "the learner of the warm-up", self.config, "learner", "warmup", "model", log=self.recorder.folder.logs
            )
            logs = self.recorder.folder.logs
            with begin, accounted(group.crew, logs):
                group.ready()
            stack.enter_context(accounted(group.crew, logs, lambda: console.doing))
            into.parent.mkdir(parents=True, exist_ok=True)
            if unshared := group.unshared(into.parent):
                raise ConfigError(unshared)
            self._learn(group, self._taken_up(group))
            share = group.save_model(into)
            template, _ = saved_template(self.config.data, self.sft.sources.values())
            save_chat_template(into, template, self.tokenizer)
            if share is not None and share < LEAST_SURVIVING:
                console.warn(
                    f"warm-up: only {share:.3f} of what the adapters learned survives in {self.config.model.dtype}; the model "
                    "is written in float32"
                )
        return share

    def done(self) -> None:
        """Its model is in place: nobody needs its checkpoints any more."""
        self.store.clear()

    def _learn(self, group: LearnerGroup, taken: int) -> None:
        sft, every, timetable = self.sft, self.config.checkpoint.every, Timetable(self.config)
        completions = {p.id: completion for p, completion in self.examples}
        with STOP.deferred():
            for step in range(taken + 1, sft.steps + 1):
                began = time.monotonic()
                chosen = [self.order.next() for _ in range(sft.prompts_per_step)]
                batch = Batch.from_examples([p.token_ids for p in chosen], [completions[p.id] for p in chosen])
                metrics = group.update(batch, version=0).values()
                if step % max(1, sft.steps // 20) == 0 or step == sft.steps:
                    self.recorder.console.info(
                        f"warm-up step {step}/{sft.steps}  loss {metrics['loss']:.4f}  lr {metrics['lr']:.2e}  "
                        f"epoch {self.order.consumed / len(self.examples):.2f}"
                    )
                timetable.stepped(time.monotonic() - began)
                stop, due = STOP.requested, timetable.due or (every and step % every == 0)
                if stop or (due and step < sft.steps):
                    began = time.monotonic()
                    self._save(group, step)
                    timetable.saved(time.monotonic() - began)
                if stop:
                    raise KeyboardInterrupt

    def _save(self, group: LearnerGroup, step: int) -> None:
        learner = self.config.learner
        state = {
            "step": step,
            "made_from": self.made_from,
            "order": self.order.state_dict(),
            "ranks": learner.ranks,
            "zero_stage": learner.zero_stage,
        }
        self.store.write(step, state, group.save)
        self.store.retain(self.config.checkpoint.keep)

    def _taken_up(self, group: LearnerGroup) -> int:
        """Go on from the newest checkpoint there is of this very warm-up. Returns the steps that were taken."""
        console = self.recorder.console
        saved, rejected = self.store.newest()
        for line in rejected:
            console.warn(f"checkpoint of the warm-up passed over: {line}")
        if saved is None:
            return 0
        if other := self._of_another(saved):
            console.warn(f"the warm-up begins anew: {saved.path} is of another ({other})")
            return 0
        group.load(saved.path)
        self.order.load_state_dict(saved.state()["order"])
        console.info(f"warm-up: resuming after step {saved.step} of {self.sft.steps}")
        return saved.step

    def _of_another(self, saved: Checkpoint) -> str:
        state, learner = saved.state(), self.config.learner
        if state["made_from"] != self.made_from:
            return "model, warmup, seed or worked examples"
        was, now = (state["ranks"], state["zero_stage"]), (learner.ranks, learner.zero_stage)
        return "" if was == now else f"learner.ranks={was[0]} learner.zero_stage={was[1]}"

    def _spec(self) -> LearnerSpec:
        config = self.config
        schedule = {name: getattr(self.sft, name) for name in Optimizer.model_fields}
        row_tokens = config.learner.row_tokens
        learner: Learner = config.learner.model_copy(
            update={
                **schedule,
                "optimizer_steps_per_batch": 1,
                "row_tokens": max(row_tokens, longest(self.examples)) if row_tokens else None,
            }
        )
        return LearnerSpec(
            source=ModelSource.of(config.model, self.start),
            anchors={},
            model=config.model,
            learner=learner,
            objective=Objective(policy_loss=None, terms=[Term(loss="sft", source="sft")], aggregation="token_mean"),
            total_steps=self.sft.steps,
            temperature=1.0,
            response_limit=config.rollout.max_tokens,
            pad_id=self.tokenizer.pad_token_id,
            seed=config.seed,
            on_gpu=switch.computes_on_gpu(config),
            stand_in=switch.stood_in(config),
            threads=cluster.threads(config)[1],
        )


def longest(examples: list[tuple[Prompt, np.ndarray]]) -> int:
    """Tokens of the longest worked example."""
    return max(len(p.token_ids) + len(completion) for p, completion in examples)

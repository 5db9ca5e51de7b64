"""DPH-RL's partition: what the policy can do from the start is rehearsed, the rest is explored (2509.07430)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from rlpost.config import ConfigError
from rlpost.data.errors import DataError
from rlpost.data.order import PromptOrder
from rlpost.data.strategies.ragged import pack, unpack
from rlpost.data.strategy import STRATEGIES, Lab, Strategy, is_correct, own_group
from rlpost.types import Group, Prompt, Sample


@STRATEGIES.register("mastery_partition")
class MasteryPartition(Strategy):
    """Splits the prompts once, by the policy the run starts from, and rehearses what it had mastered.

    A prompt belongs to D_pef when at least `threshold` of `samples` responses are correct and one extra response is
    correct too. That extra one is stored: it did not help to select the prompt, so it is a draw from the policy given
    success. With it go its log-probs by the learner, the anchor "cached": an engine's would show the gap between
    engine and learner as a divergence before the first step. All other prompts, D_exp, are sampled as usual; `next`
    never gives one of D_pef.

    Each step adds stored responses as samples of source "rehearsal", in an order shuffled anew each epoch of the
    store. The published code appends 256 of them to 2048 on-policy samples, whence the default share; its released
    scripts test 4 of the first 4 responses, the paper 8 of 8.

    Args:
        samples: responses a prompt is tried with, before the extra one.
        threshold: how many of them must be correct; None for all.
        prompts: how many prompts are tried, the first of the data; the others belong to D_exp. None for all.
        per_step: rehearsal samples a step.
        rehearsal_ratio: rehearsal samples for each on-policy sample of the step, rounded, at least one where there
            is an on-policy sample; 1/8 when `per_step` is not given either.
        batch: prompts that are tried at a time.

    Raises:
        ConfigError: `threshold` is more than `samples`, or both `per_step` and `rehearsal_ratio` are given.
    """

    provides = ("on_policy", "rehearsal")

    def __init__(
        self,
        *,
        samples: Annotated[int, Field(ge=1)] = 8,
        threshold: Annotated[int, Field(ge=1)] | None = None,
        prompts: Annotated[int, Field(ge=1)] | None = None,
        per_step: Annotated[int, Field(ge=1)] | None = None,
        rehearsal_ratio: Annotated[float, Field(gt=0)] | None = None,
        batch: Annotated[int, Field(ge=1)] = 512,
    ) -> None:
        if threshold is not None and threshold > samples:
            raise ConfigError(
                f"data.strategy: mastery_partition: threshold {threshold} of samples {samples} cannot be reached: "
                "lower threshold or raise samples"
            )
        if per_step is not None and rehearsal_ratio is not None:
            raise ConfigError(
                f"data.strategy: mastery_partition: per_step {per_step} and rehearsal_ratio {rehearsal_ratio} both say "
                "how much is rehearsed: give one"
            )
        self.tries = samples
        self.threshold = samples if threshold is None else threshold
        self.prompts = prompts
        self.per_step = per_step
        self.rehearsal_ratio = 1 / 8 if rehearsal_ratio is None else rehearsal_ratio
        self.batch = batch
        # By prompt id: the stored response and its log-probs.
        self._store: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._rehearsal: PromptOrder | None = None
        self._rehearsed = 0

    def prepare(self, lab: Lab) -> None:
        """Make the partition.

        Raises:
            DataError: no prompt is mastered, so there is nothing to rehearse; or all are, so nothing is left to learn.
        """
        tried = self.order.prompts[: self.prompts]
        mastered: list[tuple[Prompt, np.ndarray]] = []
        for start in range(0, len(tried), self.batch):
            for group in lab.sample(tried[start : start + self.batch], self.tries + 1):
                *before, extra = group.rollouts
                right = sum(is_correct(r, lab.judge) for r in before)
                if right >= self.threshold and is_correct(extra, lab.judge):
                    mastered.append((group.prompt, np.array(extra.response_ids, np.int32)))
        self._check(len(mastered), len(tried))
        drafts = [Sample.given(p.token_ids, response, "rehearsal", own_group(0, 0)) for p, response in mastered]
        cached = lab.log_probs(drafts)
        for (prompt, response), logp in zip(mastered, cached, strict=True):
            if logp.shape != response.shape:
                raise ValueError(f"log-probs of prompt {prompt.id!r}: {logp.shape} for {response.shape} tokens")
            self._store[prompt.id] = (response, logp.astype(np.float32))
        self._check_left()
        self._rehearsal = self._order_of_store()
        lab.say(
            f"mastery partition: {len(mastered)} of {len(tried)} prompts tried are mastered and rehearsed; "
            f"{len(self.order.prompts) - len(mastered)} are left to learn from"
        )

    def next(self) -> Prompt:
        prompt = self.order.next()
        while prompt.id in self._store:  # `prepare` made sure that one is left in every epoch of every source
            prompt = self.order.next(instead=True)
        return prompt

    def samples(self, groups: Sequence[Group], judge: str | None, step: int) -> list[Sample]:
        on_policy = super().samples(groups, judge, step)
        self._rehearsed = self._count(len(on_policy)) if self._store else 0
        return [*on_policy, *(self._draw(step, i) for i in range(self._rehearsed))]

    def metrics(self) -> dict[str, float]:
        """Prompts in D_pef, rehearsal samples of the last step, and how often the whole store was rehearsed."""
        return {
            "strategy/mastered": len(self._store),
            "strategy/rehearsed": self._rehearsed,
            "strategy/rehearsal_epochs": self._rehearsal.consumed / len(self._store) if self._rehearsal else 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "ids": list(self._store),
            "responses": pack([response for response, _ in self._store.values()], np.int32),
            "cached": pack([cached for _, cached in self._store.values()], np.float32),
            "rehearsal": self._rehearsal.state_dict() if self._rehearsal else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        stored = zip(unpack(state["responses"]), unpack(state["cached"]), strict=True)
        self._store = dict(zip(state["ids"], stored, strict=True))
        self._rehearsal = self._order_of_store() if self._store else None
        if self._rehearsal:
            self._rehearsal.load_state_dict(state["rehearsal"])

    def _check(self, mastered: int, tried: int) -> None:
        if not mastered:
            raise DataError(
                f"data.strategy: mastery_partition found nothing to rehearse: none of {tried} prompts has {self.threshold} "
                f"of {self.tries} responses correct and one more; lower threshold (now {self.threshold}), raise prompts "
                f"(now {self.prompts}), or start from a policy that can do some of the data"
            )

    def _check_left(self) -> None:
        left = Counter(p.source for p in self.order.prompts if p.id not in self._store)
        for name, count in Counter(p.source for p in self.order.prompts).items():
            if not left[name]:
                raise DataError(
                    f"data.strategy: mastery_partition left nothing to learn from: all {count} prompts "
                    f"{f'of data.train.{name} ' if name else ''}are mastered with threshold {self.threshold} of "
                    f"{self.tries}; lower prompts (now {self.prompts}) or give harder data"
                )

    def _order_of_store(self) -> PromptOrder:
        """The prompts of D_pef, in the order of the data whatever that of the store."""
        return PromptOrder([p for p in self.order.prompts if p.id in self._store], self.order.seed, shuffle=True)

    def _count(self, on_policy: int) -> int:
        if self.per_step is not None:
            return self.per_step
        return max(1, round(self.rehearsal_ratio * on_policy)) if on_policy else 0

    def _draw(self, step: int, index: int) -> Sample:
        assert self._rehearsal is not None
        prompt = self._rehearsal.next()
        response, cached = self._store[prompt.id]
        sample = Sample.given(
            prompt.token_ids, response, "rehearsal", own_group(step, index), anchors={"cached": cached}
        )
        return replace(sample, correct=True)

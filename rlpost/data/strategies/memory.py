"""A memory of successes: what was solved once is learned from whenever its prompt comes again (TRICE, 2312.02179)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from rlpost.data.strategies.ragged import pack, unpack
from rlpost.data.strategy import STRATEGIES, Strategy, is_correct, own_group
from rlpost.types import Group, Prompt, Sample


@STRATEGIES.register("success_memory")
class SuccessMemory(Strategy):
    """Remembers correct responses of each prompt and adds them to the steps in which the prompt is sampled.

    TRICE's independence sampler: every sample of a group proposes in turn, a correct one takes the place of the oldest
    that is remembered, a wrong one changes nothing. All groups of a step are observed before its samples are made, so
    a success of this very step is among them already. In the paper that makes a correct proposal weigh 1 - beta: 1 as
    the memory, whose weight is the `coef` of its term, -beta by the control variate of the last proposal, which is the
    advantage's part (`trice`).

    Prompts without a success yet add nothing, nor do prompts whose group is dropped: keep groups without signal
    (`data.groups.no_signal: keep`), for those that failed throughout are where the memory helps.

    The published code starts each chain from a sample that is given the answer; here a chain starts at the prompt's
    first success.

    Args:
        per_prompt: responses that are remembered of a prompt, all different; 1 in TRICE.
    """

    provides = ("on_policy", "success_memory")

    def __init__(
        self,
        *,
        per_prompt: Annotated[int, Field(ge=1)] = 1,
    ) -> None:
        self.per_prompt = per_prompt
        # By prompt id, the oldest first; a dict for its order and its keys, the bytes of the tokens.
        self._memory: dict[str, dict[bytes, np.ndarray]] = {}
        self._accepted = self._recalled = 0

    def observe(self, groups: Sequence[Group], judge: str | None) -> None:
        self._accepted = 0
        for group in groups:
            for rollout in group.rollouts:
                if is_correct(rollout, judge):
                    self._remember(group.prompt.id, np.array(rollout.response_ids, np.int32))
                    self._accepted += 1

    def samples(self, groups: Sequence[Group], judge: str | None, step: int) -> list[Sample]:
        prompts = {g.prompt.id: g.prompt for g in groups}
        remembered = [(p, tokens) for p in prompts.values() for tokens in self._memory.get(p.id, {}).values()]
        self._recalled = len(remembered)
        return [
            *super().samples(groups, judge, step),
            *(self._recall(p, tokens, own_group(step, i)) for i, (p, tokens) in enumerate(remembered)),
        ]

    def metrics(self) -> dict[str, float]:
        """Prompts with a success, and of the last step: correct proposals, remembered samples that were added."""
        return {
            "strategy/remembered": len(self._memory),
            "strategy/accepted": self._accepted,
            "strategy/recalled": self._recalled,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "ids": list(self._memory),
            "counts": np.array([len(kept) for kept in self._memory.values()], np.int64),
            "responses": pack([tokens for kept in self._memory.values() for tokens in kept.values()], np.int32),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        responses = iter(unpack(state["responses"]))
        self._memory = {
            name: {tokens.tobytes(): tokens for tokens in (next(responses) for _ in range(count))}
            for name, count in zip(state["ids"], state["counts"], strict=True)
        }

    def _remember(self, name: str, tokens: np.ndarray) -> None:
        kept = self._memory.setdefault(name, {})
        kept.pop(tokens.tobytes(), None)  # once more the same response: the newest again
        kept[tokens.tobytes()] = tokens
        while len(kept) > self.per_prompt:
            del kept[next(iter(kept))]

    def _recall(self, prompt: Prompt, tokens: np.ndarray, group: int) -> Sample:
        sample = Sample.given(prompt.token_ids, tokens, "success_memory", group)
        return replace(sample, correct=True)

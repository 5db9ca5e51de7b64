"""General data mixed into every step, so that what is not trained for is not forgotten (RECAP, 2510.21978)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from rlpost.config import ConfigError, Source
from rlpost.data.errors import DataError
from rlpost.data.identity import Problems, left_out
from rlpost.data.order import PromptOrder
from rlpost.data.prompts import load_examples
from rlpost.data.strategy import STRATEGIES, Lab, Strategy, own_group
from rlpost.data.tokenizer import encode_completion
from rlpost.types import Group, Sample


@STRATEGIES.register("replay_mixture")
class ReplayMixture(Strategy):
    """Adds worked examples of another data set to every step, as samples of source "sft".

    They come shuffled, each once an epoch of their own. Examples whose problem is held out for evaluation are left out.

    Args:
        source: where the examples come from, with `completion`; put into the template of `data`, and bad rows and
            long prompts are treated as `data` says.
        per_step: examples a step.

    Raises:
        ConfigError: the source names no completion.
    """

    provides = ("on_policy", "sft")

    def __init__(self, *, source: Source, per_step: Annotated[int, Field(ge=1)]) -> None:
        if source.completion is None:
            raise ConfigError(
                "data.strategy: replay_mixture: source.completion is missing: name the column or template of the "
                "worked example"
            )
        self.source = source
        self.per_step = per_step
        self._completions: dict[str, np.ndarray] = {}
        self._examples: PromptOrder | None = None

    def attach(self, lab: Lab) -> None:
        """Read the examples.

        Raises:
            DataError: the source cannot be used, all of it is held out, or an example is too long to be learned from.
        """
        try:
            examples, report = load_examples(self.source, lab.data, lab.tokenizer)
        except DataError as error:
            raise DataError(f"data.strategy: replay_mixture: the examples of source cannot be used: {error}") from error
        for line in report.lines():
            lab.say(f"replay mixture: {line}")
        apart, why = Problems(lab.held_out, lab.data.identity).apart(examples)
        if why:
            lab.say(f"replay mixture: {why.total()} examples left out, their problems are held out: {left_out(why)}")
        if not apart:
            raise DataError("data.strategy: replay_mixture: every example of source is a held-out problem of data")
        self._completions = {p.id: encode_completion(p.completion or "", lab.tokenizer) for p in apart}
        longest = max(len(p.token_ids) + len(self._completions[p.id]) for p in apart)
        if longest > lab.longest:
            raise DataError(
                f"data.strategy: replay_mixture: the longest example of source has {longest} tokens, and the learner "
                f"takes {lab.longest}: raise learner.tokens_per_micro_batch and learner.row_tokens"
            )
        self._examples = PromptOrder(apart, self.order.seed, shuffle=True)

    def samples(self, groups: Sequence[Group], judge: str | None, step: int) -> list[Sample]:
        assert self._examples is not None, "attach comes first"
        drawn = [self._examples.next() for _ in range(self.per_step)]
        return [
            *super().samples(groups, judge, step),
            *(
                Sample.given(p.token_ids, self._completions[p.id], "sft", own_group(step, i))
                for i, p in enumerate(drawn)
            ),
        ]

    def metrics(self) -> dict[str, float]:
        """Examples a step, and how often all of them were learned from."""
        if self._examples is None:
            return {}
        epochs = self._examples.consumed / len(self._examples.prompts)
        return {"strategy/replayed": self.per_step, "strategy/replay_epochs": epochs}

    def state_dict(self) -> dict[str, Any]:
        assert self._examples is not None, "attach comes first"
        return {"examples": self._examples.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            DataError: the source now has other examples.
        """
        assert self._examples is not None, "attach comes first"
        self._examples.load_state_dict(state["examples"])

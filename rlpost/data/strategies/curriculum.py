"""Prompts by how often they are solved: those that are solved are passed over, those of the right difficulty sought."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from rlpost.config import ConfigError
from rlpost.data.strategy import STRATEGIES, Strategy, generator, is_correct
from rlpost.types import Group, Prompt


@STRATEGIES.register("curriculum")
class Curriculum(Strategy):
    """Passes over prompts by their pass rate, the share of usable samples that are correct.

    - A prompt whose pass rate has reached `mastered` does not come again: ScaleRL's no-positive-resampling, 0.9.
    - With `target` a prompt of pass rate p is taken with probability exp(-((p - target) / width)^2 / 2), and passed
      over until a later epoch otherwise. One that was never sampled is always taken.

    A search ends after two epochs, which hold every prompt whatever their shuffle, and at once when all prompts are
    mastered; then the next prompt of the order is taken as it is. Of several sources, each keeps its share: in place of
    a prompt that is passed over comes one of the same source.

    Args:
        mastered: pass rate from which on a prompt is passed over; None for never.
        target: pass rate that is sought; None takes all others alike.
        width: how far from `target` is still near.
        smoothing: weight of the past in the pass rate, 0 for the last group's own.

    Raises:
        ConfigError: neither `mastered` nor `target` is given.
    """

    def __init__(
        self,
        *,
        mastered: Annotated[float, Field(gt=0, le=1)] | None = 0.9,
        target: Annotated[float, Field(ge=0, le=1)] | None = None,
        width: Annotated[float, Field(gt=0)] = 0.25,
        smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        if mastered is None and target is None:
            raise ConfigError("data.strategy: curriculum with mastered: null needs a target, or it is uniform")
        self.mastered = mastered
        self.target = target
        self.width = width
        self.smoothing = smoothing
        self._rates: dict[str, float] = {}
        self._above: set[str] = set()
        # Of the prompts drawn since the last `observe`, and between the two before.
        self._passed_over = self._fallbacks = 0
        self._reported = {"strategy/passed_over": 0.0, "strategy/fallbacks": 0.0}

    def next(self) -> Prompt:
        prompts = len(self.order.prompts)
        for tried in range(2 * prompts if len(self._above) < prompts else 0):
            prompt = self.order.next(instead=tried > 0)
            if self._takes(prompt):
                return prompt
            self._passed_over += 1
        self._fallbacks += 1
        return self.order.next(instead=len(self._above) < prompts)

    def observe(self, groups: Sequence[Group], judge: str | None) -> None:
        for group in groups:
            usable = [r for r in group.rollouts if r.usable]
            if usable:
                self._update(group.prompt.id, sum(is_correct(r, judge) for r in usable) / len(usable))
        self._reported = {"strategy/passed_over": self._passed_over, "strategy/fallbacks": self._fallbacks}
        self._passed_over = self._fallbacks = 0

    def metrics(self) -> dict[str, float]:
        """Prompts ever sampled, those mastered, their mean pass rate; of a step's drawing: passed over, fallbacks."""
        return {
            "strategy/seen": len(self._rates),
            "strategy/mastered": len(self._above),
            "strategy/pass_rate": sum(self._rates.values()) / max(1, len(self._rates)),
            **self._reported,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"ids": list(self._rates), "rates": np.array(list(self._rates.values()), np.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rates = {name: float(rate) for name, rate in zip(state["ids"], state["rates"], strict=True)}
        self._above = {name for name, rate in self._rates.items() if self._is_mastered(rate)}

    def _update(self, name: str, rate: float) -> None:
        rate = self.smoothing * self._rates.get(name, rate) + (1 - self.smoothing) * rate
        self._rates[name] = rate
        (self._above.add if self._is_mastered(rate) else self._above.discard)(name)

    def _is_mastered(self, rate: float) -> bool:
        return self.mastered is not None and rate >= self.mastered

    def _takes(self, prompt: Prompt) -> bool:
        if prompt.id in self._above:
            return False
        rate = self._rates.get(prompt.id)
        if rate is None or self.target is None:
            return True
        # By the position of this draw, so that drawing has no state beside the order's.
        chance = generator(self.order.seed, self.order.consumed).random()
        return bool(chance < math.exp(-(((rate - self.target) / self.width) ** 2) / 2))

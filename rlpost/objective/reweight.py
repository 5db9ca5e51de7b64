"""Role ObjectiveReweighter: how the weight of the loss shifts between its terms in the course of a run.

An entry is a class; its parameters are those of its constructor. The driver asks it once a step for a factor for each
term's coefficient, and tells it afterwards what the terms came to.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from rlpost.registry import Registry


class ObjectiveReweighter:
    """Factors of the terms' coefficients. The base leaves every term as it is."""

    def weights(self, labels: Sequence[str]) -> dict[str, float]:
        """A factor for each of the terms; their mean is 1."""
        return dict.fromkeys(labels, 1.0)

    def observe(self, losses: Mapping[str, float]) -> None:
        """Take in a step's losses, by label, each over all micro-batches and ranks; terms without samples lack."""

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""


REWEIGHTERS: Registry[ObjectiveReweighter] = Registry("objective reweighter", inputs=())


@REWEIGHTERS.register("recap")
class Recap(ObjectiveReweighter):
    """Weight goes from terms that are saturated to those that get worse or are noisy (RECAP, arXiv 2510.21978).

    Of each term's last 2 `window` losses, with mu and sigma the mean and the population standard deviation of the newer
    half and mu' the mean of the older:

        c = mu / mu'             near 1 when saturated, below 1 while it falls, above 1 when it is getting worse
        i = sigma / (mu + mu')   inverse signal-to-noise
        s = mix c + (1 - mix) i,   weight = K softmax(s / temperature) over the K terms

    By this formula a term that falls steadily has less weight still than one that is saturated, because its c is lower.
    The paper writes s = c + i: that is `mix` 0.5 at half the paper's temperature; the mixture is its code's. With
    c near 1 and i near 0.1 the weights at temperature 5 are almost equal. The paper's loss is the mean over the K
    terms of weight times loss; here the weight multiplies a term's coefficient, and there is no division by K. All
    weights are 1 until every term has its 2 `window` losses.

    What counts as a term's loss is the absolute value of its contribution before the coefficient. That is the loss
    itself for likelihoods and preferences. The surrogate of a policy loss is signed and near 0 on average, so its
    absolute value tells how large the net push of a step is, not how far the task is learned: c is then noise around 1
    and i near 0.4, and the weights move by the other terms. A term whose older losses are 0, or lost in rounding
    beside the newer ones, has no rate: c = 1; if the newer ones are 0 as well, i = 0.

    Args:
        window: losses in each half of the history.
        temperature: of the softmax; the higher, the more equal the weights.
        mix: share of c in the score.
    """

    def __init__(
        self,
        window: Annotated[int, Field(ge=2)] = 10,
        temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0,
        mix: Annotated[float, Field(ge=0, le=1)] = 0.5,
    ) -> None:
        self.window = window
        self.temperature = temperature
        self.mix = mix
        self._history: dict[str, deque[float]] = {}

    def weights(self, labels: Sequence[str]) -> dict[str, float]:
        """As described above, in the order of `labels`; a term's weight does not depend on that order.

        Raises:
            ValueError: a label is there twice.
        """
        if len(set(labels)) != len(labels):
            raise ValueError(f"terms to reweight must have labels of their own, got {list(labels)}")
        histories = [self._history.get(label, ()) for label in labels]
        if not labels or any(len(history) < 2 * self.window for history in histories):
            return super().weights(labels)
        scores = [self._score(list(history)) / self.temperature for history in histories]
        raised = [math.exp(score - max(scores)) for score in scores]
        total = math.fsum(raised)  # rounded once, so that the order of the terms leaves no trace
        return {label: len(labels) * share / total for label, share in zip(labels, raised, strict=True)}

    def observe(self, losses: Mapping[str, float]) -> None:
        """Add a step's losses to the histories.

        Raises:
            ValueError: a loss is not finite.
        """
        broken = {label: loss for label, loss in losses.items() if not math.isfinite(loss)}
        if broken:
            raise ValueError(f"losses to reweight by are not finite: {broken}")
        for label, loss in losses.items():
            self._history.setdefault(label, self._empty()).append(abs(loss))

    def state_dict(self) -> dict[str, Any]:
        return {"history": {label: list(history) for label, history in self._history.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._history = {label: self._empty(history) for label, history in state["history"].items()}

    def _empty(self, history: Sequence[float] = ()) -> deque[float]:
        return deque(history, maxlen=2 * self.window)

    def _score(self, history: Sequence[float]) -> float:
        older, newer = history[: self.window], history[self.window :]
        before, now = math.fsum(older) / self.window, math.fsum(newer) / self.window
        spread = math.hypot(*(loss - now for loss in newer)) / math.sqrt(self.window)
        rate = now / before if before > sys.float_info.epsilon * now else 1.0
        noise = spread / (now + before) if now + before else 0.0
        return self.mix * rate + (1 - self.mix) * noise

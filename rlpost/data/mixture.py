"""Several sources in one order of prompts: each has its share of every step and epochs of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from rlpost.data.errors import DataError
from rlpost.data.order import PromptOrder
from rlpost.types import Prompt


class Shares:
    """How many prompts of a step each source gives: its share of the weights, to within one prompt.

    A share that is no whole number is rounded down, and what is left of the step goes to those that are furthest behind
    over all steps so far, the first of the configuration among equals. Counted in exact fractions: nothing is drawn and
    nothing drifts.

    Args:
        weights: of the sources, positive.
        size: prompts of a step.
    """

    def __init__(self, weights: Sequence[float], size: int) -> None:
        exact = [Fraction(str(weight)) for weight in weights]  # 0.1 is one tenth, as it was written
        self.ideal = [size * weight / sum(exact) for weight in exact]
        self.behind = [Fraction(0)] * len(weights)
        self._size = size

    def next(self) -> list[int]:
        """How many prompts the next step takes of each source."""
        due = [behind + ideal for behind, ideal in zip(self.behind, self.ideal, strict=True)]
        counts = [int(ideal) for ideal in self.ideal]
        rounded_down = [i for i, ideal in enumerate(self.ideal) if ideal != int(ideal)]
        for i in sorted(rounded_down, key=lambda i: counts[i] - due[i])[: self._size - sum(counts)]:
            counts[i] += 1
        self.behind = [d - count for d, count in zip(due, counts, strict=True)]
        return counts


class MixedOrder(PromptOrder):
    """Prompts of several sources, in steps of `step_prompts`, each source in an order and epochs of its own.

    Within a step the sources take turns. The shares count what `next` gives, so those of the prompts that a strategy
    passes over go to other prompts of the same source (`instead`).

    Args:
        sources: their prompts by name.
        weights: of the sources, by name.
        step_prompts: prompts of a step.

    Raises:
        DataError: a source has no prompts.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Prompt]],
        weights: Mapping[str, float],
        step_prompts: int,
        seed: int,
        shuffle: bool,
    ) -> None:
        for name, prompts in sources.items():
            if not prompts:
                raise DataError(f"data.train.{name} has no prompts to put in order")
        self._orders = {name: PromptOrder(prompts, seed, shuffle) for name, prompts in sources.items()}
        self._weights = [weights[name] for name in sources]
        self._step_prompts = step_prompts
        self._seed = seed
        self._shares = Shares(self._weights, step_prompts)
        self._left: dict[str, int] = dict.fromkeys(sources, 0)  # of the step that is being drawn
        self._last = next(iter(sources))

    def next(self, instead: bool = False) -> Prompt:
        if not instead:
            if not any(self._left.values()):
                self._left = dict(zip(self._orders, self._shares.next(), strict=True))
            weights = dict(zip(self._orders, self._weights, strict=True))
            self._last = max(self._left, key=lambda name: self._left[name] / weights[name])
            self._left[self._last] -= 1
        return self._orders[self._last].next()

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(prompt for order in self._orders.values() for prompt in order.prompts)

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def consumed(self) -> int:
        return sum(order.consumed for order in self._orders.values())

    def seen(self) -> dict[str, Fraction]:
        return {name: seen for name, order in self._orders.items() for seen in order.seen().values()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "sources": {name: order.state_dict() for name, order in self._orders.items()},
            "left": dict(self._left),
            "behind": dict(zip(self._orders, map(str, self._shares.behind), strict=True)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved, ours = list(state.get("sources", ())), list(self._orders)
        if saved != ours:
            was = f"the sources {', '.join(saved)}" if saved else "one source without a name"
            raise DataError(
                f"data.train: the saved order of prompts is of {was}, and this run has {', '.join(ours)}: a run goes on "
                "with the sources it began with, in their order; start a new run from its weights for others"
            )
        for name, order in self._orders.items():
            try:
                order.load_state_dict(state["sources"][name])
            except DataError as error:
                raise DataError(f"data.train.{name}: {error}") from None
        self._left = {name: int(state["left"][name]) for name in ours}
        self._shares.behind = [Fraction(state["behind"][name]) for name in ours]


def order_of(
    sources: Mapping[str, Sequence[Prompt]], weights: Mapping[str, float], step_prompts: int, seed: int, shuffle: bool
) -> PromptOrder:
    """The order of these sources: a plain one where there is one without a name."""
    if list(sources) == [""]:
        return PromptOrder(sources[""], seed, shuffle)
    return MixedOrder(sources, weights, step_prompts, seed, shuffle)


def steps_until(
    sizes: Sequence[int], weights: Sequence[float], step_prompts: int, epochs: Fraction, all_of: bool
) -> int:
    """Steps after which the first source, or with `all_of` every one, has been seen `epochs` times.

    Args:
        sizes: prompts of each source.
        weights: of each source.
        step_prompts: prompts of a step.
    """
    given = [0] * len(sizes)
    enough = all if all_of else any
    for step, counts in enumerate(_steps(weights, step_prompts), 1):
        given = [before + count for before, count in zip(given, counts, strict=True)]
        if enough(count >= epochs * size for count, size in zip(given, sizes, strict=True)):
            return step
    raise AssertionError("the steps have no end")


def _steps(weights: Sequence[float], step_prompts: int) -> Iterator[list[int]]:
    shares = Shares(weights, step_prompts)
    while True:
        yield shares.next()

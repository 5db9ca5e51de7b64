"""Pairs of a correct and a wrong response to one prompt, for preference terms (Iterative RPO, 2404.19733)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from rlpost.data.strategy import STRATEGIES, Strategy, generator, own_group
from rlpost.types import Group, Rollout, Sample


@STRATEGIES.register("pairs")
class Pairs(Strategy):
    """Makes pairs of each group that has both a correct and an incorrect response; nothing else is learned from.

    The winner has weight 1 and the loser -1; they follow each other, under a group number of their own. Of responses
    with the same text only the first counts, so no pair prefers a text to itself. Winners and losers are shuffled by
    (seed, step, group) and matched so that none is in a second pair before every other of its side is in a first, and
    no two pairs are the same. What the verifier did not judge is in no pair; what it calls partial loses.

    Args:
        per_prompt: most pairs of a group.
    """

    provides = ("pair",)

    def __init__(self, *, per_prompt: Annotated[int, Field(ge=1)] = 1) -> None:
        self.per_prompt = per_prompt
        self._pairs = self._pairless = 0

    def samples(self, groups: Sequence[Group], judge: str | None, step: int) -> list[Sample]:
        found: list[Sample] = []
        self._pairs = self._pairless = 0
        for index, group in enumerate(groups):
            pairs = self._of(group, judge, step, index)
            for winner, loser in pairs:
                number = own_group(step, self._pairs)
                found += [_side(winner, judge, number, 0, 1.0), _side(loser, judge, number, 1, -1.0)]
                self._pairs += 1
            self._pairless += not pairs
        return found

    def metrics(self) -> dict[str, float]:
        """Of the last step: pairs, and surviving groups that gave none."""
        return {"strategy/pairs": self._pairs, "strategy/groups_without_pair": self._pairless}

    def _of(self, group: Group, judge: str | None, step: int, index: int) -> list[tuple[Rollout, Rollout]]:
        distinct: dict[str, Rollout] = {}
        for rollout in group.rollouts:
            if rollout.usable and rollout.judged(judge).status != "unverified":
                distinct.setdefault(rollout.text, rollout)
        winners = [r for r in distinct.values() if r.judged(judge).status == "correct"]
        losers = [r for r in distinct.values() if r.judged(judge).status != "correct"]
        random = generator(self.order.seed, step, index)
        winners = [winners[i] for i in random.permutation(len(winners))]
        losers = [losers[i] for i in random.permutation(len(losers))]
        return [(winners[w], losers[x]) for w, x in matched(len(winners), len(losers), self.per_prompt)]


def matched(winners: int, losers: int, most: int) -> list[tuple[int, int]]:
    """Up to `most` different pairs (below `winners`, below `losers`), taking turns on both sides."""
    if not winners or not losers:
        return []
    # Walking both sides at once meets lcm different pairs before it repeats; then the losers move on by one.
    turn = math.lcm(winners, losers)
    return [(i % winners, (i + i // turn) % losers) for i in range(min(most, winners * losers))]


def _side(rollout: Rollout, judge: str | None, group: int, number: int, weight: float) -> Sample:
    return replace(Sample.on_policy(rollout, judge), source="pair", group=group, number=number, weight=weight)

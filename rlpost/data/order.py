"""Which prompt comes next, and which groups of samples are learned from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from rlpost.config import Groups
from rlpost.data.errors import DataError
from rlpost.types import Prompt


class PromptOrder:
    """Prompts one after the other, without end; every epoch holds each exactly once.

    With `shuffle`, the order of an epoch is a function of (seed, epoch) alone, so a position can be resumed without
    replaying what came before.

    Raises:
        DataError: there are no prompts.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, shuffle: bool) -> None:
        if not prompts:
            raise DataError("no prompts to put in order")
        self._prompts = tuple(prompts)
        self._seed = seed
        self._shuffle = shuffle
        self._fingerprint = _fingerprint(self._prompts)
        self._start(epoch=0, position=0)

    def next(self, instead: bool = False) -> Prompt:
        """The next prompt; after the last of an epoch, the first of the next.

        Args:
            instead: in place of the one before, which is passed over: of several sources from the same.
        """
        if self._position == len(self._prompts):
            self._start(self._epoch + 1, position=0)
        prompt = self._prompts[self._permutation[self._position]]
        self._position += 1
        return prompt

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts, in the order of the data."""
        return self._prompts

    @property
    def seed(self) -> int:
        """What the order is shuffled by."""
        return self._seed

    @property
    def consumed(self) -> int:
        """How many prompts `next` has given since the first epoch began, resumed ones included."""
        return self._epoch * len(self._prompts) + self._position

    def seen(self) -> dict[str, Fraction]:
        """How often each source was seen, by its name; by "" where there is one without a name."""
        return {"": Fraction(self.consumed, len(self._prompts))}

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands, as plain JSON data."""
        return {"epoch": self._epoch, "position": self._position, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            DataError: the state was taken with other prompts, another seed or another `shuffle`: continuing would
                repeat some prompts of the epoch and miss others.
        """
        if "sources" in state:
            raise DataError(
                f"data.train: the saved order of prompts is of the sources {', '.join(state['sources'])}, and this run has "
                "one without a name: a run goes on with the sources it began with"
            )
        for name, ours in self._identity().items():
            if state.get(name) != ours:
                raise DataError(
                    f"the saved order of prompts has {name} {state.get(name)!r} and this run has {ours!r}; "
                    "resume with the data and seed of the run that saved it"
                )
        if not 0 <= state["position"] <= len(self._prompts) or state["epoch"] < 0:
            raise DataError(f"the saved order of prompts is damaged: {dict(state)} for {len(self._prompts)} prompts")
        self._start(state["epoch"], state["position"])

    def _identity(self) -> dict[str, Any]:
        return {"fingerprint": self._fingerprint, "seed": self._seed, "shuffle": self._shuffle}

    def _start(self, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._permutation = np.arange(len(self._prompts))
        if self._shuffle:
            entropy = np.random.SeedSequence([self._seed % 2**64, epoch])
            np.random.Generator(np.random.Philox(entropy)).shuffle(self._permutation)


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    """16 hex digits of the prompts' ids in their order: the permutation points into that order."""
    return hashlib.sha256(json.dumps([prompt.id for prompt in prompts]).encode()).hexdigest()[:16]


def judge_group(rewards: Sequence[float | None], groups: Groups) -> Literal["keep", "no_signal", "incomplete"]:
    """Whether the samples of one prompt are learned from, or why not.

    Args:
        rewards: one for each sample asked for; None where a sample is not usable.
        groups: the policy; `no_signal: keep` keeps groups whose rewards are all equal.

    Returns:
        "incomplete": fewer than two usable rewards (fewer than one where one sample was asked for).
        "no_signal": two or more usable rewards, all equal, and the policy does not keep such groups. What is to
            be done with either is the policy's field of that name.
        "keep": anything else.

    Raises:
        ValueError: a reward is NaN or infinite.
    """
    usable = [reward for reward in rewards if reward is not None]
    if not all(math.isfinite(reward) for reward in usable):
        raise ValueError(f"rewards must be finite, got {list(rewards)}")
    if len(usable) < (1 if len(rewards) == 1 else 2):
        return "incomplete"
    if len(usable) >= 2 and min(usable) == max(usable) and groups.no_signal != "keep":
        return "no_signal"
    return "keep"


def still_missing(judged: Sequence[str], wanted: int, groups: Groups) -> int:
    """How many more groups a step has to sample.

    A step has `wanted` places. A group that the policy drops without a refill takes its place with it; the others are
    filled by groups that are kept and, once `ceil(valid_fraction * wanted)` of them are (GPG's beta_th, 2504.02546),
    by groups without signal. With `valid_fraction: 1` that is: as many as are to be refilled.

    Args:
        judged: what `judge_group` says of every group of the step so far, those of earlier rounds included.
        wanted: prompts_per_step.
        groups: the policy.

    Returns:
        0 when the step is complete; never negative.
    """
    places, signal = _places(judged, wanted, groups)
    kept = judged.count("keep")
    spare = judged.count("no_signal") if groups.no_signal == "refill" else 0
    return max(signal - kept, places - kept - spare, 0)


def fill(judged: Sequence[str], wanted: int, groups: Groups) -> list[int]:
    """Which groups of a step are learned from: those that are kept, and groups without signal that fill its places.

    The groups without signal are the first that were sampled. Their number never exceeds the places that
    `valid_fraction` leaves to them, also when the rounds ended before enough groups had a signal.

    Args:
        judged, wanted, groups: as of `still_missing`.

    Returns:
        indices into `judged`, ascending.
    """
    places, signal = _places(judged, wanted, groups)
    room = places - max(signal, judged.count("keep")) if groups.no_signal == "refill" else 0
    spare = [i for i, verdict in enumerate(judged) if verdict == "no_signal"]
    return sorted([i for i, verdict in enumerate(judged) if verdict == "keep"] + spare[: max(room, 0)])


def _places(judged: Sequence[str], wanted: int, groups: Groups) -> tuple[int, int]:
    """(places of a step that are to be filled, how many of them by groups with a signal)."""
    dropped = sum(
        judged.count(verdict) for verdict in ("no_signal", "incomplete") if getattr(groups, verdict) == "drop"
    )
    places = max(wanted - dropped, 0)
    # A product such as 0.07 * 100 comes out a little above the whole number it stands for.
    share = math.ceil(groups.valid_fraction * wanted - 1e-9) if groups.no_signal == "refill" else places
    return places, min(share, places)

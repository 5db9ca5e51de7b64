"""Role Schedule: how a coefficient varies.

An entry is a class; its parameters are those of its constructor. An instance is called once a step with the moment and
returns a number, or (B,) numbers for the samples of `moment.batch`. One that adapts takes in metrics by `observe` and
keeps state; calling it changes nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from rlpost.config import ConfigError
from rlpost.course import Course
from rlpost.objective.types import CreditInputs
from rlpost.registry import Registry

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Moment:
    """When a coefficient is asked for.

    Attributes:
        step: from 1. steps: of the whole run.
        done: share of the run that lies behind, 0 at the first step and 1 at the last. A run that was resumed with other
            steps goes on from the share it had come to.
        label: of the term whose coefficient it is: `k3`, `js`, `sft`.
        batch, advantages: the on-policy samples of the step and their (B, T) advantages; None without any.
    """

    step: int
    steps: int
    label: str
    done: float
    batch: CreditInputs | None = None
    advantages: Tensor | None = None


class Schedule:
    """A coefficient. The base is the constant one's interface, for those without state.

    Attributes:
        per_sample: it is one of each on-policy sample, and not asked for in a step without any.
    """

    needs: tuple[str, ...] = ()
    per_sample = False

    def __call__(self, moment: Moment) -> float | Tensor:
        raise NotImplementedError

    def observe(self, metrics: Mapping[str, float], label: str) -> None:
        """Take in the metrics of the step that was just learned from."""

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""


SCHEDULES: Registry[Schedule] = Registry("schedule", inputs=("moment",))


@SCHEDULES.register("constant")
class Constant(Schedule):
    """Always `value`."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, moment: Moment) -> float:
        return self.value


class Ramp(Schedule):
    """From `start` at step 1 to `end` at step `steps`, both exactly, and `end` from there on.

    Args:
        steps: the whole run by default; a run that is resumed with other steps then goes on from where it was.
    """

    def __init__(self, start: Finite, end: Finite, steps: Steps | None = None) -> None:
        self.start = start
        self.end = end
        self.steps = steps

    def __call__(self, moment: Moment) -> float:
        done = moment.done if self.steps is None else Course(1, 0.0, self.steps)(moment.step)
        return self.end if done >= 1 else self.between(done)

    def between(self, done: float) -> float:
        """The value where a share `done` of the ramp lies behind, 0 at its start and below 1."""
        raise NotImplementedError


@SCHEDULES.register("linear")
class Linear(Ramp):
    """start + (end - start) done.

    KDRL's annealing max(b0 - delta t, b_min) (arXiv 2506.02208), 5e-3 to 1e-3 by 5e-5 a step, is 80 such differences:
    `start: 5e-3, end: 1e-3, steps: 81`. GRPO-D (arXiv 2503.16081) has a KL that grows, by a formula that is not
    published; any ramp with start < end is of its kind.
    """

    def between(self, done: float) -> float:
        return self.start + (self.end - self.start) * done


@SCHEDULES.register("cosine")
class Cosine(Ramp):
    """start + (end - start) (1 - cos(pi done)) / 2: level at both ends."""

    def between(self, done: float) -> float:
        return self.start + (self.end - self.start) * ((1 - math.cos(math.pi * done)) / 2)


@SCHEDULES.register("exponential")
class Exponential(Ramp):
    """start (end / start)^done: the same factor every step."""

    def __init__(self, start: Positive, end: Positive, steps: Steps | None = None) -> None:
        super().__init__(start, end, steps)

    def between(self, done: float) -> float:
        return self.start * (self.end / self.start) ** done


@SCHEDULES.register("step")
class Step(Schedule):
    """values[0] from step 1, values[i + 1] from step at[i] on: `values: [1, 0], at: [61]` is 60 steps, then nothing.

    Raises:
        ConfigError: not one value more than steps, or the steps do not rise.
    """

    def __init__(self, values: list[Finite], at: list[Annotated[int, Field(ge=2)]]) -> None:
        if len(values) != len(at) + 1:
            raise ConfigError(
                f"schedule 'step': values has {len(values)} and at has {len(at)} entries; give one value more than "
                "steps: the first holds from the beginning, the others from the steps in `at` on"
            )
        if any(b <= a for a, b in pairwise(at)):
            raise ConfigError(f"schedule 'step': at must rise, got {at}")
        self.values = values
        self.at = at

    def __call__(self, moment: Moment) -> float:
        return self.values[bisect_right(self.at, moment.step)]


@SCHEDULES.register("adaptive_kl")
class AdaptiveKL(Schedule):
    """A coefficient that holds a divergence near `target` by proportional control (arXiv 1909.08593, 2.2).

    After every step, coef <- coef (1 + gain e), e = D / target - 1 held within ±`clip`, then held within `minimum` and
    `maximum`. D is the metric `kl/<label>` of the term itself, or `divergence/<label>`: its mean per token, before the
    coefficient. A step without it, one in which the term had no token, changes nothing. Other systems write the gain
    as n / horizon, n samples a step.

    Args:
        initial: the coefficient of the first step.
        target: nats per token.
        gain: the paper's K, 0.1.
        clip: the paper's 0.2, so that a step changes the coefficient by 2 % at most.

    Raises:
        ConfigError: `initial` is not within `minimum` and `maximum`.
    """

    def __init__(
        self,
        initial: Positive,
        target: Positive,
        gain: Positive = 0.1,
        clip: Positive = 0.2,
        minimum: NotNegative = 0.0,
        maximum: Positive | None = None,
    ) -> None:
        _check_bounds("adaptive_kl", initial, minimum, maximum)
        if gain * clip >= 1:
            raise ConfigError(
                f"schedule 'adaptive_kl': gain {gain} times clip {clip} is 1 or more, so one step could take the "
                "coefficient to 0 or below, from where it cannot return: lower one of them"
            )
        self.target = target
        self.gain = gain
        self.clip = clip
        self.bounds = (minimum, maximum)
        self.coef = initial

    def __call__(self, moment: Moment) -> float:
        return self.coef

    def observe(self, metrics: Mapping[str, float], label: str) -> None:
        measured = metrics.get(f"kl/{label}", metrics.get(f"divergence/{label}"))
        if measured is None:
            return
        _check_finite("adaptive_kl", label, measured)
        error = _within(measured / self.target - 1, -self.clip, self.clip)
        self.coef = _within(self.coef * (1 + self.gain * error), *self.bounds)

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.coef = float(state["coef"])


@SCHEDULES.register("adaptive_entropy")
class AdaptiveEntropy(Schedule):
    """A coefficient of an entropy bonus that acts only while the entropy is below `target` (Skywork-OR1).

    After every step with entropy H, coef <- coef + delta if H < target, else coef - delta, held within `minimum` and
    `maximum`; the next step gets coef if H < target, else 0. The first step gets `initial`. H is the metric `entropy`,
    the policy's mean per token of the on-policy samples. The coefficient is positive; the term it belongs to has the
    sign.

    Args:
        target: nats per token. Skywork uses 0.2, TRL's default is 5.0.

    Raises:
        ConfigError: `initial` is not within `minimum` and `maximum`.
    """

    def __init__(
        self,
        target: Positive,
        initial: NotNegative = 0.01,
        delta: Positive = 0.005,
        minimum: NotNegative = 0.0,
        maximum: Positive | None = None,
    ) -> None:
        _check_bounds("adaptive_entropy", initial, minimum, maximum)
        self.target = target
        self.delta = delta
        self.bounds = (minimum, maximum)
        self.coef = initial
        self.active = True

    def __call__(self, moment: Moment) -> float:
        return self.coef if self.active else 0.0

    def observe(self, metrics: Mapping[str, float], label: str) -> None:
        entropy = metrics.get("entropy")
        if entropy is None:
            return
        _check_finite("adaptive_entropy", label, entropy)
        self.active = entropy < self.target
        self.coef = _within(self.coef + (self.delta if self.active else -self.delta), *self.bounds)

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef, "active": self.active}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.coef, self.active = float(state["coef"]), bool(state["active"])


@SCHEDULES.register("dads")
class Dads(Schedule):
    """Less divergence for right answers to hard prompts, per sample (APO, arXiv 2506.21655, and its code).

    With d = 1 - share of correct samples in the group, base f(d) for samples whose advantage is positive,
    f(d) = 1 - exp(-e (1 - d)) for 0 < d < 1 and f(0) = f(1) = 1; `base` for the others. The sign is that of the sum
    over the sample's tokens, after all transforms.

    Returns:
        (B,) float64.

    Raises:
        ValueError: there are no on-policy samples with advantages.
    """

    per_sample = True

    def __init__(self, base: NotNegative) -> None:
        self.base = base

    def __call__(self, moment: Moment) -> Tensor:
        if moment.batch is None or moment.advantages is None:
            raise ValueError(
                f"schedule 'dads' of {moment.label}: needs on-policy samples and their advantages; use it for a "
                "regularizer with source: on_policy and placement: loss"
            )
        batch = moment.batch
        names, index = torch.unique(batch.group, return_inverse=True)
        sizes = torch.bincount(index, minlength=len(names))
        right = torch.bincount(index[batch.correct], minlength=len(names))
        solved = right.double() / sizes  # 1 - d
        factor = torch.where((right == 0) | (right == sizes), 1.0, -torch.expm1(-math.e * solved))
        positive = (moment.advantages.double() * batch.mask).sum(1) > 0
        return self.base * torch.where(positive, factor[index], 1.0)


def _within(value: float, low: float, high: float | None) -> float:
    return max(low, value if high is None else min(value, high))


def _check_bounds(name: str, initial: float, minimum: float, maximum: float | None) -> None:
    if not minimum <= initial <= (math.inf if maximum is None else maximum):
        raise ConfigError(
            f"schedule {name!r}: initial {initial} must lie within minimum {minimum} and maximum {maximum}: "
            "move one of them"
        )


def _check_finite(name: str, label: str, measured: float) -> None:
    if not math.isfinite(measured):
        raise ValueError(f"schedule {name!r} of {label}: what it adapts to is not finite: {measured}")

"""Metrics held against the run's own past: what went away slowly, and what jumped. Pure numbers, no clock."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import fmean, median, variance
from typing import Any, NamedTuple

from rlpost.config import Alarms

BEGINNING = 5  # steps whose mean entropy is that of the run's start
IN_A_ROW = 3  # steps for which entropy is out of its bounds
WINDOW = 50  # steps whose gradient norm, time and memory are remembered
REWARDS = 10  # steps whose mean reward is one
LEAST = 10  # steps of a past that can be held against
NOISE = 4.0  # standard errors a fall of the reward must be larger than
STALL_SECONDS = 60.0  # a step that is slow and shorter than this stalls nobody
FORGOTTEN = ("time/", "memory/")  # of another process, after a resume


class Finding(NamedTuple):
    """A metric that left its past.

    Attributes:
        key: of the `alarms` section.
        against: what it was held against, in words.
    """

    key: str
    metric: str
    value: float
    against: str
    look: str


class Trends:
    """Remembers what it takes to tell, of `WINDOW` steps at most; its state is plain JSON data."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._past: dict[str, list[float]] = {}
        self._start: list[float] = []  # entropies of the run's first steps
        self._out = 0  # steps in a row with an entropy out of its bounds
        self._best: list[float] = []  # the rewards of the best `REWARDS` steps in a row

    def state_dict(self) -> dict[str, Any]:
        past = {name: values for name, values in self._past.items() if not name.startswith(FORGOTTEN)}
        return {"past": past, "start": self._start, "out": self._out, "best": self._best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._past = {name: [*values] for name, values in state.get("past", {}).items()}
        self._start, self._best = [*state.get("start", ())], [*state.get("best", ())]
        self._out = int(state.get("out", 0))

    def check(self, metrics: Mapping[str, float]) -> Iterator[Finding]:
        """What of a step is not as it was; the step is remembered."""
        yield from self._entropy(metrics)
        yield from self._kl(metrics)
        yield from self._jumps(metrics)
        yield from self._reward(metrics)
        yield from self._memory(metrics)

    def _entropy(self, metrics: Mapping[str, float]) -> Iterator[Finding]:
        value = metrics.get("entropy")
        if value is None or not math.isfinite(value):
            return
        if len(self._start) < BEGINNING:
            self._start.append(value)
            return
        start, least, most = fmean(self._start), self._alarms.entropy_fall, self._alarms.entropy_rise
        fell = least is not None and value < (1 - least) * start
        rose = most is not None and value > most * start
        self._out = self._out + 1 if fell or rose else 0
        if self._out < IN_A_ROW:
            return
        against = f"for {self._out} steps; it was {start:.3g} in the first {BEGINNING}"
        if fell:
            look = "The policy collapses to few answers: look at the rollouts, learner.lr, and a term that holds entropy or KL"
            yield Finding("entropy_fall", "entropy", value, f"{against} (alarms.entropy_fall {least:g})", look)
        else:
            look = "The policy comes apart into noise: look at the rollouts, learner.lr and learner.grad_clip"
            yield Finding("entropy_rise", "entropy", value, f"{against} (alarms.entropy_rise {most:g})", look)

    def _kl(self, metrics: Mapping[str, float]) -> Iterator[Finding]:
        value, most = metrics.get("kl"), self._alarms.kl
        if value is not None and most is not None and value > most:
            look = (
                "The policy is far from its anchor: look at the rollouts, learner.lr, and the coefficient of the term"
            )
            yield Finding("kl", "kl", value, f"above alarms.kl {most:g}", look)

    def _jumps(self, metrics: Mapping[str, float]) -> Iterator[Finding]:
        norm, seconds = "grad_norm", "time/total"
        for key, name, least, look in (
            ("grad_norm_spike", norm, 0.0, "Look at this step's rollouts, learner.lr and learner.grad_clip"),
            (
                "stall",
                seconds,
                STALL_SECONDS,
                "Look at time/* of the step: which phase took it, and what else the machine did",
            ),
        ):
            value, factor = metrics.get(name), getattr(self._alarms, key)
            if not value or not math.isfinite(value):  # without a signal there is no gradient
                continue
            past = self._remembered(name)
            usual = median(past) if len(past) >= LEAST else math.inf
            if factor is not None and value > max(least, factor * usual):
                yield Finding(
                    key, name, value, f"{value / usual:.0f} times its median of {usual:.3g} (alarms.{key})", look
                )
            self._remember(name, value)

    def _reward(self, metrics: Mapping[str, float]) -> Iterator[Finding]:
        name, share = "reward/mean", self._alarms.reward_fall
        if name not in metrics:
            return
        self._remember(name, metrics[name])
        now = self._remembered(name)[-REWARDS:]
        if len(now) < REWARDS:
            return
        if not self._best or fmean(now) > fmean(self._best):
            self._best = now
            return
        fall = fmean(self._best) - fmean(now)
        error = math.sqrt((variance(self._best) + variance(now)) / REWARDS)
        if share is not None and fall > max(share * abs(fmean(self._best)), NOISE * error):
            against = (
                f"as the mean of {REWARDS} steps; it was {fmean(self._best):.3g} at best (alarms.reward_fall {share:g})"
            )
            look = "The policy forgets what it had learned: look at the rollouts of both, at entropy and at kl"
            yield Finding("reward_fall", name, fmean(now), against, look)

    def _memory(self, metrics: Mapping[str, float]) -> Iterator[Finding]:
        most = self._alarms.memory_slope_mb
        for name in [name for name in metrics if name.startswith("memory/")]:
            self._remember(name, metrics[name])
            past = self._remembered(name)
            if len(past) < WINDOW:
                continue
            half = WINDOW // 2  # medians, as one large step is no slope
            slope = (median(past[half:]) - median(past[:half])) / half
            if most is not None and slope > most:
                look = "A process grows: see which by memory/*; where it does not end the machine's memory will"
                against = f"MiB a step over {WINDOW} steps, above alarms.memory_slope_mb {most:g}"
                yield Finding("memory_slope_mb", f"growth of {name}", slope, against, look)

    def _remembered(self, name: str) -> list[float]:
        return self._past.get(name, [])

    def _remember(self, name: str, value: float) -> None:
        self._past[name] = [*self._remembered(name), value][-WINDOW:]

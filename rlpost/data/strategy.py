"""Role DataStrategy: which prompts come next, and what is learned from beside their samples.

An entry is a class; its parameters are those of its constructor. It draws prompts from a `PromptOrder`, whose position
the run saves by itself; what else it remembers is its own state. Whatever is random in it is a function of the run's
seed, the position or the step, and that state. Which groups survive is another question, answered by `data.groups`.

The run calls, in this order:

    begin(order), attach(lab)                 always; the order stands where the run will start
    prepare(lab)                              in a new run, before its first step
    load_state_dict(state)                    in a resumed run, in place of `prepare`
    next() ..., observe(all groups), samples(surviving groups), metrics()         every step

`judge` is the label of the verifier that says what is correct, for `Rollout.judged` and `is_correct`; None where the
sources of a mixture have judges of their own, whom a rollout knows.

With `rollout.max_staleness` above 0 `next` is also called for later steps before `observe`. A resumed run has those
prompts from its checkpoint, and asks for what comes after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rlpost.config import Data
from rlpost.data.order import PromptOrder
from rlpost.registry import Registry
from rlpost.types import Group, Prompt, Rollout, Sample

STRATEGIES: Registry[Strategy] = Registry("data strategy", inputs=())


class Lab(Protocol):
    """What a strategy may ask of the run outside of its steps."""

    def sample(self, prompts: Sequence[Prompt], samples: int) -> list[Group]:
        """Scored groups of these prompts by the policy as it is, outside of training.

        All samples of a prompt differ in their seeds, those of later calls and of a resumed run too.
        """

    def log_probs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """float32 (R,) for each sample, by the learner as it is, at the temperature it learns at."""

    def say(self, line: str) -> None:
        """Tell who watches the run."""

    @property
    def judge(self) -> str | None:
        """Label of the verifier that says what is correct; None where prompts have judges of their own."""

    @property
    def tokenizer(self) -> Any:
        """The run's."""

    @property
    def data(self) -> Data:
        """The configuration of the data: template, longest prompt, what is done about bad rows."""

    @property
    def held_out(self) -> Sequence[Prompt]:
        """The prompts of evaluations, which must not be taught."""

    @property
    def longest(self) -> int:
        """Most tokens, prompt and response, that a sample may have: learner.tokens_per_micro_batch or row_tokens."""


class Strategy:
    """Prompts in the order of `order`, each step learning from its own samples alone.

    Attributes:
        provides: sources of the samples it gives.
        order: the run's prompts, from `begin` on.
    """

    provides: tuple[str, ...] = ("on_policy",)
    order: PromptOrder

    def begin(self, order: PromptOrder) -> None:
        """Take the prompts it draws from."""
        self.order = order

    def attach(self, lab: Lab) -> None:
        """Load what it needs, in a new run as in a resumed one. Nothing is sampled here."""

    def prepare(self, lab: Lab) -> None:
        """Called once, before the first step of a new run; not on resume."""

    def next(self) -> Prompt:
        """The next prompt to sample."""
        return self.order.next()

    def observe(self, groups: Sequence[Group], judge: str | None) -> None:
        """Take in all groups of a step, dropped ones included; comes before the step's `samples`."""

    def samples(self, groups: Sequence[Group], judge: str | None, step: int) -> list[Sample]:
        """What step `step` learns from, given the groups that survived; unusable rollouts are left out."""
        return [Sample.on_policy(r, judge) for g in groups for r in g.rollouts if r.usable]

    def metrics(self) -> dict[str, float]:
        """What to report of it after a step, named `strategy/...`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything but the position in `order`: plain data and numpy arrays, in dicts and lists."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""


@STRATEGIES.register("uniform")
class Uniform(Strategy):
    """Every prompt once an epoch."""


def is_correct(rollout: Rollout, judge: str | None = None) -> bool:
    """Whether a rollout may be learned from and is correct by `judge`, as of `Rollout.judged`."""
    return rollout.usable and rollout.judged(judge).status == "correct"


def own_group(step: int, index: int) -> int:
    """`Sample.group` of the `index`-th (below 2**20) lone sample or pair that a strategy adds in a step.

    Negative and its own in the whole run: groups of the engines' samples count up from 0.
    """
    return -1 - (step * 2**20 + index)


def generator(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that are a function of (seed, key) alone, none of them those that shuffle a `PromptOrder`."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed % 2**64, spawn_key=key)))

"""Role ReferencePolicy: where an anchor's weights come from, and when they move.

An entry is a class; its parameters are those of its constructor. The driver asks it after every step and evaluation
whether the anchor moves; the ranks that hold the weights carry the move out (`rlpost.learner.references`). An anchor
that is no model of its own (`old_policy`: the proximal log-probs; `cached`: stored with the samples) has no origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from rlpost.config import ConfigError
from rlpost.registry import Registry

REFERENCES: Registry[Reference] = Registry("reference policy", inputs=())


@dataclass(frozen=True)
class Move:
    """anchor <- (1 - amount) anchor + amount policy, weight by weight.

    Attributes:
        amount: 1 makes the anchor a copy of the policy.
        clear_optimizer: forget the optimizer's moments, as if training began there.
        why: for the log.
    """

    amount: float = 1.0
    clear_optimizer: bool = False
    why: str = ""


class Reference:
    """An anchor that stays where it began.

    Attributes:
        revision: branch, tag or commit of a Hugging Face id it begins as.
        trust_remote_code: run the code that comes with that model; as `model.trust_remote_code` says by default.
    """

    revision: str | None = None
    trust_remote_code: bool | None = None

    def origin(self) -> list[tuple[str | None, float]]:
        """Weights it begins as: (folder or Hugging Face id, share), None for those the run started from."""
        return [(None, 1.0)]

    @property
    def moves(self) -> bool:
        """Whether it can ever move: only then its weights are part of a checkpoint."""
        return False

    def after_step(self, step: int, metrics: Mapping[str, float]) -> Move | None:
        """What happens to the anchor after a step with these metrics."""
        return None

    def after_evaluation(self, step: int, results: Mapping[str, float]) -> Move | None:
        """What happens to the anchor after an evaluation (`pass@1`, ...)."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON data; the weights themselves are kept by the ranks."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""


@REFERENCES.register("frozen")
class Frozen(Reference):
    """The weights the run started from, or those in `path`."""

    def __init__(
        self, path: str | None = None, revision: str | None = None, trust_remote_code: bool | None = None
    ) -> None:
        self.path, self.revision, self.trust_remote_code = path, revision, trust_remote_code

    def origin(self) -> list[tuple[str | None, float]]:
        return [(self.path, 1.0)]


@REFERENCES.register("teacher")
class Teacher(Reference):
    """Another model, to learn from: KDRL (arXiv:2506.02208). `path: null` is the run's own base.

    It must have the tokenizer of the policy.
    """

    def __init__(self, path: str | None, revision: str | None = None, trust_remote_code: bool | None = None) -> None:
        self.path, self.revision, self.trust_remote_code = path, revision, trust_remote_code

    def origin(self) -> list[tuple[str | None, float]]:
        return [(self.path, 1.0)]


@REFERENCES.register("soup")
class Soup(Reference):
    """The average of several models' weights: SALSA (arXiv:2411.01798) takes two supervised fine-tunings of one base.

    Args:
        members: folders or Hugging Face ids, all of one architecture; null is the run's own base.
        weights: one for each member, in any unit; equal by default.
        trust_remote_code: run the code that comes with the members.
    """

    def __init__(
        self,
        members: Annotated[list[str | None], Field(min_length=1)],
        weights: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None,
        trust_remote_code: bool | None = None,
    ) -> None:
        if weights is not None and len(weights) != len(members):
            raise ConfigError(
                f"reference policy 'soup': weights has {len(weights)} numbers for {len(members)} members: give one each"
            )
        self.members = members
        self.weights = weights or [1.0] * len(members)
        self.trust_remote_code = trust_remote_code

    def origin(self) -> list[tuple[str | None, float]]:
        total = sum(self.weights)
        return [(member, weight / total) for member, weight in zip(self.members, self.weights, strict=True)]


@REFERENCES.register("ema")
class Ema(Reference):
    """The base, following the policy: every `every` steps anchor <- decay anchor + (1 - decay) policy.

    After n moves it is decay^n base + (1 - decay) sum_k decay^(n-k) policy_k. TR-DPO's soft update (arXiv:2404.09656)
    with TRL's alpha 0.6, the share of the policy, every 512 steps is decay 0.4, every 512; NOVER's proxy
    (arXiv:2505.16022), mixed by 0.9, is decay 0.1. A decay of 1 is `frozen`.
    """

    def __init__(self, decay: Annotated[float, Field(gt=0, le=1)], every: Annotated[int, Field(ge=1)] = 1) -> None:
        self.decay = decay
        self.every = every

    @property
    def moves(self) -> bool:
        return self.decay < 1

    def after_step(self, step: int, metrics: Mapping[str, float]) -> Move | None:
        return Move(1 - self.decay) if self.moves and step % self.every == 0 else None


@REFERENCES.register("hard_reset")
class HardReset(Reference):
    """The base until something calls for a reset, then a copy of the policy: ProRL (arXiv:2505.24864).

    ProRL resets when validation stagnates or degrades, and re-initialises the optimizer's state; its second version
    resets every 200 to 500 steps or when the KL spikes or stalls, and keeps the optimizer's state. The papers give no
    thresholds. Whatever called for a reset, all counting begins anew with it: steps, evaluations, and the best one.

    Args:
        every: reset this many steps after the last reset, or the start.
        patience: reset after this many evaluations in a row that were not better than the best by more than
            `min_delta`.
        max_drop: reset at once when an evaluation is this much below the best.
        metric: what evaluations are judged by; larger is better.
        min_delta: gain over the best that counts as one.
        cooldown: evaluations after a reset that are not looked at.
        kl_spike: reset when `kl_metric` of a step exceeds this.
        kl_metric: the metric of the divergence to this anchor, as it is logged.
        min_interval: never reset sooner after the last reset, or the start. What was called for in that time is looked
            at again with the next step or evaluation.
        optimizer: `clear` forgets the optimizer's moments at a reset (ProRL), `keep` does not (its second version).
    """

    def __init__(
        self,
        every: Annotated[int, Field(ge=1)] | None = None,
        patience: Annotated[int, Field(ge=1)] | None = None,
        max_drop: Annotated[float, Field(gt=0)] | None = None,
        metric: str = "pass@1",
        min_delta: Annotated[float, Field(ge=0)] = 0.0,
        cooldown: Annotated[int, Field(ge=0)] = 0,
        kl_spike: Annotated[float, Field(gt=0)] | None = None,
        kl_metric: str = "kl/k3",
        min_interval: Annotated[int, Field(ge=0)] = 0,
        optimizer: Literal["keep", "clear"] = "clear",
    ) -> None:
        where = "reference policy 'hard_reset'"
        if every is None and patience is None and max_drop is None and kl_spike is None:
            raise ConfigError(f"{where}: nothing triggers a reset: set every, patience, max_drop or kl_spike")
        if every is not None and min_interval > every:
            raise ConfigError(f"{where}: every {every} would reset sooner than min_interval {min_interval} allows")
        if min_delta and patience is None:
            raise ConfigError(f"{where}: min_delta {min_delta} has no effect without patience")
        if cooldown and patience is None and max_drop is None:
            raise ConfigError(f"{where}: cooldown {cooldown} has no effect without patience or max_drop")
        self.every, self.patience, self.max_drop = every, patience, max_drop
        self.metric, self.min_delta, self.cooldown = metric, min_delta, cooldown
        self.kl_spike, self.kl_metric = kl_spike, kl_metric
        self.min_interval, self.optimizer = min_interval, optimizer
        self._last = 0  # step of the last reset
        self._best: float | None = None
        self._worse = 0  # evaluations since the best
        self._cooling = 0  # evaluations still to be passed over
        self._known = False  # whether the KL metric was ever seen

    @property
    def moves(self) -> bool:
        return True

    def after_step(self, step: int, metrics: Mapping[str, float]) -> Move | None:
        """
        Raises:
            ValueError: there is no `kl_metric`, though a spike of it is waited for.
        """
        if self.every is not None and step - self._last >= self.every:
            return self._reset(step, f"{step - self._last} steps since the last time")
        if self.kl_spike is None:
            return None
        if self.kl_metric not in metrics:
            if self._known or "entropy" not in metrics:
                return None  # a step without a token of that term, or without any on-policy one
            found = [name for name in metrics if name.startswith("kl/")]
            raise ValueError(
                f"reference policy 'hard_reset': steps have no metric kl_metric {self.kl_metric!r} (those like it: "
                f"{', '.join(found) or 'none'}): name the one of the divergence to this anchor"
            )
        self._known = True
        kl = metrics[self.kl_metric]
        if kl <= self.kl_spike or not self._allowed(step):
            return None
        return self._reset(step, f"{self.kl_metric} {kl:.4g} exceeds {self.kl_spike:.4g}")

    def after_evaluation(self, step: int, results: Mapping[str, float]) -> Move | None:
        """
        Raises:
            ValueError: the evaluation has no `metric`, though resets depend on it.
        """
        if self.patience is None and self.max_drop is None:
            return None
        if self.metric not in results:
            raise ValueError(
                f"reference policy 'hard_reset': evaluations have no metric {self.metric!r} (they have "
                f"{', '.join(results) or 'none'}): set metric, or add its k to evaluation.k"
            )
        if self._cooling:
            self._cooling -= 1
            return None
        value = results[self.metric]
        if self._best is None or value > self._best + self.min_delta:
            self._best, self._worse = value, 0
            return None
        self._worse += 1
        if not self._allowed(step):
            return None
        if self.max_drop is not None and self._best - value >= self.max_drop:
            return self._reset(step, f"{self.metric} {value:.4g} is {self._best - value:.4g} below the best")
        if self.patience is not None and self._worse >= self.patience:
            return self._reset(step, f"{self.metric} has not got better than {self._best:.4g} for {self._worse} times")
        return None

    def _allowed(self, step: int) -> bool:
        return step - self._last >= self.min_interval

    def _reset(self, step: int, why: str) -> Move:
        self._last, self._best, self._worse, self._cooling = step, None, 0, self.cooldown
        return Move(clear_optimizer=self.optimizer == "clear", why=why)

    def state_dict(self) -> dict[str, Any]:
        return {
            "last": self._last,
            "best": self._best,
            "worse": self._worse,
            "cooling": self._cooling,
            "known": self._known,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._last, self._best, self._worse = state["last"], state["best"], state["worse"]
        self._cooling, self._known = state["cooling"], state["known"]


class Modelless(Reference):
    """An anchor whose log-probs need no model."""

    def origin(self) -> list[tuple[str | None, float]]:
        return []


@REFERENCES.register("old_policy")
class OldPolicy(Modelless):
    """pi_old itself, the policy before this batch: RPG's iterative reference."""


@REFERENCES.register("cached")
class Cached(Modelless):
    """Log-probs that were stored with the sample when it was made: rehearsal without a second model."""

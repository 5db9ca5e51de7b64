"""The driver's half of the objective: what each token is worth, and how much each term of the loss weighs.

Worked out once a step over the whole batch, so that a mean, a quantile or a whitening is one over all ranks and does
not depend on how the batch is cut. Nothing here is differentiated. What has state is saved with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlpost import config
from rlpost.config import Component
from rlpost.course import Course
from rlpost.objective.advantage import ADVANTAGES, AdvantageEstimator
from rlpost.objective.correction import CORRECTIONS, Correction, check_chain
from rlpost.objective.divergence import DIVERGENCES, Divergence
from rlpost.objective.labels import anchor_of, labels
from rlpost.objective.policy_loss import POLICY_LOSSES
from rlpost.objective.reweight import REWEIGHTERS
from rlpost.objective.schedule import SCHEDULES, Moment, Schedule
from rlpost.objective.selector import SELECTORS, Selector
from rlpost.objective.transform import TRANSFORMS, Transform
from rlpost.objective.types import CreditInputs, Reshaped, TermInputs
from rlpost.registry import Registry


@dataclass(frozen=True)
class Credited:
    """What the learner has to know of the on-policy samples of a step.

    Attributes:
        advantages: (B, T) float64.
        weights: (B, T) float64, rollout corrections; None when there are none.
        keep: (B, T) bool, tokens of the policy loss; None when all are.
        metrics: reported once.
    """

    advantages: Tensor
    weights: Tensor | None
    keep: Tensor | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Penalty:
    """A divergence in the reward."""

    label: str
    divergence: Divergence
    anchor: str | None


class Credit:
    """Advantages, transforms, corrections, selectors and coefficients of a configuration.

    Args:
        steps: of the whole run, for schedules that end with it.

    Raises:
        ConfigError: an entry, its file or a parameter is wrong, or the ratio to the engine's policy is counted twice.
    """

    def __init__(self, settings: config.Objective, steps: int) -> None:
        self.course = Course(1, 0.0, steps)
        self.advantage: AdvantageEstimator = ADVANTAGES.create(settings.advantage)
        self.transforms: list[Transform] = [TRANSFORMS.create(c) for c in settings.transforms]
        self.corrections: list[Correction] = [CORRECTIONS.create(c) for c in settings.corrections]
        check_chain(settings.corrections, settings.proximal)
        _check_owners(settings)
        self.where: dict[str, list[Selector]] = {}
        self.coefs: dict[str, Schedule] = {}
        self.penalties: list[Penalty] = []
        self.source: dict[str, str] = {}
        summands = labels(settings)
        for label, summand in summands.items():
            self.source[label] = summand.source
            self.where[label] = [SELECTORS.create(s) for s in summand.where]
            self.coefs[label] = _schedule(summand.coef)
            if isinstance(summand, config.Regularizer) and summand.placement == "reward":
                divergence = DIVERGENCES.create(Component(name=summand.divergence, **summand.params))
                self.penalties.append(Penalty(label, divergence, anchor_of(summand)))
        self.reweight = REWEIGHTERS.create(settings.reweight) if settings.reweight is not None else None
        self._reweighted = [
            *(["policy_loss"] if settings.policy_loss is not None else []),
            *(label for label, summand in summands.items() if isinstance(summand, config.Term)),
        ]
        self.needs = frozenset(self._needs(settings))

    def _needs(self, settings: config.Objective) -> set[str]:
        needs: set[str] = set()
        chosen: list[tuple[Registry[Any], Component]] = [
            (ADVANTAGES, settings.advantage),
            *((TRANSFORMS, c) for c in settings.transforms),
            *((CORRECTIONS, c) for c in settings.corrections),
            *((SELECTORS, s) for _, summand in settings.summands() for s in summand.where),
        ]
        for registry, component in chosen:
            needs |= needs_of(registry, component)
        for schedule in self.coefs.values():
            needs |= set(schedule.needs)
        for penalty in self.penalties:
            needs |= {"old_logp"} | ({f"anchors.{penalty.anchor}"} if penalty.anchor else set())
        if "anchors.old_policy" in needs:
            needs = needs - {"anchors.old_policy"} | {"old_logp"}
        return needs - {"behavior_logp"}

    def credit(self, inputs: CreditInputs) -> Credited:
        """Advantages, weights and kept tokens of the on-policy samples.

        Raises:
            ValueError: shapes are wrong, or a reward or an advantage is not finite.
        """
        if not inputs.rewards.isfinite().all():
            raise ValueError(f"a reward is not finite: {inputs.rewards.tolist()}")
        metrics: dict[str, float] = {}
        inputs = self._with_penalties(inputs, metrics)
        advantages = inputs.per_token(_finite("advantage estimator", self.advantage(inputs), inputs))
        keep: Tensor | None = None
        for transform in self.transforms:
            found = transform(advantages, inputs)
            reshaped = found if isinstance(found, Reshaped) else Reshaped(found)
            advantages = inputs.per_token(_finite("advantage transform", reshaped.advantages, inputs))
            if reshaped.keep is not None:
                keep = reshaped.keep if keep is None else keep & reshaped.keep
            metrics.update(reshaped.metrics)
        weights: Tensor | None = None
        for correction in self.corrections:
            corrected = correction(inputs)
            factor = _finite("rollout correction", corrected.weights, inputs)
            weights = factor if weights is None else weights * factor
            metrics.update(corrected.metrics)
        return Credited(advantages, weights, keep, metrics)

    def select(self, source: str, advantages: Tensor, inputs: CreditInputs) -> dict[str, Tensor]:
        """By label of each term on `source` that has selectors, (B, T) bool: the tokens it is about."""
        chosen: dict[str, Tensor] = {}
        for label, selectors in self.where.items():
            if self.source[label] == source and selectors:
                masks = [selector(advantages, inputs) for selector in selectors]
                if any(m.shape != inputs.mask.shape or m.dtype != torch.bool for m in masks):
                    raise ValueError(f"a selector of {label} must return bool {tuple(inputs.mask.shape)}")
                chosen[label] = torch.stack(masks).all(0)
        return chosen

    def coefficients(
        self, step: int, inputs: CreditInputs | None = None, advantages: Tensor | None = None
    ) -> dict[str, float | Tensor]:
        """By label, the coefficient of each term at this step: a number, or (B,) for the on-policy samples.

        `policy_loss` is among them when terms are reweighted. Without `inputs` those of single samples are left out.
        """
        coefs: dict[str, float | Tensor] = {
            label: schedule(Moment(step, self.course.end, label, self.course(step), inputs, advantages))
            for label, schedule in self.coefs.items()
            if inputs is not None or not schedule.per_sample
        }
        if self.reweight is not None:
            for label, weight in self.reweight.weights(self._reweighted).items():
                coefs[label] = coefs.get(label, 1.0) * weight
        return coefs

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of a step that was learned from, for coefficients that adapt."""
        for label, schedule in self.coefs.items():
            schedule.observe(metrics, label)
        if self.reweight is not None:
            names = {label: label if label == "policy_loss" else f"loss/{label}" for label in self._reweighted}
            self.reweight.observe({label: metrics[name] for label, name in names.items() if name in metrics})

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "coefs": {label: schedule.state_dict() for label, schedule in self.coefs.items()},
            "reweight": self.reweight.state_dict() if self.reweight is not None else None,
            "course": [self.course.at, self.course.done, self.course.end],
        }

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Continue where `state_dict` was taken.

        Args:
            step: the latest that was taken.

        Raises:
            ValueError: it was taken of another objective.
        """
        if set(state["coefs"]) != set(self.coefs) or (state["reweight"] is None) != (self.reweight is None):
            raise ValueError(
                f"the saved objective has terms {sorted(state['coefs'])}, this one {sorted(self.coefs)}: resume with "
                "the objective of the run that saved it"
            )
        for label, schedule in self.coefs.items():
            schedule.load_state_dict(state["coefs"][label])
        if self.reweight is not None:
            self.reweight.load_state_dict(state["reweight"])
        self.course = Course(*state["course"]).bent(step, self.course.end)

    def _with_penalties(self, inputs: CreditInputs, metrics: dict[str, float]) -> CreditInputs:
        """The inputs with every divergence that is placed in the reward taken from the tokens' rewards."""
        if not self.penalties:
            return inputs
        old = inputs.need("old_logp")
        zeros = torch.zeros_like(old)
        token_rewards = zeros if inputs.token_rewards is None else inputs.token_rewards
        terms = TermInputs(
            logp=old,
            old_logp=old,
            behavior_logp=zeros,
            anchors={},
            advantages=zeros,
            weights=torch.ones_like(old),
            mask=inputs.mask,
            entropy=zeros,
            group=inputs.group,
        )
        for penalty in self.penalties:
            anchor = None if penalty.anchor is None else _anchor(inputs, penalty.anchor)
            outputs = penalty.divergence(terms.masked(), anchor)
            if outputs.penalty is None:
                raise config.ConfigError(
                    f"objective.regularizers: {penalty.label} has no form for placement: reward; place it in the loss"
                )
            coef = self.coefs[penalty.label](
                Moment(inputs.step, self.course.end, penalty.label, self.course(inputs.step), inputs)
            )
            scale = coef[:, None] if isinstance(coef, Tensor) else coef
            token_rewards = token_rewards - scale * outputs.penalty.masked_fill(~inputs.mask, 0.0)
            if inputs.mask.any():
                for family, value in outputs.means.items():
                    metrics[f"{family}/{penalty.label}"] = float(value.double()[inputs.mask].mean())
        return replace(inputs, token_rewards=token_rewards)


def _check_owners(settings: config.Objective) -> None:
    """Refuse to count pi_old / mu again where the advantage or the policy loss has it in itself.

    Raises:
        ConfigError: they both do, one does beside corrections, or the advantage does beside a ratio to mu.
    """
    advantage, surrogate = settings.advantage, settings.policy_loss
    if surrogate is None:  # nothing asks for advantages or corrections
        return
    credited = ADVANTAGES.trait(advantage.name, "owns_correction", False)
    owners = [f"advantage {advantage.name}"] if credited else []
    if POLICY_LOSSES.trait(surrogate.name, "owns_correction", False):
        owners.append(f"policy loss {surrogate.name}")
    beside: list[tuple[str, str]] = []
    if settings.corrections:
        beside.append(("corrections", "remove them"))
    if len(owners) > 1:
        beside.append((f"policy_loss: {surrogate.name}", "take another, such as reinforce"))
    if credited and settings.proximal == "behavior" and POLICY_LOSSES.trait(surrogate.name, "ratio", True):
        beside.append((f"proximal: behavior with policy_loss: {surrogate.name}", "set proximal: learner"))
    if owners and beside:
        key, fix = beside[0]
        raise config.ConfigError(
            f"objective.{key}: {owners[0]} carries the ratio to the engine's policy itself, which would be counted "
            f"twice: {fix}"
        )


def needs_of(registry: Registry[Any], component: Component) -> set[str]:
    """Optional inputs the entry reads: its trait `needs`, names or a function of its parameters."""
    needs: Sequence[str] | Callable[[Mapping[str, Any]], Sequence[str]] = registry.trait(component.name, "needs", ())
    return set(needs(component.params) if callable(needs) else needs)


def _schedule(coef: float | Component) -> Schedule:
    return SCHEDULES.create(coef if isinstance(coef, Component) else Component(name="constant", value=coef))


def _anchor(inputs: CreditInputs, name: str) -> Tensor:
    found = inputs.need("old_logp") if name == "old_policy" else inputs.need(f"anchors.{name}")
    return found.masked_fill(~inputs.mask, 0.0)


def _finite(role: str, values: Tensor, inputs: CreditInputs) -> Tensor:
    allowed = (inputs.mask.shape, inputs.mask.shape[:1])
    if not isinstance(values, Tensor) or values.shape not in allowed:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"the {role} must return (B,) or (B, T), here {tuple(inputs.mask.shape)}, got {shape}")
    values = values.detach().double()
    per_token = inputs.per_token(values)
    if not per_token.isfinite().all():
        raise ValueError(f"the {role} returned {int((~per_token.isfinite()).sum())} values that are not finite")
    return values

"""The whole objective: a policy term plus weighted divergences, each aggregated with global denominators."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpost import config
from rlpost.meter import Meter
from rlpost.objective.advantage import ADVANTAGES, AdvantageEstimator
from rlpost.objective.aggregate import Denominators, token_weights
from rlpost.objective.divergence import DIVERGENCES, Divergence
from rlpost.objective.policy_loss import POLICY_LOSSES, PolicyLoss
from rlpost.objective.types import TermInputs, TermOutputs


@dataclass(frozen=True)
class Regularizer:
    """A divergence to a named anchor, its coefficient, and the label its metrics carry."""

    label: str
    divergence: Divergence
    anchor: str
    coef: float

    def __call__(self, batch: TermInputs) -> TermOutputs:
        return self.divergence(batch, batch.anchors[self.anchor])


@dataclass(frozen=True)
class Objective:
    """total = aggregate(policy_loss) + sum_k coef_k aggregate(divergence_k)   (methods.md, 1.5).

    Made in each process from the configuration: a user's entry from a file has a module that exists only where it was
    imported, so an objective is not to be pickled.
    """

    advantage: AdvantageEstimator
    policy_loss: PolicyLoss
    regularizers: Sequence[Regularizer]
    aggregation: config.Aggregation

    @classmethod
    def from_config(cls, settings: config.Objective) -> Objective:
        """Look all entries up and bind their parameters.

        Raises:
            ConfigError: an entry, its file or one of its parameters is wrong, or a regularizer is there twice.
        """
        labels = _labels(settings.regularizers)
        return cls(
            advantage=ADVANTAGES.create(settings.advantage),
            policy_loss=POLICY_LOSSES.create(settings.policy_loss),
            regularizers=[
                Regularizer(
                    label, DIVERGENCES.create(config.Component(name=r.divergence, **r.params)), r.anchor, r.coef
                )
                for label, r in zip(labels, settings.regularizers, strict=True)
            ],
            aggregation=settings.aggregation,
        )

    @property
    def anchors(self) -> set[str]:
        """Names of the anchor policies whose log-probs `loss` needs."""
        return {r.anchor for r in self.regularizers}

    def advantages(self, rewards: Tensor, group: Tensor, usable: Tensor) -> Tensor:
        """Credit for each sample; exactly 0 for unusable ones, whatever the estimator says of them.

        Args:
            rewards: (B,) float32 or float64. group: (B,) int64. usable: (B,) bool.

        Returns:
            (B,) in the dtype of `rewards`.

        Raises:
            ValueError: shapes differ, or a usable reward or its advantage is not finite.
        """
        if not rewards.shape == group.shape == usable.shape or rewards.ndim != 1 or usable.dtype != torch.bool:
            raise ValueError(
                f"rewards {tuple(rewards.shape)}, group {tuple(group.shape)} and usable {tuple(usable.shape)} "
                f"({usable.dtype}) must all be (B,), usable bool"
            )
        if not rewards[usable].isfinite().all():
            raise ValueError(f"a usable sample's reward is not finite: {rewards[usable].tolist()}")
        credit = self.advantage(rewards, group, usable)
        if credit.shape != rewards.shape or not credit[usable].isfinite().all():
            raise ValueError(f"the advantage estimator must return finite (B,) = {tuple(rewards.shape)}, got {credit}")
        return credit.detach().masked_fill(~usable, 0.0)

    def loss(self, inputs: TermInputs, denominators: Denominators) -> tuple[Tensor, Meter]:
        """This micro-batch's summand of the step's loss, and its metrics.

        The loss of an optimizer step is the sum of this over all its micro-batches and ranks, and so are the metrics
        `loss` and `policy_loss`. All else is reduced over tokens: means `entropy`, `kl/<name>` (the divergence's
        value, before its coefficient), `clamp/<name>`, and what the policy loss reports, such as `clip/low`,
        `ratio/max`. A micro-batch with an empty mask gives a loss of 0 that can be differentiated: all ranks run the
        same number of backward passes.

        Returns:
            Scalar in the dtype of `inputs.logp`; meter.

        Raises:
            ValueError: an anchor is missing, the denominators are not global, or a term returns no (B, T) loss that
                depends on `logp`.
            FloatingPointError: a term's loss is not finite.
        """
        missing = self.anchors - set(inputs.anchors)
        if missing:
            raise ValueError(
                f"the objective needs log-probs of anchors {sorted(missing)}, got {sorted(inputs.anchors)}"
            )
        batch = inputs.masked()
        weights = token_weights(batch.mask, self.aggregation, denominators).to(batch.logp.dtype)
        policy = self.policy_loss(batch)
        terms = {"policy_loss": _aggregate("policy loss", policy, weights, batch)}
        means = {"entropy": batch.entropy, **policy.means}
        maxima = dict(policy.maxima)
        for regularizer in self.regularizers:
            label, outputs = regularizer.label, regularizer(batch)
            terms[label] = regularizer.coef * _aggregate(f"divergence {label}", outputs, weights, batch)
            means |= {f"{family}/{label}": value for family, value in outputs.means.items()}
            maxima |= {f"{family}/{label}": value for family, value in outputs.maxima.items()}
        total = torch.stack(list(terms.values())).sum()
        return total, _measure(batch.mask, terms, means, maxima)


def _aggregate(term: str, outputs: TermOutputs, weights: Tensor, batch: TermInputs) -> Tensor:
    if not isinstance(outputs, TermOutputs):
        raise ValueError(f"{term}: must return TermOutputs, got {type(outputs).__name__}")
    if outputs.loss.shape != weights.shape:
        raise ValueError(
            f"{term}: must return one loss per token, {tuple(weights.shape)}, got {tuple(outputs.loss.shape)}; "
            "the objective does the averaging"
        )
    if batch.logp.requires_grad and not outputs.loss.requires_grad:
        raise ValueError(f"{term}: its loss does not depend on logp (was it detached?), so it would train nothing")
    return (weights * outputs.loss).sum()


def _measure(
    mask: Tensor, terms: Mapping[str, Tensor], means: Mapping[str, Tensor], maxima: Mapping[str, Tensor]
) -> Meter:
    """The meter of a micro-batch, read from the device in one transfer. Refuses terms that are not finite."""
    numbers = torch.stack(
        [
            mask.sum().double(),
            *(term.detach().double() for term in terms.values()),
            *(value.detach().double().masked_fill(~mask, 0.0).sum() for value in means.values()),
            *(value.detach().double().masked_fill(~mask, -torch.inf).amax() for value in maxima.values()),
        ]
    ).tolist()
    read = iter(numbers)
    tokens = next(read)
    losses = {name: next(read) for name in terms}
    broken = {name: value for name, value in losses.items() if not math.isfinite(value)}
    if broken:
        raise FloatingPointError(f"terms of the objective are not finite: {broken}, over {tokens:.0f} tokens")

    meter = Meter()
    meter.sum("loss", sum(losses.values()))
    meter.sum("policy_loss", losses["policy_loss"])
    if tokens:
        for name in means:
            meter.mean(name, next(read), tokens)
        for name in maxima:
            meter.max(name, next(read))
    return meter


def _labels(regularizers: Sequence[config.Regularizer]) -> list[str]:
    """`k3`, or `k3@teacher` where k3 is there for several anchors; for a user's entry the attribute's name."""
    names = [r.divergence.rpartition(":")[2] for r in regularizers]
    labels = [
        f"{name}@{r.anchor}" if names.count(name) > 1 else name for name, r in zip(names, regularizers, strict=True)
    ]
    twice = [label for label, times in Counter(labels).items() if times > 1]
    if twice:
        raise config.ConfigError(f"objective.regularizers: {twice[0]} is there twice; make it one and add the coef")
    return labels

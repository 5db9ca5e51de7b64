"""The rank's half of the objective: a policy loss, terms and divergences, each aggregated with global denominators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlpost import config
from rlpost.config import SOURCES, Component
from rlpost.meter import Kind, Meter
from rlpost.objective.aggregate import Denominators, token_weights
from rlpost.objective.divergence import DIVERGENCES
from rlpost.objective.f_divergence import exact_divergence
from rlpost.objective.labels import anchor_of, labels
from rlpost.objective.policy_loss import POLICY_LOSSES, PolicyLoss
from rlpost.objective.terms import TERMS
from rlpost.objective.types import TermInputs, TermOutputs

Exact = Callable[[Tensor, Tensor], Tensor]
POLICY = "policy_loss"


@dataclass(frozen=True)
class LossInputs:
    """A micro-batch for the whole objective.

    Attributes:
        tokens: of all B sequences; its mask holds every token that is learned from, of whatever source.
        source: (B,) int64, index into `rlpost.config.SOURCES`.
        keep: (B, T) bool, tokens that the policy loss is about; None for all on-policy ones.
        where: by label, (B, T) bool, tokens that a term with selectors is about.
        coefs: by label, the coefficient of each term: a number, or (B,). 1 where there is none.
    """

    tokens: TermInputs
    source: Tensor
    keep: Tensor | None = None
    where: Mapping[str, Tensor] = field(default_factory=dict)
    coefs: Mapping[str, float | Tensor] = field(default_factory=dict)

    def of(self, source: str) -> Tensor:
        """(B, T) bool: tokens of a source."""
        return self.tokens.mask & (self.source == SOURCES.index(source))[:, None]


@dataclass(frozen=True)
class Summand:
    """The policy loss, a term or a divergence, with what it is about.

    Attributes:
        pool: which denominators it is aggregated with: `policy_loss`, or its source.
        exact: the divergence over the whole vocabulary, when that is its form; the learner works it out.
    """

    label: str
    entry: Callable[[TermInputs, Tensor | None], TermOutputs]
    source: str
    pool: str
    aggregation: config.Aggregation
    anchor: str | None = None
    exact: Exact | None = None

    def __call__(self, batch: TermInputs) -> TermOutputs:
        if self.exact is not None:
            value = batch.full[self.label]
            return TermOutputs(value, means={"divergence": value.detach()})
        return self.entry(batch, batch.anchors[self.anchor] if self.anchor else None)

    def named(self, family: str) -> str:
        """The name of one of its metrics."""
        return family if self.label == POLICY else f"{family}/{self.label}"


class Objective:
    """total = coef aggregate(policy_loss) + sum_k coef_k aggregate(term_k)   (methods.md, 1.5).

    Made in each process from the configuration: a user's entry from a file has a module that exists only where it was
    imported, so an objective is not to be pickled. It has no state.

    Raises:
        ConfigError: an entry, its file or a parameter is wrong; a term is given samples of a source it is not for; a
            divergence stands beside a policy loss that has its own.
    """

    def __init__(self, settings: config.Objective) -> None:
        self.proximal = settings.proximal
        self.summands = [
            *_policy_loss(settings),
            *(
                _summand(label, summand, settings.aggregation)
                for label, summand in labels(settings).items()
                if not (isinstance(summand, config.Regularizer) and summand.placement == "reward")
            ),
        ]

    @property
    def anchors(self) -> set[str]:
        """Names of the anchors whose log-probs of the sampled tokens `loss` needs."""
        return {s.anchor for s in self.summands if s.anchor and s.exact is None}

    @property
    def exact(self) -> dict[str, tuple[str, Exact]]:
        """By label, divergences over the whole vocabulary that `loss` needs: the anchor, and the divergence.

        The function takes log-probs (N, V) of the policy and of the anchor and returns (N,).
        """
        return {s.label: (s.anchor, s.exact) for s in self.summands if s.exact is not None and s.anchor is not None}

    def loss(self, inputs: LossInputs, denominators: Mapping[str, Denominators]) -> tuple[Tensor, Meter]:
        """This micro-batch's summand of the step's loss, and its metrics.

        The loss of an optimizer step is the sum of this over all its micro-batches and ranks, and so are the metrics
        `loss`, `policy_loss` and `loss/<label>` (before the coefficient). All else is a mean or maximum over the
        tokens of its term: `entropy` (on-policy tokens), `kl/<label>`, `divergence/<label>`, `clamp/<label>`, and what
        the policy loss reports, such as `clip/low`, `ratio/max`. A micro-batch without a token of a term adds a 0 that
        can be differentiated: all ranks run the same number of backward passes.

        Args:
            denominators: of each pool that has tokens in the step: `policy_loss`, and each source.

        Returns:
            Scalar in the dtype of `logp`; meter.

        Raises:
            ValueError: an anchor is missing, the denominators are not global, or a term returns no loss that depends
                on the policy.
            FloatingPointError: a term's loss is not finite.
        """
        tokens = inputs.tokens.masked()
        missing = self.anchors - set(tokens.anchors)
        if missing:
            raise ValueError(
                f"the objective needs log-probs of anchors {sorted(missing)}, got {sorted(tokens.anchors)}"
            )
        total = tokens.logp.sum() * 0.0
        readings = Readings()
        readings.mean("entropy", tokens.entropy, inputs.of("on_policy"))
        for summand in self.summands:
            among = inputs.of(summand.source)
            if summand.pool == POLICY and inputs.keep is not None:
                among = among & inputs.keep
            mask = among & inputs.where.get(summand.label, among)
            if not mask.any():
                continue
            batch = tokens.masked(mask)
            outputs = summand(batch)
            summed = _weighed(summand, outputs, among, batch, denominators[summand.pool])
            coef = inputs.coefs.get(summand.label, 1.0)
            by_row = coef if isinstance(coef, Tensor) else torch.full_like(summed, coef)
            total = total + (by_row * summed).sum()
            readings.sum(POLICY if summand.label == POLICY else f"loss/{summand.label}", summed.sum())
            for family, value in outputs.means.items():
                readings.mean(summand.named(family), value, mask)
            for family, value in outputs.maxima.items():
                readings.max(summand.named(family), value, mask)
        readings.sum("loss", total)
        return total, readings.meter()


def _weighed(
    summand: Summand, outputs: TermOutputs, among: Tensor, batch: TermInputs, denominators: Denominators
) -> Tensor:
    """(B,) what each sequence adds to the aggregated loss of a summand, before its coefficient."""
    name = summand.label
    if not isinstance(outputs, TermOutputs):
        raise ValueError(f"{name}: must return TermOutputs, got {type(outputs).__name__}")
    loss, mask = outputs.loss, batch.mask
    if loss.shape not in (mask.shape, mask.shape[:1]):
        raise ValueError(
            f"{name}: must return one loss per token, {tuple(mask.shape)}, or per sequence, ({len(mask)},), got "
            f"{tuple(loss.shape)}; the objective does the averaging"
        )
    if batch.logp.requires_grad and not loss.requires_grad:
        raise ValueError(f"{name}: its loss does not depend on logp (was it detached?), so it would train nothing")
    weights = token_weights(among, summand.aggregation, denominators)
    if loss.ndim == 1:
        return loss * mask.any(1) / denominators.sequences
    return (weights.to(loss.dtype) * mask * loss).sum(1)


def _policy_loss(settings: config.Objective) -> list[Summand]:
    if settings.policy_loss is None:
        return []
    name = settings.policy_loss.name
    if POLICY_LOSSES.trait(name, "owns_divergence", False) and settings.regularizers:
        raise config.ConfigError(
            f"objective.regularizers: policy loss {name} has a divergence of its own; remove one of them"
        )
    entry: PolicyLoss = POLICY_LOSSES.create(settings.policy_loss)
    return [Summand(POLICY, lambda batch, _: entry(batch), "on_policy", POLICY, settings.aggregation)]


def _summand(label: str, given: config.Term | config.Regularizer, aggregation: config.Aggregation) -> Summand:
    """A term or regularizer of the loss, looked up and bound to its parameters."""
    exact: Exact | None = None
    if isinstance(given, config.Term):
        _check_source("terms", given, TERMS.trait(given.loss, "sources", config.SOURCES))
        entry: Any = TERMS.create(Component(name=given.loss, **given.params))
    elif given.form == "full":
        exact, entry = exact_divergence(given.divergence, given.params), None
    else:
        _check_source("regularizers", given, DIVERGENCES.trait(given.divergence, "sources", config.SOURCES))
        params = dict(given.params)
        if given.divergence in config.F_DIVERGENCES:
            params["form"] = given.form or ("generator" if given.source == "rehearsal" else "sampled")
        entry = DIVERGENCES.create(Component(name=given.divergence, **params))
    return Summand(label, entry, given.source, given.source, given.aggregation or aggregation, anchor_of(given), exact)


def _check_source(key: str, given: config.Term | config.Regularizer, sources: Sequence[str]) -> None:
    if given.source not in sources:
        raise config.ConfigError(
            f"objective.{key}: {given.entry} is for samples of source {' or '.join(sources)}, not {given.source}: set "
            "source to one it is for, or take another entry"
        )


class Readings:
    """Numbers of a micro-batch on the device, read in one transfer."""

    def __init__(self) -> None:
        self._names: list[tuple[str, Kind]] = []
        self._values: list[Tensor] = []

    def sum(self, name: str, value: Tensor) -> None:
        self._add(name, "sum", value, torch.ones_like(value))

    def mean(self, name: str, value: Tensor, mask: Tensor) -> None:
        """Of (B, T) values over the mask."""
        self._add(name, "mean", value.double().masked_fill(~mask, 0.0).sum(), mask.sum())

    def max(self, name: str, value: Tensor, mask: Tensor) -> None:
        self._add(name, "max", value.double().masked_fill(~mask, -torch.inf).amax(), mask.sum())

    def _add(self, name: str, kind: Kind, value: Tensor, weight: Tensor) -> None:
        self._names.append((name, kind))
        self._values += [value.detach().double(), weight.detach().double()]

    def meter(self) -> Meter:
        """The numbers; those over no token are left out.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        numbers = torch.stack(self._values).tolist()
        read = [(name, kind, *numbers[2 * i : 2 * i + 2]) for i, (name, kind) in enumerate(self._names)]
        broken = {name: value for name, kind, value, _ in read if kind == "sum" and not math.isfinite(value)}
        if broken:
            raise FloatingPointError(f"terms of the objective are not finite: {broken}")
        meter = Meter()
        for name, kind, value, weight in read:
            if weight:
                meter.add(name, kind, value, weight)
        return meter

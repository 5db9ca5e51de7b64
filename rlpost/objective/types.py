"""What goes into the roles of the objective and what comes out.

Two halves. On the driver, once a step, with the whole batch at hand: `CreditInputs` for advantages, transforms,
corrections, selectors and coefficients; nothing there is differentiated. In a learner rank, for each micro-batch:
`TermInputs` for policy losses, terms and divergences; gradients flow through the policy's own log-probs alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

DIFFERENTIABLE = ("logp", "entropy", "full")


@dataclass(frozen=True)
class CreditInputs:
    """The on-policy samples of one step: B responses padded to T tokens. Everything is detached.

    Attributes:
        rewards: (B,) float64.
        group: (B,) int64, the samples of one prompt share a value and come in the order of their numbers; values, and
            the order of groups, are arbitrary.
        correct: (B,) bool, what the first verifier says.
        truncated: (B,) bool, stopped by the token limit.
        tokens: (B, T) int64, zeros outside the mask.
        mask: (B, T) bool, true on tokens that the model generated; a row is true from its start, without gaps, but
            for tokens that are not to be learned from.
        max_tokens: the longest response there can be.
        step: the number of the step, from 1.
        seed: for what draws at random: a function of the run's seed and the step alone.
        token_rewards: (B, T) float64, rewards at single tokens beside `rewards` (a divergence in the reward); zeros
            when there are none.
        old_logp, entropy: (B, T) float64 or None, log pi_old of the sampled tokens and entropy of pi_old at each, by
            the learner's own forward. They cost a forward pass, and are there when an entry `needs` them.
        behavior_logp: (B, T) float64, log mu as the engine gave it.
        anchors: by name, (B, T) float64 log-probs of the sampled tokens, of anchors that an entry `needs`.
    """

    rewards: Tensor
    group: Tensor
    correct: Tensor
    truncated: Tensor
    tokens: Tensor
    mask: Tensor
    max_tokens: int
    step: int = 1
    seed: int = 0
    token_rewards: Tensor | None = None
    old_logp: Tensor | None = None
    entropy: Tensor | None = None
    behavior_logp: Tensor | None = None
    anchors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, unmasked tokens of each response."""
        return self.mask.sum(1)

    @property
    def returns(self) -> Tensor:
        """(B,) float64: the reward with its token rewards, what group-wise estimators compare."""
        if self.token_rewards is None:
            return self.rewards
        return self.rewards + (self.token_rewards * self.mask).sum(1)

    def need(self, name: str) -> Tensor:
        """`old_logp`, `entropy`, `behavior_logp` or `anchors.<name>`, which must be there.

        Raises:
            ValueError: it is not: the entry that asks did not say it `needs` it.
        """
        head, _, anchor = name.partition(".")
        value = self.anchors.get(anchor) if head == "anchors" else getattr(self, head)
        if value is None:
            raise ValueError(
                f"{name} was not computed for this step: an entry that reads it says so, with "
                f'register(..., needs=("{name}",)) or, in a file of your own, `your_function.needs = ("{name}",)`'
            )
        return value

    def per_token(self, values: Tensor) -> Tensor:
        """(B,) or (B, T) as (B, T), zeros outside the mask."""
        wide = values[:, None].expand(self.mask.shape) if values.ndim == 1 else values
        return wide.masked_fill(~self.mask, 0.0)


@dataclass(frozen=True)
class Reshaped:
    """What a transform makes of the advantages.

    Attributes:
        advantages: (B, T).
        keep: (B, T) bool; false takes a token out of the policy loss and out of its denominators. None keeps all.
        metrics: reported once a step.
    """

    advantages: Tensor
    keep: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Corrected:
    """What a correction says of each token: factors (B, T) of the policy loss, 0 where it is to count for nothing."""

    weights: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TermInputs:
    """A micro-batch of B responses padded to T tokens, as every term sees it.

    The four policies are never conflated: pi is being trained, pi_old is the learner's own forward of its weights at the
    start of the step, mu is what the engine says it sampled from, with weights that may be older, the anchors are what
    regularizers compare with. Positions outside `mask` may hold anything, NaN included; `masked` clears them.

    Attributes:
        logp: (B, T) float32 or float64, log pi of the sampled tokens. Differentiable.
        old_logp: (B, T), log pi_old; with `objective.proximal: behavior` log mu.
        behavior_logp: (B, T), log mu, after the sampling temperature.
        anchors: by name ("frozen"), (B, T) log-probs of the sampled tokens under that policy.
        advantages: (B, T), credit of each token. For samples that no estimator credits, their weight: 1 by default,
            +1 and -1 for the winner and the loser of a pair.
        weights: (B, T), rollout-correction weights W; ones when there is none.
        mask: (B, T) bool, true on tokens that the term at hand is about: of its source, and learned from.
        entropy: (B, T), entropy of pi at each token in nats. May be differentiable.
        group: (B,) int64, the samples of one prompt, or the two of a pair, share a value.
        full: by regularizer label, (B, T), a divergence summed over the whole vocabulary. Differentiable.

    Raises:
        ValueError: shapes differ, log-probs are below float32, the mask is not bool, or anything but `logp`, `entropy`
            and `full` carries a gradient.
    """

    logp: Tensor
    old_logp: Tensor
    behavior_logp: Tensor
    anchors: Mapping[str, Tensor]
    advantages: Tensor
    weights: Tensor
    mask: Tensor
    entropy: Tensor
    group: Tensor
    full: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.ndim != 2:
            raise ValueError(f"mask must be bool (B, T), got {self.mask.dtype} {tuple(self.mask.shape)}")
        if self.group.shape != self.mask.shape[:1]:
            raise ValueError(f"group must be (B,) = ({len(self.mask)},), got {tuple(self.group.shape)}")
        for name, tensor in self._floats():
            if tensor.shape != self.mask.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but mask has {tuple(self.mask.shape)}")
            if tensor.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{name} is {tensor.dtype}: the objective is computed in float32, convert before")
            if tensor.requires_grad and name.partition("[")[0] not in DIFFERENTIABLE:
                raise ValueError(
                    f"{name} requires grad: the gradient flows through logp, entropy and full alone, detach it"
                )

    def masked(self, mask: Tensor | None = None) -> TermInputs:
        """The same with zeros outside the mask, so that what stands there reaches neither a loss nor a gradient.

        Args:
            mask: (B, T) bool, another mask within this one.
        """
        mask = self.mask if mask is None else self.mask & mask
        cleared = {name: tensor.masked_fill(~mask, 0.0) for name, tensor in self._floats()}
        anchors = {name: cleared.pop(f"anchors[{name!r}]") for name in self.anchors}
        full = {name: cleared.pop(f"full[{name!r}]") for name in self.full}
        return replace(self, mask=mask, anchors=anchors, full=full, **cleared)

    def _floats(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("logp", "old_logp", "behavior_logp", "advantages", "weights", "entropy"):
            yield name, getattr(self, name)
        for family in ("anchors", "full"):
            for name, tensor in getattr(self, family).items():
                yield f"{family}[{name!r}]", tensor


@dataclass(frozen=True)
class TermOutputs:
    """A term's loss and what it reports; the objective does all summing and dividing.

    Attributes:
        loss: to be minimized, differentiable through `logp`, `entropy` or `full`. (B, T), a loss per token, aggregated
            as the objective's `aggregation` says; or (B,), a loss per sequence, of which the mean over the sequences
            that have a token of the term is taken whatever the aggregation.
        means: by metric name, (B, T) float or bool, reported as the mean over the unmasked tokens.
        maxima: by metric name, (B, T), reported as the maximum over the unmasked tokens.
        penalty: (B, T), detached: what a divergence takes from the reward of each token when it is placed in the
            reward. None when it has no such form.
    """

    loss: Tensor
    means: Mapping[str, Tensor] = field(default_factory=dict)
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    penalty: Tensor | None = None

"""What goes into a term of the objective and what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

DIFFERENTIABLE = ("logp", "entropy")


@dataclass(frozen=True)
class TermInputs:
    """A micro-batch of B responses padded to T tokens, as every term sees it.

    The four policies are never conflated: pi is being trained, pi_old is the learner's own forward of the weights that
    sampled, mu is what the engine says it sampled from, the anchors are what regularizers compare with. Positions
    outside `mask` may hold anything, NaN included; `masked` clears them.

    Attributes:
        logp: (B, T) float32 or float64, log pi of the sampled tokens. Differentiable.
        old_logp: (B, T), log pi_old.
        behavior_logp: (B, T), log mu, after the sampling temperature.
        anchors: by name ("frozen"), (B, T) log-probs of the sampled tokens under that policy.
        advantages: (B, T), credit of each token.
        weights: (B, T), rollout-correction weights W; ones when there is none.
        mask: (B, T) bool, true on tokens that the model generated and that are learned from.
        entropy: (B, T), entropy of pi at each token in nats. May be differentiable.

    Raises:
        ValueError: shapes differ, log-probs are below float32, the mask is not bool, or anything but `logp` and
            `entropy` carries a gradient.
    """

    logp: Tensor
    old_logp: Tensor
    behavior_logp: Tensor
    anchors: Mapping[str, Tensor]
    advantages: Tensor
    weights: Tensor
    mask: Tensor
    entropy: Tensor

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.ndim != 2:
            raise ValueError(f"mask must be bool (B, T), got {self.mask.dtype} {tuple(self.mask.shape)}")
        for name, tensor in self._floats():
            if tensor.shape != self.mask.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but mask has {tuple(self.mask.shape)}")
            if tensor.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{name} is {tensor.dtype}: the objective is computed in float32, convert before")
            if tensor.requires_grad and name not in DIFFERENTIABLE:
                raise ValueError(f"{name} requires grad: the gradient flows through logp and entropy alone, detach it")

    def masked(self) -> TermInputs:
        """The same with zeros outside the mask, so that what stands there reaches neither a loss nor a gradient."""
        cleared = {name: tensor.masked_fill(~self.mask, 0.0) for name, tensor in self._floats()}
        anchors = {name: cleared.pop(f"anchors[{name!r}]") for name in self.anchors}
        return replace(self, anchors=anchors, **cleared)

    def _floats(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("logp", "old_logp", "behavior_logp", "advantages", "weights", "entropy"):
            yield name, getattr(self, name)
        for name, tensor in self.anchors.items():
            yield f"anchors[{name!r}]", tensor


@dataclass(frozen=True)
class TermOutputs:
    """A term's loss and what it reports, per token; the objective does all summing and dividing.

    Attributes:
        loss: (B, T), to be minimized; differentiable through `logp` or `entropy`.
        means: by metric name, (B, T) float or bool, reported as the mean over the unmasked tokens.
        maxima: by metric name, (B, T), reported as the maximum over the unmasked tokens.
    """

    loss: Tensor
    means: Mapping[str, Tensor] = field(default_factory=dict)
    maxima: Mapping[str, Tensor] = field(default_factory=dict)

"""Selectors: which tokens a term of the objective is about, within its source.

An entry is a function `(advantages: Tensor, batch: CreditInputs, **params) -> Tensor`, bool (B, T). It is evaluated
once a step over the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rlpost.objective.types import CreditInputs
from rlpost.registry import Registry

Selector = Callable[[Tensor, CreditInputs], Tensor]
SELECTORS: Registry[Selector] = Registry("selector", inputs=("advantages", "batch"))

Share = Annotated[float, Field(gt=0, le=1)]


def share_of(share: float, mask: Tensor) -> int:
    """How many tokens a share of the unmasked ones is: rounded down, but at least one where there is one."""
    tokens = int(mask.sum())
    # 0.29 * 100 is 28.999999999999996.
    return min(tokens, max(1, int(share * tokens + 1e-9)))


def largest(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """The `share` of the unmasked tokens with the largest values, bool (B, T); among equal ones the first count."""
    where = mask.flatten().nonzero()[:, 0]
    order = values.flatten()[where].argsort(descending=True, stable=True)
    chosen = torch.zeros_like(mask)
    chosen.view(-1)[where[order[: share_of(share, mask)]]] = True
    return chosen


def covariance(advantages: Tensor, batch: CreditInputs) -> Tensor:
    """(log pi_old - mean)(A - mean) of each token, means over the unmasked tokens of the batch; (B, T), else zeros.

    Its mean over the tokens is the covariance of log-probability and advantage, which is what lets the entropy fall
    (arXiv 2505.22617).
    """
    tokens = batch.mask.sum().clamp(min=1)

    def centred(values: Tensor) -> Tensor:
        values = batch.per_token(values)
        return batch.per_token(values - values.sum() / tokens)

    return centred(batch.need("old_logp")) * centred(advantages)


@SELECTORS.register("positive")
def positive(advantages: Tensor, batch: CreditInputs) -> Tensor:
    """Tokens with A > 0."""
    return batch.mask & (advantages > 0)


@SELECTORS.register("negative")
def negative(advantages: Tensor, batch: CreditInputs) -> Tensor:
    """Tokens with A < 0."""
    return batch.mask & (advantages < 0)


@SELECTORS.register("incorrect")
def incorrect(advantages: Tensor, batch: CreditInputs) -> Tensor:
    """Tokens of samples that the first verifier does not call correct (KDRL's response-level mask, arXiv 2506.02208)."""
    return batch.mask & ~batch.correct[:, None]


@SELECTORS.register("group_all_wrong")
def group_all_wrong(advantages: Tensor, batch: CreditInputs) -> Tensor:
    """Tokens of samples in whose group no sample is correct (KDRL's group-level mask, arXiv 2506.02208)."""
    labels, index = torch.unique(batch.group, return_inverse=True)
    correct = torch.zeros_like(labels).index_add(0, index, batch.correct.long())
    return batch.mask & (correct[index] == 0)[:, None]


@SELECTORS.register("top_entropy", needs=("entropy",))
def top_entropy(advantages: Tensor, batch: CreditInputs, *, share: Share = 0.2) -> Tensor:
    """The `share` of the batch's tokens at which pi_old has the highest entropy (arXiv 2506.01939).

    Their number is rounded down, but at least one; among equal entropies the first tokens of the batch are taken.
    """
    return largest(batch.need("entropy"), batch.mask, share)


@SELECTORS.register("high_covariance", needs=("old_logp",))
def high_covariance(advantages: Tensor, batch: CreditInputs, *, share: Share = 2e-4) -> Tensor:
    """The `share` of the batch's tokens with the highest covariance of log-probability and advantage.

    With a KL to `old_policy` on them this is KL-Cov (arXiv 2505.22617). The published code takes the covariance with
    log pi within each micro-batch; here it is with log pi_old, over the step. Their number is rounded down, but at
    least one; among equals, as when no group has a signal, the first tokens of the batch are taken.
    """
    return largest(covariance(advantages, batch), batch.mask, share)

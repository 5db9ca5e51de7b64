"""From losses per token to one number: the only place of the objective that divides.

The denominators are global, over all micro-batches and ranks of one optimizer step, so that the loss is a plain sum
and does not depend on how the batch was cut. A mean of micro-batch means is another objective, and a bug.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlpost.config import Aggregation


@dataclass(frozen=True)
class Denominators:
    """Counts over one whole optimizer step: every micro-batch of every rank.

    Attributes:
        sequences: those with at least one unmasked token, and those that count without one (`Sample.empty`).
        tokens: unmasked tokens.
        max_tokens: longest response that could have been sampled; a constant of the run (Dr.GRPO's L).
    """

    sequences: int
    tokens: int
    max_tokens: int


def token_weights(mask: Tensor, mode: Aggregation, denominators: Denominators) -> Tensor:
    """Weights such that the loss of the step is `(weights * l).sum()`, summed over all micro-batches and ranks.

    With S, N, L the `sequences`, `tokens` and `max_tokens` of `denominators`, and |y| a sequence's unmasked tokens:

        seq_mean_token_mean      1 / (S |y|)   GRPO (arXiv 2402.03300): a token of a long response counts less
        token_mean               1 / N         DAPO (arXiv 2503.14476)
        seq_mean_token_sum_norm  1 / (S L)     Dr.GRPO (arXiv 2503.20783)
        seq_mean_token_sum       1 / S         the unbiased policy gradient

    A trainer that averages over ranks or accumulation steps by itself has to undo that, once.

    Args:
        mask: (B, T) bool; a row is one sequence.

    Returns:
        (B, T) float64, 0 outside the mask.

    Raises:
        ValueError: this micro-batch alone holds more than the denominators say the whole step does.
    """
    weights = mask.double()
    lengths = weights.sum(dim=1, keepdim=True)
    sequences, tokens = torch.stack([(lengths > 0).sum(), mask.sum()]).tolist()
    if sequences > denominators.sequences or tokens > denominators.tokens:
        raise ValueError(
            f"a micro-batch of {sequences} sequences and {tokens} tokens cannot be part of a step with "
            f"{denominators}: denominators are counted over all micro-batches and ranks"
        )
    if tokens == 0:
        return weights
    match mode:
        case "seq_mean_token_mean":
            return weights / lengths.clamp(min=1) / denominators.sequences
        case "token_mean":
            return weights / denominators.tokens
        case "seq_mean_token_sum_norm":
            return weights / (denominators.sequences * denominators.max_tokens)
        case "seq_mean_token_sum":
            return weights / denominators.sequences
    raise ValueError(f"unknown aggregation {mode!r}")

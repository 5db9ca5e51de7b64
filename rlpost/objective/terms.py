"""Losses beside the policy loss: likelihood of given answers, and preferences.

An entry is a function `(batch: TermInputs, anchor: Tensor | None, **params) -> TermOutputs`. Traits: `sources`, those
of `rlpost.config.SOURCES` it makes sense on; `anchored`, whether it compares with an anchor, whose (B, T) log-probs of
the sampled tokens it then gets. `batch.mask` holds the tokens of its source alone.

A preference loss is about pairs: two rows of the micro-batch with the same `batch.group`, the winner with positive
`batch.advantages`, the loser with negative ones. Rows without a token in the mask are no part of any pair. The loss of
a pair stands at both of its rows, so that the mean over sequences is the mean over pairs. DPO with a likelihood of the
winner beside it (iterative RPO, arXiv 2404.19733) is two terms: `dpo`, and `sft` on the tokens that `positive` selects.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from rlpost.objective.ratio import LOG_RATIO_LIMIT
from rlpost.objective.types import TermInputs, TermOutputs
from rlpost.registry import Registry

Term = Callable[[TermInputs, Tensor | None], TermOutputs]
TERMS: Registry[Term] = Registry("loss term", inputs=("batch", "anchor"))

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@TERMS.register("sft", sources=("sft", "rehearsal", "success_memory", "pair"), anchored=False)
def sft(batch: TermInputs, anchor: Tensor | None = None) -> TermOutputs:
    """l = -log pi, the negative log-likelihood of given tokens."""
    return TermOutputs(-batch.logp)


@TERMS.register("reference_nll", sources=("reference",), anchored=False)
def reference_nll(batch: TermInputs, anchor: Tensor | None = None) -> TermOutputs:
    """l = -A log pi(a*), the likelihood of the reference answer a* after a reasoning z that the policy sampled.

    It is the half of the gradient of a likelihood reward that the policy loss, on the tokens of z, leaves out. With
    `aggregation: seq_mean_token_sum` and the samples z of a prompt, grad E_z[R(z)] is exact for these weights A:

        R = pi(a* | z)       A = R              VeriFree (arXiv 2505.21493)
        R = log pi(a* | z)   A = 1              log-prob reward (arXiv 2602.03979)
        R = log mean_i pi(a* | z_i), of n       A = n softmax_i(log pi(a* | z_i)); with softmax_i alone, without the n,
                                                the mean over sequences has n times less of it (JEPO)
    """
    return TermOutputs(-batch.advantages * batch.logp)


@TERMS.register("dco", sources=("sft", "rehearsal", "success_memory"), anchored=False)
def dco(batch: TermInputs, anchor: Tensor | None = None, *, n: Annotated[int, Field(ge=1)]) -> TermOutputs:
    """l = -log(1 - (1 - p)^n), p = pi(y | x) of the whole sequence: the chance of y among n samples (arXiv 2502.07154).

    The gradient is F grad(-log p), F = n p (1 - p)^(n - 1) / (1 - (1 - p)^n): near 1 where n p is small, near 0 where
    the answer is as likely as n samples need it, which limits confidence. n = 1 is the likelihood of the sequence.

    Computed from log p without ever forming p: where n p is so small that its square is lost in the dtype, by the
    series -log(n p) + (n - 1) p / 2; else by log1p and expm1. F is the closed form, put in as the slope, because the
    automatic derivative of the latter is 0 / 0 at p = 1.

    Args:
        n: samples the answer is to be found among.

    Returns:
        Loss (B,). Reports `factor`: F.
    """
    logp = batch.logp.sum(1)
    loss, factor = _limited_confidence(logp.detach(), n)
    # The bracket is exactly 0: it carries the slope and leaves the value.
    return TermOutputs(loss - factor * (logp - logp.detach()), means={"factor": _per_token(factor, batch)})


def _limited_confidence(logp: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """-log(1 - (1 - p)^n) and its slope's size F, each (B,), from log p (B,)."""
    eps = torch.finfo(logp.dtype).eps
    logp = logp.clamp(max=-eps)  # a rounded sum may say p = 1 or more
    log_np = logp + math.log(n)
    log_miss = _log1mexp(logp)
    rare = log_np < math.log(eps) / 2
    excess = (n - 1) / 2 * logp.exp()
    loss = torch.where(rare, excess - log_np, -_log1mexp(n * log_miss))
    # F = exp(log_np + (n - 1) log_miss + loss); where p is tiny its first and last summands cancel but for the excess.
    return loss, (torch.where(rare, excess, log_np + loss) + (n - 1) * log_miss).exp()


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, accurate at both ends."""
    return torch.where(x > -math.log(2), (-torch.expm1(x)).log(), torch.log1p(-x.exp()))


@TERMS.register("dpo", sources=("pair",), anchored=True)
def dpo(
    batch: TermInputs,
    anchor: Tensor | None,
    *,
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
) -> TermOutputs:
    """l = -log sigma(m), m = beta (log pi/ref of the winner - that of the loser) (DPO, arXiv 2305.18290, eq. 7).

    Log-probs are of whole sequences, summed over tokens. `label_smoothing` = e, the share of pairs that are the wrong
    way round, makes it -(1 - e) log sigma(m) - e log sigma(-m).

    Returns:
        Loss (B,). Reports `preference/accuracy`, the share of pairs with m > 0, and `preference/margin`, m.

    Raises:
        ValueError: a pair is not one winner and one loser.
    """
    pairs = _pairs(batch)
    score = beta * (batch.logp - _given(anchor)).sum(1)
    return _preference(batch, pairs, score, label_smoothing)


def _invertible(divergence: str) -> str:
    """The check of `f_dpo`'s parameter of that name."""
    reasons = {
        "tv": "its f' takes two values alone, so a reward cannot be read off from it",
        "pearson": "its f' is finite at 0, so the optimum may have probability 0 where a reward is low, and the "
        "normalization no longer cancels between winner and loser",
        "neyman": "it is the alpha divergence beyond alpha = 1, and t^-2 of a whole sequence's ratio is not usable",
        "hellinger": "it is divergence: alpha with alpha: 0.5, up to a factor that beta takes in",
    }
    if divergence in reasons:
        raise ValueError(f"{divergence} gives no preference loss here: {reasons[divergence]}")
    if divergence not in _IMPLICIT_REWARDS:
        raise ValueError(f"must be one of {', '.join(_IMPLICIT_REWARDS)}")
    return divergence


# f'(t) up to a constant, which cancels between winner and loser, from u = log t and alpha; methods.md, 1.2.
_IMPLICIT_REWARDS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reverse_kl": lambda u, alpha: u,
    "forward_kl": lambda u, alpha: -torch.exp(-u),
    "js": lambda u, alpha: -torch.nn.functional.softplus(-u),
    "alpha": lambda u, alpha: -torch.expm1(-alpha * u) / alpha,
}
_EXPONENTIAL = ("forward_kl", "alpha")


@TERMS.register("f_dpo", sources=("pair",), anchored=True)
def f_dpo(
    batch: TermInputs,
    anchor: Tensor | None,
    *,
    divergence: Annotated[str, AfterValidator(_invertible)] = "reverse_kl",
    beta: Positive = 0.1,
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5,
) -> TermOutputs:
    """l = -log sigma(beta f'(t_w) - beta f'(t_l)), t = pi/ref of a whole sequence (f-DPO, arXiv 2309.16240).

    f' up to a constant: reverse_kl log t, which is `dpo`; forward_kl -1/t; js -log(1 + 1/t); alpha -t^-alpha / alpha,
    which goes to reverse_kl for alpha -> 0 and is forward_kl at 1. It stands for a reward where f' is invertible and
    f'(0) = -inf; tv and pearson are refused because they are not so.

    In forward_kl and alpha log t is held within ±20, beyond which a pair's row has no gradient; whole sequences get
    there, so mind the metric. js and reverse_kl need no such bound.

    Args:
        divergence: reverse_kl, forward_kl, js or alpha.
        alpha: of divergence alpha alone. The convention of the f-DPO code; TRL's coefficient is 1 - alpha.

    Returns:
        Loss (B,). Reports as `dpo`, and where log t is bounded `clamp`, the share of rows at the bound, by token.

    Raises:
        ValueError: a pair is not one winner and one loser.
    """
    pairs = _pairs(batch)
    log_ratio = (batch.logp - _given(anchor)).sum(1)
    bounded = log_ratio
    if divergence in _EXPONENTIAL:
        bounded = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    outputs = _preference(batch, pairs, beta * _IMPLICIT_REWARDS[divergence](bounded, alpha))
    if divergence not in _EXPONENTIAL:
        return outputs
    clamped = log_ratio.detach().abs() > LOG_RATIO_LIMIT
    return TermOutputs(outputs.loss, means={**outputs.means, "clamp": _per_token(clamped, batch)})


@TERMS.register("h_dpo", sources=("pair",), anchored=True)
def h_dpo(batch: TermInputs, anchor: Tensor | None, *, alpha: Positive, beta: Positive = 0.1) -> TermOutputs:
    """l = -log sigma(alpha beta log(pi_w/pi_l) - beta log(ref_w/ref_l)) (H-DPO, arXiv 2411.07595).

    The optimum is pi ~ ref^(1/alpha) e^(r / (alpha beta)): alpha below 1 weighs the entropy in the reverse KL less and
    gives a sharper policy; alpha = 1 is `dpo`.

    Returns:
        Loss (B,). Reports as `dpo`.

    Raises:
        ValueError: a pair is not one winner and one loser.
    """
    pairs = _pairs(batch)
    return _preference(batch, pairs, beta * (alpha * batch.logp - _given(anchor)).sum(1))


class _Pairs(NamedTuple):
    """Rows of the winners and of the losers, (P,) int64 each, in the same order of pairs."""

    winner: Tensor
    loser: Tensor


def _pairs(batch: TermInputs) -> _Pairs:
    rows = batch.mask.any(1).nonzero().flatten()
    weight = (batch.advantages * batch.mask).sum(1)[rows]
    names, pair = torch.unique(batch.group[rows], return_inverse=True)
    found = []
    counts = []
    for chosen in (weight > 0, weight < 0):
        counts.append(torch.bincount(pair[chosen], minlength=len(names)))
        found.append(torch.zeros_like(names).index_copy(0, pair[chosen], rows[chosen]))
    total = torch.bincount(pair, minlength=len(names))
    whole = (counts[0] == 1) & (counts[1] == 1) & (total == 2)
    if not whole.all():
        first = int((~whole).nonzero()[0])
        winners, losers, rest = (int(n[first]) for n in (*counts, total - counts[0] - counts[1]))
        raise ValueError(
            f"pair {int(names[first])} has {winners} winners, {losers} losers and {rest} rows that are neither in this "
            "micro-batch: a pair is two rows of one group, with advantages +1 and -1, that stay together when a batch "
            "is cut, and no selector takes the tokens of just one of them"
        )
    return _Pairs(*found)


def _preference(batch: TermInputs, pairs: _Pairs, score: Tensor, label_smoothing: float = 0.0) -> TermOutputs:
    """The logistic loss of score (B,) differences, at both rows of each pair."""
    logsigmoid = torch.nn.functional.logsigmoid
    margin = score[pairs.winner] - score[pairs.loser]
    loss = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)

    def at_both(values: Tensor) -> Tensor:
        zeros = values.new_zeros(len(batch.mask))
        return zeros.index_add(0, pairs.winner, values).index_add(0, pairs.loser, values)

    margin = margin.detach()
    means = {
        "preference/accuracy": _per_token(at_both((margin > 0).to(margin.dtype)), batch),
        "preference/margin": _per_token(at_both(margin), batch),
    }
    return TermOutputs(at_both(loss), means=means)


def _given(anchor: Tensor | None) -> Tensor:
    if anchor is None:
        raise ValueError("a preference loss compares with an anchor, and its log-probs are not there")
    return anchor


def _per_token(values: Tensor, batch: TermInputs) -> Tensor:
    """(B,) as (B, T), zeros outside the mask."""
    return values[:, None].expand(batch.mask.shape).masked_fill(~batch.mask, 0)

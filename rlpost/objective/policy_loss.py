"""Role PolicyLoss: the surrogate whose gradient improves the policy.

An entry is a function `(batch: TermInputs, **params) -> TermOutputs`, or a class with these parameters whose instances
are called with the batch. It returns a loss per token, or per sequence where the surrogate is one of whole sequences,
and never divides by a count of samples; it sees neither rewards nor anchors; it applies `batch.weights` itself,
because only the surrogate knows whether they belong in it.

Traits: `owns_correction`, it corrects for pi_old not being what sampled by itself and ignores `batch.weights`;
`owns_divergence`, it has a divergence inside, so that a regularizer beside it would be a second one; `ratio`, false
where its gradient has no ratio pi / pi_old, which is pi / mu with `proximal: behavior`.

Metrics of every entry: `ratio/mean` and `ratio/max` of r = pi / pi_old; `clamp/ratio`, share of tokens with
|log r| > 20, where r is held at that bound; `clip/...`, share of tokens on which each clip acts. What an entry says
of a whole sequence is reported at each token of it, so that long sequences count more in its mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rlpost.objective.ratio import clamped_log_ratio
from rlpost.objective.types import TermInputs, TermOutputs
from rlpost.registry import Registry

PolicyLoss = Callable[[TermInputs], TermOutputs]
POLICY_LOSSES: Registry[PolicyLoss] = Registry("policy loss", inputs=("batch",))

Low = Annotated[float, Field(ge=0, le=1)]
High = Annotated[float, Field(ge=0)]
Dual = Annotated[float, Field(gt=1)]


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, *, low: float | None, high: float | None, dual: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """J = min(r A, clip(r, 1 - low, 1 + high) A), and max(J, dual A) where A < 0; a bound that is None is none.

    Args:
        ratio: r, differentiable. advantages: A, of the same shape; may be differentiable.

    Returns:
        J, of that shape; bool tensors `clip/low`, `clip/high`, `clip/dual` for the bounds that there are, true where
        each acts: A < 0 and r < 1 - low; A > 0 and r > 1 + high; A < 0 and r > dual. On a bound itself none acts.
    """
    floor, ceiling = 0.0 if low is None else 1 - low, math.inf if high is None else 1 + high
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(floor, ceiling) * advantages)
    good, bad = advantages > 0, advantages < 0
    acts = {}
    if low is not None:
        acts["clip/low"] = bad & (ratio < floor)
    if high is not None:
        acts["clip/high"] = good & (ratio > ceiling)
    if dual is not None:
        surrogate = torch.where(bad, torch.maximum(surrogate, dual * advantages), surrogate)
        acts["clip/dual"] = bad & (ratio > dual)
    return surrogate, acts


def with_ratios(loss: Tensor, ratio: Tensor, clamped: Tensor, acts: dict[str, Tensor]) -> TermOutputs:
    """The outputs of a policy loss, with the metrics that all of them have.

    Args:
        loss: (B, T) or (B,). ratio, clamped, and the values of `acts`: (B, T).
    """
    r = ratio.detach()
    return TermOutputs(loss, means={**acts, "clamp/ratio": clamped, "ratio/mean": r}, maxima={"ratio/max": r})


@POLICY_LOSSES.register("ppo_clip")
def ppo_clip(batch: TermInputs, *, low: Low = 0.2, high: High = 0.2, dual: Dual | None = None) -> TermOutputs:
    """l = -W J, J = min(r A, clip(r, 1 - low, 1 + high) A), r = pi / pi_old (PPO, arXiv 1707.06347, eq. 7).

    `high` above `low` is clip-higher (DAPO, arXiv 2503.14476, eq. 10). With `dual` = c, J = max(J, c A) where A < 0,
    which bounds the loss of a bad token that became likely (dual-clip, Ye et al. 2020, arXiv 1912.09729, eq. 5).

    The gradient with respect to `logp` is -W r A, and exactly zero where A > 0 and r > 1 + high; A < 0 and
    r < 1 - low; A < 0 and r > c; |log r| > 20.

    Reports `clip/low`, `clip/high`, `clip/dual`: share of tokens in each of these regions.
    """
    log_ratio, clamped = clamped_log_ratio(batch.logp, batch.old_logp)
    ratio = log_ratio.exp()
    surrogate, acts = clipped_surrogate(ratio, batch.advantages, low=low, high=high, dual=dual)
    return with_ratios(-batch.weights * surrogate, ratio, clamped, acts)


@POLICY_LOSSES.register("gspo")
def gspo(batch: TermInputs, *, low: Low = 3e-4, high: High = 4e-4) -> TermOutputs:
    """One loss per sequence, l = -W min(s A, clip(s, 1 - low, 1 + high) A) (GSPO, arXiv 2507.18071).

    s = exp(mean_t log(pi / pi_old)), the geometric mean of the ratios, which leaves 1 far less than a single ratio
    does; hence the narrow bounds. Means are over the sequence's unmasked tokens. The paper has one advantage per
    sequence; where advantages or weights differ within one, A and W are their means, and what a transform meant for
    single tokens is lost: `gspo_token` keeps it.

    The gradient with respect to each of the n tokens' `logp` is -W s A / n, and exactly zero for the whole sequence
    where A > 0 and s > 1 + high; A < 0 and s < 1 - low; |log s| > 20. Its loss is averaged over sequences whatever
    the aggregation.

    Reports `clip/low`, `clip/high`; `ratio/mean` and `ratio/max` are of s, `clamp/ratio` of |log s| > 20.
    """
    log_ratio, clamped = clamped_log_ratio(_row_mean(batch.logp, batch), _row_mean(batch.old_logp, batch))
    ratio = log_ratio.exp()
    surrogate, acts = clipped_surrogate(ratio, _row_mean(batch.advantages, batch), low=low, high=high)
    return with_ratios(
        -_row_mean(batch.weights, batch) * surrogate,
        _per_token(ratio, batch),
        _per_token(clamped, batch),
        {name: _per_token(act, batch) for name, act in acts.items()},
    )


@POLICY_LOSSES.register("gspo_token")
def gspo_token(batch: TermInputs, *, low: Low = 3e-4, high: High = 4e-4) -> TermOutputs:
    """l = -W min(s A, clip(s, 1 - low, 1 + high) A), s = sg[s_i] pi / sg[pi] at each token (arXiv 2507.18071).

    s_i is the sequence's ratio of `gspo`; s has its value and the gradient of log pi of its own token. With advantages
    and weights that are constant over a sequence and aggregation seq_mean_token_mean, values and gradients are those
    of `gspo`; unlike it, this takes an advantage for each token.

    The gradient with respect to `logp` is -W s A, and exactly zero where A > 0 and s > 1 + high; A < 0 and
    s < 1 - low. Where |log s_i| > 20, s is held there and the gradient is not zero but for those clips.

    Reports `clip/low`, `clip/high`; `ratio/mean` and `ratio/max` are of s, `clamp/ratio` of |log s_i| > 20.
    """
    with torch.no_grad():
        log_ratio, clamped = clamped_log_ratio(_row_mean(batch.logp, batch), _row_mean(batch.old_logp, batch))
    ratio = _per_token(log_ratio.exp(), batch) * (batch.logp - batch.logp.detach()).exp()
    surrogate, acts = clipped_surrogate(ratio, batch.advantages, low=low, high=high)
    return with_ratios(-batch.weights * surrogate, ratio, _per_token(clamped, batch), acts)


@POLICY_LOSSES.register("cispo")
def cispo(batch: TermInputs, *, low: Low | None = None, high: High = 4.0) -> TermOutputs:
    """l = -W sg[clip(r, 1 - low, 1 + high)] A log pi (CISPO, MiniMax-M1, arXiv 2506.13585).

    What is clipped is the importance weight, so no token is dropped: the gradient with respect to `logp` is
    -W clip(r) A everywhere, never zero where W A is not.

    Reports `clip/high`, and with a lower bound `clip/low`: share of tokens, of either sign, whose ratio was cut.

    Args:
        low: None, as published: no lower bound. high: the paper does not give its value; 4, a largest weight of 5, is
            what is used for ScaleRL (where some code calls the bound itself, not its distance from 1, epsilon_high).
    """
    with torch.no_grad():
        log_ratio, clamped = clamped_log_ratio(batch.logp, batch.old_logp)
        ratio = log_ratio.exp()
        floor = 0.0 if low is None else 1 - low
    acts = {"clip/high": ratio > 1 + high}
    if low is not None:
        acts["clip/low"] = ratio < floor
    loss = -batch.weights * ratio.clamp(floor, 1 + high) * batch.advantages * batch.logp
    return with_ratios(loss, ratio, clamped, acts)


@POLICY_LOSSES.register("reinforce", ratio=False)
def reinforce(batch: TermInputs) -> TermOutputs:
    """l = -W A log pi (Williams 1992). The gradient with respect to `logp` is -W A, everywhere.

    Exact for samples of pi itself: with one optimizer step per batch. On later steps it goes on as if pi had sampled;
    the ratio is not in it, and `ratio/mean`, `ratio/max` say how far that has ceased to be true. A surrogate r A with
    r = exp(log pi - sg[log pi]), as published for GTPO (arXiv 2508.03772), is 1 in value and the same in gradient.
    """
    with torch.no_grad():
        log_ratio, clamped = clamped_log_ratio(batch.logp, batch.old_logp)
    return with_ratios(-batch.weights * batch.advantages * batch.logp, log_ratio.exp(), clamped, {})


@POLICY_LOSSES.register("gmpo")
def gmpo(batch: TermInputs, *, low: High = 0.4, high: High = 0.4) -> TermOutputs:
    """One loss per sequence, l = -W A exp(mean_t c_t), the geometric mean of clipped ratios (arXiv 2507.20673).

    c_t = min(log r_t, high) where A >= 0 and max(log r_t, -low) where A < 0: PPO's one-sided clip of each token, in
    log space, before the mean. The bounds are thus exp(-low) and exp(high), and wide, as the paper recommends. Means
    are over the sequence's unmasked tokens; A and W are the sequence's means, as in `gspo`.

    The gradient with respect to `logp` of each of n tokens is -W A exp(mean c) / n, and exactly zero at a token where
    A > 0 and log r > high; A < 0 and log r < -low; |log r| > 20. The other tokens of the sequence keep theirs. Its
    loss is averaged over sequences whatever the aggregation.

    Reports `clip/low`, `clip/high`; ratios are those of the single tokens, unclipped.
    """
    log_ratio, clamped = clamped_log_ratio(batch.logp, batch.old_logp)
    advantages = _row_mean(batch.advantages, batch)
    sign = _per_token(advantages, batch)
    # Zeros outside the mask stay zeros, since neither bound excludes 0.
    clipped = torch.where(sign >= 0, log_ratio.clamp(max=high), log_ratio.clamp(min=-low))
    loss = -_row_mean(batch.weights, batch) * advantages * _row_mean(clipped, batch).exp()
    acts = {"clip/low": (sign < 0) & (log_ratio < -low), "clip/high": (sign > 0) & (log_ratio > high)}
    return with_ratios(loss, log_ratio.exp(), clamped, acts)


@POLICY_LOSSES.register("sapo")
def sapo(
    batch: TermInputs,
    *,
    tau_pos: Annotated[float, Field(gt=0)] = 1.0,
    tau_neg: Annotated[float, Field(gt=0)] = 1.05,
) -> TermOutputs:
    """l = -W A (4 / tau) sigmoid(tau (r - 1)), a soft gate in place of a clip (SAPO, arXiv 2511.20347).

    tau is `tau_pos` where A > 0, otherwise `tau_neg`; a larger one, as it is by default for bad tokens, lets their
    gradient fade faster. With g = sigmoid(tau (r - 1)) the gradient with respect to `logp` is -4 W A r g (1 - g):
    -W A at r = 1, fading on both sides, nowhere cut off but for |log r| > 20.
    """
    log_ratio, clamped = clamped_log_ratio(batch.logp, batch.old_logp)
    ratio = log_ratio.exp()
    # In the dtype of the ratio: of two plain numbers `where` would make float32.
    tau = torch.where(batch.advantages > 0, ratio.new_full((), tau_pos), ratio.new_full((), tau_neg))
    gate = 4 / tau * torch.sigmoid(tau * (ratio - 1))
    return with_ratios(-batch.weights * batch.advantages * gate, ratio, clamped, {})


@POLICY_LOSSES.register("minirl", owns_correction=True)
def minirl(
    batch: TermInputs, *, low: Low = 0.2, high: High = 0.27, cap: Annotated[float, Field(gt=0)] = 5.0
) -> TermOutputs:
    """l = -M sg[min(pi / mu, cap)] A log pi (MiniRL, arXiv 2512.01374).

    mu is what the engine sampled from, so pi / mu = (pi / pi_old) (pi_old / mu) corrects for stale weights and for the
    engine at once. That is why `batch.weights` are not applied: a rollout correction beside it would count twice.
    M = 0 where A > 0 and r > 1 + high or A < 0 and r < 1 - low, with r = pi / pi_old alone. The paper sums over
    tokens, without a norm by length: aggregation seq_mean_token_sum or seq_mean_token_sum_norm.

    The gradient with respect to `logp` is -min(pi / mu, cap) A, and exactly zero where M = 0.

    Reports `clip/low`, `clip/high`; `clip/cap`, share of tokens with pi / mu > cap; `clamp/ratio` counts
    |log(pi / mu)| > 20 as well.
    """
    with torch.no_grad():
        log_ratio, clamped = clamped_log_ratio(batch.logp, batch.old_logp)
        log_importance, clamped_importance = clamped_log_ratio(batch.logp, batch.behavior_logp)
        ratio, importance = log_ratio.exp(), log_importance.exp()
        below = (batch.advantages < 0) & (ratio < 1 - low)
        above = (batch.advantages > 0) & (ratio > 1 + high)
        factor = importance.clamp(max=cap).masked_fill(below | above, 0.0)
    acts = {"clip/low": below, "clip/high": above, "clip/cap": importance > cap}
    return with_ratios(-factor * batch.advantages * batch.logp, ratio, clamped | clamped_importance, acts)


def _row_mean(values: Tensor, batch: TermInputs) -> Tensor:
    """(B, T), zeros outside the mask, to (B,): mean over the unmasked tokens, 0 where there are none."""
    return values.sum(1) / batch.mask.sum(1).clamp(min=1)


def _per_token(values: Tensor, batch: TermInputs) -> Tensor:
    """(B,) to (B, T)."""
    return values[:, None].expand(batch.mask.shape)

"""Role likelihood reward: what the probability of a reference answer a* says of the reasoning z before it.

An entry is a function `(batch: LikelihoodInputs, **params) -> Likelihoods`, of log pi(a* | x, z) for every sample of a
step. It gives the reward of z, which the policy loss on the tokens of z takes, and the weight of the answer's own
likelihood, which the term `reference_nll` takes. Both together are the gradient of an expectation over z; the first
half alone is not. A response in which the answer never begins has p = 0, and its answer has weight 0.

Traits, and what they are when an entry does not say:

    unbounded: the reward is a logarithm, so p = 0 needs the lower bound of `objective.likelihood.clip`. False.
    linear: the reward may be multiplied by a number. True; False where the advantage estimator exponentiates it.
    credit: "reasoning" where only the tokens of z are credited with the reward, "response" where all tokens are.
        "reasoning".
    needs_base: whether it compares with the answer's log-probs without z; or a function of its parameters. False.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from rlpost.registry import Registry


@dataclass(frozen=True)
class LikelihoodInputs:
    """B samples, and log-probs of the tokens of the reference answer after each. Nothing here is differentiated.

    Attributes:
        logp: (B, L) float64, log pi(a*_t | x, z, a*_<t). Whatever stands outside the mask is not read.
        mask: (B, L) bool, tokens of the answer; none where it was not found.
        group: (B,) int64, the samples of one prompt share a value.
        found: (B,) bool, whether the answer begins somewhere in the response.
        reasoning_lengths: (B,) int64, tokens of z.
        formatted: (B,) bool, whether the response begins an answer and closes it.
        base_logp, base_mask: (B, L') as `logp` and `mask`, of the answer right after the prompt, without z. None unless
            the entry `needs_base`.
        floor: what stands for log 0: the least reward there can be. None when the reward has no lower bound.
    """

    logp: Tensor
    mask: Tensor
    group: Tensor
    found: Tensor
    reasoning_lengths: Tensor
    formatted: Tensor
    base_logp: Tensor | None = None
    base_mask: Tensor | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        for mask, logp in (("mask", "logp"), ("base_mask", "base_logp")):
            given, values = getattr(self, mask), getattr(self, logp)
            if (given is None) != (values is None) or (given is not None and given.shape != values.shape):
                raise ValueError(f"{mask} and {logp} must have one shape (B, L)")
        for name in ("group", "found", "reasoning_lengths", "formatted"):
            if getattr(self, name).shape != self.mask.shape[:1]:
                raise ValueError(f"{name} must be (B,) = ({len(self.mask)},), got {tuple(getattr(self, name).shape)}")
        if not torch.equal(self.mask.any(1), self.found):
            raise ValueError("mask must hold tokens exactly where the answer was found")

    @property
    def tokens(self) -> Tensor:
        """(B,) float64, tokens of the answer; 1 where it was not found, to divide by."""
        return self.mask.sum(1).clamp(min=1).double()

    @property
    def total(self) -> Tensor:
        """(B,) float64, log pi(a* | x, z); 0 where the answer was not found."""
        return self.logp.double().masked_fill(~self.mask, 0.0).sum(1)

    def or_floor(self, log: Tensor) -> Tensor:
        """(B,) logarithms, with `floor` where the answer was not found.

        Raises:
            ValueError: an answer was not found, and there is no floor.
        """
        if self.found.all():
            return log
        if self.floor is None:
            raise ValueError("the logarithm of p = 0 has no lower bound: set objective.likelihood.clip")
        return torch.where(self.found, log, self.floor)


@dataclass(frozen=True)
class Likelihoods:
    """What an entry makes of it.

    Attributes:
        rewards: (B,) float64, finite.
        answer_weights: (B,) float64, finite: the weight of -log pi(a* | x, z) of each sample, in a mean over samples.
    """

    rewards: Tensor
    answer_weights: Tensor


LikelihoodEntry = Callable[[LikelihoodInputs], Likelihoods]
LIKELIHOODS: Registry[LikelihoodEntry] = Registry("likelihood reward", inputs=("batch",))

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@LIKELIHOODS.register("prob")
def prob(batch: LikelihoodInputs) -> Likelihoods:
    """r = pi(a* | x, z), and the answer with weight r (VeriFree, arXiv 2505.21493).

    The gradient is that of E_z[pi(a* | x, z)], the chance that a sampled answer is the reference; it is what a verifier
    that compares the two would give, without the noise of sampling the answer. Long answers leave r at 0.
    """
    p = torch.where(batch.found, batch.total.exp(), 0.0)
    return Likelihoods(p, p)


@LIKELIHOODS.register("logprob", unbounded=True)
def logprob(batch: LikelihoodInputs) -> Likelihoods:
    """r = log pi(a* | x, z), and the answer with weight 1 (arXiv 2602.03979): the gradient of E_z[log pi(a* | x, z)].

    It tells long answers apart where `prob` underflows, and gives away performance when answers are sampled.
    """
    return Likelihoods(batch.or_floor(batch.total), batch.found.double())


@LIKELIHOODS.register("avg_logprob", unbounded=True)
def avg_logprob(batch: LikelihoodInputs) -> Likelihoods:
    """r = log pi(a* | x, z) / |a*|, and the answer with weight 1 / |a*| (arXiv 2602.03979)."""
    return Likelihoods(batch.or_floor(batch.total / batch.tokens), batch.found / batch.tokens)


@LIKELIHOODS.register("avg_prob", credit="response", needs_base=lambda params: bool(params.get("over_base", False)))
def avg_prob(batch: LikelihoodInputs, *, over_base: bool = False) -> Likelihoods:
    """r = (1 / |a*|) sum_t pi(a*_t | x, z, a*_<t), and nothing for the answer (RLPR, arXiv 2506.18254).

    With weight 0 this is not the gradient of any expectation of r; RLPR learns by GRPO on the whole response.

    Args:
        over_base: RLPR's max(0, r - r_0), with r_0 the same of the answer right after the prompt: what z adds. The
            published code works r_0 out once, before the run; here the scorer does it in every step.
    """
    value = _mean_probability(batch.logp, batch.mask)
    if over_base:
        if batch.base_logp is None or batch.base_mask is None:
            raise ValueError("avg_prob with over_base needs base_logp and base_mask")
        value = (value - _mean_probability(batch.base_logp, batch.base_mask)).clamp(min=0)
    return Likelihoods(torch.where(batch.found, value, 0.0), torch.zeros_like(value))


@LIKELIHOODS.register("jepo", unbounded=True, linear=False)
def jepo(batch: LikelihoodInputs) -> Likelihoods:
    """r_i = log pi(a* | x, z_i), and the answer with weight G softmax_i(r) over its group of G (JEPO, 2503.19618).

    For the advantage `jepo_loo`, which makes of r the gradient of E log((1 / G) sum_i pi(a* | x, z_i)) with respect to
    z. The weights are its gradient with respect to log pi(a* | x, z_i). Both are G times what the sum over a group has,
    because the objective takes the mean over samples: with `aggregation: seq_mean_token_sum` that mean is the gradient.
    Exact where the bound on r does not act; a missing answer has weight 0 and, instead of log 0, the bound.
    """
    return Likelihoods(batch.or_floor(batch.total), group_weights(batch))


@LIKELIHOODS.register("nover", credit="response")
def nover(batch: LikelihoodInputs, *, format_weight: Weight = 1.0, efficiency_weight: Weight = 1.0) -> Likelihoods:
    """Ranks by perplexity within the group, form and brevity; nothing for the answer (NOVER, arXiv 2505.16022).

    r = (n - rank) / n + format_weight * formatted + efficiency_weight * efficiency, with PPL = exp(-log pi(a*) / |a*|)
    of the scorer, which NOVER calls proxy: the anchor `ema`. rank 1 of n has the lowest PPL; equals share the worse
    rank, and a response without an answer is last. efficiency is the share of the group, itself included, that has both
    a higher PPL and a longer reasoning.

    Args:
        format_weight, efficiency_weight: 1 each, which the perplexity's own part has too.
    """
    log_ppl = torch.where(batch.found, -batch.total / batch.tokens, torch.inf)
    rank_part, efficiency = torch.zeros_like(log_ppl), torch.zeros_like(log_ppl)
    for label in batch.group.unique():
        own = (batch.group == label).nonzero()[:, 0]
        ppl, length = log_ppl[own], batch.reasoning_lengths[own]
        better = ppl[:, None] < ppl[None, :]
        shorter = length[:, None] < length[None, :]
        rank_part[own] = better.double().mean(1)
        efficiency[own] = (better & shorter).double().mean(1)
    rewards = rank_part + format_weight * batch.formatted + efficiency_weight * efficiency
    return Likelihoods(rewards, torch.zeros_like(rewards))


def group_weights(batch: LikelihoodInputs) -> Tensor:
    """(B,) float64: G softmax_i(log pi(a* | x, z_i)) over each group of G; mean 1, or 0 where no answer was found."""
    labels, index = torch.unique(batch.group, return_inverse=True)
    log = torch.where(batch.found, batch.total, -torch.inf)
    zeros = log.new_zeros(len(labels))
    best = torch.full_like(zeros, -torch.inf).scatter_reduce(0, index, log, "amax")
    share = torch.where(batch.found, (log - best[index]).exp(), 0.0)  # at -inf - -inf, nothing was found
    sums = zeros.index_add(0, index, share)
    count = zeros.index_add(0, index, torch.ones_like(log))
    return share * (count / sums.clamp(min=1))[index]  # the best of a group has share 1, so a sum below 1 is 0


def _mean_probability(logp: Tensor, mask: Tensor) -> Tensor:
    """(B,) float64: mean of exp(logp) over the mask; 0 where it is empty."""
    return torch.where(mask, logp.double().exp(), 0.0).sum(1) / mask.sum(1).clamp(min=1)


class StdFilter:
    """Leaves out groups whose rewards differ less than is usual in the run (RLPR, arXiv 2506.18254).

    A group is kept when its standard deviation is at least `share` times an exponential moving average of the mean
    standard deviation of earlier steps. The published code and its notes leave open whether the step at hand is in the
    average; here it is not.

    Args:
        decay: of the average, a step.
        share: of the average that a group must reach.
        average_from: the step, from 1, whose groups begin the average.
        filter_from: the first step with a filter, after `average_from`.
    """

    def __init__(self, decay: float = 0.99, share: float = 0.5, average_from: int = 6, filter_from: int = 11) -> None:
        if not 0 <= decay < 1 or share < 0 or not 1 <= average_from < filter_from:
            raise ValueError(
                f"decay {decay} must be in [0, 1), share {share} not negative, and 1 <= average_from {average_from} < "
                f"filter_from {filter_from}"
            )
        self.decay = decay
        self.share = share
        self.average_from = average_from
        self.filter_from = filter_from
        self.steps = 0
        self.average: float | None = None

    def keep(self, stds: Tensor) -> Tensor:
        """(G,) bool, which groups of a step stay; then the step counts for the average.

        Args:
            stds: (G,), standard deviation of the rewards of each group of the step, before any is left out.
        """
        stds = stds.double()
        self.steps += 1
        keep = torch.ones_like(stds, dtype=torch.bool)
        if self.steps >= self.filter_from and self.average is not None:
            keep = stds >= self.share * self.average
        if self.steps >= self.average_from and len(stds):
            mean = float(stds.mean())
            self.average = mean if self.average is None else self.decay * self.average + (1 - self.decay) * mean
        return keep

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"steps": self.steps, "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.steps, self.average = state["steps"], state["average"]

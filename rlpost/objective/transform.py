"""Role AdvantageTransform: reshape credit, token by token. A chain, applied in the order of the configuration.

An entry is a function `(advantages: Tensor, batch: CreditInputs, **params) -> Reshaped | Tensor`, with advantages
(B, T) float64. It sees the whole step's on-policy batch, so a quantile or a mean over the batch is one over all ranks.

A token with advantage 0 adds nothing to the policy loss but stays in its denominators; `Reshaped.keep` takes a token
out of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rlpost.config import ConfigError
from rlpost.objective.advantage import group_statistics
from rlpost.objective.selector import Share, covariance, largest, share_of
from rlpost.objective.types import CreditInputs, Reshaped
from rlpost.registry import Registry

Transform = Callable[[Tensor, CreditInputs], Reshaped | Tensor]
TRANSFORMS: Registry[Transform] = Registry("advantage transform", inputs=("advantages", "batch"))


@TRANSFORMS.register("overlong")
def overlong(advantages: Tensor, batch: CreditInputs, *, mode: Literal["filter"] = "filter") -> Reshaped:
    """Samples that the token limit cut off leave the policy loss and its denominators (DAPO, arXiv 2503.14476, 3.4).

    They keep their part in the statistics of the advantage. Penalties for length are rewards, not credit, and are
    verifiers: the soft penalty of DAPO, and the factor on the reward of truncated samples of ProRLv2.

    Args:
        mode: `filter` is the only one; there is no `penalty` here.

    Reports `transform/overlong_share`: share of samples that were truncated.
    """
    keep = batch.mask & ~batch.truncated[:, None]
    return Reshaped(advantages, keep, {"transform/overlong_share": _mean(batch.truncated)})


@TRANSFORMS.register("stcr")
def stcr(advantages: Tensor, batch: CreditInputs, *, base: Annotated[float, Field(gt=1)] = 1.00001) -> Reshaped:
    """A <- A (1 + 1 - base^-e) at tokens with A < 0 of wrong samples; APO's STCR (arXiv 2506.21655).

    e = max(0, |y| - mean length of the correct samples of the group), lengths counted in unmasked tokens. A wrong
    answer that thinks for longer than the right ones did is punished more, by less than twice. A group without a
    correct sample is left as it is.

    The published code goes by correctness alone, so a wrong sample with A > 0 would be encouraged more; that cannot
    happen with rewards of 0 and 1, and is left out here. Its default base makes an excess of 1000 tokens 1.00995.

    Reports `transform/stcr_share`: share of tokens whose advantage grew; `transform/stcr_max`: the largest factor.
    """
    labels, index = torch.unique(batch.group, return_inverse=True)
    lengths = batch.lengths.double()

    def per_group(x: Tensor) -> Tensor:
        return lengths.new_zeros(len(labels)).index_add(0, index, x)[index]

    correct = batch.correct.double()
    count = per_group(correct)
    excess = (lengths - per_group(lengths * correct) / count.clamp(min=1)).clamp(min=0)
    excess = excess.masked_fill(batch.correct | (count == 0), 0.0)
    factor = 1 - torch.expm1(-excess * math.log(base))
    factor = torch.where(batch.mask & (advantages < 0), factor[:, None], 1.0)
    metrics = {
        "transform/stcr_share": _mean((factor > 1)[batch.mask]),
        "transform/stcr_max": float(factor.max()) if factor.numel() else 1.0,
    }
    return Reshaped(advantages * factor, metrics=metrics)


@TRANSFORMS.register("conflict_mask")
def conflict_mask(
    advantages: Tensor,
    batch: CreditInputs,
    *,
    amplify: Annotated[float, Field(ge=0)] = 2.0,
    sign: Literal["advantage", "return"] = "advantage",
    compat: Literal["code"] | None = None,
) -> Reshaped:
    """A <- lambda A, with lambda = `amplify` at conflict tokens that are credited and 0 at those that are blamed.

    GTPO (arXiv 2508.03772). A token is in conflict when the same token id stands at the same position in a credited
    and in a blamed sample of its group; such tokens are format rather than reasoning, and should not be unlearned.
    Only two runs without a break are looked at: forward from the start of the response, with positions counted from
    the start, and backward from its end, with positions counted from the end. Positions count unmasked tokens.

    Args:
        amplify: lambda where the sample is credited.
        sign: what credits and blames: the sign of `advantages` as they come, token by token; or of the return less
            the mean of its group, sample by sample. For the objective of the paper, lambda delta_i (A_i - gamma <H>_i)
            with lambda from A_i, the chain is `entropy_shaping`, `entropy_filter`, then this with `sign: return`.
        compat: `code` does what the published code does and the formula does not: a token in both runs gets `amplify`
            squared, and every sample's advantages are divided by how many conflict tokens it has, where it has any.

    Reports `transform/conflict_share`: share of tokens in conflict.
    """
    if sign == "return":
        relative = group_statistics(batch.returns, batch.group, ddof=0).deviation
        signs = batch.per_token(relative.sign())
    else:
        signs = batch.per_token(advantages.sign())
    order = batch.mask.cumsum(1)
    forward = _leading(_conflicts(signs, batch, order - 1), batch.mask)
    backward = _conflicts(signs, batch, order[:, -1:] - order)
    backward = _leading(backward.flip(1), batch.mask.flip(1)).flip(1)
    either = forward | backward
    value = (signs > 0).double() * amplify
    factor = torch.where(either, value, 1.0)
    if compat == "code":
        factor = torch.where(forward & backward, value.square(), factor)
        factor = factor / either.sum(1, keepdim=True).clamp(min=1)
    return Reshaped(advantages * factor, metrics={"transform/conflict_share": _mean(either[batch.mask])})


def _conflicts(signs: Tensor, batch: CreditInputs, position: Tensor) -> Tensor:
    """(B, T) bool: the same token at the same position of the same group has both signs."""
    live = batch.mask & (signs != 0)
    found = torch.zeros_like(live)
    if not live.any():
        return found
    _, group = torch.unique(batch.group, return_inverse=True)
    # One exact number for each (group, position, token); 10^4 groups of 10^6 positions and tokens still fit int64.
    key = (group[:, None] * live.shape[1] + position) * (batch.tokens.max() + 1) + batch.tokens
    kinds, slot = torch.unique(key[live], return_inverse=True)
    credited, blamed = torch.zeros(2, len(kinds), dtype=torch.bool, device=live.device)
    credited[slot[signs[live] > 0]] = True
    blamed[slot[signs[live] < 0]] = True
    found[live] = (credited & blamed)[slot]
    return found


def _leading(found: Tensor, mask: Tensor) -> Tensor:
    """The part of `found` before the first unmasked token of the row that is not in it."""
    return found & ((mask & ~found).cumsum(1) == 0)


@TRANSFORMS.register("entropy_filter", needs=("entropy",))
def entropy_filter(
    advantages: Tensor,
    batch: CreditInputs,
    *,
    threshold: Annotated[float, Field(gt=0)] = math.log(2),
    initial_entropy: Annotated[float, Field(ge=0)] | None = None,
) -> Reshaped:
    """A_i <- delta_i A_i, delta_i = 1 where <H>_i <= `threshold`, else 0 (GTPO, arXiv 2508.03772).

    <H>_i is the mean entropy of pi_old, in nats, over the unmasked tokens of sample i. Filtered samples stay in the
    denominators, as in the published code, whose threshold is 0.7 in place of ln 2.

    Args:
        initial_entropy: entropy of the policy that training began with. Above `threshold`, delta_i = 1 for all, as
            the formula says for policies that are uncertain by nature. None: not known, and samples are filtered,
            which is what the published code always does.

    Reports `transform/entropy_filtered`: share of samples that were filtered.
    """
    filtered = _mean_entropy(batch) > threshold
    if initial_entropy is not None and initial_entropy > threshold:
        filtered = torch.zeros_like(filtered)
    metrics = {"transform/entropy_filtered": _mean(filtered)}
    return Reshaped(advantages.masked_fill(filtered[:, None], 0.0), metrics=metrics)


@TRANSFORMS.register("entropy_shaping", needs=("entropy",))
def entropy_shaping(advantages: Tensor, batch: CreditInputs, *, gamma: Annotated[float, Field(ge=0)] = 0.1) -> Tensor:
    """A_i <- A_i - gamma <H>_i, <H>_i as in `entropy_filter` (GTPO, arXiv 2508.03772).

    A group without a signal then has advantages too, none of them above 0.
    """
    return batch.per_token(advantages - gamma * _mean_entropy(batch)[:, None])


def _mean_entropy(batch: CreditInputs) -> Tensor:
    """(B,) nats, over the unmasked tokens of each sample; 0 where there are none."""
    return batch.per_token(batch.need("entropy")).sum(1) / batch.lengths.clamp(min=1)


@TRANSFORMS.register("top_entropy", needs=("entropy",))
def top_entropy(advantages: Tensor, batch: CreditInputs, *, share: Share = 0.2, drop: bool = False) -> Reshaped:
    """Only the `share` of the batch's tokens at which pi_old has the highest entropy learn (arXiv 2506.01939).

    Their number is rounded down, but at least one; among equal entropies the first tokens of the batch are taken.

    Args:
        drop: the other tokens leave the denominators too. By default they have advantage 0, and stay in them.

    Reports `transform/top_entropy_threshold`: the lowest entropy among the tokens that learn.
    """
    entropy = batch.need("entropy")
    chosen = largest(entropy, batch.mask, share)
    threshold = float(entropy[chosen].min()) if chosen.any() else 0.0
    metrics = {"transform/top_entropy_threshold": threshold}
    return Reshaped(advantages, chosen, metrics) if drop else Reshaped(advantages * chosen, metrics=metrics)


@TRANSFORMS.register("clip_cov", needs=("old_logp",))
def clip_cov(
    advantages: Tensor, batch: CreditInputs, *, share: Share = 2e-4, low: float = 1.0, high: float = 5.0
) -> Reshaped:
    """A random few of the tokens whose covariance lies within [low, high] get advantage 0 (arXiv 2505.22617).

    The covariance of a token is (log pi_old - mean)(A - mean), means over the unmasked tokens of the step. `share` of
    all unmasked tokens are drawn, rounded down but at least one, fewer when fewer qualify; the draw is a function of
    `batch.seed`. They stay in the denominators.

    The published code draws within each micro-batch, takes log pi, and only draws tokens that PPO does not clip: at
    the first update of a batch, where pi = pi_old and nothing is clipped, the tokens that qualify are the same.

    Reports `transform/clip_cov_candidates`, `transform/clip_cov_share`: share of tokens that qualified, were drawn.

    Raises:
        ConfigError: low > high.
    """
    if not low <= high:
        raise ConfigError(f"advantage transform 'clip_cov': low {low} is not below high {high}: no token is between")
    value = covariance(advantages, batch)
    qualified = batch.mask & (value >= low) & (value <= high)
    where = qualified.flatten().nonzero()[:, 0]
    generator = torch.Generator().manual_seed(batch.seed)
    drawn = torch.randperm(len(where), generator=generator).to(where.device)[: share_of(share, batch.mask)]
    clipped = torch.zeros_like(qualified)
    clipped.view(-1)[where[drawn]] = True
    metrics = {
        "transform/clip_cov_candidates": _mean(qualified[batch.mask]),
        "transform/clip_cov_share": _mean(clipped[batch.mask]),
    }
    return Reshaped(advantages.masked_fill(clipped, 0.0), metrics=metrics)


def _mean(flags: Tensor) -> float:
    """The share that is true; 0 of none."""
    return float(flags.double().mean()) if flags.numel() else 0.0

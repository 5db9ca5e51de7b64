"""Role PolicyLoss: the surrogate whose gradient improves the policy.

An entry is a function `(batch: TermInputs, **params) -> TermOutputs`. It returns a loss per token and never divides
by a length or a count; it sees neither rewards nor anchors; it applies `batch.weights` itself, because only the
surrogate knows whether they belong in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field

from rlpost.objective.ratio import clamped_log_ratio
from rlpost.objective.registry import Registry
from rlpost.objective.types import TermInputs, TermOutputs

PolicyLoss = Callable[[TermInputs], TermOutputs]
POLICY_LOSSES: Registry[PolicyLoss] = Registry("policy loss", inputs=("batch",))


@POLICY_LOSSES.register("ppo_clip")
def ppo_clip(
    batch: TermInputs,
    *,
    low: Annotated[float, Field(ge=0, le=1)] = 0.2,
    high: Annotated[float, Field(ge=0)] = 0.2,
    dual: Annotated[float, Field(gt=1)] | None = None,
) -> TermOutputs:
    """l = -W J, J = min(r A, clip(r, 1 - low, 1 + high) A), r = pi / pi_old (PPO, arXiv 1707.06347, eq. 7).

    `high` above `low` is clip-higher (DAPO, arXiv 2503.14476, eq. 10). With `dual` = c, J = max(J, c A) where A < 0,
    which bounds the loss of a bad token that became likely (dual-clip, Ye et al. 2020, arXiv 1912.09729, eq. 5).

    The gradient with respect to `logp` is -W r A, and exactly zero where A > 0 and r > 1 + high; A < 0 and
    r < 1 - low; A < 0 and r > c; |log r| > 20.

    Reports `clip/low`, `clip/high`, `clip/dual`: share of tokens in each of these regions; `clamp/ratio`: share with
    |log r| > 20; `ratio/mean`, `ratio/max`.
    """
    log_ratio, clamped = clamped_log_ratio(batch.logp, batch.old_logp)
    ratio = log_ratio.exp()
    advantages = batch.advantages
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    good, bad, r = advantages > 0, advantages < 0, ratio.detach()
    means = {
        "clip/low": bad & (r < 1 - low),
        "clip/high": good & (r > 1 + high),
        "clamp/ratio": clamped,
        "ratio/mean": r,
    }
    if dual is not None:
        surrogate = torch.where(bad, torch.maximum(surrogate, dual * advantages), surrogate)
        means["clip/dual"] = bad & (r > dual)
    return TermOutputs(-batch.weights * surrogate, means=means, maxima={"ratio/max": r})


@POLICY_LOSSES.register("sft")
def sft(batch: TermInputs) -> TermOutputs:
    """l = -log pi, the negative log-likelihood of given tokens; reads neither advantages nor weights."""
    return TermOutputs(-batch.logp)

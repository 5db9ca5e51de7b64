"""How far the learner's log-probs are from the engine's, on the same tokens and the same weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlpost.meter import Meter


def mismatch_metrics(learner_logp: Tensor, behavior_logp: Tensor, mask: Tensor, prefix: str = "mismatch") -> Meter:
    """Metrics of q = learner / engine on the tokens the engine sampled.

        <prefix>/logp_abs_max, logp_abs_mean   |log q|, nats
        <prefix>/kl                            mean of q - 1 - log q
        <prefix>/prob_abs_mean                 |p_learner - p_engine|
        <prefix>/f2                            share of tokens where the two differ by more than a factor 2

    The tokens come from the engine, so `kl` estimates KL(engine || learner), without bias and never negative: it is
    k3 (Schulman 2020) with the engine in the place of the sampling policy.

    Args:
        learner_logp, behavior_logp: (B, T) log-probs of the sampled tokens, at the same temperature.
        mask: (B, T) bool, true on sampled tokens. When nothing is, the meter is empty.

    Raises:
        FloatingPointError: a log-prob under the mask is not finite; an alarm could not see it, as NaN exceeds nothing.
    """
    learner, engine = learner_logp.detach()[mask].double(), behavior_logp.detach()[mask].double()
    meter = Meter()
    tokens = learner.numel()
    if tokens == 0:
        return meter
    for name, logp in (("learner", learner), ("engine", engine)):
        broken = int((~logp.isfinite()).sum())
        if broken:
            raise FloatingPointError(f"{broken} of {tokens} log-probs of the {name} are not finite")
    log_q = learner - engine
    distance = log_q.abs()
    means = {
        "logp_abs_mean": distance,
        "kl": torch.expm1(log_q) - log_q,
        "prob_abs_mean": (learner.exp() - engine.exp()).abs(),
        "f2": (distance > math.log(2)).double(),
    }
    *totals, largest = torch.stack([*(m.sum() for m in means.values()), distance.max()]).tolist()
    for name, total in zip(means, totals, strict=True):
        meter.mean(f"{prefix}/{name}", total, tokens)
    meter.max(f"{prefix}/logp_abs_max", largest)
    return meter

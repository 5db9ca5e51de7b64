"""Log-ratios of two policies on the sampled tokens, kept where `exp` is finite."""

from __future__ import annotations

from torch import Tensor

LOG_RATIO_LIMIT = 20.0


def clamped_log_ratio(logp: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """log(pi / base), held within ±20, and where that bound acted.

    Where it acts the gradient is zero, so a term that uses this reports the share of such tokens.

    Args:
        logp, base: (B, T) log-probs.

    Returns:
        (B, T) the log-ratio in nats; (B, T) bool, true where it was clamped.
    """
    log_ratio = logp - base
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT), log_ratio.detach().abs() > LOG_RATIO_LIMIT

"""A penalty for responses that come near the limit of length, or run into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.length import judged


def verify(
    response: str,
    token_count: int,
    finish_reason: str = "stop",
    max_length: int | None = None,
    cache: int | None = None,
    factor: float = 1.0,
    truncated: float | None = None,
    verifier: str | None = None,
    verifier_params: Mapping[str, Any] | None = None,
    coefficient: float = 0.0,
    **sample: Any,
) -> dict[str, Any]:
    """One of two things.

    Without `verifier`, DAPO's soft overlong punishment (Yu et al. 2025, equation 13), a score from -`factor` to 0, to
    be added to that of a verifier of the answer: 0 up to `max_length - cache` tokens, falling on a line through the
    cache, -`factor` from `max_length` on. Reason: overlong, or truncated.

    With `verifier`, ProRL v2's "stop properly" penalty: the score of that verifier, times `coefficient` when the
    response was cut off at the limit. It replaces the verifier in the configuration. Reason: truncated.

    Args:
        max_length: the longest response that can be, in tokens.
        cache: the last so many tokens of it, in which the penalty grows.
        factor: the largest penalty.
        truncated: the score of a response that was cut off; None leaves it to its length.
        verifier, verifier_params: the verifier whose score is scaled, and its parameters.
        coefficient: 0 to 1.

    Raises:
        ValueError: a parameter is missing or out of range.
    """
    cut = finish_reason == "length"
    if verifier is not None:
        if not 0 <= coefficient <= 1:
            raise ValueError(f"verifier overlong: coefficient is {coefficient}; it must be in [0, 1]")
        values = {**sample, "response": response, "token_count": token_count, "finish_reason": finish_reason}
        verdict = judged(verifier, verifier_params or {}, values)
        score = verdict.score if verdict.score is None or not cut else verdict.score * coefficient
        return {
            "score": score,
            "reason": "truncated" if cut and score is not None else verdict.reason,
            "extracted": verdict.extracted,
            "details": dict(verdict.details),
        }
    if max_length is None or cache is None or not 0 < cache <= max_length or factor < 0:
        raise ValueError(
            f"verifier overlong: max_length is {max_length}, cache {cache}, factor {factor}; it needs "
            "0 < cache <= max_length and factor >= 0"
        )
    if cut and truncated is not None:
        return {"score": truncated, "reason": "truncated"}
    share = min(max((token_count - (max_length - cache)) / cache, 0.0), 1.0)
    return {"score": -factor * share if share else 0.0, "reason": "overlong" if share else ""}

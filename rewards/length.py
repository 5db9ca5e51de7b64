"""A score for the length of the response, counted in tokens.

Length alone is easy to have, so give it a small weight beside a verifier of the answer, or use `cosine`, which scores
by length on each side of right and wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlpost.verify.protocol import SAMPLE_FIELDS, Verdict, bind, to_verdict
from rlpost.verify.registry import resolve

KINDS = ("linear", "cosine", "max", "exact")


def verify(
    response: str,
    token_count: int,
    kind: str = "linear",
    short: int = 0,
    long: int | None = None,
    verifier: str | None = None,
    verifier_params: Mapping[str, Any] | None = None,
    right: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (-1.0, -0.5),
    exceeded: float | None = None,
    budget: int | None = None,
    alpha: float = 0.0003,
    delta: float = 0.5,
    **sample: Any,
) -> dict[str, Any]:
    r"""The score of a response of n = `token_count` tokens, by `kind`:

    - `linear`: 1 up to `short` tokens, 0 from `long` on, on a line between. Reason: long.
    - `cosine`: between two ends on half a wave of the cosine, from n = 0 to n = `long`, the ends by whether `verifier`
      finds the response correct (Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning in LLMs"; the form of
      Open-RS and GPG): :math:`end + (start - end) (1 + \cos(\pi n / long)) / 2`. Unverified where `verifier` is; its
      own score below 1 counts as wrong.
    - `max`: at most the budget, :math:`clip(alpha (budget - n) + delta, 0, 1)` (LCPO-Max, Aggarwal and Welleck 2025,
      "L1"; there it is multiplied by correctness). Reason: over_budget.
    - `exact`: near the budget, :math:`-alpha |budget - n|`, at most 0 (LCPO-Exact, same source).

    Args:
        short, long: tokens. For `cosine`, `long` is the longest response that can be.
        verifier: for `cosine`: the name of the verifier that says whether the response is correct.
        verifier_params: its parameters.
        right: for `cosine`: the scores of a correct response of no tokens and of `long` tokens.
        wrong: the same for a wrong one. By default a wrong answer costs less after longer thought.
        exceeded: for `cosine`: the score from `long` tokens on, right or wrong; None keeps the end of the wave.
        budget: for `max` and `exact`: tokens; may be a column of the data.
        alpha: score per token.
        delta: score of a response of exactly the budget.

    Raises:
        ValueError: a parameter that `kind` needs is missing or out of range.
    """
    if kind not in KINDS:
        raise ValueError(f"verifier length: kind is {kind!r}; it may be {', '.join(KINDS)}")
    if kind in ("max", "exact"):
        if budget is None or budget <= 0:
            raise ValueError(f"verifier length: kind {kind} needs a budget above 0, in tokens; it is {budget}")
        if kind == "exact":
            return {"score": -alpha * abs(budget - token_count)}
        score = min(max(alpha * (budget - token_count) + delta, 0.0), 1.0)
        return {"score": score, "reason": "" if score >= delta else "over_budget"}
    if long is None or not 0 <= short < long:
        raise ValueError(f"verifier length: kind {kind} needs 0 <= short < long; they are {short} and {long}")
    if kind == "linear":
        score = min(max((long - token_count) / (long - short), 0.0), 1.0)
        return {"score": score, "reason": "" if score >= 1 else "long"}
    if verifier is None:
        raise ValueError("verifier length: kind cosine needs a verifier, the name of one that judges the answer")
    verdict = judged(
        verifier, verifier_params or {}, {**sample, "response": response, "token_count": token_count, "budget": budget}
    )
    if verdict.score is None:
        return {"score": None, "reason": verdict.reason, "details": dict(verdict.details)}
    if exceeded is not None and token_count >= long:
        return {"score": exceeded, "reason": "exceeded", "extracted": verdict.extracted}
    start, end = right if verdict.score >= 1 else wrong
    score = end + (start - end) * (1 + math.cos(math.pi * min(token_count / long, 1.0))) / 2
    return {
        "score": score,
        "reason": verdict.reason,
        "extracted": verdict.extracted,
        "components": {verifier: verdict.score},
    }


def judged(name: str, params: Mapping[str, Any], values: Mapping[str, Any]) -> Verdict:
    """What another verifier, a synchronous one, says of the same sample, whose fields and columns are `values`."""
    fields = {key: values.get(key) for key in SAMPLE_FIELDS}
    columns = {key: value for key, value in values.items() if key not in SAMPLE_FIELDS}
    return to_verdict(bind(name, resolve(name), params)({**fields, "metadata": columns}))

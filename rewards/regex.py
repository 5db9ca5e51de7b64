"""The answer matches a regular expression.

`format` is about the form of the whole response; this one is about the answer in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rewards._patterns import compiled
from rewards._response import visible
from rewards.exact import last_match

FLAGS = {"ignorecase": re.IGNORECASE, "dotall": re.DOTALL, "multiline": re.MULTILINE, "ascii": re.ASCII}


def verify(
    response: str,
    reference: Any = None,
    pattern: str | None = None,
    full: bool = True,
    extract: str | None = None,
    flags: Sequence[str] = (),
    max_length: int = 10_000,
) -> dict[str, Any]:
    r"""Correct when the answer matches. Reasons: no_answer, too_long, mismatch.

    Args:
        pattern: the expression, in Python's syntax; without it, the reference is one. It takes time linear in the
            answer, but where it looks ahead or behind, refers to a group, or has `\b` without the flag `ascii`: such a
            one may take exponential time on what a model writes, and is ended by the verifier's `timeout`.
        full: the whole answer must match, white space around it apart; otherwise any part of it may.
        extract: a regular expression; its last match after the thought (the first group, when it has one) is the answer.
            Without it, all that follows the thought is.
        flags: of `ignorecase`, `dotall`, `multiline`, `ascii`.
        max_length: characters; a longer answer is wrong.

    Raises:
        ValueError: `pattern`, `extract` or `flags` cannot be used.
    """
    unknown = [flag for flag in flags if flag not in FLAGS]
    if unknown:
        raise ValueError(f"verifier regex: flags has {unknown}; it may hold {', '.join(FLAGS)}")
    options = re.NOFLAG
    for flag in flags:
        options |= FLAGS[flag]
    if pattern is None:
        try:
            expected = compiled(str(reference or ""), options)
        except (re.error, RecursionError, OverflowError) as error:
            return _unverified(f"{str(reference)[:200]!r} is no regular expression: {error}")
        if not reference:
            return _unverified("it is empty, and no pattern is set")
    else:
        try:
            expected = compiled(pattern, options)
        except re.error as error:
            raise ValueError(f"verifier regex: pattern {pattern!r} is no regular expression: {error}") from error
    answer = _answer(response, extract)
    if answer is None:
        return {"score": 0.0, "reason": "no_answer"}
    if len(answer) > max_length:
        return {"score": 0.0, "reason": "too_long", "extracted": answer}
    found = (expected.fullmatch if full else expected.search)(answer)
    return {"score": float(found is not None), "reason": "" if found else "mismatch", "extracted": answer}


verify.check = True  # type: ignore[attr-defined]


def _answer(response: str, extract: str | None) -> str | None:
    text = visible(response)
    found = text if text is None or extract is None else last_match(extract, text)
    return (found or "").strip() or None


def _unverified(why: str) -> dict[str, Any]:
    return {"score": None, "reason": "bad_reference", "details": {"error": f"the reference cannot be used: {why}"}}

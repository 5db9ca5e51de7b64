"""The answer matches a regular expression.

`format` is about the form of the whole response; this one is about the answer in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

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
    """Correct when the answer matches. Reasons: no_answer, too_long, mismatch.

    Args:
        pattern: the expression; without it, the reference is one. Python's `re` may take exponential time on nested
            repetitions such as `(a+)+b`: write patterns without, for the text is the model's. A match that does not end
            is ended by the verifier's `timeout`.
        full: the whole answer must match, white space around it apart; otherwise any part of it may.
        extract: a regular expression; its last match in the response (the first group, when it has one) is the answer.
            Without it, what follows `</think>` is.
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
            expected = re.compile(str(reference or ""), options)
        except (re.error, RecursionError, OverflowError) as error:
            return _unverified(f"{str(reference)[:200]!r} is no regular expression: {error}")
        if not expected.pattern:
            return _unverified("it is empty, and no pattern is set")
    else:
        expected = _compiled("pattern", pattern, options)
    answer = _answer(response, extract)
    if answer is None:
        return {"score": 0.0, "reason": "no_answer"}
    if len(answer) > max_length:
        return {"score": 0.0, "reason": "too_long", "extracted": answer}
    found = (expected.fullmatch if full else expected.search)(answer)
    return {"score": float(found is not None), "reason": "" if found else "mismatch", "extracted": answer}


verify.check = True  # type: ignore[attr-defined]


def _answer(response: str, extract: str | None) -> str | None:
    if extract is not None:
        last = None
        for last in _compiled("extract", extract, re.DOTALL).finditer(response):  # noqa: B007
            pass
        if last is None:
            return None
        found = last[1 if last.re.groups else 0]
    else:
        _, closed, found = response.rpartition("</think>")
        if not closed and "<think>" in response:  # still thinking
            return None
    return (found or "").strip() or None


def _compiled(key: str, text: str, flags: re.RegexFlag) -> re.Pattern[str]:
    try:
        return re.compile(text, flags)
    except re.error as error:
        raise ValueError(f"verifier regex: {key} {text!r} is no regular expression: {error}") from error


def _unverified(why: str) -> dict[str, Any]:
    return {"score": None, "reason": "bad_reference", "details": {"error": f"the reference cannot be used: {why}"}}

"""The response is the reference, character by character."""

from __future__ import annotations

import re
from typing import Any

from rewards._patterns import compiled
from rewards._response import visible


def verify(
    response: str, reference: Any, strip: bool = True, casefold: bool = False, extract: str | None = None
) -> dict[str, Any]:
    """Correct when what the response says after its thought equals the reference. Reasons: no_answer, mismatch.

    Args:
        reference: text, or a number compared as Python writes it.
        strip: ignore white space around both.
        casefold: ignore upper and lower case.
        extract: a regular expression; its last match after the thought (the first group, when it has one) is the answer.

    Raises:
        ValueError: `extract` is no regular expression.
    """
    if reference is None:
        return {"score": None, "reason": "bad_reference", "details": {"error": "this prompt has no reference"}}
    text, expected = visible(response), str(reference)
    answer = text if text is None or extract is None else last_match(extract, text)
    if answer is None:
        return {"score": 0.0, "reason": "no_answer"}
    if strip:
        answer, expected = answer.strip(), expected.strip()
    if casefold:
        answer, expected = answer.casefold(), expected.casefold()
    same = answer == expected
    return {"score": float(same), "reason": "" if same else "mismatch", "extracted": answer}


def last_match(extract: str, text: str) -> str | None:
    """The last match of the expression, or its first group; None without one.

    Raises:
        ValueError: it is no regular expression.
    """
    try:
        expression = compiled(extract, re.DOTALL)
    except re.error as error:
        raise ValueError(f"extract {extract!r} is no regular expression: {error}") from error
    last = None
    for last in expression.finditer(text.rstrip("\n")):  # noqa: B007
        pass
    return None if last is None else last[1 if expression.groups else 0]


verify.check = True  # type: ignore[attr-defined]

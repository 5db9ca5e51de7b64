"""The response is the reference, character by character."""

from __future__ import annotations

import re
from typing import Any


def verify(
    response: str, reference: Any, strip: bool = True, casefold: bool = False, extract: str | None = None
) -> dict[str, Any]:
    """Correct when the response equals the reference.

    Args:
        reference: text, or a number compared as Python writes it.
        strip: ignore white space around both.
        casefold: ignore upper and lower case.
        extract: a regular expression; its last match in the response (the first group, when it has one) is the answer.
    """
    if reference is None:
        return {"score": None, "reason": "bad_reference", "details": {"error": "this prompt has no reference"}}
    answer, expected = response, str(reference)
    if extract is not None:
        matches = list(re.finditer(extract, response, re.DOTALL))
        found = matches[-1][1 if matches[-1].re.groups else 0] if matches else None
        if found is None:
            return {"score": 0.0, "reason": "no_answer"}
        answer = found
    if strip:
        answer, expected = answer.strip(), expected.strip()
    if casefold:
        answer, expected = answer.casefold(), expected.casefold()
    same = answer == expected
    return {"score": float(same), "reason": "" if same else "mismatch", "extracted": answer}


verify.check = True  # type: ignore[attr-defined]

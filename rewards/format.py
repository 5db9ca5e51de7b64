"""The response has a given form."""

from __future__ import annotations

import re
from typing import Any

from rewards._patterns import compiled


def verify(response: str, pattern: str, full: bool = True) -> dict[str, Any]:
    """Correct when the regular expression `pattern` matches; `.` matches line ends too. Reason: no_match.

    The whole response is looked at, its thought too. What `regex` says of the time an expression takes holds here.

    Args:
        full: the whole response must match; otherwise any part of it may.
    """
    expression = compiled(pattern, re.DOTALL)
    found = (expression.fullmatch if full else expression.search)(response)
    return {"score": float(found is not None), "reason": "" if found else "no_match"}

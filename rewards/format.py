"""The response has a given form."""

from __future__ import annotations

import re
from typing import Any


def verify(response: str, pattern: str, full: bool = True) -> dict[str, Any]:
    """Correct when the regular expression `pattern` matches; `.` matches line ends too.

    Args:
        full: the whole response must match; otherwise any part of it may.
    """
    found = (re.fullmatch if full else re.search)(pattern, response, re.DOTALL)
    return {"score": float(found is not None), "reason": "" if found else "no_match"}

"""Lengths of time as people and schedulers write them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_TEXT = re.compile(r"(?=\d)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def seconds_of(value: Any) -> Any:
    """`3h50m` as seconds; a number is seconds already."""
    if not isinstance(value, str):
        return value
    found = _TEXT.fullmatch(value.strip())
    if found is None:
        raise ValueError(
            f"{value!r} must be days, hours, minutes and seconds, such as 3h50m, 90m or 1d12h, or a number of seconds"
        )
    return sum(int(count or 0) * seconds for count, seconds in zip(found.groups(), _UNITS.values(), strict=True))


Duration = Annotated[float, BeforeValidator(seconds_of), Field(gt=0)]

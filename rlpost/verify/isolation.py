"""What programs may run in here, in this process, and what they did run in: noted with each verdict they were part of.

Apart from `rlpost.verify.sandbox`, so that a process which runs no program loads nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_unsafe = False
_ran: dict[str, Any] | None = None


def permit_unsafe(permitted: bool) -> None:
    """Whether `sandbox()` may give this process a sandbox of tier D: what `verifier_pool.allow_unsafe` says."""
    global _unsafe
    _unsafe = permitted


def unsafe_permitted() -> bool:
    return _unsafe


def ran(tier: str, layers: Sequence[str]) -> None:
    """Note that a program ran. The worse tier stays where one verdict used two sandboxes."""
    global _ran
    if _ran is None or tier >= _ran["tier"]:
        _ran = {"tier": tier, "layers": list(layers)}


def taken() -> dict[str, Any] | None:
    """{"tier", "layers"} of what programs ran in since the last call; None when none ran."""
    global _ran
    found, _ran = _ran, None
    return found

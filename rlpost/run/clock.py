"""How long each phase of a step takes."""

from __future__ import annotations

import time


class Clock:
    """Seconds by phase of a step."""

    def __init__(self) -> None:
        self._started = self._lap = time.monotonic()
        self._phases: dict[str, float] = {}

    def lap(self, phase: str, until: float | None = None) -> None:
        """What passed since the last lap, up to `until` (time.monotonic()) or now, was `phase`."""
        at = max(self._lap, until if until is not None else time.monotonic())
        self._phases[phase] = at - self._lap
        self._lap = at

    def seconds(self) -> dict[str, float]:
        phases = {f"time/{name}": value for name, value in self._phases.items()}
        return {**phases, "time/total": time.monotonic() - self._started}

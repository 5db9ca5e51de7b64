"""How far along a schedule is that ends with the run, also when the run is given other steps on the way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Course:
    """The share of a schedule that lies behind at a step: `done` at step `at`, from there straight to 1 at step `end`."""

    at: int
    done: float
    end: int

    def __call__(self, step: int) -> float:
        if step >= self.end:
            return 1.0
        return self.done + (1 - self.done) * (max(0, step - self.at) / max(1, self.end - self.at))

    def bent(self, last: int, end: int) -> Course:
        """The same until the step `last`, the latest that was taken; what is left of it then takes until `end`."""
        if end == self.end:
            return self
        return Course(self.at, self.done, end) if last <= self.at else Course(last, self(last), end)

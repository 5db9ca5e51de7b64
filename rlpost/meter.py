"""Sums that can be reduced in any order: how metrics of micro-batches, ranks and engines become one number.

A mean of means depends on how the work was split; a sum and a weight do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Kind = Literal["mean", "sum", "max", "min"]


class Meter:
    """Named metrics held as (kind, total, weight)."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Kind, float, float]] = {}

    def mean(self, name: str, total: float, weight: float) -> None:
        """Add `total` (a sum over `weight` items) to a mean; nothing is added when `weight` is 0."""
        if weight:
            self._add(name, "mean", float(total), float(weight))

    def sum(self, name: str, value: float) -> None:
        self._add(name, "sum", float(value), 1.0)

    def max(self, name: str, value: float) -> None:
        self._add(name, "max", float(value), 1.0)

    def min(self, name: str, value: float) -> None:
        self._add(name, "min", float(value), 1.0)

    def _add(self, name: str, kind: Kind, total: float, weight: float) -> None:
        if name not in self._entries:
            self._entries[name] = (kind, total, weight)
            return
        known, old, old_weight = self._entries[name]
        if known != kind:
            raise ValueError(f"metric {name!r} was a {known} and is now added as a {kind}")
        if kind == "max":
            self._entries[name] = (kind, max(old, total), 1.0)
        elif kind == "min":
            self._entries[name] = (kind, min(old, total), 1.0)
        else:
            self._entries[name] = (kind, old + total, old_weight + weight)

    def update(self, other: Meter) -> Meter:
        """Fold `other` into this meter."""
        for name, (kind, total, weight) in other._entries.items():
            self._add(name, kind, total, weight)
        return self

    @classmethod
    def merge(cls, meters: Iterable[Meter]) -> Meter:
        merged = cls()
        for meter in meters:
            merged.update(meter)
        return merged

    def values(self) -> dict[str, float]:
        """The final numbers, by name."""
        return {
            name: total / weight if kind == "mean" else total for name, (kind, total, weight) in self._entries.items()
        }

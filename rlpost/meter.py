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
        self.entries: dict[str, tuple[Kind, float, float]] = {}

    def mean(self, name: str, total: float, weight: float) -> None:
        """Add `total` (a sum over `weight` items) to a mean; nothing is added when `weight` is 0."""
        if weight:
            self.add(name, "mean", float(total), float(weight))

    def renamed(self, names: dict[str, str]) -> Meter:
        """Only the metrics in `names`, under their new names."""
        chosen = Meter()
        chosen.entries = {new: self.entries[old] for old, new in names.items() if old in self.entries}
        return chosen

    def divided(self, names: Iterable[str], by: float) -> Meter:
        """These metrics with the sums in `names` divided: what was added up over several steps, for each."""
        result = Meter()
        result.entries = dict(self.entries)
        for name in names:
            if name in result.entries:
                kind, total, weight = result.entries[name]
                result.entries[name] = (kind, total / by, weight)
        return result

    def sum(self, name: str, value: float) -> None:
        self.add(name, "sum", float(value), 1.0)

    def max(self, name: str, value: float) -> None:
        self.add(name, "max", float(value), 1.0)

    def min(self, name: str, value: float) -> None:
        self.add(name, "min", float(value), 1.0)

    def add(self, name: str, kind: Kind, total: float, weight: float) -> None:
        if name not in self.entries:
            self.entries[name] = (kind, total, weight)
            return
        known, old, old_weight = self.entries[name]
        if known != kind:
            raise ValueError(f"metric {name!r} was a {known} and is now added as a {kind}")
        if kind == "max":
            self.entries[name] = (kind, max(old, total), 1.0)
        elif kind == "min":
            self.entries[name] = (kind, min(old, total), 1.0)
        else:
            self.entries[name] = (kind, old + total, old_weight + weight)

    def update(self, other: Meter) -> Meter:
        """Fold `other` into this meter."""
        for name, (kind, total, weight) in other.entries.items():
            self.add(name, kind, total, weight)
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
            name: total / weight if kind == "mean" else total for name, (kind, total, weight) in self.entries.items()
        }

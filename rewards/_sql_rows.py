"""Whether two queries returned the same: rows as bags, columns by what they hold, numbers within a tolerance."""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewards._sql_databases import Cell, sort_key

MAX_CHECKS = 2000  # comparisons of partial rows while columns are paired

Row = Sequence[Cell]


@dataclass(frozen=True)
class Expected:
    """What one reference returns on one database.

    `group[i]` numbers the rows among which row `i` may stand anywhere. `open`: only how many rows and columns there are is
    asked for; which rows, the reference leaves open.
    """

    columns: int
    rows: Sequence[Row]
    group: Sequence[int]
    open: bool = False


def same(expected: Expected, columns: int, rows: Sequence[Row], tolerance: float) -> bool:
    """Whether the rows are the expected ones under some pairing of the columns.

    Columns are paired one after the other: two may be paired when they hold the same values, and when the rows cut to
    the columns paired so far are the same. Trying each permutation would take n! comparisons; here a wrong pairing is
    left at its first column, and rows of `MAX_CHECKS` equally plausible pairings are taken to be different.
    """
    if columns != expected.columns or len(rows) != len(expected.rows):
        return False
    if expected.open or all(tuple(a) == tuple(b) for a, b in zip(expected.rows, rows, strict=True)):
        return True
    wanted = [_Column(row[i] for row in expected.rows) for i in range(columns)]
    given = [_Column(row[i] for row in rows) for i in range(columns)]
    checks = 0

    @functools.cache
    def snapped(i: int, j: int) -> list[int] | None:
        return wanted[i].snap(given[j], tolerance)

    def pair(i: int, free: frozenset[int], left: list[int], right: list[int]) -> bool:
        nonlocal checks
        if i == columns:
            return True
        for j in sorted(free, key=lambda j: (j != i, j)):
            checks += 1
            if checks > MAX_CHECKS:
                return False
            theirs = snapped(i, j)
            if theirs is None:
                continue
            numbers: dict[tuple[int, int], int] = {}
            longer = [
                [numbers.setdefault(cell, len(numbers)) for cell in zip(before, column, strict=True)]
                for before, column in ((left, wanted[i].classes(tolerance)), (right, theirs))
            ]
            if collections.Counter(longer[0]) == collections.Counter(longer[1]) and pair(i + 1, free - {j}, *longer):
                return True
        return False

    # Where order counts, the place is the first column of both.
    return pair(0, frozenset(range(columns)), list(expected.group), list(expected.group))


class _Column:
    """The values of a column, and the order that sorts them."""

    def __init__(self, values: Any) -> None:
        self.values: list[Cell] = list(values)
        keys = [sort_key(value) for value in self.values]
        self.order = sorted(range(len(keys)), key=keys.__getitem__)
        self._classes: list[int] | None = None

    def classes(self, tolerance: float) -> list[int]:
        """For each row a number that rows of (nearly) the same value share."""
        if self._classes is None:
            self._classes = [0] * len(self.values)
            first, number = None, -1
            for i in self.order:
                if number < 0 or not close(first, self.values[i], tolerance):
                    first, number = self.values[i], number + 1
                self._classes[i] = number
        return self._classes

    def snap(self, other: _Column, tolerance: float) -> list[int] | None:
        """For each row of `other` the class here of its value; None unless both hold the same values."""
        classes = self.classes(tolerance)
        found = [0] * len(self.values)
        for i, j in zip(self.order, other.order, strict=True):
            if not close(self.values[i], other.values[j], tolerance):
                return None
            found[j] = classes[i]
        return found


def close(a: Cell, b: Cell, tolerance: float) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        if not isinstance(a, int | float) or not isinstance(b, int | float):
            return False
        # The absolute part is for sums that cancel.
        return a == b or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance * 1e-6)
    return type(a) is type(b) and a == b

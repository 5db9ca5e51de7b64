"""What became of the rows: every one is kept or counted under the reason it was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rlpost.types import Checked

LISTED = 10  # how many rows a message names before it only counts


@dataclass
class SourceReport:
    """Counts of one source; `rows` is always the sum of the others.

    Attributes:
        place: the key of the source in the configuration, such as `data.train`.
        origin: what was read, in words.
        bad: (1-based row number, reason) of the rows skipped as bad.
        too_long: prompts over `data.max_prompt_tokens`.
        duplicates: rows whose id and content an earlier row has.
        also_in_test: train rows whose problem is a test prompt's, by what they have in common with it.
        held_out: train rows set aside by `data.holdout`.
        kept: prompts that remain.
        notes: what else is to be known of the rows, one line each.
    """

    place: str
    origin: str
    rows: int
    bad: list[tuple[int, str]] = field(default_factory=list)
    too_long: int = 0
    duplicates: int = 0
    also_in_test: Counter[str] = field(default_factory=Counter)
    held_out: int = 0
    kept: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def leaked(self) -> int:
        """Train rows left out for the test's sake."""
        return self.also_in_test.total()

    def lines(self) -> list[str]:
        """One line of counts, then the notes and the first bad rows."""
        counts = {
            "kept": self.kept,
            "held out": self.held_out,
            "bad": len(self.bad),
            "too long": self.too_long,
            "duplicates": self.duplicates,
            **{f"also in test ({why})": count for why, count in sorted(self.also_in_test.items())},
        }
        parts = [f"{count} {what}" for what, count in counts.items() if count or what == "kept"]
        first = f"{self.place} ({self.origin}): {self.rows} rows: {', '.join(parts)}"
        return [first, *(f"  {note}" for note in self.notes), *bad_lines(self.bad)]


@dataclass(frozen=True)
class DataReport:
    """One `SourceReport` for each source read, in the order read."""

    sources: tuple[SourceReport, ...]

    def lines(self) -> list[str]:
        """For people."""
        return [line for source in self.sources for line in source.lines()]


def measured(numbers: Sequence[int], rows: Sequence[Checked]) -> list[str]:
    """A line for each measure that verifiers take of these rows (1-based `numbers`): its mean, and where it is least."""
    found: dict[str, list[tuple[float, int]]] = {}
    for number, row in zip(numbers, rows, strict=True):
        for name, value in row.measures.items():
            found.setdefault(name, []).append((value, number))
    return [
        f"{name}: {sum(value for value, _ in values) / len(values):.2f} on average, least {least:.2f} (row {at})"
        for name, values in found.items()
        for least, at in [min(values)]
    ]


def bad_lines(rows: Iterable[tuple[int, str]]) -> list[str]:
    """`  row 7: reason`, for the first few rows by number, and how many more there are."""
    rows = sorted(rows)
    lines = [f"  row {number}: {reason}" for number, reason in rows[:LISTED]]
    return lines + [f"  and {len(rows) - LISTED} more"] * (len(rows) > LISTED)

"""What became of the rows: every one is kept or counted under the reason it was not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

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
        leaked: train rows that are also test prompts.
        held_out: train rows set aside by `data.holdout`.
        kept: prompts that remain.
    """

    place: str
    origin: str
    rows: int
    bad: list[tuple[int, str]] = field(default_factory=list)
    too_long: int = 0
    duplicates: int = 0
    leaked: int = 0
    held_out: int = 0
    kept: int = 0

    def lines(self) -> list[str]:
        """One line of counts, then the first bad rows."""
        counts = {
            "kept": self.kept,
            "held out": self.held_out,
            "bad": len(self.bad),
            "too long": self.too_long,
            "duplicates": self.duplicates,
            "also in test": self.leaked,
        }
        parts = [f"{count} {what}" for what, count in counts.items() if count or what == "kept"]
        return [f"{self.place} ({self.origin}): {self.rows} rows: {', '.join(parts)}", *bad_lines(self.bad)]


@dataclass(frozen=True)
class DataReport:
    """One `SourceReport` for each source read, in the order read."""

    sources: tuple[SourceReport, ...]

    def lines(self) -> list[str]:
        """For people."""
        return [line for source in self.sources for line in source.lines()]


def bad_lines(rows: Iterable[tuple[int, str]]) -> list[str]:
    """`  row 7: reason`, for the first few rows by number, and how many more there are."""
    rows = sorted(rows)
    lines = [f"  row {number}: {reason}" for number, reason in rows[:LISTED]]
    return lines + [f"  and {len(rows) - LISTED} more"] * (len(rows) > LISTED)

"""What a configuration takes of memory, as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from rlpost.memory.holders import GIB, Holder, Memory
from rlpost.memory.host import seconds


def tables(memory: Memory) -> Iterator[Table]:
    """A table for each holder, its phases side by side and the one that takes most marked, and one of a checkpoint."""
    for holder in (*memory.gpus, *memory.hosts):
        yield _table(holder)
    table = Table("a checkpoint, GiB", "", box=None)
    for name, size in memory.checkpoint.items():
        table.add_row(name, gib(size))
    whole = sum(memory.checkpoint.values())
    table.add_row("together", f"{gib(whole)}, {seconds(whole):,} s at 1 GB/s")
    yield table


def lines(memory: Memory) -> Iterator[str]:
    """What is said beside the tables: the cache, what numbers stand on, and what cannot fit."""
    if (cache := memory.cache) is not None:
        held = "" if cache.sequences is None else f": {max(cache.sequences, 0):,} at once"
        yield f"cache: {gib(cache.sequence)} GiB for a sequence of {cache.tokens:,} tokens{held}"
    yield from (f"memory: {note}" for note in memory.notes)
    yield from (f"does not fit: {problem}" for problem in memory.problems)


def gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _table(holder: Holder) -> Table:
    room = "" if holder.room is None else f" of {gib(holder.room)}"
    table = Table(
        f"{holder.name}, GiB{room}", *(f"{p} (most)" if p == holder.peak else p for p in holder.phases), box=None
    )
    for part in dict.fromkeys(part for parts in holder.phases.values() for part in parts):
        table.add_row(part, *(gib(parts[part]) if part in parts else "" for parts in holder.phases.values()))
    table.add_row("together", *(gib(holder.total(phase)) for phase in holder.phases))
    return table

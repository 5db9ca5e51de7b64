"""Who holds what of memory, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

GIB = 2**30


@dataclass(frozen=True)
class Holder:
    """One GPU, or one machine's memory.

    Attributes:
        name: `a rank's GPU`.
        phases: bytes by phase and by what they are of. Phases follow each other; the parts of one are there at once.
        room: bytes there are; None where that is not known.
    """

    name: str
    phases: Mapping[str, Mapping[str, float]]
    room: float | None = None

    def total(self, phase: str) -> float:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=self.total)

    @property
    def most(self) -> float:
        """Bytes of the phase that takes most."""
        return self.total(self.peak)

    @property
    def fits(self) -> bool:
        """Whether it has room for all phases, as far as that is known."""
        return self.room is None or self.most <= self.room


@dataclass(frozen=True)
class Cache:
    """Keys and values an engine has room for.

    Attributes:
        sequence: bytes of one sequence of `tokens` tokens on each GPU of the engine.
        size: bytes of the cache on each GPU; None where the memory of a GPU is not known.
    """

    sequence: float
    tokens: int
    size: float | None

    @property
    def sequences(self) -> int | None:
        """Sequences of that length it holds at once."""
        return None if self.size is None else int(self.size / self.sequence) if self.sequence else None


@dataclass(frozen=True)
class Memory:
    """What a configuration takes.

    Attributes:
        gpus: on CPU the processes that stand for them.
        hosts: the memory of machines.
        checkpoint: bytes on disk of one checkpoint, by what they are of.
        cache: of an engine; None where the model's shapes are not known.
        notes: what could not be known, and what numbers stand on.
        problems: what cannot fit: each names a key and, where there is one, a value with which it would.
    """

    gpus: list[Holder]
    hosts: list[Holder]
    checkpoint: Mapping[str, float]
    cache: Cache | None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

"""events.jsonl: what happened to a run beside its steps, one JSON object a line, for whoever asks later what went wrong.

It is history, and never cut: what a resumed run makes again is removed from metrics.jsonl and the rollouts, but that it
was made, and lost, stays here.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from rlpost import atomic

Kind = Literal[
    "started",  # a command began a run, or began it anew
    "resumed",  # or took it up from a checkpoint
    "checkpoint",  # one was written
    "passed over",  # a checkpoint that cannot be believed, or is not to be taken unasked
    "alarm",  # a metric is wrong, whatever its action
    "fault",  # something broke, or an actor is gone
    "deadline",  # a wait ran out
    "signal",  # somebody asked for a stop
    "engine",  # one is suspected, replaced or given up
    "verifier",  # a worker is suspected, replaced or given up
    "restart",  # a supervisor starts the run again
    "gave up",  # or does not any more
    "ended",  # the command ended, as the line says
]


class Event(BaseModel):
    """One line. What else is known of an event stands beside these.

    Attributes:
        what: for a person, in a line or few.
        step: the one under way, or of a checkpoint its own; None where none is.
        phase: what the driver was doing, such as `sampling`; None where that is not known.
        who: such as `engine 1` or `driver`; None where it is nobody.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    time: AwareDatetime
    kind: Kind
    what: str
    step: int | None = None
    phase: str | None = None
    who: str | None = None


def append(
    path: Path,
    kind: Kind,
    what: str,
    *,
    step: int | None = None,
    phase: str | None = None,
    who: str | None = None,
    **more: Any,
) -> None:
    """Add an event, on disk before this returns. Several processes may: each line is one write.

    Args:
        more: values of JSON.

    Raises:
        ValidationError: `kind` is none.
        OSError: it cannot be written.
    """
    event = Event(time=datetime.now(UTC), kind=kind, what=what, step=step, phase=phase, who=who, **more)
    row = {**event.model_dump(), "time": event.time.isoformat()}
    line = json.dumps(atomic.finite(row), allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # who wrote last died of it
            line = b"\n" + line
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> list[Event]:
    """All events, the oldest first; none where there is no file. What is no event, as a torn line, is left out."""
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            found.append(Event.model_validate_json(line))
        except ValidationError:
            continue
    return found

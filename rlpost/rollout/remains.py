"""The processes of an engine, on its machine: which they are, whether one is stopped, and their end.

An engine with tensor parallelism has workers below its actor, and a process that is stopped hears nothing of Ray's.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from rlpost.processes import began, below, remove_shared, shared_memory, stat


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one of its number.

    Attributes:
        began: clock ticks from the start of the machine.
    """

    pid: int
    began: int


def processes() -> list[Process]:
    """This one and all below it."""
    pids = [os.getpid(), *sorted(below())]
    return [Process(pid, ticks) for pid in pids if (ticks := began(pid)) is not None]


def stopped(found: Sequence[Process]) -> bool:
    """Whether the first, the actor's own, is stopped: by SIGSTOP, a terminal or a debugger."""
    fields = stat(found[0].pid)
    return bool(fields) and int(fields[19]) == found[0].began and fields[0] in "Tt"


def end(found: Sequence[Process], patience: float = 10.0) -> list[int]:
    """Kill those that are left, and remove what they shared of memory: who is killed leaves it there.

    Returns:
        what would not go in so many seconds: in the kernel, waiting for a device.
    """
    until = time.monotonic() + patience
    shared = shared_memory([process.pid for process in found if _living(process)])
    while left := [process.pid for process in found if _living(process)]:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            return left
        time.sleep(0.05)
    remove_shared(shared)
    return []


def _living(process: Process) -> bool:
    fields = stat(process.pid)
    return bool(fields) and int(fields[19]) == process.began and fields[0] not in "ZX"

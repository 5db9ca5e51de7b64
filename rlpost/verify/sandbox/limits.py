"""What a sandboxed program may use, what it may find there, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

STDIN = ".stdin"  # a file by this name beside a program is what it finds as /dev/stdin
WALL = 4.0  # a program has had this many times its seconds of wall clock: it is over, however busy the machine is
Status = Literal["ok", "nonzero", "timeout", "memory", "output", "killed"]
Tier = Literal["A", "B", "C", "D"]
Kind = Literal["script", "command", "call", "session"]  # call: of the resident; session: a program that stays


class SandboxError(RuntimeError):
    """The sandbox itself failed; never the program's doing, so never a verdict on it."""


@dataclass(frozen=True)
class Limits:
    """Of one program and all it starts.

    Args:
        seconds: from the program's first instruction. Time spent waiting for a processor on a busy machine is not
            counted, until `WALL` times as long has passed.
        waits: most of its time it waits for another program: only processor time is counted, until the other ends.
        memory_mb: address space of a process; with `processes`, also what all of them hold together, a
            page they share counted for each.
        stack_mb: of the main thread; a deep recursion needs it.
        output_kb: standard output and standard error together; more ends the program.
        file_mb: largest file; /box holds twice that, 32 MiB at least.
        processes: may fork and execute (compilers, compiled languages).
    """

    seconds: float = 5.0
    waits: bool = False
    memory_mb: int = 1024
    stack_mb: int = 64
    output_kb: int = 1024
    file_mb: int = 16
    processes: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a program.

    Args:
        status: ok (exit code 0), nonzero, timeout, memory (a limit on it ended the program), output (more than allowed;
            what was written until then is kept), killed (by a signal that was not ours: a crash).
        exit_code: minus the signal's number when killed; None when we ended it.
        seconds: wall clock.
        cpu: processor time, of all it started too.
    """

    status: Status
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float
    cpu: float = 0.0


@dataclass(frozen=True)
class Resident:
    """Code that lives in a sandbox, to be called there: loaded once, before anything is confined.

    Args:
        function: `module:name` of a function that is called once, with `arguments`. What it returns is called with the
            bytes of each request and returns those of the reply.
        arguments: plain JSON.
        path: `sys.path` for all of its imports.
        readable: files and folders, beside those of the standard library, that it reads while it is loaded and called.
    """

    function: str
    arguments: Any
    path: Sequence[str]
    readable: Sequence[str]

    def settings(self, home: str) -> dict[str, Any]:
        """As the zygote gets it. `home`: a folder that may be written to while it is loaded."""
        return {**asdict(self), "home": home}


@dataclass(frozen=True)
class Program:
    """A Python program with the files beside it and its limits."""

    source: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    limits: Limits = Limits()

"""One start of the command as a process below this one, which hears of every signal that this one is sent."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Self

from rlpost import processes, stop

PATIENCE = 10  # seconds that a driver has to go after it was told twice


def program() -> list[str]:
    """How this process was started, up to its arguments: a script, or a module with the current directory on its path."""
    return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]]


class Drivers:
    """Starts drivers one after the other, and passes on to the one that runs what this process is asked.

    A terminal and a scheduler may tell both of them. So what is passed on is a signal of its own (`stop.PASSED_ON`), and
    who gets it counts it beside what it was told itself.

    Attributes:
        asked: how often this process was asked to stop.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._passed_on = 0
        self._pid: int | None = None

    @classmethod
    @contextmanager
    def listening(cls) -> Iterator[Self]:
        """Hear signals in here, and become the parent of whatever a dead driver leaves behind."""
        drivers = cls()
        processes.adopt_orphans()
        numbers = [*stop.SIGNALS, signal.SIGALRM]
        before = {s: signal.getsignal(s) for s in numbers}
        heard = [s for s in numbers if s != signal.SIGHUP or before[s] != signal.SIG_IGN]
        for s in heard:
            signal.signal(s, drivers._overdue if s == signal.SIGALRM else drivers._handle)
        try:
            yield drivers
        finally:
            signal.alarm(0)
            for s in heard:
                signal.signal(s, before[s])

    def run(self, command: Sequence[str]) -> tuple[int, int]:
        """Run `rlpost` with these arguments to its end. Returns its pid and its exit code, minus a signal's number."""
        environment = {**os.environ, stop.SUPERVISOR: str(os.getpid())}
        pid = os.posix_spawn(sys.executable, [*program(), *command], environment)
        self._pid = pid
        self._pass_on()
        while True:
            ended, status = os.waitpid(-1, 0)  # also what the driver's own children leave behind
            if ended == pid:
                self._pid = None
                return pid, os.waitstatus_to_exitcode(status)

    def sleep(self, seconds: float) -> None:
        """Wait, or until somebody asks for a stop."""
        until = time.monotonic() + seconds
        while not self.asked and time.monotonic() < until:
            time.sleep(min(0.2, seconds))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            stop.leave_the_terminal()
            if self.asked:
                return  # a closed terminal may say so several times, and means it once
        self.asked += 1
        self._pass_on()

    def _pass_on(self) -> None:
        while self._pid is not None and self._passed_on < self.asked:
            self._passed_on += 1
            with suppress(ProcessLookupError):
                os.kill(self._pid, stop.PASSED_ON)
            if self._passed_on > 1:
                signal.alarm(PATIENCE)

    def _overdue(self, number: int, frame: FrameType | None) -> None:
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

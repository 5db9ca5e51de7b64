"""Signals that ask for a stop: Ctrl-C, SIGTERM, and SIGHUP when the terminal goes, from the first second to the last.

Where nothing is to be saved a stop is a KeyboardInterrupt at once, which takes down what was started on its way out.
Where something is, it is a wish that is looked at when the step is done (`deferred`). A second one stops at once.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rlpost import processes

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PASSED_ON = signal.SIGUSR1  # by a supervisor, which was sent one of them
SUPERVISOR = "RLPOST_SUPERVISOR"  # its process id, in the environment of the process it started


class Stop:
    """What was asked of this process.

    Attributes:
        requested: somebody wants it to stop.
        insisted: somebody said so twice, and is not to be kept waiting.
        by: what asked first: the name of a signal, or time_limit; None before.
        began: when the command was started (time.monotonic), by its supervisor if it has one.
    """

    def __init__(self) -> None:
        self.requested = False
        self.insisted = False
        self.by: str | None = None
        self.began = time.monotonic()
        self._asked = {True: 0, False: 0}  # how often, by whether a supervisor passed it on
        self._heard = 0
        self._deferred = False
        self._ray_starts = False
        self._hung_up = False
        self._alarmed: Any = None  # the handler before ours

    @contextmanager
    def listening(self, to_the_end: bool = False) -> Iterator[None]:
        """Handle the signals, as long as the command runs. SIGHUP stays ignored where it is, as under nohup.

        Args:
            to_the_end: of the process, too, which has nothing to do any more but to end as it was going to.
        """
        self.__init__()  # type: ignore[misc]
        before = {s: signal.getsignal(s) for s in SIGNALS}
        heard = [s for s in SIGNALS if s != signal.SIGHUP or before[s] != signal.SIG_IGN]
        supervised = _is_supervised()
        self.began -= _age(os.getppid() if supervised else os.getpid())
        if supervised:
            before[PASSED_ON] = signal.getsignal(PASSED_ON)
            heard.append(PASSED_ON)
        for s in heard:
            signal.signal(s, self._handle)
        try:
            yield
        finally:
            if self._alarmed is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, self._alarmed)
            for s in heard:
                signal.signal(s, signal.SIG_IGN if to_the_end else before[s])

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A first stop waits in here: there is work that would be lost."""
        with self._set(True):
            yield

    def defer(self) -> None:
        """From here on a first stop waits for good."""
        self._deferred = True

    def at(self, when: float) -> None:
        """Ask for a stop at `when` (time.monotonic), or now if that is past; in place of what was said before."""
        if self._alarmed is None:
            self._alarmed = signal.signal(signal.SIGALRM, self._handle)
        if not self.requested:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, when - time.monotonic()))

    @contextmanager
    def prompt(self) -> Iterator[None]:
        """A stop need not wait in here: all that would be lost is made again, or is saved by who comes after.

        Raises:
            KeyboardInterrupt: one is asked for, or was before.
        """
        with self._set(False):
            if self.requested:
                raise KeyboardInterrupt
            yield

    @contextmanager
    def through_start_of_ray(self) -> Iterator[None]:
        """Ray replaces the handler of SIGTERM, and its processes would die of a hang-up with the terminal's others.

        In here SIGHUP waits: what is started inherits that, and never hears of it. A mask is one thread's, and another
        may be told of what is sent to the process, so the handler waits too.
        """
        before = {s: signal.getsignal(s) for s in SIGNALS}
        self._ray_starts = True
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            yield
        except SystemExit:  # by a handler of Ray's
            self.requested, self.by = True, self.by or "SIGTERM"
            self._asked[False] += 1
            self._heard = max(self._asked.values())
            raise KeyboardInterrupt from None
        finally:
            try:
                for s, handler in before.items():
                    signal.signal(s, handler)
            finally:  # any call of `signal` may raise what a handler does
                self._ray_starts = False
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            if self._hung_up:
                self._handle(signal.SIGHUP, None)

    @contextmanager
    def _set(self, deferred: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, deferred
        try:
            yield
        finally:
            self._deferred = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            if self._ray_starts:
                self._hung_up = True
                return
            leave_the_terminal()
            if self.requested:
                return  # a closed terminal may say so several times, and means it once
        if number == signal.SIGALRM:
            if not self.requested:  # or somebody was faster
                self.by = "time_limit"
                self._ask("time_limit: ")
            return
        self._asked[number == PASSED_ON] += 1
        times, heard = max(self._asked.values()), self._heard
        if times == heard:
            return  # the same wish: a terminal or a scheduler told both this process and its supervisor
        self._heard = times
        self.by = self.by or ("a supervisor's signal" if number == PASSED_ON else signal.Signals(number).name)
        if times > 1:  # not by what was heard: a handler may be in the middle of another
            self.insisted = True
            raise KeyboardInterrupt
        if not self.requested:  # by the clock
            self._ask()

    def _ask(self, why: str = "") -> None:
        self.requested = True
        how = " after this step with a checkpoint" if self._deferred else ""
        with suppress(OSError):  # not print: it may be in the middle of one
            os.write(2, f"\n{why}stopping{how}; once more to stop now\n".encode())
        if not self._deferred:
            raise KeyboardInterrupt


def _is_supervised() -> bool:
    """Whether a supervisor started this process; then its death is a wish to stop, too. What is started from here is not."""
    if os.environ.pop(SUPERVISOR, None) != str(os.getppid()):
        return False
    processes.die_with_parent(signal.SIGTERM, "a run could outlive its supervisor")
    return True


def _age(pid: int) -> float:
    """Seconds since a process was started."""
    began = processes.began(pid)
    if began is None:
        return 0.0
    return float(Path("/proc/uptime").read_text().split()[0]) - began / os.sysconf("SC_CLK_TCK")


def leave_the_terminal() -> None:
    """Let what is still said go nowhere: to write to a terminal that is gone is an error, and would end the run."""
    with open(os.devnull, "wb") as nowhere:
        for descriptor in (1, 2):
            with suppress(OSError):
                if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                    os.dup2(nowhere.fileno(), descriptor)


STOP = Stop()

"""A command in a session of its own, watched line by line, and all that was started by it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rlpost.processes import below
from tests.conftest import ROOT
from tests.integration.test_train import command, environment

MARK = "RLPOST_TEST_RUN"


class Job:
    """A command that runs, and all that was started by it."""

    def __init__(self, run: Path, *arguments: object, faults: str = "") -> None:
        self.mark = f"{MARK}={run}".encode()
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command(*arguments),
            env={**environment(faults), MARK: str(run)},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def until(self, found: Callable[[str], bool]) -> None:
        """Read what it says up to a line."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            self.lines.append(line)
            if found(line):
                return
        raise AssertionError(f"it ended with {self.process.wait()}:\n{''.join(self.lines)}")

    def end(self, timeout: float = 300) -> str:
        self.lines.append(self.process.communicate(timeout=timeout)[0])
        return "".join(self.lines)

    def driver(self) -> int:
        """The process that drives the run, which the one that watches it has started."""
        (found,) = [
            pid for pid in below(self.process.pid) if parent(pid) == self.process.pid and b"rlpost" in told(pid)
        ]
        return found

    def left(self) -> dict[int, str]:
        """What still runs of all it started, now."""
        found = [int(p) for p in os.listdir("/proc") if p.isdecimal()]
        return {pid: told(pid).decode() for pid in found if self.mark in told(pid, "environ")}

    def stays(self, seconds: float = 30) -> dict[int, str]:
        """What still runs of it when its last processes have had time to see that it ended: Ray's agents take some."""
        until = time.monotonic() + seconds
        while (left := self.left()) and time.monotonic() < until:
            time.sleep(0.5)
        return left


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def told(pid: int, what: str = "cmdline") -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


@pytest.fixture
def start(hang_ups_heard) -> Iterator[Callable[..., Job]]:
    """Start `rlpost` on a run's folder with these arguments; what is left of it afterwards is killed."""
    jobs: list[Job] = []

    def started(run: Path, *arguments: object, faults: str = "") -> Job:
        jobs.append(Job(run, *arguments, faults=faults))
        return jobs[-1]

    yield started
    for job in jobs:
        job.process.kill()
        job.process.wait()
        for pid in job.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

"""A run under `--restarts`, with real parts: its driver is killed, and it comes to its end all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rlpost.supervise.leftovers import below
from tests.conftest import ROOT
from tests.integration.test_train import command, environment, metrics

pytestmark = pytest.mark.integration
MARK = "RLPOST_TEST_RUN"


class Job:
    """A command that runs, and all that was started by it."""

    def __init__(self, run: Path, *arguments: object) -> None:
        self.mark = f"{MARK}={run}".encode()
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command(*arguments),
            env={**environment(), MARK: str(run)},
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

    def left(self) -> list[str]:
        """What still runs of all it started."""
        found = [int(p) for p in os.listdir("/proc") if p.isdecimal()]
        return [told(pid).decode() for pid in found if self.mark in told(pid, "environ")]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def told(pid: int, what: str = "cmdline") -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


def test_a_run_whose_driver_is_killed_comes_to_its_end_and_leaves_nothing(write_config, tmp_path):
    run = tmp_path / "runs" / "killed"
    plain = {"warmup": None, "evaluation": {"before": False, "after": False}, "checkpoint": {"every": 2}}
    job = Job(run, "train", "--restarts", 2, write_config(name="killed", steps=5, **plain))
    try:
        job.until(lambda line: line.startswith("step 3/5"))
        driver = job.driver()
        os.kill(driver, signal.SIGKILL)
        out = job.end()
    finally:
        job.process.kill()
    assert job.process.returncode == 0, out
    (event,) = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["exit"], event["checkpoint"]) == ("restart", -signal.SIGKILL, 2)
    assert [row["step"] for row in metrics(run)] == [1, 2, 3, 4, 5]
    rows = metrics(run)
    assert rows[-1]["samples/submitted"] == rows[-1]["samples/consumed"] + rows[-1]["samples/dropped"]
    assert not job.left()
    temporary = Path(tempfile.gettempdir())
    assert not [*temporary.glob(f"rlpost-{driver}-*"), *temporary.glob(f"ray/session_*_{driver}")]
    assert [*(run / "logs").glob(f"session_*_{driver}/raylet.out")], "what its Ray said is kept"

"""Limits of a cgroup (v2) on all of a sandbox together, where this process was given a subtree to make one in."""

from __future__ import annotations

import contextlib
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "rlpost-sandbox-"


class Group:
    """A cgroup made for one sandbox."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def limit(self, memory_bytes: int, tasks: int) -> None:
        """Raises OSError where the controllers were not handed down."""
        (self._path / "memory.max").write_text(str(memory_bytes))
        (self._path / "pids.max").write_text(str(tasks))
        with contextlib.suppress(OSError):  # not there without swap
            (self._path / "memory.swap.max").write_text("0")

    def out_of_memory(self) -> int:
        """How often the kernel has ended a process here for want of memory."""
        try:
            events = (self._path / "memory.events").read_text().split()
            return int(events[events.index("oom_kill") + 1])
        except (OSError, ValueError, IndexError):
            return 0

    def close(self) -> None:
        with contextlib.suppress(OSError):  # only empty ones go; ours is, but for a process the kernel has yet to bury
            self._path.rmdir()


def join(pid: int, memory_bytes: int, tasks: int, root: Path = ROOT) -> Group | None:
    """Put a process, with all it will start, in a cgroup below our own; None where that is not allowed."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line[3:] for line in lines if line.startswith("0::"))
        ours = root / own.strip("/")
        if not (ours / "cgroup.controllers").exists():  # version 1, or something else mounted there
            return None
        _sweep(ours)
        path = ours / f"{PREFIX}{pid}"
        path.mkdir()
    except (OSError, StopIteration):
        return None
    group = Group(path)
    try:
        group.limit(memory_bytes, tasks)
        (path / "cgroup.procs").write_text(str(pid))
    except OSError:
        group.close()
        return None
    return group


def _sweep(ours: Path) -> None:
    """Remove the cgroups of sandboxes whose worker was killed, as workers are: it had no chance to."""
    for path in ours.glob(f"{PREFIX}*"):
        if not Path("/proc", path.name.removeprefix(PREFIX)).exists():
            Group(path).close()

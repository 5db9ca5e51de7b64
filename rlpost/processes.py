"""Processes of this machine, as Linux has them: who lives, below whom, and what one asks of the kernel for itself."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def everyone() -> set[int]:
    return {int(entry) for entry in os.listdir("/proc") if entry.isdecimal()}


def stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third, the state, on; nothing of a process that is gone."""
    try:
        # The name before them, which is in parentheses, may hold any character.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def state(pid: int) -> str | None:
    """Letter of a process's state as in `ps`; None when it is gone, or dead and not yet buried."""
    fields = stat(pid)
    return fields[0] if fields and fields[0] not in "ZX" else None


def began(pid: int) -> int | None:
    """Clock ticks from the start of the machine to that of a process, which no later one of its number has."""
    fields = stat(pid)
    return int(fields[19]) if fields else None


def below(ancestor: int | None = None) -> set[int]:
    """All processes below one: this one by default."""
    parents = {pid: int(fields[1]) for pid in everyone() if (fields := stat(pid))}
    found: set[int] = set()
    more = {ancestor or os.getpid()}
    while more:
        more = {pid for pid, parent in parents.items() if parent in more} - found
        found |= more
    return found


def resident_mb(pid: int) -> float | None:
    """Memory of a process in MiB; None when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """Files in shared memory that these processes have mapped."""
    found: set[Path] = set()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:  # it ended, or is not ours
            continue
        found |= {Path(line[line.index(f"{SHARED}/") :]) for line in lines if f" {SHARED}/" in line}
    return {path for path in found if path.exists() and path.lstat().st_uid == os.getuid()}


def remove_shared(files: set[Path]) -> list[Path]:
    """Remove files in shared memory that nobody has mapped any more. Returns which."""
    removed = []
    for path in sorted(files - shared_memory(everyone())):
        with suppress(FileNotFoundError):
            path.unlink()
            removed.append(path)
    return removed


def die_with_parent(signal: int, or_else: str) -> None:
    """Have the kernel send this process a signal when its parent goes.

    Args:
        or_else: what could happen without, for the error.

    Raises:
        OSError: the kernel refuses.
    """
    _prctl(_PR_SET_PDEATHSIG, signal, f"prctl(PR_SET_PDEATHSIG) failed: {or_else}")


def adopt_orphans() -> None:
    """Become the parent of whatever a process below this one leaves behind.

    Raises:
        OSError: the kernel refuses.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "prctl(PR_SET_CHILD_SUBREAPER) failed")


def _prctl(option: int, value: int, failed: str) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), failed)

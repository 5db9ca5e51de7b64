"""What a dead driver leaves on this machine: processes, folders of temporary files, shared memory. Its own alone.

A process that loses its parent becomes a child of ours (`Drivers.listening`), so all that a dead driver started, and
nothing else, is below this process: a Ray of its own, and no part of a cluster that it had joined.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rlpost.processes import below, remove_shared, shared_memory

# Seconds for them to see by themselves that the driver is gone, to end when told, and to be ended.
STAGES = ((None, 3.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 20.0))


def clear(pid: int, logs: Path) -> list[str]:
    """End and remove what the driver `pid` left; it is dead, and no other is running.

    Args:
        logs: where the logs of its Ray go, if it had one of its own.

    Returns:
        what was found, in words.

    Raises:
        TimeoutError: a process cannot be ended.
    """
    shared = shared_memory(below())
    found = _end()
    found += [f"{path} removed" for path in remove_shared(shared)]
    temporary = Path(tempfile.gettempdir())
    for session in _own(temporary.glob(f"ray/session_*_{pid}")):
        if logs.is_dir():
            _keep(session / "logs", logs / session.name)
        _remove(session)
    latest = temporary / "ray" / "session_latest"
    if latest.is_symlink() and not latest.exists() and latest.lstat().st_uid == os.getuid():
        latest.unlink(missing_ok=True)
    for folder in _own(temporary.glob(f"rlpost-{pid}-*")):
        _remove(folder)
    return found


def _end() -> list[str]:
    ended = []
    for how, seconds in STAGES:
        until = time.monotonic() + seconds
        while left := _living():
            if how is not None:
                for pid in left:
                    name = _name(pid)
                    with suppress(ProcessLookupError):
                        os.kill(pid, how)
                    if f"{name} ({pid}) ended" not in ended:
                        ended.append(f"{name} ({pid}) ended")
            if time.monotonic() > until:
                break
            time.sleep(0.1)
        else:
            return ended
    raise TimeoutError(f"the dead driver left processes that cannot be ended: {sorted(_living())}")


def _living() -> set[int]:
    """Reap the dead below this process, and say who lives."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return below()


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "a process"


def _own(folders: Iterable[Path]) -> list[Path]:
    return [f for f in folders if not f.is_symlink() and f.is_dir() and f.stat().st_uid == os.getuid()]


def _keep(folder: Path, to: Path) -> None:
    if folder.is_dir() and not to.exists():
        shutil.move(folder, to)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)

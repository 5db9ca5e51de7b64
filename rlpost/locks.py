"""Files that say who is at work. The kernel lets go of them when their process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

# A forked child shares its parent's lock and would keep it after the parent was killed, so children let go of it.
_held: set[int] = set()


def _release_in_child() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_release_in_child)


class LockedError(RuntimeError):
    """
    Attributes:
        pid: of the process that holds the lock, as far as it said so.
    """

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(f"{path} is locked by process {pid}")
        self.pid = pid


def lock(path: Path) -> int:
    """Make the file if need be, lock it, and write this process's id into it. Returns what `unlock` takes.

    Raises:
        LockedError: somebody else has it.
        OSError: the file cannot be made, or its file system knows no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode().strip() or "not yet known"
            os.close(descriptor)
            raise LockedError(path, pid) from None
        except BaseException:
            os.close(descriptor)
            raise
        if current:
            break
        os.close(descriptor)  # its last holder removed the file between the two calls
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    _held.add(descriptor)
    return descriptor


def holds(descriptor: int) -> bool:
    """Whether this process holds it: not after a fork, nor after `unlock`."""
    return descriptor in _held


def unlock(descriptor: int) -> None:
    """Let go; harmless when it is not held."""
    if descriptor in _held:
        _held.remove(descriptor)
        os.close(descriptor)

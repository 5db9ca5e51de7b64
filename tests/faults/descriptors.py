"""Open descriptors of this process, by kind: to see that what was opened is closed again.

Counting all of them is no test: in one process with the whole suite Ray, grpc and the garbage collector open and close
theirs at any time. So only kinds that the sandbox and the verifier pool open are counted, more of them may be there for
a moment, and fewer is no fault.
"""

from __future__ import annotations

import gc
import os
import socket
import time
from collections import Counter

SECONDS = 10.0


def kind(fd: int) -> str | None:
    """What a descriptor is, if the sandbox or the pool could have opened it."""
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
        if target.startswith("socket:"):  # only the sandbox talks in packets; every library has streams
            with socket.socket(fileno=os.dup(fd)) as one:
                packets = (one.family, one.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
                return "packet socket" if packets else None
    except OSError:  # closed meanwhile, such as the one that listed the folder
        return None
    kinds = {"pipe:": "pipe", "anon_inode:[pidfd]": "pidfd", "/memfd:": "memory"}
    return next((name for start, name in kinds.items() if target.startswith(start)), None)


def descriptors() -> Counter[str]:
    """How many of each kind are open."""
    found = (kind(int(fd)) for fd in os.listdir("/proc/self/fd"))
    return Counter(what for what in found if what is not None)


def settled() -> Counter[str]:
    """As `descriptors`, without what only waits for the garbage collector."""
    gc.collect()
    return descriptors()


def more_than(before: Counter[str], seconds: float = SECONDS) -> Counter[str]:
    """What is open beyond `before`, once that is nothing or the time is over."""
    deadline = time.monotonic() + seconds
    while (more := descriptors() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return more

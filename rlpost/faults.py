"""Deadlines for every wait, and failpoints to try what happens when something breaks.

A failpoint is a named place in the code that does nothing unless `RLPOST_FAULTS` asks for it:
`RLPOST_FAULTS="sync.skip@step>=1"`. Actions are decided by the place; the condition is optional, and so is an amount,
where the place takes one: `router.noise:0.1`.
"""

from __future__ import annotations

import os
import re
import socket
import time
from typing import Any

FAILPOINTS = {
    "sync.skip": "the fleet takes a weight update as done without sending it",
    "engine.drop_update": "engines acknowledge an update and keep their old weights",
    "routes.drop": "engines lose the routes of what they sample",
    "routes.zero": "engines bring routes that were never written",
    "routes.shift": "engines bring every route one token late",
    "router.noise": "engines get routers with Gaussian noise, of this share (0.1) of the spread of their weights",
    "driver.kill": "the driver kills itself with SIGKILL after the step's update, before the next save",
}


class DeadlineError(TimeoutError):
    """A wait that ran out. Says what it waited for and how long."""


def wait(refs: Any, seconds: float, what: str) -> Any:
    """`ray.get` with a deadline that says what it waited for.

    Raises:
        DeadlineError: after `seconds`.
    """
    import ray

    started = time.monotonic()
    try:
        return ray.get(refs, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        pending = refs if isinstance(refs, list) else [refs]
        _, late = ray.wait(pending, num_returns=len(pending), timeout=0)
        raise DeadlineError(
            f"waited {time.monotonic() - started:.0f} s for {what}: {len(late)} of {len(pending)} did not answer "
            f"(numbers {[pending.index(r) for r in late][:8]}); deadline {seconds:.0f} s"
        ) from None


def reach(host: str, port: int, seconds: float) -> None:
    """Wait until something listens at `host`:`port`.

    Raises:
        DeadlineError: nothing did for so many seconds.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.1, end - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() >= end:
                raise DeadlineError(
                    f"{socket.gethostname()} could not reach {host}:{port} for {seconds:.0f} s ({error}): do firewalls "
                    "between the nodes leave their ports open?"
                ) from None
            time.sleep(0.05)


def failpoint(name: str, step: int) -> bool:
    """Whether the failpoint `name` is asked for at this step."""
    return amount(name, step) is not None


def amount(name: str, step: int, default: float = 0.1) -> float | None:
    """How much of the failpoint `name` is asked for at this step: `default` where none is given, None when it is off."""
    if name not in FAILPOINTS:
        raise KeyError(f"no failpoint {name!r}; known: {', '.join(FAILPOINTS)}")
    for item in filter(None, os.environ.get("RLPOST_FAULTS", "").split(",")):
        match = re.fullmatch(r"([a-z_.]+)(?::(\d+(?:\.\d+)?))?(?:@step(=|>=)(\d+))?", item.strip())
        if match is None or match[1] not in FAILPOINTS:
            raise ValueError(f"RLPOST_FAULTS: cannot read {item!r}; failpoints: {', '.join(FAILPOINTS)}")
        if match[1] == name:
            now = match[3] is None or step == int(match[4]) or (match[3] == ">=" and step > int(match[4]))
            return (default if match[2] is None else float(match[2])) if now else None
    return None

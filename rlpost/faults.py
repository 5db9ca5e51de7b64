"""Deadlines for every wait, and failpoints to try what happens when something breaks.

A failpoint is a named place in the code that does nothing unless `RLPOST_FAULTS` asks for it:
`RLPOST_FAULTS="sync.skip@step>=1"`. Actions are decided by the place; the condition is optional.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

FAILPOINTS = {
    "sync.skip": "the fleet takes a weight update as done without sending it",
    "engine.drop_update": "engines acknowledge an update and keep their old weights",
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


def failpoint(name: str, step: int) -> bool:
    """Whether the failpoint `name` is asked for at this step."""
    if name not in FAILPOINTS:
        raise KeyError(f"no failpoint {name!r}; known: {', '.join(FAILPOINTS)}")
    for item in filter(None, os.environ.get("RLPOST_FAULTS", "").split(",")):
        match = re.fullmatch(r"([a-z_.]+)(?:@step(=|>=)(\d+))?", item.strip())
        if match is None or match[1] not in FAILPOINTS:
            raise ValueError(f"RLPOST_FAULTS: cannot read {item!r}; failpoints: {', '.join(FAILPOINTS)}")
        if match[1] == name:
            return match[2] is None or step == int(match[3]) or (match[2] == ">=" and step > int(match[3]))
    return False

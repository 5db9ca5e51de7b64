"""When a run is started again, and when no more."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlpost import events
from rlpost.cluster import endpoint
from rlpost.config import ConfigError, load
from rlpost.exit_codes import FAULT, PREEMPTED, STOPPED_AT_ONCE
from rlpost.stop import PASSED_ON, SIGNALS
from rlpost.supervise.driver import Drivers
from rlpost.supervise.leftovers import clear
from rlpost.supervise.progress import Progress

IN_VAIN = 2  # restarts in a row that came no further
BACKOFF = (1.0, 15.0)  # seconds before a restart: at first, and after one in vain


def supervise(command: Sequence[str], folder: Path, restarts: int) -> int:
    """Run the command; when it dies by a fault or a signal, resume its run, at most `restarts` times.

    Args:
        command: arguments of `rlpost`: a verb that makes or resumes the run at `folder`.

    Returns:
        the exit code of the last start; 5 where that was killed.
    """
    before = best = Progress.of(folder)
    vain = 0
    with Drivers.listening() as drivers:
        for number in range(restarts + 1):
            pid, code = drivers.run(command)
            left = clear(pid, folder / "logs")
            if drivers.asked or not _is_fault(code):
                return _exit_code(code, drivers.asked)
            now = Progress.of(folder)
            vain = 0 if number == 0 or now.beyond(best) else vain + 1
            best = best.furthest(now)
            died = f"{_how(code)} {_where(now)}"
            event = {"exit": code, "step": now.step, "checkpoint": now.saved, "left": left}
            if number == restarts or vain == IN_VAIN:
                why = (
                    f"all {restarts} restarts are used"
                    if vain < IN_VAIN
                    else f"{vain} restarts in a row came no further"
                )
                _say(folder, "gave up", f"the driver {died}; {why}. {_way_on(folder, now)}", **event)
                return FAULT
            command = _next(command, folder, before, now)
            _say(folder, "restart", f"restart {number + 1} of {restarts}: the driver {died}; {_from(now)}", **event)
            drivers.sleep(BACKOFF[min(vain, 1)])
            if (missing := _await_cluster(folder, drivers)) is not None:
                _say(folder, "gave up", f"{missing}. {_way_on(folder, now)}", **event)
                return FAULT
            if drivers.asked:
                print(f"stopped between two starts. {_way_on(folder, now)}", flush=True)
                return PREEMPTED
    raise AssertionError("the last start returns")


def _is_fault(code: int) -> bool:
    """Whether a start broke, and not its configuration, an alarm or a wish. A signal that asks for a stop is a wish."""
    return code == FAULT or (code < 0 and -code not in (*SIGNALS, PASSED_ON))


def _exit_code(code: int, asked: int) -> int:
    if code >= 0:
        return code
    if asked > 1:
        return STOPPED_AT_ONCE
    return FAULT if _is_fault(code) else PREEMPTED  # by a signal, before it could be handled


def _next(command: Sequence[str], folder: Path, before: Progress, now: Progress) -> Sequence[str]:
    """The same again while nothing came of it, with its overrides; else what goes on from there."""
    made = now.run is not None and now.run != before.run
    if made or (now.saved is not None and now.saved != before.saved):
        return ["resume", str(folder)]
    return command


def _await_cluster(folder: Path, drivers: Drivers) -> str | None:
    """Wait until the cluster that the run joins takes connections again. Returns what is wrong when it does not."""
    try:
        config = load([folder / "config.yaml"])
    except (ConfigError, OSError):
        return None  # whoever is started next says what is wrong with it
    address = config.cluster.address or os.environ.get("RAY_ADDRESS") or ""
    if (at := endpoint(address)) is None:
        return None  # a private Ray, or one that this machine's files lead to
    began, patience, pause = time.monotonic(), config.cluster.start_deadline, 1.0
    while not drivers.asked:
        try:
            socket.create_connection(at, timeout=3.0).close()
            return None
        except OSError as error:
            if (waited := time.monotonic() - began) > patience:
                return f"the Ray cluster at {address} did not come back in {waited:.0f} s ({error}; cluster.start_deadline)"
        drivers.sleep(pause)
        pause = min(2 * pause, 30.0)
    return None


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with a fault (exit code {code})"


def _where(now: Progress) -> str:
    return f"after step {now.step}" if now.step else "before the first step was done"


def _from(now: Progress) -> str:
    if now.saved is not None:
        return f"resuming from step {now.saved}"
    return f"resuming the warm-up from step {now.taught}" if now.taught else "starting anew"


def _way_on(folder: Path, now: Progress) -> str:
    return f"Go on with: rlpost resume {folder}" if now.run is not None else "There is no run yet to go on with"


def _say(folder: Path, kind: events.Kind, line: str, **more: Any) -> None:
    """To standard error, and to the run's events.jsonl where there is a run."""
    print(f"rlpost: {line}", file=sys.stderr, flush=True)
    if folder.is_dir():
        try:
            events.append(folder / "events.jsonl", kind, line, who="driver", **more)
        except OSError as error:  # a full disk is often why
            print(f"rlpost: {folder / 'events.jsonl'} lacks this event ({error.strerror})", file=sys.stderr, flush=True)

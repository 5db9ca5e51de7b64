"""Deadlines for every wait, and failpoints to try what happens when something breaks.

A failpoint is a named place in the code that does nothing unless `RLPOST_FAULTS` asks for it. Of a behaviour the place
decides what it does: `RLPOST_FAULTS="sync.skip@step>=1"`, with an amount where it takes one: `router.noise:0.1`. At any
other place the process that passes it is killed, stopped, hung or failed: `RLPOST_FAULTS="rank.backward:kill@step=3@index=1"`.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from rlpost.exit_codes import BAD_USAGE

T = TypeVar("T")

ASKED = "RLPOST_FAULTS"
ONCE = "RLPOST_FAULTS_ONCE"  # a folder that remembers which faults `@once` have been, whichever process had them

BEHAVIOURS = {
    "sync.skip": "the fleet takes a weight update as done without sending it",
    "engine.drop_update": "engines acknowledge an update and keep their old weights",
    "routes.drop": "engines lose the routes of what they sample",
    "routes.zero": "engines bring routes that were never written",
    "routes.shift": "engines bring every route one token late",
    "router.noise": "engines get routers with Gaussian noise, of this share (0.1) of the spread of their weights",
    "driver.kill": "the driver kills itself with SIGKILL after the step's update, before the next save",
}
AMOUNTS = ("router.noise",)

# Named by room and moment. The step is the one under way; of an engine that samples, the one after its weights' version.
PLACES = {
    "driver.start": "the command has read its data and starts Ray; step 0, or that of the checkpoint it resumes from",
    "driver.sampled": "the driver has a step's groups",
    "driver.learned": "the ranks have taken a step's update",
    "driver.synced": "the engines have a step's weights",
    "driver.reported": "a step's metrics and rollouts are written, nothing is saved",
    "save.begin": "a save is asked for, nothing is written",
    "save.shard": "a rank has written its shards; index: its number",
    "save.model": "rank 0 has written the model",
    "save.before_manifest": "all files but the manifest are in the draft",
    "save.after_manifest": "the manifest is in the draft",
    "save.before_rename": "what had the checkpoint's name is out of the way",
    "save.after_rename": "the checkpoint has its name",
    "save.retain": "between two checkpoints that retention removes",
    "engine.sample": "an engine begins a decoding step; index: its number",
    "engine.update": "an engine has taken a part of an update; index: its number",
    "engine.accept": "an engine has all of an update and is asked to serve it; index: its number",
    "rank.forward": "a rank begins the forward of a micro-batch; index: its number",
    "rank.backward": "a rank begins the backward of a micro-batch; index: its number",
    "rank.optimizer": "a rank begins an optimizer step; index: its number",
    "rank.save": "a rank begins a save; index: its number",
    "verifier.score": "a worker of verifiers begins to score; it knows of no step",
}
FAILPOINTS = {**BEHAVIOURS, **PLACES}
ACTIONS = {
    "kill": "the process kills itself with SIGKILL",
    "stop": "it stops itself with SIGSTOP",
    "hang": "the thread waits for ever",
    "raise": "a `FailpointError` that names the failpoint",
}
NUMBERED = ("engine.", "rank.", "save.shard")
STEPLESS = ("verifier.score",)


class FaultsError(ValueError):
    """`RLPOST_FAULTS` that cannot be read, or asks for what a place does not do."""

    exit_code = BAD_USAGE


class FailpointError(RuntimeError):
    """What a place raises that was asked to."""


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


def begun(work: Callable[[], T], name: str) -> Future[T]:
    """Begin what may wait in a collective that nobody will join, in a thread of this name that nobody has to wait for."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised by who waits
            done.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return done


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


@dataclass(frozen=True)
class Fault:
    """One item of `RLPOST_FAULTS`.

    Attributes:
        text: as it was given.
        action: one of `ACTIONS`, of a place; None of a behaviour.
        amount: of a behaviour, where it is given.
        step, since: the step, or the first of them; None is any.
        index: the actor's number; None is any.
        once: it fires in one process, and never again, also after that process was started anew.
    """

    text: str
    name: str
    action: str | None
    amount: float | None
    step: int | None
    since: int | None
    index: int | None
    once: bool

    def holds(self, step: int | None, index: int | None) -> bool:
        when = (self.step is None or step == self.step) and (self.since is None or (step or 0) >= self.since)
        return when and (self.index is None or index == self.index)


def failpoint(name: str, step: int) -> bool:
    """Whether the behaviour `name` is asked for at this step."""
    return amount(name, step) is not None


def amount(name: str, step: int, default: float = 0.1) -> float | None:
    """How much of the behaviour `name` is asked for at this step: `default` where none is given, None when it is off."""
    if name not in BEHAVIOURS:
        raise KeyError(f"no behaviour {name!r}; known: {', '.join(BEHAVIOURS)}")
    for fault in _asked():
        if fault.name == name and fault.holds(step, None):
            return default if fault.amount is None else fault.amount
    return None


def strike(name: str, step: int | None, index: int | None = None) -> None:
    """A place where a process may be made to break, if `RLPOST_FAULTS` asks for it.

    Args:
        name: one of `PLACES`.
        step: the one under way; None where that is not known.
        index: the actor's number, where there are several.

    Raises:
        FailpointError: it was asked to raise.
    """
    if name not in PLACES:
        raise KeyError(f"no place {name!r}; known: {', '.join(PLACES)}")
    for fault in _asked():
        if fault.name == name and fault.holds(step, index) and not (fault.once and _has_been(fault)):
            _act(fault, f"failpoint {name}{'' if step is None else f' at step {step}'}")


def _asked() -> tuple[Fault, ...]:
    text = os.environ.get(ASKED)
    return read(text, os.environ.get(ONCE)) if text else ()


@lru_cache(maxsize=8)
def read(text: str, once: str | None) -> tuple[Fault, ...]:
    """What `RLPOST_FAULTS` asks for.

    Args:
        once: the folder of `RLPOST_FAULTS_ONCE`.

    Raises:
        FaultsError: naming the item, and what there is.
    """
    return tuple(_read(item.strip(), once) for item in text.split(",") if item.strip())


def check() -> None:
    """Refuse a `RLPOST_FAULTS` that cannot be, before anything starts.

    Raises:
        FaultsError: naming the item, and what there is.
    """
    _asked()


def _read(item: str, once: str | None) -> Fault:
    head, *conditions = item.split("@")
    name, colon, what = head.partition(":")

    def refuse(why: str) -> FaultsError:
        return FaultsError(f"{ASKED}: {item!r}: {why}")

    if name not in FAILPOINTS:
        raise refuse(f"no failpoint {name!r}; there are {', '.join(FAILPOINTS)}")
    action = size = None
    if name in PLACES:
        if what not in ACTIONS:
            raise refuse(f"{name} takes one of {', '.join(f'{name}:{action}' for action in ACTIONS)}")
        action = what
    elif name in AMOUNTS and re.fullmatch(r"\d+(\.\d+)?", what):
        size = float(what)
    elif colon:
        raise refuse(f"{name} takes no {what!r}" + (", but an amount, such as 0.1" if name in AMOUNTS else ""))
    found: dict[str, int] = {}
    for condition in conditions:
        match = re.fullmatch(r"(step|index)(=|>=)(\d+)|once", condition)
        if match is None or (match[1] == "index" and match[2] == ">="):
            raise refuse(f"{condition!r} is no condition; there are @step=N, @step>=N, @index=I, @once")
        key = "since" if match[2] == ">=" else match[1] or "once"
        if key in found:
            raise refuse(f"@{condition} is a second condition of that kind")
        found[key] = int(match[3] or 0)
    if {"step", "since"} & found.keys() and name in STEPLESS:
        raise refuse(f"{name} knows of no step")
    if "index" in found and not name.startswith(NUMBERED):
        raise refuse(f"{name} has no number; those have that begin with {', '.join(NUMBERED)}")
    if "once" in found and (name in BEHAVIOURS or not once or not Path(once).is_dir()):
        raise refuse(f"@once needs a place, and a folder in {ONCE} to remember in")
    return Fault(
        item, name, action, size, found.get("step"), found.get("since"), found.get("index"), once="once" in found
    )


def _has_been(fault: Fault) -> bool:
    """Whether another process, or this one, had it already; if not, nobody has it from here on."""
    marker = Path(os.environ[ONCE]) / re.sub(r"[^\w.=>]", "_", fault.text)
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


def _act(fault: Fault, what: str) -> None:
    if fault.action == "raise":
        raise FailpointError(what)
    if fault.action == "hang":
        while True:
            time.sleep(0.1)  # short, so that signals are heard
    os.kill(os.getpid(), signal.SIGKILL if fault.action == "kill" else signal.SIGSTOP)

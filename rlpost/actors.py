"""The actors as whoever waits for them knows them: their names, where each runs, and what it last said and did.

The end of an actor reaches the driver as an identity of Ray's. A person wants to know which one it was, where its log is,
how that ends, and what the others were doing meanwhile.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpost import device, processes

LINES = 50  # of a log
WIDTH = 300  # characters of a line of it
MARKS = (":job_id:", ":actor_name:", ":task_name:")  # lines that Ray writes into it for itself
FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')
THREAD = re.compile(r"(Current thread|Thread) 0x")


@dataclass(frozen=True)
class Whereabouts:
    """Where an actor runs.

    Attributes:
        node: Ray's identity of the machine, whose address `host` is.
        logs: what it prints goes to these files of that machine.
        stacks: a file of that machine, to which it writes where its threads are when it is sent SIGUSR2.
        cgroup: folder of its cgroup, where the kernel counts what it killed for want of memory; empty where there is none.
        killed: that count when the process began.
    """

    node: str
    host: str
    pid: int
    logs: tuple[str, ...]
    stacks: str
    cgroup: str = ""
    killed: int = 0


@dataclass(frozen=True)
class Sight:
    """What can be seen of an actor from its machine.

    Attributes:
        lines: the end of its log.
        doing: where in rlpost its process is; None when it is gone.
        gpus: what is in use of each of the machine's GPUs.
        state: letter of its process as in `ps`: `T` is stopped by a signal, `D` waits for a disk; None when it is gone.
        killed: how many processes of its cgroup the kernel has killed for want of memory since it began.
        stacks: all of its threads, as faulthandler writes them.
    """

    lines: list[str]
    doing: str | None
    gpus: list[str]
    state: str | None = None
    killed: int = 0
    stacks: str = ""


@dataclass(frozen=True)
class Member:
    """An actor and its name, such as `engine 1`; `found` is Ray's reference to its `Whereabouts`."""

    name: str
    handle: Any
    found: Any

    @property
    def actor(self) -> str:
        """Ray's identity of it."""
        return str(self.handle._actor_id.hex())


class ActorGoneError(RuntimeError):
    """An actor that is lost and will not be replaced."""

    def __init__(self, member: Member, message: str) -> None:
        super().__init__(message)
        self.member = member


class Crews(Sequence[Member]):
    """Several crews as one, as they are when it is looked at: engines are replaced."""

    def __init__(self, *crews: Sequence[Member]) -> None:
        self._crews = crews

    def __len__(self) -> int:
        return sum(map(len, self._crews))

    def __getitem__(self, index: Any) -> Any:
        return [member for crew in self._crews for member in crew][index]


class Reachable:
    """What an actor answers first: a class that says where it runs."""

    def whereabouts(self) -> Whereabouts:
        import ray

        context = ray.get_runtime_context()
        logs = [*dict.fromkeys(os.readlink(f"/proc/self/fd/{number}") for number in (1, 2))]
        logs = [name for name in logs if name.startswith("/") and Path(name).is_file()]
        folder = Path(logs[0]).parent if logs else None  # Ray's own, which goes when the logs go
        handle, stacks = tempfile.mkstemp(prefix="stacks_", suffix=".txt", dir=folder)
        faulthandler.register(signal.SIGUSR2, file=handle, all_threads=True)
        cgroup = own_cgroup()
        return Whereabouts(
            node=context.get_node_id(),
            host=ray.util.get_node_ip_address(),
            pid=os.getpid(),
            logs=tuple(logs),
            stacks=stacks,
            cgroup=cgroup,
            killed=killed_in(cgroup),
        )


def own_cgroup() -> str:
    """Folder of this process's cgroup of version 2, with its memory.events; empty where there is none."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if path is None:
        return ""
    folder = Path("/sys/fs/cgroup") / path.lstrip("/")
    return str(folder) if (folder / "memory.events").is_file() else ""


def killed_in(cgroup: str) -> int:
    """How many processes of a cgroup, and of those below it, the kernel has killed for want of memory."""
    try:
        events = (Path(cgroup) / "memory.events").read_text(encoding="ascii") if cgroup else ""
    except OSError:  # the cgroup went with its processes
        return 0
    found = re.search(r"^oom_kill (\d+)$", events, re.MULTILINE)
    return int(found[1]) if found else 0


def crew(name: str, handles: Sequence[Any], first: int = 0) -> list[Member]:
    """These actors by name and number. Asked at once, or one that dies while it starts could not be found."""
    return [Member(f"{name} {i}", handle, handle.whereabouts.remote()) for i, handle in enumerate(handles, first)]


def said(error: Exception) -> str:
    """What Ray says of an actor's end, without the identities and its list of common causes."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if not re.match(r"(class_name|actor_id|namespace|pid|ip|name):", line)]
    return " ".join(kept).partition(" Some common causes")[0]


def resident_mb(members: Sequence[Member]) -> dict[str, float]:
    """Memory in MiB of the driver, and of the largest of each kind of actor on its machine: `memory/driver_mb`, ..."""
    import ray

    found = {"memory/driver_mb": processes.resident_mb(os.getpid()) or 0.0}
    here = ray.get_runtime_context().get_node_id()
    for member in members:
        try:
            at: Whereabouts = ray.get(member.found, timeout=0)
        except ray.exceptions.RayError:  # it is gone, or has not said yet
            continue
        if at.node == here and (size := processes.resident_mb(at.pid)) is not None:
            kind = member.name.rpartition(" ")[0].replace(" ", "_")
            found[f"memory/{kind}_mb"] = max(size, found.get(f"memory/{kind}_mb", 0.0))
    return found


def look(at: Whereabouts, patience: float = 2.0) -> Sight:
    """What can be seen of an actor, on its own machine."""
    state = processes.state(at.pid)
    stacks = None if state is None else _stacks(at, 0.0 if state == "T" else patience)
    doing = None if stacks is None else "stopped by a signal" if state == "T" else place(stacks)
    killed = max(0, killed_in(at.cgroup) - at.killed)
    return Sight(_ends(at.logs), doing, device.memory_in_use(), state, killed, stacks or "")


def _ends(logs: Sequence[str]) -> list[str]:
    ends = []
    for name in logs:
        try:
            with open(name, encoding="utf-8", errors="replace") as log:
                ends.append(_unlike(deque((line.rstrip()[:WIDTH] for line in log), 100 * LINES)))
        except OSError as error:
            ends.append([f"({name}: {error.strerror})"])
    full = [end for end in ends if end]
    return [line for end in full for line in end[-(LINES // len(full)) :]]


def _unlike(lines: Sequence[str]) -> list[str]:
    """The last of them; of those that differ in their numbers alone, as a warning at every step does, one."""
    kept: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(MARKS):
            alike = re.sub(r"\d+", "", line)
            kept.pop(alike, None)
            kept[alike] = line
    return [*kept.values()]


def _stacks(at: Whereabouts, patience: float) -> str | None:
    """Where the threads of a process are, as it writes when told; None when it is gone."""
    stacks = Path(at.stacks)
    try:
        before = stacks.stat().st_size
        os.kill(at.pid, signal.SIGUSR2)
    except OSError:
        return None
    size, until = before, time.monotonic() + patience
    while time.monotonic() < until:
        time.sleep(0.05)
        now = stacks.stat().st_size
        if now == size > before:  # all is written
            break
        size = now
    with stacks.open(encoding="utf-8", errors="replace") as file:
        file.seek(before)
        return file.read()


def place(stacks: str) -> str:
    """Where in rlpost a process is, or `idle`, by what `faulthandler` writes of its threads, innermost frame first.

    A thread that waits in Ray for what to do next has no frame of ours, and one that waits for a job has few.
    """
    threads: list[list[str]] = []
    for line in stacks.splitlines():
        if THREAD.match(line):
            threads.append([])
        elif threads and (frame := FRAME.match(line)) and "/rlpost/" in frame[1] and "rlpost/actors.py" not in frame[1]:
            threads[-1].append(f"{frame[3]} (rlpost/{frame[1].rpartition('/rlpost/')[2]}:{frame[2]})")
    deepest = max(threads, key=len, default=[])
    return deepest[0] if deepest else "idle"

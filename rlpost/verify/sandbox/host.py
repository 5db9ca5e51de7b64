"""The worker's side: start a zygote, hand it one program at a time, hold the clock, cap the output, kill."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import math
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rlpost.verify import scratch
from rlpost.verify.sandbox import cgroup
from rlpost.verify.sandbox.limits import STDIN, WALL, Kind, Limits, Outcome, Resident, SandboxError, Status
from rlpost.verify.sandbox.tiers import bwrap_command, inside

UID = 65534
START_SECONDS = 120.0  # for the zygote, and for the layers around one program: generous, a busy machine is no fault
KILL_SECONDS = 10.0
FOLLOW_SECONDS = 2.0  # after its partner has ended
TICK_SECONDS = 0.05
CHUNK = 2**16
TASKS = 64
MIN_BOX_MB = 32
MAX_ENTRIES = 16384
MAX_PATH = 3072  # of a folder: the kernel takes no longer path than 4096
START_MEMORY = 2**30  # of a cgroup, until the first program's limit is known
GROUP_TASKS = TASKS + 16
ZYGOTE_BYTES = 256 * 2**20
RESIDENT_BYTES = 4 * 2**30  # of it with whatever packages a resident imports
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Not the system's: images keep an application there, and with it its data. So is the working directory, wherever it is.
PRIVATE = ("/usr/src", "/usr/local/src")
ETC = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
OUT_OF_MEMORY = (b"MemoryError", b"std::bad_alloc", b"Cannot allocate memory", b"can't start new thread")
# The zygote imports its neighbours and nothing of the packages above them.
BOOT = """
import json, sys, types
for name, path in ("rlpost", ""), ("rlpost.verify", ""), ("rlpost.verify.sandbox", sys.argv[1]):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [path]
from rlpost.verify.sandbox import zygote
zygote.main(json.loads(sys.argv[2]), int(sys.argv[3]))
"""


class ZygoteLostError(Exception):
    """The zygote ended, or does not answer; a fresh one can be tried."""


class Host:
    """A zygote and the programs run in it, one at a time.

    Args:
        namespaces: give it namespaces and a root of its own.
        user_namespace: a user namespace too: needed unless root, and better even then (a count of processes of its own).
        bwrap: have bubblewrap make them instead.
        packages: top-level packages of this interpreter that programs may import.
        preload: modules imported once, before any program.
        resident: code that lives in the zygote, to be called.
        canary: text that only a working Landlock keeps a program in namespaces from reading.

    Raises:
        SandboxError: it does not start.
    """

    def __init__(
        self,
        *,
        namespaces: bool,
        user_namespace: bool = True,
        bwrap: bool = False,
        packages: Sequence[str] = (),
        preload: Sequence[str] = (),
        resident: Resident | None = None,
        canary: str = "",
    ) -> None:
        self.namespaces = namespaces
        self._closed = False
        self._direct = False  # what is run now is pid 1 of its namespace, and not below it
        self._runs = itertools.count(1)
        self._scratch = None if namespaces else tempfile.mkdtemp(prefix="rlpost-sandbox-")
        settings = {
            "namespaces": namespaces,
            "user_namespace": user_namespace,
            "groups": os.geteuid() == 0 and not bwrap,
            "worker": 0 if bwrap else os.getpid(),  # bwrap ends with the worker by itself
            "preload": list(preload),
            "canary": canary,
            "resident": resident and resident.settings("/box" if self._scratch is None else self._scratch),
            **_files(namespaces, packages, resident.readable if resident else (), self._scratch),
        }
        self._user_namespace = namespaces and user_namespace
        self._bwrapped = bwrap
        self._zygote_bytes = RESIDENT_BYTES if resident else ZYGOTE_BYTES
        self._group: cgroup.Group | None = None
        prefix = self._bwrap(settings) if bwrap else []
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        python = getattr(sys, "_base_executable", None) or sys.executable
        command = [python, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", BOOT, str(Path(__file__).parent)]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [*prefix, *command, json.dumps(settings), str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=2,
                    pass_fds=[theirs.fileno()],
                    env=_environment(),
                    cwd="/",
                )
        except OSError as error:
            self._control.close()
            self._remove_scratch()
            raise SandboxError(f"the sandbox's process does not start: {error}") from error
        try:
            hello = self._hello()
        except (ZygoteLostError, OSError) as error:
            self.close()
            raise SandboxError(f"the sandbox's process does not start: {error}") from error
        self.layers: tuple[str, ...] = (
            *hello["ready"],
            *(["bwrap"] if bwrap else []),
            *(["cgroup"] if self._group is not None else []),
        )

    def _bwrap(self, settings: Mapping[str, Any]) -> list[str]:
        assert self._scratch is not None
        given = [str(Path(__file__).parent), *settings["given"]]
        command = bwrap_command(settings["system"], settings["hidden"], given, self._scratch)
        if command is None:
            self._remove_scratch()
            raise SandboxError("bwrap is not installed")
        return command

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def folder(self) -> str:
        """Where a program that has none of its own is."""
        return "/box" if self._scratch is None else self._scratch

    def _hello(self) -> dict[str, Any]:
        while True:
            hello = self._answer(time.monotonic() + START_SECONDS)
            if "failed" in hello:
                raise ZygoteLostError(hello["failed"])
            if "ready" in hello:
                return hello
            # It waits, alone in its namespaces: what it starts from now on is counted and mapped.
            if not self._bwrapped:
                self._group = cgroup.join(self.pid, START_MEMORY + self._zygote_bytes, GROUP_TASKS)
            if self._user_namespace:
                self._map_users()
            self._control.send(b'{"go": true}')

    def _map_users(self) -> None:
        """Of the new user namespace: root to root and nobody to nobody, or ourselves to nobody."""
        where = Path(f"/proc/{self._process.pid}")
        if os.geteuid() == 0:
            for name in ("uid_map", "gid_map"):
                (where / name).write_text(f"0 0 1\n{UID} {UID} 1\n")
        else:
            (where / "setgroups").write_text("deny")
            (where / "uid_map").write_text(f"{UID} {os.geteuid()} 1\n")
            (where / "gid_map").write_text(f"{UID} {os.getegid()} 1\n")

    def _answer(self, deadline: float) -> dict[str, Any]:
        self._control.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            text = self._control.recv(2**16)
        except OSError as error:
            raise ZygoteLostError(f"no answer from the sandbox's process {self._process.pid}: {error!r}") from error
        if not text:
            raise ZygoteLostError(f"the sandbox's process {self._process.pid} ended")
        return json.loads(text)

    def close(self) -> None:
        """End the zygote and all it started, within seconds whatever state it is in."""
        if self._closed:
            return
        self._closed = True
        self._control.close()
        try:
            self._process.wait(timeout=1.0 if self.namespaces else KILL_SECONDS)
        except subprocess.TimeoutExpired:
            if not self.namespaces:  # else the kernel ends them with it
                self._end_programs()
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=KILL_SECONDS)
        if self._group is not None:
            self._group.close()
        self._remove_scratch()

    def prepare(self, kind: Kind, layers: Sequence[str], limits: Limits, box: str) -> dict[str, Any]:
        """What the zygote is told of the next program; the limits of its cgroup are set."""
        self._direct = kind in ("call", "session")
        if self._group is not None:
            most = limits.memory_mb * 2**20 + max(MIN_BOX_MB, 2 * limits.file_mb) * 2**20 + self._zygote_bytes
            self._group.limit(most, GROUP_TASKS)
        return {
            "run": next(self._runs),
            "kind": kind,
            "layers": list(layers),
            "box": box,
            "box_bytes": max(MIN_BOX_MB, 2 * limits.file_mb) * 2**20,
            "memory_bytes": limits.memory_mb * 2**20,
            "file_bytes": limits.file_mb * 2**20,
            "cpu_seconds": cpu_seconds(limits),
            "tasks": TASKS if self.namespaces else TASKS + _tasks_of_user(),
            "processes": limits.processes,
            "stack_bytes": limits.stack_mb * 2**20,
        }

    def _check_open(self) -> None:
        if self._closed:
            raise ZygoteLostError("it was ended because it did not end a program")

    def begin(self, request: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Hand a program to the zygote, with its descriptors, which are closed here.

        Raises:
            ZygoteLostError: try a fresh one.
        """
        try:
            self._check_open()
            socket.send_fds(self._control, [json.dumps(request).encode()], fds)
        except OSError as error:
            raise ZygoteLostError(f"the sandbox's process is gone: {error}") from error
        finally:
            for fd in fds:
                os.close(fd)

    def kill(self, number: int) -> None:
        with contextlib.suppress(OSError):  # it is gone: seen at the control socket
            self._control.send(json.dumps({"kill": number}).encode())

    def end(self, number: int) -> None:
        """Kill a program that nobody follows and wait for its end; a zygote that does not end it is ended with it."""
        self.kill(number)
        deadline = time.monotonic() + KILL_SECONDS
        try:
            while self._answer(deadline).get("ended") != number:
                pass
        except ZygoteLostError:
            self.close()

    def out_of_memory(self) -> int:
        """How often the kernel ended a program of its group for want of memory."""
        return self._group.out_of_memory() if self._group is not None else 0

    def _end_programs(self) -> None:
        ended: set[int] = set()
        while found := set(self.programs()) - ended:  # what they start meanwhile too
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ended |= found

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            scratch.remove(self._scratch)

    def programs(self) -> list[int]:
        """Process ids, as seen here, of the program that runs and of all it started: it first."""
        level = _children(self.pid)
        if self.namespaces:  # ours is the keeper; below it the zygote, and pid 1 of the program's namespace
            level = [init for zygote in level for init in _children(zygote)]
            if not self._direct:
                level = [pid for init in level for pid in _children(init)]
        found = []
        while level:
            found += level
            level = [child for pid in level for child in _children(pid)]
        return found

    # -- one program

    def run(
        self,
        *,
        layers: Sequence[str],
        limits: Limits,
        source: bytes = b"",
        argv: Sequence[str] = (),
        kind: Kind = "script",
        stdin: bytes | socket.socket = b"",
        files: Mapping[str, bytes] | None = None,
        partner: threading.Event | None = None,
    ) -> Outcome:
        """Run it to its end.

        Args:
            source: the script, or what the resident is called with, whose reply is then the standard output.
            stdin: what the program reads there, or a socket that is to be its own.
            partner: set when the program at the other end of the socket has ended; this one has to follow soon.

        Raises:
            ZygoteLostError: try a fresh one.
            SandboxError: a layer does not come into force, or the command is not there.
        """
        self._check_open()
        box = "/box"
        if self._scratch is not None:
            box = tempfile.mkdtemp(dir=self._scratch)
            if os.geteuid() == 0 and "user" in layers:
                os.chown(box, UID, UID)
        try:
            run = _Run(self, self.prepare(kind, layers, limits, box), limits, stdin, partner)
            return run.go(payload(source, argv, kind, files or {}))
        finally:
            if self._scratch is not None:
                scratch.remove(box)


class _Run:
    """One program, from its pipes to its outcome."""

    def __init__(
        self,
        host: Host,
        request: Mapping[str, Any],
        limits: Limits,
        stdin: bytes | socket.socket,
        partner: threading.Event | None,
    ) -> None:
        self._host = host
        self._partner = partner
        self._alone = False
        self._limits = limits
        self._request = request
        self._number: int = request["run"]
        self._killed_before = host.out_of_memory()
        self._socket = None if isinstance(stdin, bytes) else stdin
        self._stdin = memoryview(stdin if isinstance(stdin, bytes) else b"")
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._total = 0
        self._report = bytearray()
        self._started: float | None = None
        self._waited = 0.0  # for a processor, as far as it was looked at
        self._reason: Status | None = None

    def go(self, payload: int) -> Outcome:
        ends: dict[str, int] = {}
        try:
            theirs = [payload]
            if self._socket is not None:
                theirs.append(self._socket.detach())
            else:
                theirs_in, ends["stdin"] = os.pipe()
                theirs.append(theirs_in)
            for name in ("stdout", "stderr", "report"):
                ends[name], other = os.pipe()
                theirs.append(other)
            for fd in ends.values():
                os.set_blocking(fd, False)
            self._host.begin(self._request, theirs)
            return self._follow(ends)
        finally:
            for fd in ends.values():
                os.close(fd)

    def _follow(self, ends: dict[str, int]) -> Outcome:
        control = self._host._control.fileno()
        poll = select.poll()
        names = {control: "control"}
        poll.register(control, select.POLLIN)
        for name, fd in ends.items():
            names[fd] = name
            poll.register(fd, select.POLLOUT if name == "stdin" else select.POLLIN)
        if "stdin" in ends and not self._stdin:
            self._drop(poll, names, ends, "stdin")
        deadline = time.monotonic() + START_SECONDS
        ended: dict[str, Any] | None = None
        watched = self._limits.processes or not self._host.namespaces
        ticking = watched or self._partner is not None
        while ended is None:
            wait = max(0.0, deadline - time.monotonic())
            events = poll.poll(1000 * min(wait, TICK_SECONDS) if ticking else 1000 * wait)
            for fd, _ in events:
                name = names.get(fd, "")
                if name == "control":
                    answer = self._host._answer(time.monotonic() + KILL_SECONDS)
                    ended = answer if answer.get("ended") == self._number else None
                elif name == "stdin":
                    if not self._feed(ends["stdin"]):
                        self._drop(poll, names, ends, "stdin")
                elif name == "report":
                    chunk = os.read(fd, CHUNK)
                    if chunk.startswith(b"R") and self._started is None:
                        self._started = time.monotonic()
                        deadline = self._started + self._limits.seconds
                    self._report += chunk
                    if not chunk:
                        self._drop(poll, names, ends, "report")
                elif name and self._collect(name, fd) == 0:
                    self._drop(poll, names, ends, name)
            if ended is not None:
                break
            if self._reason is None and self._too_much_output:
                deadline = self._kill("output")
            elif self._reason is None and watched and self._started is not None and self._too_much_memory():
                deadline = self._kill("memory")
            elif self._reason is None and watched and self._too_much_disk():
                deadline = self._kill("nonzero")
            if self._partner is not None and self._partner.is_set() and not self._alone:
                self._alone, deadline = True, min(deadline, time.monotonic() + FOLLOW_SECONDS)
            if time.monotonic() < deadline:
                continue
            if self._started is None:
                raise ZygoteLostError(f"a program did not start within {START_SECONDS:g} s")
            if self._reason is not None:
                # The zygote does not end it: end the zygote, and with it all there is. The reason stands.
                self._host.close()
                break
            left = 0.0 if self._alone else self._time_left()
            if left > 0.01:
                deadline = time.monotonic() + max(left, TICK_SECONDS)
            else:
                deadline = self._kill("timeout")
        seconds = time.monotonic() - (self._started or time.monotonic())
        for name in ("stdout", "stderr"):  # what lies in the pipes; nobody writes any more
            while name in ends and not self._too_much_output and self._collect(name, ends[name]):
                pass
        if "report" in ends:
            with contextlib.suppress(BlockingIOError):
                self._report += os.read(ends["report"], CHUNK)
        return self._outcome(ended, seconds)

    def _time_left(self) -> float:
        """Seconds until the program may have reached a limit."""
        assert self._started is not None
        running, waiting = schedule(self._host.programs())
        if self._limits.waits:
            return self._limits.seconds - running
        wall = time.monotonic() - self._started
        self._waited = min(waiting, wall)
        return min(self._limits.seconds + self._waited, WALL * self._limits.seconds) - wall

    def _drop(self, poll: select.poll, names: dict[int, str], ends: dict[str, int], name: str) -> None:
        fd = ends.pop(name)
        poll.unregister(fd)
        del names[fd]
        os.close(fd)

    def _feed(self, fd: int) -> bool:
        """Whether there is more to write."""
        try:
            self._stdin = self._stdin[os.write(fd, self._stdin[:CHUNK]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:  # it does not read its input; that is its own affair
            return False
        return bool(self._stdin)

    def _collect(self, name: str, fd: int) -> int | None:
        """Read once. Returns the bytes read, 0 at the end, None when there is nothing now."""
        try:
            chunk = os.read(fd, CHUNK)
        except BlockingIOError:
            return None
        self._kept[name] += chunk[: max(0, self._limits.output_kb * 1024 - self._total)]
        self._total += len(chunk)
        return len(chunk)

    @property
    def _too_much_output(self) -> bool:
        return self._total > self._limits.output_kb * 1024

    def _kill(self, reason: Status) -> float:
        self._reason = reason
        self._host.kill(self._number)
        return time.monotonic() + KILL_SECONDS

    def _outcome(self, ended: dict[str, Any] | None, seconds: float) -> Outcome:
        out, err = bytes(self._kept["stdout"]), bytes(self._kept["stderr"])
        said = bytes(self._report)
        if not said.startswith(b"R") or said[:2] == b"RE":
            raise SandboxError(
                said.lstrip(b"RE").decode(errors="replace") or "the program ended before its sandbox was up"
            )
        if self._reason is None and self._too_much_output:
            self._reason = "output"
        cpu = float(ended["cpu"]) if ended is not None else seconds
        if self._reason is not None:
            return Outcome(self._reason, None, out, err, seconds, cpu)
        assert ended is not None
        code = os.waitstatus_to_exitcode(ended["status"])
        late = ended["cpu"] >= self._request["cpu_seconds"]
        short = self._host.out_of_memory() > self._killed_before
        status = status_of(code, err, late=late, short_of_memory=short)
        return Outcome(status, None if status == "timeout" else code, out, err, seconds, cpu)

    # -- what only a look from outside tells

    def _too_much_memory(self) -> bool:
        """Of all processes together; a page that several of them map is counted for each of them.

        What they hold is no more than that, but for shared memory that none of them has mapped at the moment.
        """
        held = 0
        for pid in self._host.programs():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name in ("RssAnon", "RssShmem"):
                        held += int(value.split()[0]) * 1024
        return held > self._limits.memory_mb * 2**20

    def _too_much_disk(self) -> bool:
        """Without namespaces /box is a directory of the machine's, with no size of its own."""
        if self._host.namespaces:
            return False
        held, entries, most = 0, 0, max(MIN_BOX_MB, 2 * self._limits.file_mb) * 2**20
        folders = [self._request["box"]]
        while folders:
            folder = folders.pop()
            if len(os.fsencode(folder)) > MAX_PATH:
                return True  # too deep to be looked into
            try:
                with os.scandir(folder) as found:
                    for entry in found:
                        entries += 1
                        with contextlib.suppress(FileNotFoundError):  # it went just now
                            held += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        if held > most or entries > MAX_ENTRIES:
                            return True
            except PermissionError:
                return True  # made so that nobody can look into it
            except FileNotFoundError:
                continue
        return False


def cpu_seconds(limits: Limits) -> int:
    """A backstop for when the clock here is lost; several threads may use several seconds in one."""
    return math.ceil(limits.seconds) * (os.cpu_count() or 1) + 1


def status_of(code: int, stderr: bytes, *, late: bool, short_of_memory: bool) -> Status:
    """What ended a program that was not ended from here: with this exit code, minus the signal's number for a signal."""
    if code == 0:
        return "ok"
    if code == -signal.SIGKILL and late:
        return "timeout"
    if short_of_memory or any(sign in line for line in stderr.splitlines()[-1:] for sign in OUT_OF_MEMORY):
        return "memory"
    return "nonzero" if code > 0 else "killed"


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _children(pid: int) -> list[int]:
    """Whichever of its threads started them."""
    found: list[int] = []
    for task in _tasks(pid):
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def schedule(pids: Sequence[int]) -> tuple[float, float]:
    """Seconds that all their threads have run, and that the one which waited longest was ready and had no processor."""
    running = longest = 0.0
    for task in [task for pid in pids for task in _tasks(pid)]:
        with contextlib.suppress(OSError, ValueError, IndexError):
            ran, waited = (task / "schedstat").read_text().split()[:2]
            running, longest = running + int(ran) / 1e9, max(longest, int(waited) / 1e9)
    return running, longest


def _tasks_of_user() -> int:
    """Tasks that count towards RLIMIT_NPROC of the program's user, where that user is not the sandbox's alone."""
    user, count = UID if os.geteuid() == 0 else os.geteuid(), 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}").st_uid == user:
                    count += len(os.listdir(f"/proc/{entry}/task"))
    return count


def payload(source: bytes, argv: Sequence[str], kind: Kind, files: Mapping[str, bytes]) -> int:
    """What the program gets, as a file in memory that it alone reads."""
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name:
            raise ValueError(f"files: {name!r} is not a path below the program's directory; give a relative one")
    if kind == "script" and "program.py" not in files:
        files = {"program.py": source, **files}
    header = {
        "source": len(source),
        "argv": [str(argument) for argument in argv],
        "files": [[name, len(content)] for name, content in files.items()],
    }
    text = json.dumps(header).encode()
    fd = os.memfd_create("program", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as out:
            out.write(struct.pack("Q", len(text)) + text + source)
            for content in files.values():
                out.write(content)
    except OSError:
        os.close(fd)
        raise
    return fd


def _environment() -> dict[str, str]:
    """All a program finds in its environment, with the folder it is given; its hash seed so that it ends the same each time."""
    clean = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    if "LD_LIBRARY_PATH" in os.environ:  # some interpreters do not start without
        clean["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return clean


def _files(namespaces: bool, packages: Sequence[str], shown: Sequence[str], scratch: str | None) -> dict[str, Any]:
    """What of the file system a program sees. `shown`: what is not hidden though it lies where things are."""
    library = [sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED")]
    prefixes = [p for p in dict.fromkeys((sys.base_prefix, os.path.realpath(sys.base_prefix))) if not inside(p, "/usr")]
    system = [p for p in SYSTEM if os.path.isdir(p)]
    found = {}
    for name in packages:
        for path in _locations(name):
            found[os.path.basename(path)] = path
    if namespaces:
        folders = [p for p in system if not os.path.islink(p)]
        own = [p for p in (*prefixes, *ETC) if os.path.exists(p)]
        binds = [(p, p) for p in (*folders, *own)] + [(path, f"/packages/{name}") for name, path in found.items()]
        links = [(os.readlink(p), p) for p in system if os.path.islink(p)]
        links += [("/box", "/tmp"), ("/box", "/dev/shm"), (f"/box/{STDIN}", "/dev/stdin")]
        given = ["/packages", "/etc"]
        at = "/packages" if found else ""
    else:
        binds, links = [], []
        at = f"{scratch}/packages" if found else ""
        if scratch is not None:
            os.chmod(scratch, 0o711)
        if at:
            os.mkdir(at, 0o755)
            for name, path in found.items():
                os.symlink(path, f"{at}/{name}")
        given = [*ETC, "/etc/passwd", "/etc/group", *found.values(), *([at] if at else [])]
    system += prefixes
    private = _private(library)
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    hidden = {sysconfig.get_path("purelib", vars=base), sysconfig.get_path("platlib", vars=base)}
    hidden |= {"/usr/lib/python3/dist-packages", f"/usr/local/lib/python{sysconfig.get_python_version()}/dist-packages"}
    given += shown
    return {
        "binds": binds,
        "links": links,
        "shown": list(shown),
        "hidden": sorted({*hidden, *private} - {*shown}),
        "system": system,
        "given": given,
        "readable": [*(system if namespaces else [p for top in system for p in _all_but(private, top)]), *given],
        "library": list(dict.fromkeys(library)),
        "packages_at": at,
    }


def _private(library: Sequence[str]) -> list[str]:
    """Folders that are not the system's though they may lie in it, but for one with what every program needs."""
    folders = [*PRIVATE]
    with contextlib.suppress(FileNotFoundError):
        folders.append(os.getcwd())
    needed = [os.path.realpath(path) for path in (*library, "/usr/lib", *_environment()["PATH"].split(":"))]
    real = [os.path.realpath(path) for path in folders if os.path.isdir(path)]
    return [folder for folder in real if not any(inside(path, folder) for path in needed)]


def _all_but(private: Sequence[str], path: str) -> list[str]:
    """What together is all of a folder but `private`: Landlock grants what is in a folder and takes nothing back."""
    real = os.path.realpath(path)
    if any(inside(real, other) for other in private):
        return []
    if not any(inside(other, real) for other in private):
        return [path]
    try:  # a link leads to where there is another rule, or to where there shall be none
        children = [entry.path for entry in os.scandir(real) if not entry.is_symlink()]
    except PermissionError:
        return []
    return [found for child in children for found in _all_but(private, child)]


def _locations(name: str) -> list[str]:
    """Files and folders of an installed top-level package: itself and the libraries wheels put beside it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise SandboxError(f"packages: {name!r} is not installed beside {sys.executable}; install it or leave it out")
    if spec.submodule_search_locations:
        path = os.path.realpath(next(iter(spec.submodule_search_locations)))
    elif spec.origin is not None:
        path = os.path.realpath(spec.origin)
    else:
        raise SandboxError(f"packages: {name!r} has no files; leave it out")
    beside = f"{path}.libs"
    return [path, beside] if os.path.isdir(beside) else [path]

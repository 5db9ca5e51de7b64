"""The warm process that programs are forked from. It runs apart from the trainer, with a clean environment, no secret.

Three processes. The *keeper* outlives nothing: it waits for the zygote or the worker to end and takes the other down.
The *zygote* is pid 1 of a pid namespace, in a user, mount, network, ipc, uts and cgroup namespace of its own, on a
read-only root. Each *program* is the one child of pid 1 of one more pid namespace, with a mount and an ipc namespace of
its own (a call of the resident, which starts no process, is that pid 1, and so is a session): when it ends, or that
pid 1 is killed, the kernel ends all it started. What a program is given goes from the worker to the program past the
zygote, so no program finds another's in its memory. Imports nothing of rlpost but its neighbours: `host` starts it without
the packages above.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from rlpost.verify.sandbox import fork, kernel, resident, seccomp

UID = 65534
BOX = "/box"
NICE = 5  # a spinning program must not starve the learner, nor be starved into its time limit by it
OPEN_FILES = 64
TASKS = 64
DEVICES = ("null", "zero", "full", "random", "urandom")
ETC = ("ld.so.cache", "localtime", "alternatives")
MAX_REQUEST = 2**16
NOBODY = 2**30  # a pid that the kernel never gives
DESCRIPTORS = 5  # payload, stdin, stdout, stderr, report


def main(settings: dict[str, Any], control_fd: int) -> None:
    control = socket.socket(fileno=control_fd)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the worker decides when this ends
    try:
        worker = os.pidfd_open(settings["worker"]) if settings["worker"] else None
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # short of memory, the kernel shall end a program and not the trainer
        kernel.no_new_privileges()
        zygote = _Zygote(settings, control, worker)
    except (OSError, ImportError) as error:
        control.send(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
        return
    zygote.serve()


class _Zygote:
    def __init__(self, settings: Mapping[str, Any], control: socket.socket, worker: int | None) -> None:
        self._settings = settings
        self._control = control
        self._worker = worker
        self._own_pids: int | None = None
        self._maps: int | None = None
        machine = os.uname().machine
        self._machine = machine if machine in seccomp.ARCHITECTURES else None
        self._abi = kernel.landlock_abi()
        if settings["namespaces"]:
            self._enter_namespaces()
        else:
            self._wait_for_worker()
            kernel.adopt_orphans()
            self._maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
        sys.path[:] = [*settings["library"], *([settings["packages_at"]] if settings["packages_at"] else [])]
        for name in settings["preload"]:
            importlib.import_module(name)
        self._resident = resident.load(settings["resident"]) if settings["resident"] else None
        if settings["namespaces"] or os.geteuid() == 0:
            kernel.drop_bounding_set()
        self._rules = self._landlock_rules()
        found = ["rlimits"]
        found += ["namespaces"] if settings["namespaces"] else []
        found += ["user"] if settings["namespaces"] or os.geteuid() == 0 else []
        found += ["landlock"] if self._abi else []
        found += ["seccomp"] if self._machine else []
        gc.collect()
        gc.freeze()  # programs share these pages, and need not search them for garbage
        self._own_bytes = self._settle() if self._resident is not None else 0
        control.send(json.dumps({"ready": found, "landlock_abi": self._abi}).encode())

    # -- being set up

    def _enter_namespaces(self) -> None:
        kinds = kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC
        kinds |= kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
        kernel.unshare(kinds | (kernel.CLONE_NEWUSER if self._settings["user_namespace"] else 0))
        self._wait_for_worker()
        keeper = os.getpid()
        pid = os.fork()
        if pid:
            self._control.close()
            self._keep(pid)
        kernel.die_with_parent(signal.SIGKILL)
        if os.path.realpath("/proc/self") == "/proc/self" or not os.path.exists(f"/proc/{keeper}"):
            raise OSError("/proc is not mounted, or its keeper is gone")
        # Both are there to be opened now only: the new root has no /proc.
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
        self._build_root()

    def _wait_for_worker(self) -> None:
        """Only a process outside can map users into a new namespace, or put this one in a cgroup."""
        self._control.send(b'{"waiting": true}')
        if not json.loads(self._control.recv(MAX_REQUEST) or b"{}").get("go"):
            raise OSError("the worker is gone, or could not set this process up")

    def _keep(self, zygote: int) -> NoReturn:
        """Stay outside the pid namespace until the zygote or the worker ends; either ends all the rest."""
        watch = select.poll()
        watch.register(os.pidfd_open(zygote), select.POLLIN)
        if self._worker is not None:
            watch.register(self._worker, select.POLLIN)
        watch.poll()
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote, signal.SIGKILL)
        _, status = os.waitpid(zygote, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)

    def _build_root(self) -> None:
        """A read-only root of the system's programs and libraries, the interpreter and the packages asked for."""
        kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        # By descriptor: what is to be seen may lie under /tmp, where the new root is put together.
        sources = [(os.open(path, os.O_PATH | os.O_CLOEXEC), at) for path, at in self._settings["binds"]]
        shown = [(os.open(path, os.O_PATH | os.O_CLOEXEC), path) for path in self._settings["shown"]]
        devices = [(os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC), f"/dev/{name}") for name in DEVICES]
        root = "/tmp"
        kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
        for name in (BOX, "/etc", "/dev"):
            os.makedirs(root + name, exist_ok=True)
        for fd, at in sources:
            self._bind(fd, root + at)
            kernel.restrict_mount(root + at, kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV)
        for fd, at in devices:
            self._bind(fd, root + at)
        for path in self._settings["hidden"]:  # the trainer's packages may be there, or its data
            if os.path.isdir(root + path):
                kernel.mount("tmpfs", root + path, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
        for fd, at in shown:  # what of it the resident's code needs
            self._bind(fd, root + at)
        for target, at in self._settings["links"]:
            os.makedirs(os.path.dirname(root + at), exist_ok=True)
            if not os.path.lexists(root + at):  # something shown may lie below /tmp
                os.symlink(target, root + at)
        for name, text in (
            ("passwd", f"nobody:x:{UID}:{UID}::{BOX}:/bin/sh\n"),
            ("group", f"nogroup:x:{UID}:\n"),
        ):
            with open(f"{root}/etc/{name}", "w") as file:
                file.write(text)
        with open(f"{root}/canary", "w") as file:  # readable by all but for Landlock: what tells whether it works
            file.write(self._settings["canary"])
        kernel.restrict_mount(root, kernel.ATTR_RDONLY | kernel.ATTR_NOSUID)
        for fd, _ in [*sources, *shown, *devices]:
            os.close(fd)
        kernel.enter_root(root)
        if self._settings["resident"]:  # modules may write to a temporary folder while they are imported
            kernel.mount("tmpfs", BOX, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=64m,mode=700")

    def _bind(self, fd: int, at: str) -> None:
        source = f"/proc/self/fd/{fd}"
        if os.path.isdir(source):
            os.makedirs(at, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(at), exist_ok=True)
            with open(at, "w"):
                pass
        kernel.mount(source, at, None, kernel.MS_BIND | kernel.MS_REC)

    def _settle(self) -> int:
        """Have what was loaded in few large pages, so that a fork copies few entries; bytes of address space it takes."""
        assert self._maps is not None
        with os.fdopen(os.dup(self._maps), "rb") as file:
            lines = [line.split() for line in file]
        total = 0
        for place, rights, *rest in lines:
            start, end = (int(number, 16) for number in place.split(b"-"))
            total += end - start
            if rights == b"rw-p" and (len(rest) == 3 or rest[3] == b"[heap]"):
                kernel.collapse(start, end)
        return total

    def _landlock_rules(self) -> list[tuple[int, int]]:
        if not self._abi:
            return []
        rules = []
        for path in self._settings["readable"]:
            if os.path.exists(path):
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                rights = kernel.FS_READ | kernel.FS_EXECUTE | (kernel.FS_LIST if os.path.isdir(path) else 0)
                rules.append((fd, rights))
        for name in DEVICES:
            if os.path.exists(f"/dev/{name}"):
                fd = os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC)
                rules.append((fd, kernel.FS_READ | kernel.FS_WRITE))
        return rules

    # -- running programs

    def serve(self) -> None:
        while True:
            message, fds = _receive(self._control)
            if message is None:
                return  # the worker is gone; the namespace ends with this process, and all in it
            if "run" in message:
                self._run(message, fds)

    def _run(self, request: dict[str, Any], fds: list[int]) -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended, tell = os.pipe()
        if self._own_pids is not None:
            if self._machine is not None:
                self._filter(request, set(request["layers"]))  # built once here, for all forks to come
            kernel.unshare(kernel.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            os.close(ended)
            if self._own_pids is not None and request["kind"] not in ("call", "session"):
                self._init(fds, tell)
            self._program(request, fds)
        if self._own_pids is not None:
            kernel.setns(self._own_pids, kernel.CLONE_NEWPID)  # else the next unshare is refused
        for fd in (*fds, tell):
            os.close(fd)
        status = self._wait(request["run"], pid)
        if self._own_pids is None:
            _end_descendants()
        told = os.read(ended, 64)
        os.close(ended)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        answer = {"ended": request["run"], "status": int(told or status), "cpu": cpu}
        self._control.send(json.dumps(answer).encode())

    def _init(self, fds: list[int], tell: int) -> None:
        """Pid 1 of the program's namespace: the kernel hides signals from it, so the program is its child (returns)."""
        program = os.fork()
        if program == 0:
            os.close(tell)
            return
        for fd in fds:
            os.close(fd)
        while (found := os.wait())[0] != program:
            pass
        os.write(tell, b"%d" % found[1])
        os._exit(0)

    def _wait(self, run: int, pid: int) -> int:
        process = os.pidfd_open(pid)
        watch = select.poll()
        watch.register(process, select.POLLIN)
        watch.register(self._control, select.POLLIN)
        if self._worker is not None:
            watch.register(self._worker, select.POLLIN)
        while True:
            ready = {fd for fd, _ in watch.poll()}
            if process in ready:
                break
            message = None
            if self._control.fileno() in ready:
                message, _ = _receive(self._control)
            if message is None:  # the worker is gone
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                _end_descendants()
                os._exit(1)
            if message.get("kill") == run:
                os.kill(pid, signal.SIGKILL)
        os.close(process)
        return os.waitpid(pid, 0)[1]

    def _program(self, request: dict[str, Any], fds: list[int]) -> NoReturn:
        """In the fork: put every layer in force, then become the program."""
        report = fds[4]
        try:
            header, source = self._confine(request, fds)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the sandbox's fault and must be told
            with contextlib.suppress(OSError):
                os.write(report, fork.FAILED + f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        if request["kind"] == "command":
            fork.execute(report, header["argv"])
        os.write(report, fork.READY)
        os.close(report)
        if request["kind"] == "call":
            assert self._resident is not None
            fork.call(self._resident, source)
        if request["kind"] == "session":
            fork.attend(source, self._strict if "seccomp" in request["layers"] else lambda: None)
        fork.interpret(source, header["argv"])

    def _confine(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], bytes]:
        payload, stdin, stdout, stderr, report = fds
        layers = set(request["layers"])
        box = request["box"]
        if self._own_pids is not None:
            kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
        if self._own_pids is not None and request["kind"] != "session":
            data = f"size={request['box_bytes']},nr_inodes=16384,mode=700,uid={UID},gid={UID}"
            kernel.mount("tmpfs", box, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, data)
        for fd, at in ((stdin, 0), (stdout, 1), (stderr, 2)):
            os.dup2(fd, at)
        os.nice(NICE)
        if "user" in layers:
            if self._settings["groups"]:
                os.setgroups([])
            os.setresgid(UID, UID, UID)
            os.setresuid(UID, UID, UID)
        os.chdir(box)
        os.environ.update(HOME=box, TMPDIR=box)
        with os.fdopen(payload, "rb") as file:
            file.seek(0)
            (size,) = struct.unpack("Q", file.read(8))
            header = json.loads(file.read(size))
            source = file.read(header["source"])
            for name, length in header["files"]:
                if "/" in name:
                    os.makedirs(os.path.dirname(name), exist_ok=True)
                with open(name, "wb", opener=_executable) as out:
                    out.write(file.read(length))
        if "landlock" in layers:
            # What one request leaves in a folder the next would find: there is none for them.
            where = None if request["kind"] == "session" else os.open(box, os.O_PATH | os.O_CLOEXEC)
            kernel.landlock(self._abi, self._rules, where)
            if where is not None:
                os.close(where)
        # Nothing of the zygote's stays open: its control socket, its rules, the machine's namespaces.
        os.closerange(3, report)
        os.closerange(report + 1, max(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
        if "rlimits" in layers:
            _set_limits({**request, "memory_bytes": request["memory_bytes"] + self._own_bytes})
        if "user" in layers or os.geteuid() != 0:
            kernel.drop_capabilities()
        if "seccomp" in layers and self._machine is not None:
            kernel.seccomp(self._filter(request, layers))()
        return header, source

    def _filter(self, request: Mapping[str, Any], layers: set[str]) -> bytes:
        assert self._machine is not None
        return seccomp.build(
            self._machine,
            processes=request["processes"] or request["kind"] == "session",
            execute=request["processes"] or request["kind"] == "command",
            only_pid=None if self._own_pids is not None else os.getpid(),
            own_files=self._own_pids is not None or "user" in layers,
        )

    @property
    def _strict(self) -> Callable[[], None]:
        """Installs the filter for what a session forks: alone, with no other process to signal or to limit."""
        assert self._machine is not None
        program = seccomp.build(self._machine, processes=False, execute=False, only_pid=NOBODY, own_files=False)
        return kernel.seccomp(program)


def _executable(path: str, flags: int) -> int:
    return os.open(path, flags, 0o700)


def _set_limits(request: Mapping[str, Any]) -> None:
    """Hard and soft limit alike, so that the program cannot raise them again."""
    for kind, value in (
        (resource.RLIMIT_AS, request["memory_bytes"]),
        (resource.RLIMIT_CPU, request["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, request["file_bytes"]),
        (resource.RLIMIT_STACK, request["stack_bytes"]),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, request["tasks"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_RTPRIO, 0),
    ):
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            value = min(value, ceiling)
        resource.setrlimit(kind, (value, value))


def _receive(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The worker's next message and the descriptors that came with it; None when the worker is gone."""
    try:
        text, ancillary, _, _ = control.recvmsg(
            MAX_REQUEST, socket.CMSG_SPACE(DESCRIPTORS * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        return None, []
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return (json.loads(text), list(fds)) if text else (None, [])


def _end_descendants() -> None:
    """Without a pid namespace: kill and reap all the program left behind; orphans come to us, their subreaper."""
    me = os.getpid()
    while True:
        parents = {}
        for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
            if entry.isdigit():
                with contextlib.suppress(OSError, IndexError), open(f"/proc/{entry}/stat") as file:
                    parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
        family = {me}
        while more := {pid for pid, parent in parents.items() if parent in family and pid not in family}:
            family |= more
        for pid in family - {me}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        select.select([], [], [], 0.001)

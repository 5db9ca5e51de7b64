"""The sandbox as a verifier sees it: `sandbox().run(program, stdin=...)`."""

from __future__ import annotations

import atexit
import concurrent.futures
import importlib.util
import logging
import os
import platform
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlpost.verify import isolation
from rlpost.verify.sandbox import attacks
from rlpost.verify.sandbox.host import Host, ZygoteLostError
from rlpost.verify.sandbox.limits import Limits, Outcome, Program, Resident, SandboxError, Tier
from rlpost.verify.sandbox.packages import with_requirements
from rlpost.verify.sandbox.remote import RemoteSandbox
from rlpost.verify.sandbox.session import Session
from rlpost.verify.sandbox.tiers import Probe, missing, refuse_unsafe, tier_of

log = logging.getLogger(__name__)
PRELOAD = (
    *("bisect", "collections", "functools", "heapq", "itertools", "json", "math", "random", "re", "string", "typing"),
    *(["sqlite3"] if importlib.util.find_spec("_sqlite3") else []),  # for `sql`, whose every program needs it
)
PACKAGES = ("numpy",)


class Sandbox:
    """A warm place for programs nobody trusts; each runs in a fresh fork, nothing shared with any other.

    Args:
        packages: top-level packages programs may import; None: numpy if it is installed. The standard library always.
        preload: modules imported before any program, which then start without the wait.
        resident: code of ours that lives there, for `call`.
        without: layers to do without, as if the kernel did not offer them.

    Raises:
        SandboxError: not even a process starts.
    """

    def __init__(
        self,
        *,
        packages: Sequence[str] | None = None,
        preload: Sequence[str] = PRELOAD,
        resident: Resident | None = None,
        without: Sequence[str] = (),
    ) -> None:
        if packages is None:
            packages = [name for name in PACKAGES if importlib.util.find_spec(name)]
        self._options: dict[str, Any] = {"packages": packages, "preload": preload, "resident": resident}
        self._options["canary"] = secrets.token_hex(8)
        self._without = frozenset(without)
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._host: Host | None = None
        self._second: Host | None = None  # for the other of two programs, or the one that stays
        self._session: Session | None = None
        self._start: Callable[[], Host] | None = None
        self.probe = self._choose()
        log.info("sandbox tier %s: %s", self.tier, ", ".join(self.layers))

    @property
    def tier(self) -> Tier:
        return self.probe.tier

    @property
    def layers(self) -> tuple[str, ...]:
        return self.probe.layers

    @property
    def pid(self) -> int | None:
        """Of the process below which all of it runs; None while there is none."""
        return self._host.pid if self._host is not None else None

    def run(
        self,
        source: str,
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        argv: Sequence[str] = (),
        limits: Limits = Limits(),
    ) -> Outcome:
        """Run a Python program, `argv` after its name, `files` in its directory.

        Raises:
            SandboxError: the sandbox failed, not the program.
        """
        text = source.encode("utf-8", "surrogatepass")
        return self._run(source=text, stdin=stdin, files=files or {}, argv=argv, limits=limits)

    def command(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        limits: Limits = Limits(),
    ) -> Outcome:
        """Run another program under the same layers. `files` may be executed; what it writes is gone when it ends.

        Raises:
            SandboxError: the sandbox failed, or the program is not installed.
        """
        return self._run(kind="command", stdin=stdin, files=files or {}, argv=argv, limits=limits)

    def call(self, request: bytes, *, limits: Limits = Limits()) -> Outcome:
        """Have the resident answer in a fork of its own; the reply is the outcome's `stdout`.

        It has `limits.memory_mb` beside what was taken when it was loaded. Whatever it does, to itself too, is gone with
        the fork; but a reply can be what somebody else's code, run by it, says.

        Raises:
            SandboxError: the sandbox failed, not the resident.
        """
        return self._run(kind="call", source=request, limits=limits)

    def ask(self, source: str, request: bytes, *, limits: Limits = Limits()) -> Outcome:
        """Have `main()` of a program of ours read the request on standard input; its standard output is the reply.

        The program is loaded and confined once and stays until another one is asked. Each request has a fork of it, which
        may neither fork nor write a file, and ends with the reply: for programs that take too long to start for each.

        Args:
            limits: of the fork; all but `seconds`, `memory_mb` and `output_kb` are the defaults.

        Raises:
            SandboxError: the sandbox failed, not the program.
        """
        self._check_owner()
        with self._lock:
            return self._trying(lambda: self._staying(source, limits).ask(request, limits))

    def converse(self, one: Program, other: Program) -> tuple[Outcome, Outcome]:
        """Run two Python programs at the same time, whose standard input is a socket to each other.

        When the first ends, the second has to end too. They share nothing else: each is forked from a zygote of its own,
        the second of which is started when first needed.

        Raises:
            SandboxError: the sandbox failed, not a program.
        """
        self._check_owner()
        with self._lock:
            return self._trying(lambda: self._converse(one, other))

    def close(self) -> None:
        with self._lock:
            if self._owner == os.getpid():
                self._end_session()
                for host in (self._host, self._second):
                    if host is not None:
                        host.close()
            self._host = self._second = None

    def _run(self, **program: Any) -> Outcome:
        self._check_owner()
        with self._lock:
            return self._trying(lambda: self._first().run(layers=self.layers, **program))

    def _check_owner(self) -> None:
        if self._owner != os.getpid():
            raise SandboxError("a sandbox belongs to the process that made it; make one after the fork")

    def _first(self) -> Host:
        if self._host is None:
            assert self._start is not None
            self._host = self._start()
        return self._host

    def _beside(self) -> Host:
        """The second, with nothing in it."""
        self._end_session()
        if self._second is None:
            assert self._start is not None
            self._second = self._start()
        return self._second

    def _staying(self, source: str, limits: Limits) -> Session:
        if self._session is None or not self._session.serves(source, limits):
            self._session = Session(self._beside(), self.layers, source, limits)
        return self._session

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None

    def _trying(self, action: Callable[[], Any]) -> Any:
        """Twice, if the zygote is lost."""
        isolation.ran(self.tier, self.layers)
        for last in (False, True):
            try:
                return action()
            except ZygoteLostError as error:
                self.close()
                if last:
                    raise SandboxError(f"the sandbox failed twice in a row: {error}") from error
        raise AssertionError("unreachable")

    def _converse(self, one: Program, other: Program) -> tuple[Outcome, Outcome]:
        first, second = self._first(), self._beside()
        ends, ended = socket.socketpair(), threading.Event()

        def run(host: Host, program: Program, end: socket.socket, partner: threading.Event | None) -> Outcome:
            with end:  # closed here as soon as the program has it, or the other could wait for one that is gone
                return host.run(
                    layers=self.layers,
                    source=program.source.encode("utf-8", "surrogatepass"),
                    files=program.files,
                    stdin=end,
                    limits=program.limits,
                    partner=partner,
                )

        with concurrent.futures.ThreadPoolExecutor(1) as beside:
            waiting = beside.submit(run, second, other, ends[1], ended)
            try:
                outcome = run(first, one, ends[0], None)
            finally:
                ended.set()
            return outcome, waiting.result()

    # -- choosing

    def _choose(self) -> Probe:
        if platform.system() != "Linux":
            self._start = None
            return Probe("D", (), {}, f"{platform.system()} has none of the layers; Linux is needed")
        failures: list[str] = []
        best: Probe | None = None
        for start in self._ways():
            try:
                host = start()
            except SandboxError as error:
                failures.append(str(error))
                continue
            try:
                layers, results = self._test(host)
            except SandboxError as error:
                host.close()
                failures.append(str(error))
                continue
            probe = Probe(tier_of(layers, results), layers, results, missing(layers, results, failures))
            if best is None or probe.tier < best.tier:
                self.close()
                best, self._host, self._start = probe, host, start
            else:
                host.close()
            if best.tier in "AB":
                break
        if best is None:
            raise SandboxError(f"no sandbox starts: {'; '.join(failures)}")
        return best

    def _ways(self) -> list[Callable[[], Host]]:
        ways: list[Callable[[], Host]] = []
        if "namespaces" not in self._without:
            ways.append(lambda: Host(namespaces=True, **self._options))
            if os.geteuid() == 0:
                ways.append(lambda: Host(namespaces=True, user_namespace=False, **self._options))
        ways.append(lambda: Host(namespaces=False, **self._options))
        if "bwrap" not in self._without:
            ways.append(lambda: Host(namespaces=False, bwrap=True, **self._options))
        return ways

    def _test(self, host: Host) -> tuple[tuple[str, ...], dict[str, bool]]:
        def run(source: str, limits: Limits, layers: tuple[str, ...]) -> Outcome:
            try:
                return host.run(source=source.encode(), layers=layers, limits=limits)
            except ZygoteLostError as error:
                raise SandboxError(str(error)) from error

        return attacks.run_all([layer for layer in host.layers if layer not in self._without], run)


_shared: dict[tuple[int, tuple[str, ...]], Sandbox] = {}
_sharing = threading.Lock()


def sandbox(url: str | None = None, packages: Sequence[str] = ()) -> Sandbox | RemoteSandbox:
    """The sandbox of this process, started on first use and closed at exit; or, by its URL, one that is a service.

    Args:
        packages: what programs may import beside numpy and the standard library. For each set of them there is a sandbox
            of its own, with the packages imported before any program.

    Raises:
        SandboxError: it does not start, a package is not installed, or it is of tier D and `verifier_pool.allow_unsafe`
            does not permit that.
    """
    if url is not None:
        return RemoteSandbox(url)
    with _sharing:
        key = (os.getpid(), tuple(sorted(set(packages))))
        for other in [other for other in _shared if other[0] != key[0]]:
            del _shared[other]  # a parent's, after a fork: not ours to close
        mine = _shared.get(key)
        if mine is None:
            mine = _made(key[1])
            try:
                refuse_unsafe(mine.tier, isolation.unsafe_permitted(), mine.probe.reason)
            except SandboxError:
                mine.close()
                raise
            if not _shared:
                atexit.register(_close_shared)
            _shared[key] = mine
        return mine


def _made(packages: tuple[str, ...]) -> Sandbox:
    if not packages:
        return Sandbox()
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise SandboxError(
                f"packages: {name!r} is not installed beside {sys.executable}; install it or leave it out"
            )
    seen = with_requirements((*packages, *(name for name in PACKAGES if importlib.util.find_spec(name))))
    return Sandbox(packages=[name for name in seen if importlib.util.find_spec(name)], preload=(*PRELOAD, *packages))


def _close_shared() -> None:
    for key in [key for key in _shared if key[0] == os.getpid()]:
        _shared.pop(key).close()


def probe() -> Probe:
    """Run the attack list in a sandbox made for it and say what is in force."""
    try:
        tried = Sandbox()
    except SandboxError as error:
        return Probe("D", (), {}, str(error))
    tried.close()
    return tried.probe

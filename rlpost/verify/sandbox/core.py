"""The sandbox as a verifier sees it: `sandbox().run(program, stdin=...)`."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import logging
import os
import platform
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlpost.verify import isolation
from rlpost.verify.sandbox import attacks
from rlpost.verify.sandbox.host import Host, ZygoteLostError
from rlpost.verify.sandbox.limits import Limits, Outcome, Resident, SandboxError, Tier
from rlpost.verify.sandbox.remote import RemoteSandbox
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

    def close(self) -> None:
        with self._lock:
            if self._host is not None and self._owner == os.getpid():
                self._host.close()
            self._host = None

    def _run(self, **program: Any) -> Outcome:
        if self._owner != os.getpid():
            raise SandboxError("a sandbox belongs to the process that made it; make one after the fork")
        with self._lock:
            for last in (False, True):
                try:
                    if self._host is None:
                        assert self._start is not None
                        self._host = self._start()
                    isolation.ran(self.tier, self.layers)
                    return self._host.run(layers=self.layers, **program)
                except ZygoteLostError as error:
                    self.close()
                    if last:
                        raise SandboxError(f"the sandbox failed twice in a row: {error}") from error
            raise AssertionError("unreachable")

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


_shared: dict[int, Sandbox] = {}
_sharing = threading.Lock()


def sandbox(url: str | None = None) -> Sandbox | RemoteSandbox:
    """The sandbox of this process, started on first use and closed at exit; or, by its URL, one that is a service.

    Raises:
        SandboxError: it does not start, or is of tier D and `verifier_pool.allow_unsafe` does not permit that.
    """
    if url is not None:
        return RemoteSandbox(url)
    with _sharing:
        mine = _shared.get(os.getpid())
        if mine is None:
            _shared.clear()  # a parent's, after a fork: not ours to close
            mine = Sandbox()
            try:
                refuse_unsafe(mine.tier, isolation.unsafe_permitted(), mine.probe.reason)
            except SandboxError:
                mine.close()
                raise
            _shared[os.getpid()] = mine
            atexit.register(_close_shared)
        return mine


def _close_shared() -> None:
    with contextlib.suppress(KeyError):
        _shared.pop(os.getpid()).close()


def probe() -> Probe:
    """Run the attack list in a sandbox made for it and say what is in force."""
    try:
        tried = Sandbox()
    except SandboxError as error:
        return Probe("D", (), {}, str(error))
    tried.close()
    return tried.probe

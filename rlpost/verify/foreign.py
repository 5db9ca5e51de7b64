"""Scorers that nobody vouches for: loaded into a sandbox of their own, and called in a fork of it for each answer.

What an answer makes such a scorer do (some give it to `eval`) ends with its verdict: the fork has no network, no variable
of the trainer's, nothing that it may write to but a folder that goes with it, and the next answer gets another fork. A
group is one answer: its responses are scored in one fork. What is left to an answer that is executed is its own verdict.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpost.user_code import USER
from rlpost.verify import isolation
from rlpost.verify.protocol import Bound, VerifierError, load
from rlpost.verify.registry import anchored, resolve
from rlpost.verify.replies import Samples, read, reply, scored

if TYPE_CHECKING:
    from rlpost.verify.sandbox import Outcome

MEMORY_MB = 1024
REPLY_KB = 8 * 1024
MAX_FILES = 256
SAID = 1000


class Foreign:
    """The isolated verifiers of a worker, in a sandbox made for them.

    Args:
        loads: name, params and timeout of each.

    Raises:
        VerifierError: they do not load in there, or the sandbox is of tier D and that is not permitted.
    """

    def __init__(self, loads: Sequence[Mapping[str, Any]]) -> None:
        from rlpost.verify.sandbox import Resident, Sandbox, SandboxError, refuse_unsafe

        self._seconds = [load["timeout"] for load in loads]
        names = ", ".join(repr(load["name"]) for load in loads)
        there = [{**load, "name": anchored(load["name"])} for load in loads]
        path = [os.path.abspath(entry) for entry in sys.path if os.path.exists(entry)]
        try:
            self._sandbox = Sandbox(
                packages=(),
                preload=(),
                resident=Resident(f"{__name__}:{_Resident.__name__}", there, path, _readable(path)),
            )
            refuse_unsafe(self._sandbox.tier, isolation.unsafe_permitted(), self._sandbox.probe.reason)
        except SandboxError as error:
            raise VerifierError(
                f"verifier {names} is isolated: {error}. With `isolate: false` beside its name it runs in the worker, "
                "where an answer that its code executes can do all that the trainer's user can"
            ) from error

    @property
    def sandbox(self) -> dict[str, Any]:
        return {"tier": self._sandbox.tier, "layers": list(self._sandbox.layers)}

    @property
    def pid(self) -> int | None:
        """Of the process that keeps the sandbox."""
        return self._sandbox.pid

    def close(self) -> None:
        self._sandbox.close()

    def score(self, verifier: int, number: int, samples: Samples) -> str:
        """As `replies.scored`; what ends the fork is an exception with a `cause`.

        Raises:
            SandboxError: the sandbox failed, not the verifier.
        """
        from rlpost.verify.sandbox import Limits

        started = time.perf_counter()
        isolation.taken()
        limits = Limits(seconds=self._seconds[verifier], memory_mb=MEMORY_MB, output_kb=REPLY_KB)
        request = json.dumps({"verifier": verifier, "samples": samples}).encode()
        outcome = self._sandbox.call(request, limits=limits)
        try:
            if outcome.status != "ok":
                raise ValueError(_ended(outcome))
            verdicts = read(outcome.stdout, len(samples))
        except ValueError as error:
            cause = "timeout" if outcome.status == "timeout" else "crash"
            return json.dumps({"id": number, "exception": {"cause": cause, "error": str(error)}})
        return reply(number, verdicts, time.perf_counter() - started)


def _ended(outcome: Outcome) -> str:
    code = "" if outcome.exit_code is None else f" (exit code {outcome.exit_code})"
    said = outcome.stderr.decode(errors="replace")[-SAID:]
    return f"its process in the sandbox ended: {outcome.status}{code} {said}".rstrip()


class _Resident:
    """In the sandbox: the verifiers, ready to be called."""

    def __init__(self, loads: Sequence[Mapping[str, Any]]) -> None:
        self._bound: list[Bound] = [
            load(one["name"], resolve(one["name"]), one["params"], one["timeout"], isolate=True) for one in loads
        ]
        for bound in self._bound:
            if bound.prepare is not None:
                bound.prepare()

    def __call__(self, request: bytes) -> bytes:
        asked = json.loads(request)
        return scored(self._bound[asked["verifier"]].call, 0, asked["samples"]).encode()


def _readable(path: Sequence[str]) -> list[str]:
    """What verifiers that are loaded here may have to read: installed packages, modules loaded from elsewhere, and what
    lies beside a user's file but for hidden files and folders without Python.

    Raises:
        VerifierError: a folder holds more than can be granted one by one.
    """
    from rlpost.verify.sandbox.resident import INSTALLED

    kept = [entry for entry in path if os.path.basename(entry) in INSTALLED]  # may lie in the folder of the library
    found: list[str] = []
    stdlib = os.path.realpath(sysconfig.get_path("stdlib"))
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.startswith(USER) and file is not None:
            found += _beside(Path(file).parent)
        elif file is not None and "." not in name and name != "__main__":
            location = os.path.abspath(file)
            if os.path.basename(location).startswith("__init__."):
                location = os.path.dirname(location)
            found.append(location)
        elif file is None and "." not in name:  # a package without __init__.py
            found += [os.path.abspath(folder) for folder in getattr(module, "__path__", ())]
    for place in dict.fromkeys(found):
        if os.path.exists(place) and not any(Path(place).is_relative_to(folder) for folder in (stdlib, *kept)):
            kept.append(place)
    return kept


def _beside(folder: Path) -> list[str]:
    found = [
        str(entry)
        for entry in sorted(folder.iterdir())
        if not entry.name.startswith(".") and (entry.is_file() or any(entry.glob("*.py")))
    ]
    if len(found) > MAX_FILES:
        raise VerifierError(
            f"folder {folder} holds {len(found)} files; put a verifier that is isolated in a smaller one"
        )
    return found

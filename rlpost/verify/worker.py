"""The process that runs verifiers: `python -m rlpost.verify.worker REQUESTS_FD REPLIES_FD PARENT_PID`.

One JSON document a line, over two pipes of its own; never pickle.
    in:   {"verifiers": [{"name", "params", "timeout", "isolate", "env"}, ...], "allow_unsafe": bool}, then for each call
          {"id", "verifier": index, "samples": [{...}, ...]}: one sample, a batch, or a group
    out:  {"ready": [traits, ...], "sandbox": {"tier", "layers"} or null} or {"load_error": text}, then for each call,
          before the next one begins,
          {"id", "outcomes": [{"verdict": {...}, "details": {...}} or {"exception": {...}}, ...]} or
          {"id", "exception": {...}}
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rlpost.faults import strike
from rlpost.processes import die_with_parent
from rlpost.verify import isolation
from rlpost.verify.protocol import VerifierError, load
from rlpost.verify.registry import resolve
from rlpost.verify.replies import Samples, described, scored

if TYPE_CHECKING:
    from rlpost.verify.foreign import Foreign


def main(requests_fd: int, replies_fd: int, parent: int) -> None:
    _die_with(parent)
    # When a verifier eats the machine's memory, the kernel shall end it and not the trainer.
    Path("/proc/self/oom_score_adj").write_text("1000")
    for fd in (requests_fd, replies_fd):
        os.set_inheritable(fd, False)  # a verifier's own child processes must not hold our pipes open
    sys.path.append(os.getcwd())  # for `package.module:function`; last, so that it hides no library
    with os.fdopen(requests_fd, "rb") as requests, os.fdopen(replies_fd, "wb") as replies, asyncio.Runner() as runner:
        try:
            settings = json.loads(requests.readline())
            isolation.permit_unsafe(settings["allow_unsafe"])
            verifiers = [Verifier(**spec) for spec in settings["verifiers"]]
            foreign = _foreign(verifiers, settings["verifiers"])
            sandbox = _sandbox_of(verifiers, foreign)
        except VerifierError as error:
            _reply(replies, json.dumps({"load_error": str(error)}))
            return
        ready = [dataclasses.asdict(v.bound.traits) for v in verifiers]
        _reply(replies, json.dumps({"ready": ready, "sandbox": sandbox}))
        for line in requests:
            call = json.loads(line)
            verifier = verifiers[call["verifier"]]
            strike("verifier.score", None)
            _reply(replies, verifier.score(runner, foreign, call["id"], call["samples"]))


class Verifier:
    """A verifier and the environment variables it alone sees, while it is loaded and while it is called."""

    def __init__(
        self, name: str, params: Mapping[str, Any], timeout: float, env: Mapping[str, str], isolate: bool | None = None
    ) -> None:
        self.name, self.env, self.service = name, env, params.get("sandbox")
        with self.environment():
            self.bound = load(name, resolve(name), params, timeout, isolate)
        if self.bound.traits.isolate and env:
            raise VerifierError(
                f"verifier {name!r} is isolated, and an answer that its code executes would see {', '.join(env)}: leave "
                "`env` out, or set `isolate: false` beside its name, and it runs in the worker, where such an answer can "
                "do all that the trainer's user can"
            )
        self.isolated: int | None = None  # its place among those that are

    def score(self, runner: asyncio.Runner, foreign: Foreign | None, call: int, samples: Samples) -> str:
        if self.isolated is not None:
            assert foreign is not None
            try:
                return foreign.score(self.isolated, call, samples)
            except Exception as error:  # noqa: BLE001 - the sandbox's fault, and so nobody's verdict
                return json.dumps({"id": call, "exception": described(error)})
        # Not only Exception: a `sys.exit` in a verifier must be seen as its fault, not as a crash the completion caused.
        with self.environment():
            return scored(self.bound.call, call, samples, runner.run, BaseException)

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        os.environ.update(self.env)
        try:
            yield
        finally:
            for key in self.env:
                os.environ.pop(key, None)


def _foreign(verifiers: Sequence[Verifier], loads: Sequence[Mapping[str, Any]]) -> Foreign | None:
    """The sandbox of those that are isolated, once all are loaded here; None when none is."""
    isolated = [index for index, verifier in enumerate(verifiers) if verifier.bound.traits.isolate]
    if not isolated:
        return None
    from rlpost.verify.foreign import Foreign

    for place, index in enumerate(isolated):
        verifiers[index].isolated = place
    return Foreign([{key: loads[i][key] for key in ("name", "params", "timeout")} for i in isolated])


def _sandbox_of(verifiers: Sequence[Verifier], foreign: Foreign | None) -> dict[str, Any] | None:
    """What these verifiers, or their programs, run in, started now and not at the first verdict; None when none has any.

    Raises:
        VerifierError: it does not start, or is not safe and that is not permitted.
    """
    worst = foreign.sandbox if foreign is not None else None
    for verifier in verifiers:
        if verifier.bound.traits.programs:
            from rlpost.verify.sandbox import SandboxError, sandbox

            try:
                box = sandbox(verifier.service)
            except SandboxError as error:
                raise VerifierError(f"verifier {verifier.name!r} runs programs: {error}") from error
            if worst is None or box.tier > worst["tier"]:
                worst = {"tier": box.tier, "layers": list(box.layers)}
    return worst


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent goes, even in the middle of an endless verifier."""
    die_with_parent(signal.SIGKILL, "a verifier could outlive the trainer")
    if os.getppid() != parent:  # it went before the call above
        sys.exit("the process that started this verifier worker is gone")


def _reply(replies: BinaryIO, line: str) -> None:
    replies.write(line.encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

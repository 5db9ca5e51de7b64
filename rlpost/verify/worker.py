"""The process that runs verifiers: `python -m rlpost.verify.worker REQUESTS_FD REPLIES_FD PARENT_PID`.

One JSON document a line, over two pipes of its own; never pickle.
    in:   {"verifiers": [{"name", "params", "timeout", "env"}, ...], "allow_unsafe": bool}, then for each call
          {"id", "verifier": index, "samples": [{...}, ...]}: one sample, a batch, or a group
    out:  {"ready": [traits, ...], "sandbox": {"tier", "layers"} or null} or {"load_error": text}, then for each call,
          before the next one begins,
          {"id", "outcomes": [{"verdict": {...}, "details": {...}} or {"exception": {...}}, ...]} or
          {"id", "exception": {...}}
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import inspect
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rlpost.types import Verdict
from rlpost.verify import isolation
from rlpost.verify.protocol import VerifierError, load, to_verdict
from rlpost.verify.registry import resolve

PR_SET_PDEATHSIG = 1
MAX_DETAILS = 100_000
MAX_REPLY_DETAILS = 4_000_000  # of all samples of a call
MAX_TRACEBACK = 4000


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
            sandbox = _sandbox_of(verifiers)
        except VerifierError as error:
            _reply(replies, json.dumps({"load_error": str(error)}))
            return
        ready = [dataclasses.asdict(v.bound.traits) for v in verifiers]
        _reply(replies, json.dumps({"ready": ready, "sandbox": sandbox}))
        for line in requests:
            call = json.loads(line)
            _reply(replies, _score(runner, verifiers[call["verifier"]], call["id"], call["samples"]))


class Verifier:
    """A verifier and the environment variables it alone sees, while it is loaded and while it is called."""

    def __init__(self, name: str, params: Mapping[str, Any], timeout: float, env: Mapping[str, str]) -> None:
        self.name, self.env, self.service = name, env, params.get("sandbox")
        with self.environment():
            self.bound = load(name, resolve(name), params, timeout)

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        os.environ.update(self.env)
        try:
            yield
        finally:
            for key in self.env:
                os.environ.pop(key, None)


def _sandbox_of(verifiers: Sequence[Verifier]) -> dict[str, Any] | None:
    """What the programs of these verifiers run in, started now and not at the first verdict; None when none has any.

    Raises:
        VerifierError: it does not start, or is not safe and that is not permitted.
    """
    worst: dict[str, Any] | None = None
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
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed: a verifier could outlive the trainer")
    if os.getppid() != parent:  # it went before the call above
        sys.exit("the process that started this verifier worker is gone")


def _score(runner: asyncio.Runner, verifier: Verifier, call: int, samples: Sequence[Mapping[str, Any]]) -> str:
    started = time.perf_counter()
    isolation.taken()
    try:
        with verifier.environment():
            results = verifier.bound.call(samples)
            if inspect.isawaitable(results):
                results = runner.run(_value_of(results))
        verdicts = [result if isinstance(result, Exception) else to_verdict(result) for result in results]
    # Not only Exception: a `sys.exit` in a verifier must be seen as its fault, not as a crash the completion caused.
    except BaseException as error:  # noqa: BLE001
        return json.dumps({"id": call, "exception": _described(error)})
    if (ran := isolation.taken()) is not None:
        verdicts = [_ran_in(ran, verdict) for verdict in verdicts]
    share = (time.perf_counter() - started) / len(verdicts)
    room = min(MAX_DETAILS, MAX_REPLY_DETAILS // len(verdicts))
    outcomes = [
        json.dumps({"exception": _described(v)})
        if isinstance(v, Exception)
        else _encode(dataclasses.replace(v, seconds=share), room)
        for v in verdicts
    ]
    return f'{{"id":{call},"outcomes":[{",".join(outcomes)}]}}'


def _ran_in(ran: Mapping[str, Any], verdict: Verdict | Exception) -> Verdict | Exception:
    if isinstance(verdict, Exception):
        return verdict
    return dataclasses.replace(verdict, details={**verdict.details, "sandbox": ran})


async def _value_of(awaitable: Any) -> Any:
    return await awaitable


def _described(error: BaseException) -> dict[str, str]:
    text = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
    return {"error": repr(error)[:500], "traceback": text}


def _encode(verdict: Verdict, room: int) -> str:
    fields = {f.name: getattr(verdict, f.name) for f in dataclasses.fields(verdict)}
    try:
        details = json.dumps(verdict.details, default=repr)
    except Exception as error:  # noqa: BLE001 - what cannot be printed may raise anything
        details = json.dumps({"not_json": repr(error)})
    if len(details) > room:
        details = json.dumps({"too_long": details[:room]})
    del fields["details"]
    return f'{{"verdict":{json.dumps(fields)},"details":{details}}}'


def _reply(replies: BinaryIO, line: str) -> None:
    replies.write(line.encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

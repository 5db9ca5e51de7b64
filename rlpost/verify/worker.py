"""The process that runs verifiers: `python -m rlpost.verify.worker REQUESTS_FD REPLIES_FD PARENT_PID`.

One JSON document a line, over two pipes of its own; never pickle.
    in:   {"verifiers": [{"name", "params"}, ...]}, then for each item {"id", "verifier": index, "sample": {...}}
    out:  {"ready": true} or {"load_error": text}, then for each item, before the next one begins,
          {"id", "verdict": {...}, "details": {...}} or {"id", "exception": {...}}
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import inspect
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rlpost.types import Verdict
from rlpost.verify.protocol import VerifierError, bind, to_verdict
from rlpost.verify.registry import resolve

PR_SET_PDEATHSIG = 1
MAX_DETAILS = 100_000
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
            verifiers = _load(json.loads(requests.readline())["verifiers"])
        except VerifierError as error:
            _reply(replies, json.dumps({"load_error": str(error)}))
            return
        _reply(replies, '{"ready":true}')
        for line in requests:
            item = json.loads(line)
            _reply(replies, _score(runner, verifiers[item["verifier"]], item["id"], item["sample"]))


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent goes, even in the middle of an endless verifier."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed: a verifier could outlive the trainer")
    if os.getppid() != parent:  # it went before the call above
        sys.exit("the process that started this verifier worker is gone")


def _load(specs: Sequence[Mapping[str, Any]]) -> list[Callable[[Mapping[str, Any]], Any]]:
    return [bind(spec["name"], resolve(spec["name"]), spec["params"]) for spec in specs]


def _score(runner: asyncio.Runner, verify: Callable[[Mapping[str, Any]], Any], item: int, sample: Any) -> str:
    started = time.perf_counter()
    try:
        result = verify(sample)
        if inspect.isawaitable(result):
            result = runner.run(_value_of(result))
        verdict = to_verdict(result)
    # Not only Exception: a `sys.exit` in a verifier must be seen as its fault, not as a crash the completion caused.
    except BaseException as error:  # noqa: BLE001
        text = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
        return json.dumps({"id": item, "exception": {"error": repr(error)[:500], "traceback": text}})
    return _encode(item, dataclasses.replace(verdict, seconds=time.perf_counter() - started))


async def _value_of(awaitable: Any) -> Any:
    return await awaitable


def _encode(item: int, verdict: Verdict) -> str:
    fields = {f.name: getattr(verdict, f.name) for f in dataclasses.fields(verdict)}
    try:
        details = json.dumps(verdict.details, default=repr)
    except (TypeError, ValueError, RecursionError) as error:
        details = json.dumps({"not_json": repr(error)})
    if len(details) > MAX_DETAILS:
        details = json.dumps({"too_long": details[:MAX_DETAILS]})
    del fields["details"]
    return f'{{"id":{item},"verdict":{json.dumps(fields)},"details":{details}}}'


def _reply(replies: BinaryIO, line: str) -> None:
    replies.write(line.encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

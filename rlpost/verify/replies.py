"""From one call of a verifier to what is said of it: one JSON document, the same from a worker and from a sandbox.

{"id", "outcomes": [{"verdict": {...}, "details": {...}} or {"exception": {...}}, ...]} or {"id", "exception": {...}}
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlpost.types import Verdict
from rlpost.verify import isolation
from rlpost.verify.protocol import RESULT_KEYS, to_verdict

MAX_DETAILS = 100_000
MAX_REPLY_DETAILS = 4_000_000  # of all samples of a call
MAX_ERROR = 500
MAX_TRACEBACK = 4000

Samples = Sequence[Mapping[str, Any]]


def scored(
    call: Callable[[Samples], Any],
    number: int,
    samples: Samples,
    wait: Callable[[Any], Any] = asyncio.run,
    faults: type[BaseException] = Exception,
) -> str:
    """What a verifier's `Bound.call` makes of samples.

    Args:
        wait: what a coroutine is run with.
        faults: what is said as an exception; all else is raised.
    """
    started = time.perf_counter()
    isolation.taken()
    try:
        results = call(samples)
        if inspect.isawaitable(results):
            results = wait(_value_of(results))
        verdicts = [result if isinstance(result, Exception) else to_verdict(result) for result in results]
    except faults as error:
        return json.dumps({"id": number, "exception": described(error)})
    return reply(number, verdicts, time.perf_counter() - started)


def reply(number: int, verdicts: Sequence[Verdict | BaseException | Mapping[str, Any]], seconds: float) -> str:
    """The document of verdicts, or of what was raised in their place; each with where programs ran for them."""
    ran = isolation.taken()
    room = min(MAX_DETAILS, MAX_REPLY_DETAILS // len(verdicts))
    outcomes = [_outcome(verdict, ran, seconds / len(verdicts), room) for verdict in verdicts]
    return f'{{"id":{number},"outcomes":[{",".join(outcomes)}]}}'


def read(text: bytes, count: int) -> list[Verdict | Mapping[str, Any]]:
    """What `scored` said of `count` samples, where whoever said it is not to be trusted.

    Raises:
        ValueError: it is nothing that `scored` says.
    """
    try:
        said = json.loads(text)
        if "exception" in said:
            return [_exception(said["exception"])] * count
        outcomes = said["outcomes"]
        if len(outcomes) != count:
            raise ValueError(f"{len(outcomes)} outcomes for {count} samples")
        return [
            _exception(one["exception"])
            if "exception" in one
            else to_verdict(
                {**{key: one["verdict"][key] for key in RESULT_KEYS if key != "details"}, "details": one["details"]}
            )
            for one in outcomes
        ]
    except (KeyError, TypeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"{text[:100]!r} is no reply: {error!r}") from error


def described(error: BaseException) -> dict[str, str]:
    text = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
    return {"error": repr(error)[:MAX_ERROR], "traceback": text}


async def _value_of(awaitable: Any) -> Any:
    return await awaitable


def _exception(said: Mapping[str, Any]) -> dict[str, Any]:
    return {"error": str(said["error"])[:MAX_ERROR], "traceback": str(said.get("traceback", ""))[-MAX_TRACEBACK:]}


def _outcome(
    verdict: Verdict | BaseException | Mapping[str, Any], ran: Mapping[str, Any] | None, seconds: float, room: int
) -> str:
    if isinstance(verdict, BaseException):
        return json.dumps({"exception": described(verdict)})
    if isinstance(verdict, Mapping):
        return json.dumps({"exception": verdict})
    details = verdict.details if ran is None else {**verdict.details, "sandbox": ran}
    fields = {f.name: getattr(verdict, f.name) for f in dataclasses.fields(verdict)} | {"seconds": seconds}
    try:
        text = json.dumps(details, default=repr)
    except Exception as error:  # noqa: BLE001 - what cannot be printed may raise anything
        text = json.dumps({"not_json": repr(error)})
    if len(text) > room:
        text = json.dumps({"too_long": text[:room]})
    del fields["details"]
    return f'{{"verdict":{json.dumps(fields)},"details":{text}}}'

"""How tests that are code are decided: here, by replay, or beside the living program, whichever is enough for them.

Assertions on literals are decided in this process from decoded data. Others run in a sandbox of their own. Where they call
functions with plain data alone, the calls are known beforehand, so the program does them all and the tests run afterwards
on its replies. What has objects is run with both alive.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards._code_codec import TooLarge
from rewards._code_literals import decided, plan_of
from rewards._code_run import (
    STATUS,
    SYNTAX,
    Result,
    Run,
    Untestable,
    answers,
    conversation,
    reason_of,
    runner,
    sources_of,
    without_paths,
)  # fmt: skip
from rewards._code_task import BadTask, Task, assertions, watched
from rlpost.verify.sandbox import Limits, Outcome

MAX_ROUNDS = 20
LARGE = ('"raise", "output_limit"', '"raise", "TooLarge"')  # in a reply that could not be copied


def tested(run: Run, code: str, task: Task, service: str | None) -> list[Result]:
    """What came of each test.

    Raises:
        BadTask: the tests fail by themselves.
        Untestable: they need what cannot be done.
    """
    sources = sources_of(code, task)
    plan = plan_of(task)
    if plan is not None:
        replies = answers(run, sources, plan.operations)
        signs = (
            '{"result": ',
            '{"kept": ',
            *(LARGE if plan.parts else ()),
        )
        if service is not None or not any(sign in reply for reply in replies for sign in signs):
            with contextlib.suppress(TooLarge):  # to be decided in the sandbox
                return [decided(test, replies) for test in plan.tests]
    foreseen = _foreseen(task, service, run.packages)
    if not foreseen.objects or service is not None:
        results = _replayed(run, sources, task, foreseen, service)
        if results is not None:
            return results
    return _talked(run, sources, task, foreseen)


def _replayed(
    run: Run, sources: Sequence[str], task: Task, foreseen: Foreseen, service: str | None
) -> list[Result] | None:
    """Each call in its turn, then the tests; None when the tests have to be beside the living program.

    A service runs one program at a time, so there the tests are run again and again, each time a call further.
    """
    if foreseen.opaque and service is not None:
        raise Untestable(f"{foreseen.opaque}, and a service has no program alive beside the tests")
    operations: Sequence[str] = foreseen.operations
    for _ in range(MAX_ROUNDS):
        replies = answers(run, sources, operations)
        report, outcome = _judged(run, task, operations, replies)
        if report is None:
            # They ran without, so it is a value of the candidate's that they cannot end on.
            reason = STATUS.get(outcome.status, "mismatch")
            return [Result(reason, "the tests did not end on what the program returned")] * max(1, foreseen.count)
        if report["broken"] is not None:
            raise BadTask(f"the tests fail by themselves: {report['broken']}")
        large = any(sign in reply for reply in replies for sign in LARGE)
        if service is None and (report["things"] or not report["complete"] or large):
            return None
        if report["complete"]:
            return _results(report, task, foreseen)
        operations = report["operations"]
        if run.over:
            return [Result("candidate_timeout", "the time for all tests together is over")]
    return [Result("mismatch", f"which calls the tests make is not settled after {MAX_ROUNDS} runs")]


def _talked(run: Run, sources: Sequence[str], task: Task, foreseen: Foreseen) -> list[Result]:
    """The tests beside the living program."""
    report, ended = conversation(run, sources, {**_request(task), "classes": task.classes})
    count = max(foreseen.count, assertions(task.tests), 1)
    if report is None:
        return [Result(ended if ended != "runtime_error" else "mismatch", "the tests did not end")] * count
    if report["loaded"] is not None:
        name, text = report["loaded"]
        reason = "syntax_error" if name in SYNTAX else reason_of(f"candidate:{name}")
        return [Result(reason, f"{name}: {text}")] * count
    if report["untestable"]:
        raise Untestable(f"the tests need what cannot be done between two processes: {report['untestable'][0]}")
    if report["broken"] is not None:
        raise BadTask(f"the tests fail by themselves: {report['broken']}")
    results = _results({**report, "cut": report["cut"] or report["gone"]}, task, foreseen)
    if report["gone"]:
        gone = Result(ended, f"the program ended, or did not answer: {ended}")
        passed = [result for result in results if not result.reason]
        results = [*passed, *[gone] * max(1, len(results) - len(passed))]
    return results


def _results(report: Mapping[str, Any], task: Task, foreseen: Foreseen) -> list[Result]:
    results = [Result(reason_of(kind) if not passed else "", text) for passed, kind, text, _ in report["tests"]]
    if report["cut"]:  # or a crash before a test would leave it uncounted, and fewer tests make a larger share
        missing = max(foreseen.count, assertions(task.tests)) - len(results)
        results += [Result("mismatch", "not reached: an earlier statement failed")] * missing
    # Such as a loop over nothing, where the program returned nothing.
    return results or [Result("mismatch", "no assertion was reached")]


@dataclass(frozen=True)
class Foreseen:
    """What the tests will do, as far as that is known without an answer.

    Args:
        operations: of the candidate.
        count: of the tests.
        objects: whether an operation is on an object, or has an argument that is no plain data.
        opaque: the first such argument.
    """

    operations: tuple[str, ...]
    count: int
    objects: bool
    opaque: str | None


ALONE = ("ModuleNotFoundError", "ImportError", "FileNotFoundError", "Unknown")


@functools.lru_cache(4096)
def _foreseen(task: Task, service: str | None, packages: tuple[str, ...]) -> Foreseen:
    """The same for every response to a row.

    Raises:
        BadTask: the tests call nothing of the response, or fail whatever it does.
    """
    report, outcome = _judged(Run(True, 5.0, 1024, 5.0, service, packages=packages), task, (), ())
    if report is None:
        raise BadTask(
            f"the tests do not run: {outcome.status}, {without_paths(outcome.stderr.decode(errors='replace'))}"
        )
    if report["broken"] is not None and not task.classes:
        raise BadTask(f"the tests fail by themselves: {report['broken']}")
    for passed, kind, text, asked in report["tests"]:
        # On a result that goes along with everything these come from the tests alone, and so does all before the first
        # call; but for classes, which nothing stands for yet.
        if not passed and (kind in ALONE or not (asked or task.classes)):
            raise BadTask(f"the tests fail by themselves: {kind}: {text}")
    if not report["operations"] and not task.classes:
        raise BadTask("the tests call nothing of the response")
    objects = (
        bool(task.classes)
        or report["opaque"] is not None
        or any(not text.startswith('["call", "') or '{"result": ' in text for text in report["operations"])
    )
    return Foreseen(tuple(report["operations"]), len(report["tests"]), objects, report["opaque"])


def _request(task: Task) -> dict[str, Any]:
    return {
        "setup": task.setup,
        "tests": watched(task.tests),
        "entry_point": task.entry_point,
        "names": task.names,
        "modules": task.modules,
        "pytest": task.pytest,
    }


def _judged(
    run: Run, task: Task, operations: Sequence[str], replies: Sequence[str]
) -> tuple[dict[str, Any] | None, Outcome]:
    """The tests, where replies to operations are known."""
    guessing = run.limits().seconds / 2
    request = {**_request(task), "operations": operations, "replies": replies, "seconds": guessing}
    limits = Limits(seconds=run.limits().seconds, output_kb=16 * 1024)
    outcome = run.python(runner("_code_tests"), json.dumps(request).encode(), limits)
    return (json.loads(outcome.stdout) if outcome.status == "ok" and outcome.stdout else None), outcome

"""Programs the model wrote, run in the sandbox against the tests of a data set.

Function tests are an isolated call: the program runs in one sandboxed process, the tests are decided in another, and
only plain data crosses between them. Neither expected values nor test code are ever where the program could find them,
and nothing it redefines is there when the tests are decided. Assertions on literals are decided in this process, from
decoded data; all other test code runs in a sandbox of its own, by replay (`_code_tests.py`). Programs on standard input
and output run once a test, and their output is compared here.

A data set's columns are taken by their names; list them in `data.train.metadata`:

    HumanEval                    prompt, test, entry_point
    MBPP                         test_list, test_setup_code, test_imports
    APPS, TACO                   input_output
    CodeContests                 public_tests, private_tests, generated_tests
    LiveCodeBench                public_test_cases, private_test_cases (as JSON; never unpickled), fn_name
    anything else                tests, or the reference: any of these shapes
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards._code_codec import TooLarge, shown
from rewards._code_literals import decided, plan_of, reply_of
from rewards._code_programs import PYTHON, language_of, near, programs
from rewards._code_run import STATUS, Result, Run, answers, reason_of, runner, sources_of
from rewards._code_suspect import hardcoded
from rewards._code_task import BadTask, Task, assertions, task_of, watched
from rlpost.verify.sandbox import Limits, Outcome

MAX_SOURCE = 100_000
MAX_ROUNDS = 20
FENCE = re.compile(r"^([ \t]*)```[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


def verify(
    response: str,
    reference: Any = None,
    prompt: str = "",
    tests: Any = None,
    test: str | None = None,
    test_list: Sequence[str] | None = None,
    test_setup_code: str | None = None,
    test_imports: Sequence[str] | None = None,
    entry_point: str | None = None,
    input_output: Any = None,
    inputs: Sequence[Any] | None = None,
    outputs: Sequence[Any] | None = None,
    fn_name: str | None = None,
    public_tests: Any = None,
    private_tests: Any = None,
    generated_tests: Any = None,
    public_test_cases: Any = None,
    private_test_cases: Any = None,
    language: str = "python",
    compile_command: str | None = None,
    run_command: str | None = None,
    file: str | None = None,
    mode: str = "all",
    seconds: float = 5.0,
    total_seconds: float = 20.0,
    memory_mb: int = 1024,
    compare: str = "lines",
    float_tolerance: float | None = None,
    sandbox: str | None = None,
) -> dict[str, Any]:
    """Correct when the program in the response passes the tests.

    The program is the last block fenced as the language, else the last fenced block, else the whole response; what
    precedes `</think>` does not count. Reasons of a wrong verdict are those of the first test that fails: no_answer,
    syntax_error, compile_error, runtime_error, candidate_timeout, memory, output_limit, mismatch. Output may be twice as
    long as what the row expects, and 1 MiB in any case; a compiled program may have 16 MiB. A row without usable tests is
    unverified (bad_reference). `hardcode_suspect` among the details marks a Python program that passes and holds the
    literals of half of the tests, as one that was told the answers would; it changes no score. Components: tests_passed, tests_total; in mode "all" the tests behind a failed one may not
    have been run.

    Args:
        mode: "all": 1 when every test passes, else 0. "fraction": the share of tests that pass; those that an error keeps
            from being reached do not.
        input_output: where all its outputs of a function are lists of one value, the value alone is right as well: APPS
            has rows of both kinds. Nowhere else is [x] the same as x.
        seconds: for each call or run of the program. A time-out is tried once more, from there, in a process alone and
            with twice the time.
        total_seconds: for all of a verdict; what is not decided by then has timed out. A compiler's time, 20 seconds at
            most, comes on top; keep both together below the verifier's `timeout`.
        memory_mb: address space of the program.
        compare: how output is compared: "lines", without the white space at their ends, or "tokens".
        float_tolerance: numbers this near, relatively or absolutely, are the same in outputs and examples.
        language: "python", "cpp", "c", or any name with the three below.
        file, compile_command, run_command: the source file's name, the command that makes `prog` of it (none for an
            interpreter), and the one that runs; each replaces that of the language.
        sandbox: the URL of a service that runs the programs instead of this machine, by SandboxFusion's `/run_code`.
    """
    if mode not in ("all", "fraction") or compare not in ("lines", "tokens"):
        raise ValueError(f"verifier code: mode is {mode!r}, compare {compare!r}; use all or fraction, lines or tokens")
    spec = language_of(language, file, compile_command, run_command, here=sandbox is None)
    cases = {
        "tests": tests,
        "public_tests": public_tests,
        "private_tests": private_tests,
        "generated_tests": generated_tests,
        "public_test_cases": public_test_cases,
        "private_test_cases": private_test_cases,
        "input_output": input_output,
    }
    try:
        task = task_of(
            {name: case for name, case in cases.items() if case is not None},
            reference,
            prompt,
            [*([test] if test else []), *(test_list or [])],
            [*(test_imports or []), *([test_setup_code] if test_setup_code else [])],
            entry_point,
            (inputs, outputs),
            fn_name,
        )
        if spec is not None and not (task.examples and task.function is None):
            raise BadTask(f"language {language!r} needs tests of standard input and output")
    except BadTask as error:
        return {"score": None, "reason": "bad_reference", "details": {"error": str(error)}}
    code, fenced = extract(response, PYTHON if spec is None else (language.lower(), *spec.tags))
    if not code.strip():
        return {"score": 0.0, "reason": "no_answer"}
    if len(code) > MAX_SOURCE:
        return {"score": 0.0, "reason": "output_limit", "extracted": code[:MAX_SOURCE]}
    run = Run(mode == "fraction", seconds, memory_mb, time.monotonic() + total_seconds, sandbox, task.answer_bytes)
    if task.examples and task.function is None:
        results = programs(run, code, spec, task, compare, float_tolerance)
    elif task.examples:
        results = _examples(run, code, task, float_tolerance)
    else:
        try:
            results = _tests(run, code, task, sandbox)
        except BadTask as error:
            return {"score": None, "reason": "bad_reference", "details": {"error": str(error)}}
    verdict = _verdict(results, mode, code, fenced)
    if spec is None and verdict["components"]["tests_passed"] and hardcoded(code, task):
        verdict.setdefault("details", {})["hardcode_suspect"] = True
    return verdict


verify.programs = True  # type: ignore[attr-defined]
# Of all its files: those beside this one say as much in a verdict.
verify.version = hashlib.sha256(  # type: ignore[attr-defined]
    b"".join(path.read_bytes() for path in (Path(__file__), *sorted(Path(__file__).parent.glob("_code_*.py"))))
).hexdigest()[:12]


def check(reference: Any = None, prompt: str = "", **row: Any) -> str | None:
    """Why a row cannot be verified, or None: no usable tests, tests that an empty program passes, a failing solution.

    Args:
        row: the row's columns and further arguments of `verify`. A reference solution in the column `code`,
            `canonical_solution` or `solution` must pass.
    """
    sample = {key: row[key] for key in ARGUMENTS if row.get(key) is not None}
    empty = "pass" if str(row.get("language", "python")).lower() in PYTHON else " "
    result = verify(f"```\n{empty}\n```", reference, prompt, **sample)
    if result["score"] is None:
        return str(result["details"]["error"])
    if result["score"] >= 1:
        return "an empty program passes its tests"
    if any(row.get(key) for key in SOLUTIONS):
        return check_task({**row, "reference": reference, "prompt": prompt})
    return None


def check_task(row: Mapping[str, Any], **params: Any) -> str | None:
    """Why a row cannot be verified, or None: runs its reference solution twice.

    Args:
        row: a data set's row; the solution is its column `code`, `canonical_solution` or `solution`.
        params: further arguments of `verify`.
    """
    solution = next((row[key] for key in SOLUTIONS if row.get(key)), None)
    if not isinstance(solution, str):
        return f"the row has no reference solution in {', '.join(SOLUTIONS)}"
    names = ("reference", "prompt", *ARGUMENTS)
    sample = {**{key: row[key] for key in names if row.get(key) is not None}, **params, "mode": "all"}
    for attempt in ("", " when run again"):
        result = verify(solution, **sample)
        if result["score"] is None:
            return str(result["details"]["error"])
        if result["score"] < 1:
            return (
                f"its reference solution fails{attempt}: {result['reason']} ({result.get('details', {}).get('error')})"
            )
    return None


ARGUMENTS = verify.__code__.co_varnames[3 : verify.__code__.co_argcount]
SOLUTIONS = ("code", "canonical_solution", "solution")


def _verdict(results: Sequence[Result], mode: str, code: str, fenced: bool) -> dict[str, Any]:
    passed = sum(not result.reason for result in results)
    failed = next((result for result in results if result.reason), None)
    share = passed / len(results)
    verdict: dict[str, Any] = {
        "score": share if mode == "fraction" else float(failed is None),
        "extracted": code,
        "components": {"tests_passed": passed, "tests_total": len(results)},
    }
    if failed is not None:
        # Prose that is no program at all is no answer, where no fence says that it should be one.
        prose = failed.reason == "syntax_error" and not fenced
        verdict |= {"reason": "no_answer" if prose else failed.reason, "details": {"error": failed.text[:500]}}
    return verdict


def extract(response: str, tags: Sequence[str] = PYTHON) -> tuple[str, bool]:
    """The program in a response, and whether it was fenced."""
    _, closed, answer = response.rpartition("</think>")
    if not closed and "<think>" in response:  # still thinking
        return "", False
    blocks = list(FENCE.finditer(answer.replace("\r\n", "\n")))
    if not blocks:
        return answer, False
    named = [block for block in blocks if block[2].lower() in tags]
    block = (named or blocks)[-1]
    return (textwrap.dedent(block[3]) if block[1] else block[3]), True


# ------------------------------------------------------------------------------------------------ tests that are code


def _tests(run: Run, code: str, task: Task, service: str | None) -> list[Result]:
    sources = sources_of(code, task)
    plan = plan_of(task)
    if plan is not None:
        replies = answers(run, sources, plan.operations)
        try:
            return [decided(test, replies) for test in plan.tests]
        except TooLarge:
            pass  # to be decided in the sandbox
    operations, foreseen = _foreseen(task, service)
    for _ in range(MAX_ROUNDS):
        replies = answers(run, sources, operations)
        report, outcome = _judged(run, task, operations, replies)
        if report is None:
            # They ran without, so it is a value of the candidate's that they cannot end on.
            return [
                Result(STATUS.get(outcome.status, "mismatch"), "the tests did not end on what the program returned")
            ]
        if report["broken"] is not None:
            raise BadTask(f"the tests fail by themselves: {report['broken']}")
        if report["complete"]:
            results = [Result(reason_of(kind) if not passed else "", text) for passed, kind, text in report["tests"]]
            if report["cut"]:  # or a crash before a test would leave it uncounted, and fewer tests make a larger share
                missing = max(foreseen, assertions(task.tests)) - len(results)
                results += [Result("mismatch", "not reached: an earlier statement failed")] * missing
            # Such as a loop over nothing, where the program returned nothing.
            return results or [Result("mismatch", "no assertion was reached")]
        operations = report["operations"]
        if run.over:
            return [Result("candidate_timeout", "the time for all tests together is over")]
    return [Result("mismatch", f"which calls the tests make is not settled after {MAX_ROUNDS} runs")]


@functools.lru_cache(4096)
def _foreseen(task: Task, service: str | None) -> tuple[tuple[str, ...], int]:
    """The calls and the number of the tests, as far as that is known without an answer. The same for every response."""
    report, outcome = _judged(Run(True, 5.0, 1024, time.monotonic() + 5.0, service), task, (), ())
    if report is None:
        raise BadTask(f"the tests do not run: {outcome.status}, {outcome.stderr[-300:].decode(errors='replace')}")
    if report["broken"] is not None:
        raise BadTask(f"the tests fail by themselves: {report['broken']}")
    if not report["operations"]:
        said = next((text for passed, _, text in report["tests"] if not passed), "")
        raise BadTask(f"the tests call nothing of the response{said and ': ' + said}")
    return tuple(report["operations"]), len(report["tests"])


def _judged(
    run: Run, task: Task, operations: Sequence[str], replies: Sequence[str]
) -> tuple[dict[str, Any] | None, Outcome]:
    request = {
        "setup": task.setup,
        "tests": watched(task.tests),
        "entry_point": task.entry_point,
        "names": task.names,
        "operations": operations,
        "replies": replies,
        "seconds": run.limits().seconds / 2,
    }
    limits = Limits(seconds=run.limits().seconds, output_kb=16 * 1024)
    outcome = run.box.run(runner("_code_tests"), stdin=json.dumps(request).encode(), limits=limits)
    return (json.loads(outcome.stdout) if outcome.status == "ok" and outcome.stdout else None), outcome


# ---------------------------------------------------------------------------------------------- inputs and outputs


def _examples(run: Run, code: str, task: Task, tolerance: float | None) -> list[Result]:
    """A function called with the arguments of each example."""
    replies = answers(run, [code], [operation for operation, _ in task.examples])
    results = []
    for text, (_, accepted) in zip(replies, task.examples, strict=True):
        try:
            outcome, value = reply_of(text)
        except TooLarge as error:
            results.append(Result("mismatch", str(error)))
            continue
        if outcome == "raise":
            results.append(Result(reason_of(f"candidate:{value[0]}"), f"{value[0]}: {value[1]}"))
        elif any(_same(value, expected, tolerance) for expected in json.loads(accepted)):
            results.append(Result(""))
        else:
            results.append(Result("mismatch", f"returned {shown(value)}"))
    return results


def _same(value: Any, expected: Any, tolerance: float | None) -> bool:
    if isinstance(value, list | tuple) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(lambda a, b: _same(a, b, tolerance), value, expected))
    if isinstance(expected, bool) or isinstance(value, bool):
        return value is expected
    if tolerance is not None and isinstance(value, int | float) and isinstance(expected, int | float):
        return near(value, expected, tolerance)
    return type(value) in (int, float, str, dict, type(None)) and value == expected

"""Programs the model wrote, run in the sandbox against the tests of a data set.

The program runs in one sandboxed process and the tests are decided in another. Neither expected values nor test code are
ever where the program could find them, and nothing it redefines is there when the tests are decided. Assertions on
literals are decided in this process, from decoded data; all other test code runs in a sandbox of its own: by replay
where plain data alone crosses (`_code_tests.py`), and where objects do, beside the living program (`_code_talk.py`).
Programs on standard input and output run once a test, and their output is compared here.

A data set's columns are taken by their names; list them in `data.train.metadata`:

    HumanEval                    prompt, test, entry_point
    MBPP                         test_list, test_setup_code, test_imports
    APPS, TACO                   input_output
    CodeContests                 public_tests, private_tests, generated_tests
    LiveCodeBench                public_test_cases, private_test_cases (as JSON; never unpickled), fn_name or metadata
    anything else                tests, or the reference: any of these shapes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards._code_answer import MAX_SOURCE, extract
from rewards._code_codec import TooLarge, shown
from rewards._code_decide import tested
from rewards._code_literals import reply_of
from rewards._code_programs import COMPARE, PYTHON, Comparison, language_of, near, programs
from rewards._code_rules import RULES, rules_of
from rewards._code_run import (
    Result,
    Run,
    Untestable,
    answers,
    reason_of,
    without_paths,
)  # fmt: skip
from rewards._code_suspect import hardcoded
from rewards._code_task import BadTask, Task, task_of


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
    metadata: Any = None,
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
    stack_mb: int = 64,
    processes: bool = False,
    packages: Sequence[str] = (),
    rules: str | None = None,
    compare: str | None = None,
    float_tolerance: float | None = None,
    sandbox: str | None = None,
) -> dict[str, Any]:
    """Correct when the program in the response passes the tests.

    The program is the last block of the language that defines what the tests call, as `_code_answer.extract` says; what
    precedes `</think>` does not count. Reasons of a wrong verdict are those of the first test that fails: no_answer,
    syntax_error, compile_error, runtime_error, candidate_timeout, memory, output_limit, mismatch. Output may be twice as
    long as what the row expects, and 1 MiB in any case; a compiled program may have 16 MiB. A row without usable tests is
    unverified (bad_reference). `hardcode_suspect` among the details marks a Python program that passes and holds the
    literals of half of the tests, as one that was told the answers would; it changes no score. Components: tests_passed,
    tests_total; in mode "all" the tests behind a failed one may not have been run.

    Args:
        mode: "all": 1 when every test passes, else 0. "fraction": the share of tests that pass; those that an error keeps
            from being reached do not.
        input_output: where all its outputs of a function are lists of one value, the value alone is right as well: APPS
            has rows of both kinds. Nowhere else is [x] the same as x.
        seconds: for each call or run of the program. A time-out is tried once more, from there, in a process alone and
            with twice the time.
        total_seconds: of processor time for all of a verdict, and three times as long by the clock; what is not decided
            by then has timed out. A compiler's time, 20 seconds at most, comes on top. Keep three times this, with a
            compiler's time, below the verifier's `timeout`, so that a slow program is wrong and ends no worker.
        memory_mb: address space of the program.
        stack_mb: its stack; recursion without a limit of Python's needs more.
        processes: it may start processes; what they hold is then looked at from outside, a look every 50 ms.
        packages: installed packages it may import beside numpy and the standard library, such as pandas. They come with
            what they require, are imported before any program, and share a sandbox of their own: its memory is what they
            take, once a worker. The tier of the sandbox stays the same.
        rules: whose rules to go by: one of `_code_rules.RULES`. By default those of the benchmark that has these columns.
        compare: how output is compared: "lines", without the white space at their ends, "stripped", nor at their
            beginnings, or "tokens". By default as the rules say.
        float_tolerance: numbers this near, relatively or absolutely, are the same in outputs and examples; two integers
            only when they are equal.
        language: "python", "cpp", "c", or any name with the three below.
        file, compile_command, run_command: the source file's name, the command that makes `prog` of it (none for an
            interpreter), and the one that runs; each replaces that of the language.
        sandbox: the URL of a service that runs the programs instead of this machine, by SandboxFusion's `/run_code`.
    """
    if mode not in ("all", "fraction") or compare not in (None, *COMPARE):
        raise ValueError(
            f"verifier code: mode is {mode!r}, compare {compare!r}; use all or fraction, {' or '.join(COMPARE)}"
        )
    if rules not in (None, *RULES):
        raise ValueError(f"verifier code: rules are {rules!r}; use one of {', '.join(RULES)}")
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
    fn_name = fn_name or _function_in(metadata)
    columns = {**cases, "test": test, "test_list": test_list, "entry_point": entry_point, "fn_name": fn_name}
    columns |= {"reference": reference} if not any(columns.values()) else {}
    name = rules or rules_of({key: value for key, value in columns.items() if value is not None})
    by = RULES[name]
    if entry_point and name == "leetcode":
        entry_point = entry_point.rpartition(".")[2]
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
    names = (*task.names, *([task.function] if task.function else []))
    code, fenced = extract(response, PYTHON if spec is None else (language.lower(), *spec.tags), names)
    if not code.strip():
        return {"score": 0.0, "reason": "no_answer"}
    if len(code) > MAX_SOURCE:
        return {"score": 0.0, "reason": "output_limit", "extracted": code[:MAX_SOURCE]}
    run = Run(
        mode == "fraction",
        seconds,
        memory_mb,
        total_seconds,
        sandbox,
        task.answer_bytes,
        by.header,
        packages,
        stack_mb,
        processes,
    )
    if task.examples and task.function is None:
        rule = Comparison(
            compare or by.compare, float_tolerance if float_tolerance is not None else by.float_tolerance, by.numbers
        )
        results = programs(run, code, spec, task, rule)
    elif task.examples:
        results = _examples(run, code, task, float_tolerance)
    else:
        try:
            results = tested(run, code, task, sandbox)
        except BadTask as error:
            return {"score": None, "reason": "bad_reference", "details": {"error": str(error)}}
        except Untestable as error:
            return {"score": None, "reason": "untestable", "details": {"error": str(error)}}
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
        verdict |= {"reason": "no_answer" if prose else failed.reason, "details": {"error": without_paths(failed.text)}}
    return verdict


# ---------------------------------------------------------------------------------------------- inputs and outputs


def _function_in(metadata: Any) -> str | None:
    """The function that LiveCodeBench's column of this name says is called."""
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError:
            return None
    name = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    return name if isinstance(name, str) else None


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
    if isinstance(value, dict) and isinstance(expected, dict) and tolerance is not None:
        return value.keys() == expected.keys() and all(_same(value[key], expected[key], tolerance) for key in expected)
    return type(value) in (int, float, str, dict, type(None)) and value == expected

"""Programs that read standard input and write standard output, in Python or by command template."""

from __future__ import annotations

import binascii
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from rewards._code_run import MAX_TIMEOUTS, STATUS, SYNTAX, Result, Run, without_paths
from rewards._code_task import Task
from rlpost.verify.sandbox import STDIN, Limits

MAX_PRODUCT = 16 * 2**20  # bytes of a compiled program; the box it runs in holds twice as much
# Its output is the product in base64.
COMPILE = Limits(seconds=20.0, memory_mb=2048, output_kb=24 * 1024, file_mb=64, processes=True)
# `exit` is there in a Python that was started the usual way.
PROGRAM = """import builtins, sys
builtins.exit = builtins.quit = sys.exit
exec({!r}, globals())
exec(compile({!r}, "main.py", "exec", dont_inherit=True), globals())
"""
PYTHON = ("python", "python3", "py")


@dataclass(frozen=True)
class Language:
    """A language by command template: what is compiled is `file`, what is run may use `product`."""

    file: str
    compile_command: str | None
    run_command: str
    product: str = "prog"
    tags: tuple[str, ...] = ()


LANGUAGES = {
    "cpp": Language("main.cpp", "g++ -O2 -std=c++17 -o prog main.cpp", "./prog", tags=("cpp", "c++", "cc", "cxx")),
    "c": Language("main.c", "gcc -O2 -o prog main.c -lm", "./prog", tags=("c",)),
}


COMPARE = ("lines", "stripped", "tokens")
MAX_NUMBER = 400  # characters


@dataclass(frozen=True)
class Comparison:
    """When an output is the expected one.

    Args:
        compare: one of `COMPARE`.
        tolerance: numbers this near are the same; two integers only when they are equal.
        numbers: numbers written in two ways are the same.
    """

    compare: str = "lines"
    tolerance: float | None = None
    numbers: bool = False


def near(a: float | Decimal, b: float | Decimal, tolerance: float) -> bool:
    """Whether two numbers are the same but for rounding; integers, of any length, are or are not."""
    if a == b:
        return True
    if isinstance(a, int) and isinstance(b, int):
        return False
    try:
        return math.isclose(float(a), float(b), rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:
        return False


def programs(run: Run, code: str, spec: Language | None, task: Task, rule: Comparison) -> list[Result]:
    """A program run on each example's input."""
    files: dict[str, bytes] = {}
    if spec is not None:
        files = {spec.file: code.encode("utf-8", "replace")}
        if spec.compile_command:
            compiled = _compiled(run, spec, files)
            if isinstance(compiled, Result):
                return [compiled] * len(task.examples)
            files = {spec.product: compiled}
    results: list[Result] = []
    timeouts = 0
    for given, expected in task.examples:
        if timeouts >= MAX_TIMEOUTS or run.over:
            results.append(Result("candidate_timeout", "not run: the time is over"))
            continue
        result = _program(run, code, spec, files, given, expected, rule)
        if result.reason == "candidate_timeout" and not run.over:
            result = _program(run, code, spec, files, given, expected, rule, again=True)
        timeouts += result.reason == "candidate_timeout"
        results.append(result)
        if (result.reason and not run.every) or result.reason == "syntax_error":
            left = len(task.examples) - len(results)
            return results + [Result(result.reason, "not run: an earlier test failed")] * left
    return results


def _program(
    run: Run,
    code: str,
    spec: Language | None,
    files: Mapping[str, bytes],
    given: str,
    expected: str,
    rule: Comparison,
    again: bool = False,
) -> Result:
    stdin = given.encode()
    # Where /dev/stdin leads in the sandbox; few programs open it.
    beside = {STDIN: stdin} if "/dev/stdin" in code else {}
    if spec is None:
        outcome = run.python(PROGRAM.format(run.header, code), stdin, run.limits(again=again), beside)
    else:
        outcome = run.command(["/bin/sh", "-c", spec.run_command], stdin, run.limits(True, again), {**files, **beside})
    if outcome.status == "ok":
        same = same_output(outcome.stdout.decode("utf-8", "replace"), expected, rule)
        return Result("" if same else "mismatch")
    said = without_paths(outcome.stderr.decode("utf-8", "replace").strip())
    if outcome.status == "nonzero" and said.rpartition("\n")[2].partition(":")[0] in SYNTAX:
        return Result("syntax_error", said)
    return Result(STATUS.get(outcome.status, "runtime_error"), said)


def same_output(output: str, expected: str, rule: Comparison) -> bool:
    a, b = (_lines(text, rule.compare) for text in (output, expected))
    if a == b:
        return True
    if rule.compare == "tokens":
        a, b = [" ".join(a)], [" ".join(b)]
    elif rule.tolerance is None and not rule.numbers:
        return False
    rows = [(mine.split(), theirs.split()) for mine, theirs in zip(a, b, strict=False)]
    if len(a) != len(b) or any(len(mine) != len(theirs) for mine, theirs in rows):
        return False
    return all(_same_token(*pair, rule) for row in rows for pair in zip(*row, strict=True))


def _lines(text: str, compare: str) -> list[str]:
    if compare == "lines":
        return [line.rstrip() for line in text.rstrip().split("\n")]
    return [line.strip() for line in text.strip().split("\n")]


def _same_token(mine: str, theirs: str, rule: Comparison) -> bool:
    if mine == theirs:
        return True
    if rule.tolerance is None and not rule.numbers:
        return False
    a, b = _number(mine), _number(theirs)
    return a is not None and b is not None and (a == b or (rule.tolerance is not None and near(a, b, rule.tolerance)))


def _number(token: str) -> int | Decimal | None:
    """Exactly, for a float cannot tell long integers apart."""
    if len(token) > MAX_NUMBER:
        return None
    try:
        return int(token)
    except ValueError:
        pass
    try:
        number = Decimal(token)
    except ArithmeticError:
        return None
    return None if number.is_nan() else number


def language_of(
    name: str, file: str | None, compile_command: str | None, run_command: str | None, here: bool = True
) -> Language | None:
    """How programs of a language are run; None for Python. `here`: on this machine, so its tool must be there."""
    if name.lower() in PYTHON:
        return None
    known = LANGUAGES.get(name.lower())
    if known is None and (file is None or run_command is None):
        raise ValueError(
            f"verifier code: language {name!r} is not one of python, {', '.join(LANGUAGES)}; give file and run_command, "
            "and compile_command where it has one"
        )
    base = known or Language("", None, "", tags=(name.lower(),))
    spec = Language(
        file or base.file,
        compile_command or base.compile_command,
        run_command or base.run_command,
        base.product,
        base.tags,
    )
    tool = (spec.compile_command or spec.run_command).split()[0]
    if here and not tool.startswith("./") and shutil.which(tool) is None:
        raise RuntimeError(f"verifier code: {tool!r}, which language {name!r} needs, is not installed here")
    return spec


def _compiled(run: Run, spec: Language, files: Mapping[str, bytes]) -> bytes | Result:
    """The program, which comes out of the compiler's sandbox as its output, or why there is none."""
    # As text, which a sandbox elsewhere can return too.
    command = f"{spec.compile_command} 1>&2 && base64 {spec.product}"
    outcome = run.compiled(["/bin/sh", "-c", command], COMPILE, files)
    if outcome.status == "ok":
        product = binascii.a2b_base64(outcome.stdout)
        if len(product) > MAX_PRODUCT:
            return Result("output_limit", f"the compiled program has {len(product)} bytes; {MAX_PRODUCT} may be run")
        return product
    return Result(STATUS.get(outcome.status, "compile_error"), outcome.stderr[-500:].decode("utf-8", "replace"))

"""Programs that read standard input and write standard output, in Python or by command template."""

from __future__ import annotations

import binascii
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from rewards._code_run import MAX_TIMEOUTS, STATUS, SYNTAX, Result, Run
from rewards._code_task import Task
from rlpost.verify.sandbox import Limits

MAX_PRODUCT = 16 * 2**20  # bytes of a compiled program; the box it runs in holds twice as much
# Its output is the product in base64.
COMPILE = Limits(seconds=20.0, memory_mb=2048, output_kb=24 * 1024, file_mb=64, processes=True)
# `exit` is there in a Python that was started the usual way.
PROGRAM = """import builtins, sys
builtins.exit = builtins.quit = sys.exit
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


def near(a: float, b: float, tolerance: float) -> bool:
    try:
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:
        return a == b


def programs(
    run: Run, code: str, spec: Language | None, task: Task, compare: str, tolerance: float | None
) -> list[Result]:
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
        result = _program(run, code, spec, files, given, expected, compare, tolerance)
        if result.reason == "candidate_timeout" and not run.over:
            result = _program(run, code, spec, files, given, expected, compare, tolerance, again=True)
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
    compare: str,
    tolerance: float | None,
    again: bool = False,
) -> Result:
    stdin = given.encode()
    if spec is None:
        outcome = run.box.run(PROGRAM.format(code), stdin=stdin, limits=run.limits(again=again))
    else:
        outcome = run.box.command(
            ["/bin/sh", "-c", spec.run_command], stdin=stdin, files=files, limits=run.limits(True, again)
        )
    if outcome.status == "ok":
        same = _same_output(outcome.stdout.decode("utf-8", "replace"), expected, compare, tolerance)
        return Result("" if same else "mismatch")
    said = outcome.stderr[-500:].decode("utf-8", "replace").strip()
    if outcome.status == "nonzero" and said.rpartition("\n")[2].partition(":")[0] in SYNTAX:
        return Result("syntax_error", said)
    return Result(STATUS.get(outcome.status, "runtime_error"), said)


def _same_output(output: str, expected: str, compare: str, tolerance: float | None) -> bool:
    a, b = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (output, expected))
    if a == b:
        return True
    if compare == "tokens":
        a, b = [" ".join(a)], [" ".join(b)]
    rows = [(mine.split(), theirs.split()) for mine, theirs in zip(a, b, strict=False)]
    if len(a) != len(b) or any(len(mine) != len(theirs) for mine, theirs in rows):
        return False
    if compare == "lines" and tolerance is None:
        return False
    return all(_same_token(*pair, tolerance) for row in rows for pair in zip(*row, strict=True))


def _same_token(mine: str, theirs: str, tolerance: float | None) -> bool:
    if mine == theirs or tolerance is None:
        return mine == theirs
    try:
        return len(mine) < 400 and near(float(mine), float(theirs), tolerance)
    except ValueError:
        return False


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
    outcome = run.box.command(["/bin/sh", "-c", command], files=files, limits=COMPILE)
    run.deadline += outcome.seconds  # of a time of its own
    if outcome.status == "ok":
        product = binascii.a2b_base64(outcome.stdout)
        if len(product) > MAX_PRODUCT:
            return Result("output_limit", f"the compiled program has {len(product)} bytes; {MAX_PRODUCT} may be run")
        return product
    return Result(STATUS.get(outcome.status, "compile_error"), outcome.stderr[-500:].decode("utf-8", "replace"))

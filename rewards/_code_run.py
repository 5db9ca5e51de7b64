"""The candidate's process: what it is asked, how long it may take, and what its failures are called."""

from __future__ import annotations
import __future__

import ast
import binascii
import functools
import json
import marshal
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards._code_codec import Malformed, TooLarge, loads, shown
from rewards._code_task import Task
from rlpost.verify.sandbox import Limits, Outcome, Program, Sandbox, sandbox

MAX_TIMEOUTS = 2
WALL = 3.0
MAX_CRASHES = 4
REPLY = re.compile(rb'\[(-?\d{1,6}), "(value|raise)", ')
SYNTAX = ("SyntaxError", "IndentationError", "TabError")
STATUS = {"timeout": "candidate_timeout", "memory": "memory", "output": "output_limit"}
REASONS = {"MemoryError": "memory", "TooLarge": "output_limit"}


FILE = re.compile(r'File "/[^"\n]*/([^"/\n]*)"')
MAX_SAID = 500


def without_paths(text: str) -> str:
    """The end of a traceback, with the names of files and not where this machine has them."""
    return FILE.sub(r'File "\1"', text[-8 * MAX_SAID :])[-MAX_SAID:]


@dataclass(frozen=True)
class Result:
    """Of one test: `reason` is empty when it passed."""

    reason: str
    text: str = ""


class Run:
    """What one verdict may still spend, how it goes on after a failure, and where programs run.

    All its programs together have `total_seconds` of processor time, and `WALL` times as long by the clock.
    `answer_bytes`: how long a right answer of one process is, about; twice as much may be written, 1 MiB at least.
    `header`: source that the rules of the benchmark run before every program.
    `service`: the URL of a sandbox elsewhere; None is the one of this process.
    """

    def __init__(
        self,
        every: bool,
        seconds: float,
        memory_mb: int,
        total_seconds: float,
        service: str | None = None,
        answer_bytes: int = 0,
        header: str = "",
        packages: Sequence[str] = (),
        stack_mb: int = 64,
        processes: bool = False,
    ) -> None:
        self.every, self.seconds, self.memory_mb = every, seconds, memory_mb
        self.output_kb = max(1024, 2 * answer_bytes // 1024 + 64)
        self.header = header
        self.service = service
        self.stack_mb, self.processes, self.packages = stack_mb, processes, tuple(packages)
        self.box = sandbox(service, packages) if packages else sandbox(service)
        self._total, self._used = total_seconds, 0.0
        self._deadline = time.monotonic() + WALL * total_seconds

    def limits(self, processes: bool = False, again: bool = False, whole: bool = False) -> Limits:
        """`again`: for a second try; `whole`: all the time that is left."""
        left = max(0.05, self._total - self._used)
        return Limits(
            seconds=left if whole else min(self.seconds * (1 + again), left),
            memory_mb=self.memory_mb,
            output_kb=self.output_kb,
            stack_mb=self.stack_mb,
            processes=processes or self.processes,
        )

    @property
    def over(self) -> bool:
        return self._used >= self._total or time.monotonic() >= self._deadline

    def python(self, source: str, stdin: bytes, limits: Limits, files: Mapping[str, bytes] | None = None) -> Outcome:
        return self._spent(self.box.run(source, stdin=stdin, files=files, limits=limits))

    def command(self, argv: Sequence[str], stdin: bytes, limits: Limits, files: Mapping[str, bytes]) -> Outcome:
        return self._spent(self.box.command(argv, stdin=stdin, files=files, limits=limits))

    def compiled(self, argv: Sequence[str], limits: Limits, files: Mapping[str, bytes]) -> Outcome:
        """The same for a compiler, whose time is its own."""
        outcome = self.box.command(argv, files=files, limits=limits)
        self._deadline += outcome.seconds
        return outcome

    def together(self, one: Program, other: Program) -> tuple[Outcome, Outcome]:
        if not isinstance(self.box, Sandbox):
            raise Untestable(
                "the tests need the program alive beside them, and this sandbox runs one program at a time"
            )
        ours, theirs = self.box.converse(one, other)
        return self._spent(ours), self._spent(theirs)

    def _spent(self, outcome: Outcome) -> Outcome:
        self._used += outcome.cpu
        return outcome


@functools.cache
def runner(name: str) -> str:
    """A program for the sandbox: one of the files beside this one behind those it imports, compiled once."""
    tree = _Bare().visit(ast.Module([*_imported(name, set()), *_statements(name)], []))
    code = compile(
        ast.fix_missing_locations(tree),
        f"{name}.py",
        "exec",
        __future__.annotations.compiler_flag,
        dont_inherit=True,
        optimize=2,
    )
    packed = binascii.b2a_base64(marshal.dumps(code), newline=False).decode()
    return f'import binascii, marshal\nexec(marshal.loads(binascii.a2b_base64("{packed}")), globals())'


class _Bare(ast.NodeTransformer):
    """Without annotations, which nothing reads there and each process would load."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        return node.value and ast.copy_location(ast.Assign([node.target], node.value), node)


@functools.cache
def _statements(name: str) -> list[ast.stmt]:
    """A file's, but for its imports from the files beside it."""
    body = ast.parse((Path(__file__).parent / f"{name}.py").read_text()).body
    return [node for node in body if not (isinstance(node, ast.ImportFrom) and _is_ours(node.module))]


def _imported(name: str, done: set[str]) -> list[ast.stmt]:
    """The statements of the files that a file imports, each once, without what they do when they are run."""
    found: list[ast.stmt] = []
    for node in ast.parse((Path(__file__).parent / f"{name}.py").read_text()).body:
        other = (node.module or "").removeprefix("rewards.") if isinstance(node, ast.ImportFrom) else ""
        if (
            isinstance(node, ast.ImportFrom)
            and node.module != "__future__"
            and _is_ours(node.module)
            and other not in done
        ):
            done.add(other)
            found += [*_imported(other, done), *(part for part in _statements(other) if not isinstance(part, ast.If))]
    return found


def _is_ours(module: str | None) -> bool:
    return module == "__future__" or (module or "").startswith("rewards.")


class Untestable(Exception):
    """The tests need what this way of running them cannot do, whatever the response is; says what."""


def conversation(run: Run, sources: Sequence[str], request: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The report of tests that were run beside the living candidate, and how the candidate ended.

    Args:
        request: what `_code_talk` wants.
    """
    given = {"header": run.header, "sources": sources, "names": request["names"], "classes": request["classes"]}
    tests = Program(
        runner("_code_talk"),
        {"request.json": json.dumps(request).encode()},
        replace(run.limits(whole=True), output_kb=16 * 1024),
    )
    candidate = Program(
        runner("_code_partner"), {"request.json": json.dumps(given).encode()}, replace(run.limits(), waits=True)
    )
    ours, theirs = run.together(tests, candidate)
    report = json.loads(ours.stdout) if ours.status == "ok" and ours.stdout else None
    return report, STATUS.get(ours.status if report is None else theirs.status, "runtime_error")


def answers(run: Run, sources: Sequence[str], operations: Sequence[str]) -> list[str]:
    """The candidate's reply to each operation, in one process unless that one fails: the codec's text.

    A process that times out is followed by a fresh one that begins with the operation that had no reply; only when that
    one cannot do it either does the time-out count.
    """
    replies: dict[int, str] = {}
    tries: dict[int, int] = {}
    failures = {"candidate_timeout": 0, "other": 0}
    stateful = any('{"result": ' in text or '{"kept": ' in text for text in operations)

    def fail(first: int, kind: str, text: str, rest: bool) -> None:
        for index in range(first, len(operations)) if rest else (first,):
            replies.setdefault(index, json.dumps([index, "raise", kind, text]))

    while len(replies) < len(operations):
        first = min(index for index in range(len(operations)) if index not in replies)
        if run.over:
            fail(first, "candidate_timeout", "the time for all tests together is over", True)
            break
        # What depends on earlier results needs those calls again; failed ones are left out.
        skip = [i for i, text in replies.items() if not stateful or '"raise", "candidate_timeout"' in text]
        request: dict[str, Any] = {"header": run.header, "sources": sources, "skip": skip, "operations": operations}
        request["drain"] = run.service is not None
        limits = run.limits(again=first in tries)
        outcome = run.python(runner("_code_candidate"), json.dumps(request).encode(), limits)
        loaded = _read(outcome, replies, len(operations))
        if loaded is not None and loaded[0] == "raise":
            kind = "syntax_error" if loaded[1] in SYNTAX else REASONS.get(loaded[1], "runtime_error")
            fail(0, kind, f"{loaded[1]}: {loaded[2]}", True)
            break
        missing = [index for index in range(len(operations)) if index not in replies]
        if not missing:
            break
        reason = STATUS.get(outcome.status, "runtime_error")
        if reason == "candidate_timeout":
            tries[missing[0]] = tries.get(missing[0], 0) + 1
            if tries[missing[0]] < 2 and not run.over:
                continue
            failures[reason] += 1
            fail(missing[0], reason, "", not run.every or failures[reason] >= MAX_TIMEOUTS or loaded is None)
        else:
            failures["other"] += 1
            text = f"the process ended ({outcome.status}, exit code {outcome.exit_code})"
            fail(missing[0], reason, text, not run.every or failures["other"] >= MAX_CRASHES or loaded is None)
    return [replies[index] for index in range(len(operations))]


def _read(outcome: Outcome, replies: dict[int, str], count: int) -> tuple[str, str, str] | None:
    """Take up new replies; what came of loading the program, None when it did not end."""
    loaded = None
    for line in outcome.stdout.split(b"\n")[:-1]:
        if (begun := REPLY.match(line)) is None:
            continue
        index = int(begun[1])
        if index == -1 and loaded is None:
            try:
                _, outcome_, *what = loads(line.decode("ascii", "replace"), hostile=True)
                loaded = (shown(outcome_), shown(what[0], 100), shown(what[1], 500))
            except (Malformed, TooLarge, ValueError, IndexError):
                loaded = ("raise", "Exception", "")
        elif 0 <= index < count:
            replies.setdefault(index, line.decode("ascii", "replace"))
    return loaded


def sources_of(code: str, task: Task) -> list[str]:
    """The programs the response may stand for: itself behind the prompt's imports, or the rest of the prompt."""
    if not task.stub:
        return [code]
    whole = re.search(rf"^(?:async\s+def|def|class)\s+{task.entry_point}\b|^{task.entry_point}\s*=", code, re.MULTILINE)
    together = [task.stub + "\n" + code, code]
    return together if whole else [task.stub.rstrip() + "\n" + code, *together]


def reason_of(kind: str) -> str:
    where, _, name = kind.partition(":")
    if where != "candidate":
        return "mismatch"
    if name in (*STATUS.values(), "runtime_error", "syntax_error"):
        return name
    return REASONS.get(name, "runtime_error")

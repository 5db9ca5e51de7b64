"""The candidate's process: what it is asked, how long it may take, and what its failures are called."""

from __future__ import annotations

import binascii
import functools
import json
import marshal
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards._code_codec import Malformed, TooLarge, loads, shown
from rewards._code_task import Task
from rlpost.verify.sandbox import Limits, Outcome, sandbox

MAX_TIMEOUTS = 2
MAX_CRASHES = 4
REPLY = re.compile(rb'\[(-?\d{1,6}), "(value|raise)", ')
SYNTAX = ("SyntaxError", "IndentationError", "TabError")
STATUS = {"timeout": "candidate_timeout", "memory": "memory", "output": "output_limit"}
REASONS = {"MemoryError": "memory", "TooLarge": "output_limit"}


@dataclass(frozen=True)
class Result:
    """Of one test: `reason` is empty when it passed."""

    reason: str
    text: str = ""


class Run:
    """What one verdict may still spend, how it goes on after a failure, and where programs run.

    `answer_bytes`: how long a right answer of one process is, about; twice as much may be written, 1 MiB at least.
    `service`: the URL of a sandbox elsewhere; None is the one of this process.
    """

    def __init__(
        self,
        every: bool,
        seconds: float,
        memory_mb: int,
        deadline: float,
        service: str | None = None,
        answer_bytes: int = 0,
    ) -> None:
        self.every, self.seconds, self.memory_mb, self.deadline = every, seconds, memory_mb, deadline
        self.output_kb = max(1024, 2 * answer_bytes // 1024 + 64)
        self.box = sandbox(service)

    def limits(self, processes: bool = False, again: bool = False) -> Limits:
        left = max(0.05, self.deadline - time.monotonic())
        return Limits(
            seconds=min(self.seconds * (1 + again), left),
            memory_mb=self.memory_mb,
            output_kb=self.output_kb,
            processes=processes,
        )

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.deadline


@functools.cache
def runner(name: str) -> str:
    """A program for the sandbox made of the codec and one of the files beside this one, compiled once."""
    here = Path(__file__).parent
    sources = [(here / f"{part}.py").read_text() for part in ("_code_codec", name)]
    joined = sources[0].replace("from __future__ import annotations\n", "") + re.sub(
        r"^from (?:rewards\.\w+|__future__) import .*$", "", sources[1], flags=re.MULTILINE
    )
    code = compile("from __future__ import annotations\n" + joined, f"{name}.py", "exec", dont_inherit=True, optimize=2)
    packed = binascii.b2a_base64(marshal.dumps(code), newline=False).decode()
    return f'import binascii, marshal\nexec(marshal.loads(binascii.a2b_base64("{packed}")), globals())'


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
        request = {"sources": sources, "skip": skip, "operations": operations}
        limits = run.limits(again=first in tries)
        outcome = run.box.run(runner("_code_candidate"), stdin=json.dumps(request).encode(), limits=limits)
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

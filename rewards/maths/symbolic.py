"""math-verify, in a process that can be killed: asked about what our own reader cannot read.

It runs on processor time, so a loaded machine does not make an honest answer late; past its limit the kernel ends the
process, whatever it is doing. It starts on first use and stays warm.

    python -m rewards.maths.symbolic        the process: one JSON object a line in, one out
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Literal

Outcome = Literal["same", "different", "gold", "answer", "timeout"]
SECONDS = 1.0
START_SECONDS = 120.0
WALL = 6.0  # of wall clock for each second of processor time, for a loaded machine
MEMORY = 2 * 2**30
RECYCLE = 2000  # questions, after which a fresh process takes over


class SymbolicError(RuntimeError):
    """The process could not be started: nothing the answer did."""


class _Process:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self.asked = 0

    def ask(self, gold: str, answer: str, seconds: float) -> Outcome:
        """What math-verify says; `gold` or `answer` when it cannot read that one."""
        with self.lock:
            process = self._running()
            self.asked += 1
            assert process.stdin is not None
            assert process.stdout is not None
            line = json.dumps({"gold": gold, "answer": answer, "seconds": seconds}) + "\n"
            try:
                process.stdin.write(line.encode())
                process.stdin.flush()
            except BrokenPipeError:
                pass
            reply = _read_line(process.stdout, seconds * WALL + 1.0)
            if not reply:
                self.close()
                return "timeout"
            return json.loads(reply)["outcome"]

    def _running(self) -> subprocess.Popen[bytes]:
        if self.owner != os.getpid():  # after a fork the process is the parent's
            self.process, self.lock, self.owner = None, threading.RLock(), os.getpid()
        if self.process is not None and (self.asked >= RECYCLE or self.process.poll() is not None):
            self.close()
        if self.process is None:
            root = str(Path(__file__).resolve().parents[2])
            kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")}
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rewards.maths.symbolic"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**kept, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
            )
            assert self.process.stdout is not None
            self.asked = 0
            if not _read_line(self.process.stdout, START_SECONDS):
                self.close()
                raise SymbolicError(f"math-verify's process did not start within {START_SECONDS:.0f} s")
        return self.process

    def close(self) -> None:
        process, self.process = self.process, None
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        continue


def _read_line(pipe: IO[bytes], seconds: float) -> bytes:
    """One line, or nothing when the process ended or the time did."""
    end = time.monotonic() + seconds
    read = b""
    while not read.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return b""
        piece = os.read(pipe.fileno(), 65536)
        if not piece:
            return b""
        read += piece
    return read


_PROCESS = _Process()
atexit.register(_PROCESS.close)


def ask(gold: str, answer: str, seconds: float = SECONDS) -> Outcome:
    """Whether math-verify finds two normalised texts the same, within so many seconds of processor time."""
    return _PROCESS.ask(gold, answer, seconds)


# --------------------------------------------------------------------------------------------------- in the process


def _serve() -> None:
    import resource

    import math_verify

    for part in ("parser", "grader"):  # it warns that without its time-outs it must be stopped from outside: here it is
        logging.getLogger(f"math_verify.{part}").setLevel(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, question["seconds"])  # SIGPROF ends the process
        outcome = _answer(math_verify, question["gold"], question["answer"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"outcome": outcome}), flush=True)


def _answer(math_verify: Any, gold: str, answer: str) -> Outcome:
    try:
        target = _parsed(math_verify, gold)
        if not target:
            return "gold"
        found = _parsed(math_verify, answer)
        if not found:
            return "answer"
        return "same" if math_verify.verify(target, found, timeout_seconds=None) else "different"
    except (RecursionError, MemoryError):
        return "timeout"


def _parsed(math_verify: Any, text: str) -> list[Any]:
    """As LaTeX only: math-verify's other reader evaluates the text as Python."""
    return math_verify.parse(
        rf"\boxed{{{text}}}",
        extraction_config=[math_verify.LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )


if __name__ == "__main__":
    _serve()

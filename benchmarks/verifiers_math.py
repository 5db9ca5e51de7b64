"""Math graders on labelled answers, each in a process of its own with a wall limit a row.

Rows are objects with `gold`, `label` (1: equivalent) and `response`, or `pred`: then the response is
`The final answer is $\\boxed{pred}$.` (`gold_bare` and `pred_bare`, answers already extracted, are preferred where a row
has them; such a file is also run raw, as written). `policy` names a convention on which graders may differ: those rows
are counted apart. Responses without a box are made by `verifiers_unboxed.py`, in the half that rules were written with
and the half that was held out.

    python verifiers_math.py GRADER      one side: {"response", "gold"} a line in, {"score", "seconds", "cpu"} a line out
"""

from __future__ import annotations

import argparse
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

Grader = Callable[[str, str], float]
ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 300.0
ADVERSARIAL = [  # gold, answer: cheap to write, endless to evaluate, or code
    ("5", "10^{10^{10}}"),
    ("5", "9**9**9**9"),
    ("5", "2^{2^{2^{2^{2^{2}}}}}"),
    ("5", "((99!)!)!"),
    ("5", r"\binom{10^9}{5\cdot 10^8}"),
    ("5", r"\sum_{n=1}^{100000000} n"),
    ("5", r"\int_0^1 \sin(x^{x^{x}}) dx"),
    ("5", "(" * 1500 + "5" + ")" * 1500),
    ("5", r"\frac{" * 1500),
    ("5", "9" * 5000),
    ("5", "1," * 5000 + "x"),
    ("x", "(x+1)^{10000}"),
    (r"2\pi", r"2\pi+__import__('os').getpid()"),
    ("5", "[__import__('os').getpid(),5][1]"),
    ("3", r"3 \text{ or } 4"),
    ("3", ",".join(map(str, range(1000)))),
]


# ------------------------------------------------------------------------------------------------------------ sides


def ours() -> Grader:
    sys.path.insert(0, str(ROOT))
    from rewards.math_equivalence import verify

    return lambda response, gold: verify(response, gold)["score"] or 0.0


def exact_match() -> Grader:
    """The reference, character by character, in the last box, with our extraction where there is none."""
    sys.path.insert(0, str(ROOT))
    from rewards.maths.extract import EXTRACT, extract

    return lambda response, gold: float((extract(response, EXTRACT) or "").strip() == gold.strip())


def math_verify_alone() -> Grader:
    import math_verify

    def grade(response: str, gold: str) -> float:
        return float(math_verify.verify(math_verify.parse(rf"\boxed{{{gold}}}"), math_verify.parse(response)))

    return grade


def trl_accuracy_reward() -> Grader:
    from trl.rewards import accuracy_reward

    def grade(response: str, gold: str) -> float:
        found = accuracy_reward([[{"role": "assistant", "content": response}]], [rf"$\boxed{{{gold}}}$"])[0]
        return found or 0.0

    return grade


def verifiers_rubric() -> Grader:
    """MathRubric of the `verifiers` package, where it is installed."""
    from math_verify import parse, verify
    from verifiers.utils.data_utils import extract_boxed_answer

    return lambda response, gold: float(
        verify(parse(rf"\boxed{{{gold}}}"), parse(rf"\boxed{{{extract_boxed_answer(response)}}}"))
    )


def verl_math_verify() -> Grader:
    from verl.utils.reward_score import math_verify

    return lambda response, gold: float(math_verify.compute_score(response, gold))


def verl_prime_math() -> Grader:
    from verl.utils.reward_score import prime_math

    return lambda response, gold: float(prime_math.compute_score(response, gold)[0])


SIDES: dict[str, tuple[Callable[[], Grader], str]] = {  # and the package it needs
    "rlpost": (ours, "math-verify"),
    "math_verify": (math_verify_alone, "math-verify"),
    "trl accuracy_reward": (trl_accuracy_reward, "trl"),
    "verifiers": (verifiers_rubric, "verifiers"),
    "verl math_verify": (verl_math_verify, "verl"),
    "verl prime_math": (verl_prime_math, "verl"),
    "exact match": (exact_match, "rich"),
}


# -------------------------------------------------------------------------------------------------------- one side


def serve(name: str) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a grader prints is no reply
    grade = SIDES[name][0]()
    replies.write("{}\n")
    replies.flush()
    for line in sys.stdin:
        row = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        error = ""
        try:
            score = float(grade(row["response"], row["gold"]))
        except Exception as fault:  # noqa: BLE001 - a side that fails on a row is wrong on it, whatever it raises
            score, error = 0.0, repr(fault)[:200]
        seconds, spent = time.perf_counter() - wall, time.process_time() - cpu
        replies.write(json.dumps({"score": score, "seconds": seconds, "cpu": spent, "error": error}) + "\n")
        replies.flush()


class Side:
    """A grader's process: asked row by row, killed and started anew when a row takes too long."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, row: dict[str, str]) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"response": row["response"], "gold": row["gold"]}).encode() + b"\n")
        process.stdin.flush()
        reply = _line(process.stdout, self.seconds)
        if not reply:
            ended = process.poll() is not None
            self.close()
            return {"score": 0.0, "seconds": self.seconds, "cpu": self.seconds, "hang": not ended, "died": ended}
        return json.loads(reply)

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            command = [sys.executable, "-P", str(Path(__file__).resolve()), self.name]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            assert self.process.stdout is not None
            if not _line(self.process.stdout, START_SECONDS):
                self.close()
                raise RuntimeError(f"grader {self.name!r} did not start; run `{' '.join(command)}` to see why")
        return self.process

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _line(pipe: IO[bytes], seconds: float) -> bytes:
    end, read = time.monotonic() + seconds, b""
    while not read.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return b""
        piece = os.read(pipe.fileno(), 65536)
        if not piece:
            return b""
        read += piece
    return read


# ------------------------------------------------------------------------------------------------------------- rows


def load(folder: Path, limit: int | None) -> dict[str, list[dict[str, Any]]]:
    """Rows by the name of their file; suites twice, with extracted answers and raw."""
    import verifiers_unboxed  # not in a side's process, which does not look in this folder

    sets: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.rglob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:  # not splitlines(), which also cuts at U+2028 within a text
            rows = [json.loads(line) for line in lines if line.strip()]
        rows = [row for row in rows if "gold" in row and "label" in row and ("pred" in row or "response" in row)]
        if limit is not None and len(rows) > limit:
            rows = rows[:: math.ceil(len(rows) / limit)]
        if not rows:
            continue
        sets[file.stem] = [_row(row) for row in rows]
        if "pred_bare" in rows[0]:
            sets[f"{file.stem} (raw)"] = [{**_row(row), "response": row["pred"], "gold": row["gold"]} for row in rows]
    if not sets:
        raise SystemExit(
            f"{folder} has no labelled rows, also in its folders: *.jsonl with gold, label, and pred or response"
        )
    for half in verifiers_unboxed.HALVES:
        made = [row for row in verifiers_unboxed.rows() if row["half"] == half]
        made = made if limit is None else made[:: math.ceil(len(made) / limit)]
        sets[f"unboxed, {half.replace('_', ' ')}"] = [_row(row) for row in made]
    sets["adversarial"] = [
        {
            "id": f"adversarial/{k}",
            "response": rf"The final answer is $\boxed{{{a}}}$.",
            "gold": g,
            "label": 0,
            "policy": None,
        }
        for k, (g, a) in enumerate(ADVERSARIAL)
    ]
    return sets


def _row(row: dict[str, Any]) -> dict[str, Any]:
    response = row.get("response")
    if response is None:
        response = rf"The final answer is $\boxed{{{row.get('pred_bare', row['pred'])}}}$."
    return {
        "id": row.get("id", ""),
        "response": response,
        "gold": row.get("gold_bare", row["gold"]),
        "label": int(row["label"]),
        "policy": row.get("policy"),
    }


# ----------------------------------------------------------------------------------------------------------- report


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    sets = load(arguments.data, arguments.limit)
    wanted = arguments.graders or list(SIDES)
    if unknown := [name for name in wanted if name not in SIDES]:
        raise SystemExit(f"--graders {', '.join(unknown)} not known; there are: {', '.join(SIDES)}")
    names = [name for name in wanted if installed(SIDES[name][1])]
    missing = [name for name in wanted if name not in names]
    if missing:
        console.print(f"not installed here, left out: {', '.join(missing)}")
    result: dict[str, Any] = {"left_out": missing, "sets": {}, "wrong": []}
    for label, rows in sets.items():
        table = Table(
            title=f"{label}: {sum(not r['policy'] for r in rows)} rows, and {sum(bool(r['policy']) for r in rows)} of policy"
        )
        for column in (
            "grader",
            "accuracy",
            "FPR",
            "FNR",
            "policy",
            "mean ms",
            "p50",
            "p99",
            "max",
            "cpu ms",
            "hangs",
            "errors",
        ):
            table.add_column(column, justify="left" if column == "grader" else "right")
        result["sets"][label] = {}
        for name in names:
            side = Side(name, arguments.seconds)
            try:
                side.ask({"response": r"$\boxed{x+1}$", "gold": "1+x"})  # start and warm
                replies = [side.ask(row) for row in rows]
            finally:
                side.close()
            summary = summarise(rows, replies)
            result["sets"][label][name] = summary
            table.add_row(name, *cells(summary))
            if name == "rlpost":
                result["wrong"] += [
                    {**row, "score": reply["score"], "error": reply.get("error", ""), "set": label}
                    for row, reply in zip(rows, replies, strict=True)
                    if (reply["score"] >= 1) != bool(row["label"])
                ]
        console.print(table)
    _print_wrong([row for row in result["wrong"] if not row["policy"]], arguments.wrong, console)
    return result


def installed(distribution: str) -> bool:
    """By its distribution: `verifiers` is also the name of a file here."""
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def summarise(rows: list[dict[str, Any]], replies: list[dict[str, Any]]) -> dict[str, Any]:
    def rate(kept: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> float | None:
        outcomes = [(reply["score"] >= 1) == bool(row["label"]) for row, reply in kept]
        return sum(outcomes) / len(outcomes) if outcomes else None

    pairs = list(zip(rows, replies, strict=True))
    plain = [pair for pair in pairs if not pair[0]["policy"]]
    times = sorted(1000 * reply["seconds"] for reply in replies)
    right_negative, right_positive = (rate(p for p in plain if p[0]["label"] == label) for label in (0, 1))
    return {
        "rows": len(plain),
        "accuracy": rate(plain),
        "false_positive_rate": None if right_negative is None else 1 - right_negative,
        "false_negative_rate": None if right_positive is None else 1 - right_positive,
        "policy_accuracy": rate(pair for pair in pairs if pair[0]["policy"]),
        "mean_ms": sum(times) / len(times),
        "p50_ms": times[len(times) // 2],
        "p99_ms": times[min(len(times) - 1, int(len(times) * 0.99))],
        "max_ms": times[-1],
        "cpu_ms": 1000 * sum(reply["cpu"] for reply in replies) / len(replies),
        "hangs": sum(bool(reply.get("hang")) for reply in replies),
        "errors": sum(bool(reply.get("error") or reply.get("died")) for reply in replies),
    }


def cells(summary: dict[str, Any]) -> list[str]:
    share = [summary[key] for key in ("accuracy", "false_positive_rate", "false_negative_rate", "policy_accuracy")]
    times = [summary[key] for key in ("mean_ms", "p50_ms", "p99_ms", "max_ms", "cpu_ms")]
    return [
        *("-" if value is None else f"{100 * value:.1f}" for value in share),
        *(f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in times),
        str(summary["hangs"]),
        str(summary["errors"]),
    ]


def _print_wrong(rows: list[dict[str, Any]], limit: int, console: Console) -> None:
    if not rows:
        console.print("rlpost: no wrong row outside policy")
        return
    table = Table(title=f"rows where rlpost is wrong: {len(rows)}")
    for column in ("set", "id", "label", "gold", "response"):
        table.add_column(column, overflow="fold")
    for row in rows[:limit]:
        table.add_row(
            row["set"],
            row["id"],
            str(row["label"]),
            row["gold"][-80:].replace("[", r"\["),
            row["response"][-120:].replace("[", r"\["),
        )
    console.print(table)


if __name__ == "__main__":
    serve(sys.argv[1])

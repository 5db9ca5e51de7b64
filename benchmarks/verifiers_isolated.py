"""What it costs to isolate a verifier: the same verdicts of reasoning-gym's scorers in the worker, and in forks of a sandbox.

    python benchmarks/verifiers_isolated.py

Wall clock a verdict, of one worker that does nothing else, and the processor time of all its processes, which a busy
machine changes less. The sandbox is warm, as it is after the first verdict of a run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import reasoning_gym  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from rlpost.verify.foreign import Foreign  # noqa: E402
from rlpost.verify.protocol import load  # noqa: E402
from rlpost.verify.registry import resolve  # noqa: E402
from rlpost.verify.replies import scored  # noqa: E402

TASKS = ("chain_sum", "gcd", "countdown", "simple_integration", "letter_counting")
WARM = 20
TICK = 1000 / os.sysconf("SC_CLK_TCK")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="tasks of reasoning-gym")
    parser.add_argument("--verdicts", type=int, default=300, help="of each task, each way")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args(argv)
    spec = {"name": "reasoning_gym", "params": {}, "timeout": 10.0}
    bound = load("reasoning_gym", resolve("reasoning_gym"), {}, 10.0)
    began = time.perf_counter()
    foreign = Foreign([spec])
    started = time.perf_counter() - began
    measured = {}
    for task in arguments.tasks:
        samples = [_sample(task, seed) for seed in range(20)]
        inside = _timed(lambda sample: scored(bound.call, 1, [sample]), samples, arguments.verdicts)
        isolated = _timed(lambda sample: foreign.score(0, 1, [sample]), samples, arguments.verdicts, foreign.pid)
        measured[task] = {"worker": inside, "isolated": isolated}
    foreign.close()
    _show(measured, started, foreign.sandbox["tier"])
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"start_seconds": started, "milliseconds": measured}, indent=1) + "\n")
    return 0


def _sample(task: str, seed: int) -> dict[str, Any]:
    entry = json.loads(json.dumps(reasoning_gym.create_dataset(task, size=1, seed=seed)[0]))
    fields = {"reference": None, "prompt": "", "prompt_id": "p", "finish_reason": "stop", "token_count": 1}
    return {
        **fields,
        "response": f"<answer>{entry['answer']}</answer>",
        "metadata": {"task": task, "entry": entry},
    }


def _timed(
    score: Callable[[dict[str, Any]], str], samples: list[dict[str, Any]], count: int, sandbox: int | None = None
) -> dict[str, float]:
    """Milliseconds a verdict: mean, p50 and p99 of the wall clock, and of all processors."""
    for index in range(WARM):
        score(samples[index % len(samples)])
    used = time.process_time() * 1000 + _ticks(sandbox)
    walls = []
    for index in range(count):
        began = time.perf_counter()
        said = score(samples[index % len(samples)])
        walls.append((time.perf_counter() - began) * 1000)
        if '"status": "correct"' not in said:
            raise SystemExit(f"an own answer of reasoning-gym is not correct: {said[:300]}")
    used = time.process_time() * 1000 + _ticks(sandbox) - used
    return {
        "mean": statistics.mean(walls),
        "p50": statistics.median(walls),
        "p99": statistics.quantiles(walls, n=100)[98],
        "processor": used / count,
    }


def _ticks(pid: int | None) -> float:
    """Processor milliseconds of a sandbox's zygote, below the process that keeps it, and of the forks that ended."""
    if pid is None:
        return 0.0
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    zygote = below[0] if below else pid
    fields = Path(f"/proc/{zygote}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) * TICK


def _show(measured: dict[str, dict[str, dict[str, float]]], started: float, tier: str) -> None:
    console = Console()
    console.print(
        f"{platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; sandbox tier {tier}, up in {started:.1f} s"
    )
    table = Table(
        "task",
        *(f"{side} {what}" for side in ("worker", "isolated") for what in ("p50", "p99", "processor")),
        "p50 ratio",
    )
    for task, sides in measured.items():
        numbers = [
            f"{sides[side][what]:.2f}" for side in ("worker", "isolated") for what in ("p50", "p99", "processor")
        ]
        table.add_row(task, *numbers, f"{sides['isolated']['p50'] / sides['worker']['p50']:.0f}")
    console.print(table)
    console.print("milliseconds a verdict")


if __name__ == "__main__":
    raise SystemExit(main())

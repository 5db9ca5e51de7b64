"""Verifiers side by side on labelled rows: who is right, how fast, and who hangs.

    python benchmarks/verifiers.py DATA_FOLDER            math: the labelled answers in DATA_FOLDER
    python benchmarks/verifiers.py DATA_FOLDER --code     code: see verifiers_code.py

What is compared is said in `verifiers_math.py` and `verifiers_code.py`, one function a side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import verifiers_math
from rich.console import Console


def main() -> None:
    arguments = parse_arguments()
    console = Console(width=max(120, Console().width))
    result: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "machine": machine()}
    if arguments.code:
        import verifiers_code

        result["code"] = verifiers_code.run(arguments, console)
    else:
        result["math"] = verifiers_math.run(arguments, console)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1, default=str), encoding="utf-8")
        console.print(f"written to {arguments.out}")


def parse_arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description="Accuracy, latency and hangs of verifiers on labelled rows.")
    made.add_argument("data", type=Path, help="folder of labelled rows (*.jsonl) or, with --code, of problems")
    made.add_argument("--code", action="store_true", help="compare code verifiers instead of math")
    made.add_argument("--graders", nargs="*", help="only these (default: all that can be imported)")
    made.add_argument("--limit", type=int, help="so many rows of each file, spread over it")
    made.add_argument("--seconds", type=float, default=10.0, help="wall limit of one row; past it the side hangs")
    made.add_argument("--wrong", type=int, default=40, help="how many of our wrong rows to list")
    made.add_argument("--mutants", type=int, default=3, help="with --code: mutants of each problem")
    made.add_argument("--programs", type=int, default=60, help="with --code: programs timed")
    made.add_argument("--repeats", type=int, default=5, help="with --code: how often they are timed")
    made.add_argument("--out", type=Path, help="file for the JSON")
    return made.parse_args()


def machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "processor": platform.machine(), "system": platform.platform(), "python": platform.python_version(),
            "load": os.getloadavg()}  # fmt: skip


if __name__ == "__main__":
    main()

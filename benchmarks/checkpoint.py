"""What checkpoints cost the step: sealed while it runs, and saved after each step of a real run.

    python benchmarks/checkpoint.py sealed            # a checkpoint of 1 GiB, without a run
    python benchmarks/checkpoint.py saved             # the quickstart, `checkpoint.every: 1` against none

`sealed`: seconds until the run goes on and until the checkpoint is sealed, and how much longer a step (a fixed amount of
matrix products on one core) takes meanwhile. `saved`: seconds from step to step, medians, of two runs that differ in
`checkpoint.every` alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from rlpost.checkpoint import Store

ROOT = Path(__file__).parent.parent
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sealed", "saved"])
    parser.add_argument("--gib", type=float, default=1.0, help="size of the checkpoint (sealed)")
    parser.add_argument("--steps", type=int, default=12, help="of each run (saved)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlpost-bench-", dir=".") as folder:
        if arguments.what == "sealed":
            sealed(Path(folder), arguments.gib)
        else:
            saved(Path(folder), arguments.steps)


def sealed(folder: Path, gib: float) -> None:
    torch.set_num_threads(1)
    tensors = {"weights": torch.randn(int(gib * GIB / 4 / 4))}
    alone = step()

    def fill(draft: Path) -> None:
        (draft / "model").mkdir()
        (draft / "model" / "model.safetensors").touch()
        (draft / "deepspeed" / "state").mkdir(parents=True)
        for rank in range(4):  # as so many ranks would
            torch.save(tensors, draft / f"deepspeed/state/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")

    store = Store(folder / "checkpoints", "bench")
    began = time.monotonic()
    store.begin(1, {"step": 1, "ranks": 4, "zero_stage": 1}, fill)
    written = time.monotonic() - began
    beside = step()
    store.join()
    whole = time.monotonic() - began
    Console().print(
        f"checkpoint of {gib:g} GiB: the run goes on after {written:.2f} s, sealed after {whole:.2f} s "
        f"({whole / written:.2f} times); a step takes {alone:.2f} s alone and {beside:.2f} s beside it "
        f"({beside / alone:.2f} times)"
    )


def step(products: int = 60) -> float:
    """Seconds of a fixed amount of work."""
    a = torch.ones(1024, 1024)
    began = time.monotonic()
    for _ in range(products):
        a @ a
    return time.monotonic() - began


def saved(folder: Path, steps: int) -> None:
    found = {}
    for every in (0, 1):
        name = f"every{every}"
        command = [sys.executable, "-c", "from rlpost.cli import main; main()", "train", "configs/quickstart.yaml"]
        settings = [f"name={name}", f"runs_dir={folder.resolve()}", f"steps={steps}", f"checkpoint.every={every}"]
        off = ["evaluation.before=false", "evaluation.after=false", "evaluation.every=0", "observe.console=off"]
        subprocess.run([*command, *settings, *off], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        ends = [row["time/elapsed"] for row in rows if "time/total" in row]
        found[every] = statistics.median(b - a for a, b in itertools.pairwise(ends[1:]))
    Console().print(
        f"quickstart, step to step: {found[0]:.2f} s without checkpoints, {found[1]:.2f} s with `checkpoint.every: 1` "
        f"({found[1] / found[0]:.2f} times)"
    )


if __name__ == "__main__":
    main()

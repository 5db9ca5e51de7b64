"""Runs of the command that are killed and resumed, and what differs between two of them."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rlpost.exit_codes import DONE, FAULT
from tests.conftest import COUNTDOWN, ROOT, merge, tiny
from tests.integration.test_train import command, environment

# All that is told of a process or of the time, and not of the run.
OF_THE_PROCESS = re.compile(
    r"time/.*|memory/.*|tokens_per_second|verifier/(waiting|restarts)|verifier/.+/(seconds_.*|wait_.*|cache_hits)"
)

# What Ray says where it is not up in its own time, on a machine that is busy: nothing of the run was touched.
NOT_STARTED = "The current node timed out during startup"
ATTEMPTS = 3

# Rewards for a model that knows nothing yet: there is something to learn from the first step on, without a warm-up.
VERIFIERS = """
def ones(response):
    return response.count("1") / max(1, len(response))

def short(response):
    return float(len(response) < 12)
"""

# Two optimizer steps a batch under a schedule that bends; an epoch ends with step 4, an evaluation follows it.
BASE: dict = {
    "steps": 6,
    "warmup": None,
    "data": {"train": {**COUNTDOWN, "size": 32, "seed": 2}},
    "rollout": {"max_tokens": 40},
    "learner": {"schedule": "cosine", "warmup_steps": 3, "optimizer_steps_per_batch": 2},
    "evaluation": {"before": False, "after": False, "every": 4, "prompts": 4, "samples_per_prompt": 2, "k": [1]},
    "checkpoint": {"every": 2, "keep": 1},
}


class Runs:
    """Runs of one configuration in a folder of their own."""

    def __init__(self, folder: Path, changes: dict) -> None:
        self.folder = folder
        self._changes = changes
        (folder / "mine.py").write_text(VERIFIERS)

    def straight(self, name: str = "straight") -> Path:
        """A run that nothing befell."""
        return self.killed([], name)

    def killed(self, places: Sequence[tuple[str, int]], name: str = "killed") -> Path:
        """A run that is killed at each of these places (failpoint, step) in turn, and resumed each time."""
        file, run = self._file(name), self.folder / name
        for place, step in places:
            # Where a rank dies the driver says so.
            by_rank = place.startswith("rank.") or place in ("save.shard", "save.model")
            self._go(file, run, f"{place}:kill@step={step}", FAULT if by_rank else -signal.SIGKILL)
        self.said = self._go(file, run, "", DONE)
        return run

    def _go(self, file: Path, run: Path, faults: str, expected: int) -> str:
        """Start the run, or go on with it, until it ends as expected; what it said."""
        for _ in range(ATTEMPTS):
            done = subprocess.run(
                command("resume", run) if run.exists() else command("train", file),
                env=environment(faults),
                cwd=ROOT,
                text=True,
                capture_output=True,
                timeout=600,
            )
            if NOT_STARTED not in done.stderr:
                break
        assert done.returncode == expected, f"{faults}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _file(self, name: str) -> Path:
        file = self.folder / f"{name}.yaml"
        values = tiny(**merge(BASE, {"name": name, "runs_dir": str(self.folder), **self._changes}))
        train = self._changes.get("data", {}).get("train", {})
        if train and all(isinstance(source, dict) for source in train.values()):  # a mixture in place of the one source
            values["data"]["train"] = train
        if values["verifiers"] == ["countdown"]:
            values["verifiers"] = ["ones", {"name": "short", "label": "short", "weight": 0.2}]
        mine = self.folder / "mine.py"
        values["verifiers"] = [
            {**v, "name": f"{mine}:{v['name']}"} if isinstance(v, dict) else f"{mine}:{v}" for v in values["verifiers"]
        ]
        file.write_text(yaml.safe_dump(values))
        return file


def differences(one: Path, other: Path) -> list[str]:
    """What two runs do not have in common; empty for one that was resumed to the bit."""
    found = []
    mine, theirs = _metrics(one), _metrics(other)
    if len(mine) != len(theirs):
        found.append(f"{len(mine)} lines of metrics and {len(theirs)}")
    for a, b in zip(mine, theirs, strict=False):
        names = [name for name in sorted(a.keys() | b.keys()) if not OF_THE_PROCESS.fullmatch(name)]
        found += [f"step {a['step']}: {n} {a.get(n)!r}, {b.get(n)!r}" for n in names if a.get(n) != b.get(n)]
    for name in sorted({p.name for run in (one, other) for p in (run / "rollouts").iterdir()}):
        tables = [pq.read_table(run / "rollouts" / name) for run in (one, other)]
        found += [f"{name}: {c}" for c in tables[0].column_names if not tables[0][c].equals(tables[1][c])]
    if _weights(one) != _weights(other):
        found.append("the weights")
    return found


def rollouts(run: Path) -> pa.Table:
    """Of all steps."""
    return pa.concat_tables([pq.read_table(path) for path in sorted((run / "rollouts").iterdir())])


def _metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _weights(run: Path) -> list[tuple[str, str]]:
    """Of each file of weights of the last checkpoint its path and SHA-256."""
    newest = max((run / "checkpoints").iterdir())
    files = sorted(newest.glob("model/*.safetensors"))
    assert files
    return [(str(f.relative_to(newest.parent)), hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]

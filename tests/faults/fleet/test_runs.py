"""Runs whose engines die, through the command a user types: they end with the weights of a run that lost nothing, or with 5."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.integration.test_train import command, environment

pytestmark = [pytest.mark.integration, pytest.mark.long]

# Random weights hit no target of Countdown, and without rewards that differ nothing would be learned.
LENGTHS = "def score(response, reference):\n    return (len(response) % 5) / 4\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(folder, write_config):
    """Train, with faults each of which is once, in a run of its own; gives its folder and what was said."""
    verifier = folder / "lengths.py"
    verifier.write_text(LENGTHS)

    def train(name: str, faults: str, expect: int = 0, **rollout: object) -> tuple[Path, str]:
        once = folder / f"{name}.once"
        once.mkdir()
        path = write_config(
            f"{name}.yaml",
            name=name,
            runs_dir=str(folder),
            steps=4,
            warmup=None,
            verifiers=[f"{verifier}:score"],
            evaluation={"before": False, "after": False},
            checkpoint={"every": 0},
            rollout={"engines": 2, "threads": 1, **rollout},
        )
        done = subprocess.run(
            command("train", path),
            env={**environment(faults), "RLPOST_FAULTS_ONCE": str(once)},
            cwd=ROOT,
            text=True,
            capture_output=True,
            timeout=400,
        )
        said = done.stdout + done.stderr
        assert done.returncode == expect, said
        return folder / name, said

    return train


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "step_000004" / "model" / "model.safetensors").read_bytes()


def replaced(run: Path) -> list[str]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["who"] for event in events if event["kind"] == "engine" and "is being replaced" in event["what"]]


@pytest.fixture
def undisturbed(run, folder) -> bytes:
    if not (folder / "undisturbed").is_dir():
        path, _ = run("undisturbed", "")
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert all(row["grad_norm"] > 0 and row["engines/replaced"] == 0 for row in rows)
    return weights(folder / "undisturbed")


def test_engines_killed_while_sampling_and_while_updating_change_no_bit(run, undisturbed):
    faults = "engine.sample:kill@step=2@index=1@once,engine.update:kill@step=3@index=0@once"
    path, _ = run("killed", faults)
    assert replaced(path) == ["engine 1", "engine 0"]
    assert weights(path) == undisturbed

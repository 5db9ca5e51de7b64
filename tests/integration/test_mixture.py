"""Several sources in one run, and a prompt again and again in one step, through the command a user types."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import COUNTDOWN, tiny
from tests.integration.test_train import metrics, rlpost

pytestmark = pytest.mark.integration

ONES = """
def ones(response):
    return response.count("1") / max(1, len(response))

def short(response):
    return float(len(response) < 12)
"""


def rollouts(run: Path, step: int) -> list[dict]:
    return pq.read_table(run / "rollouts" / f"step_{step:06d}.parquet").to_pylist()


@pytest.fixture
def file(tmp_path: Path):
    """Write `tiny` without a warm-up, with verifiers of the test's own."""
    mine = tmp_path / "mine.py"
    mine.write_text(ONES)

    def written(name: str, **changes: Any) -> tuple[Path, Path]:
        data = changes.pop("data")
        values = {**tiny(**changes), "warmup": None, "name": name, "runs_dir": str(tmp_path)}
        values["data"] |= data
        values["verifiers"] = [f"{mine}:ones", {"name": f"{mine}:short", "label": "short"}]
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path, tmp_path / name

    return written


def test_one_prompt_is_overfitted_by_samples_that_all_differ(file):
    path, run = file(
        "one-shot",
        steps=10,
        data={"train": {**COUNTDOWN, "size": 1, "seed": 1}, "test": None},
        rollout={"samples_per_prompt": 8},
        learner={"prompts_per_step": 4, "lr": 5e-3},
        evaluation={"before": False, "after": False},
        checkpoint={"every": 0},
    )
    done = rlpost("train", path, "verifiers.1.weight=0")
    assert "data.train has 1 prompt, a step takes 4: each is drawn 4 times a step" in " ".join(done.stdout.split())
    rows = metrics(run)
    assert [row["prompts/repeated"] for row in rows] == [3] * 10
    for step in (1, 10):
        sampled = rollouts(run, step)
        assert len({row["prompt_id"] for row in sampled}) == 1
        assert len({row["seed"] for row in sampled}) == len(sampled) == 32
        assert [row["group"] for row in sampled] == [4 * (step - 1) + i // 8 for i in range(32)]
    first = {tuple(r["response"] for r in rollouts(run, 1) if r["group"] == group) for group in range(4)}
    assert len(first) == 4, "no group is a copy of another"
    assert rows[-1]["reward/mean"] > rows[0]["reward/mean"] + 0.2


def test_a_mixture_meets_its_shares_in_every_step_and_resumes_to_the_bit(file):
    mixture = {
        "steps": 4,
        "evaluation": {"before": False},
        "data": {
            "train": {
                "a": {**COUNTDOWN, "size": 30, "seed": 1, "weight": 3},
                "b": {**COUNTDOWN, "size": 3, "seed": 2, "verifiers": ["short"], "template": {"prompt": "{prompt} "}},
            },
            "test": {
                "a": {**COUNTDOWN, "size": 4, "seed": 3, "prompts": 3, "max_tokens": 20},
                "b": {**COUNTDOWN, "size": 4, "seed": 4, "verifiers": ["short"], "k": [1], "samples_per_prompt": 2},
            },
        },
        "learner": {"prompts_per_step": 6},
    }
    path, straight = file("straight", **mixture)
    rlpost("train", path)
    rows = metrics(straight)
    for step, row in enumerate(rows, 1):
        found = Counter(r["prompt_id"].split("/")[0] for r in rollouts(straight, step) if r["sample"] == 0)
        assert found == {"a": row["source/a/groups"], "b": row["source/b/groups"]}
        assert abs(row["source/a/groups"] - 4.5) < 1
        assert {"source/a/reward/mean", "source/b/train/pass@1", "source/a/length/mean"} <= row.keys()
    assert sum(row["source/b/groups"] for row in rows) == 6
    for row in rollouts(straight, 1):
        expected = {"short"} if row["prompt_id"].startswith("b/") else {*json.loads(row["verdicts"])}
        assert set(json.loads(row["verdicts"])) == expected
        assert len(expected) == (1 if row["prompt_id"].startswith("b/") else 2)
    after = json.loads((straight / "summary.json").read_text())["eval"]["after"]
    assert {"a/pass@1", "a/pass@4", "b/pass@1"} <= after.keys()
    assert "b/pass@4" not in after

    path, killed = file("killed", **mixture)
    rlpost("train", path, faults="driver.kill@step=3", expect=-signal.SIGKILL)
    rlpost("resume", killed)
    for step in (3, 4):
        mine, theirs = rollouts(killed, step), rollouts(straight, step)
        assert [r["seed"] for r in mine] == [r["seed"] for r in theirs]
    a, b = (run / "checkpoints" / "step_000004" / "model" / "model.safetensors" for run in (straight, killed))
    assert a.read_bytes() == b.read_bytes(), "the weights are the same bits"

    refused = rlpost(
        "resume", killed, "steps=8", f"data.train.c={json.dumps({**COUNTDOWN, 'size': 5, 'seed': 5})}", expect=2
    )
    assert "is of the sources a, b, and this run has a, b, c" in " ".join(refused.stderr.split())
    out = killed / "eval.json"
    rlpost("eval", killed, "--set", "b", "--k", "1,2", "--out", out)
    found = json.loads(out.read_text())
    assert (set(found["pass"]), found["verifier"]) == ({"b/pass@1", "b/pass@2"}, {"b": "short"})

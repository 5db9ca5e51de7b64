"""A warm-up that is killed or stopped goes on from its last checkpoint, to the same model, and is no matter to others."""

from __future__ import annotations

import os
import signal

import pytest

from tests.conftest import COUNTDOWN
from tests.integration.test_train import rlpost

pytestmark = pytest.mark.integration
WARMUP = {
    "train": {**COUNTDOWN, "size": 120, "seed": 1},
    "steps": 40,
    "prompts_per_step": 8,
    "lr": 3e-3,
    "schedule": "linear",
    "warmup_steps": 5,
}
PLAIN = {"warmup": WARMUP, "checkpoint": {"every": 6, "keep": 1}}


def weights(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.safetensors"))}


def shown(number: int):
    return lambda line: line.startswith(f"warm-up step {number}/40")


def test_a_warm_up_killed_and_stopped_ends_as_one_that_was_not(start, write_config, tmp_path):
    runs = tmp_path / "runs"
    path = write_config("plain.yaml", name="plain", **PLAIN)
    rlpost("sft", path)
    expected = weights(runs / "plain" / "model")
    assert expected
    assert not (runs / "plain" / "warmup").exists(), "nobody needs its checkpoints any more"

    run = runs / "fallen"
    job = start(run, "sft", write_config("fallen.yaml", name="fallen", **PLAIN))
    job.until(shown(14))
    os.kill(job.process.pid, signal.SIGKILL)
    job.end()
    assert not (run / "model").exists()
    assert [p.name for p in (run / "warmup").iterdir()] == ["step_000012"]

    # Another run that wants the same model is not concerned, and a second fault is as good as one.
    job = start(run, "resume", run)
    job.until(shown(20))
    job.process.send_signal(signal.SIGTERM)
    out = job.end()
    assert job.process.returncode == 6, out
    assert "warm-up: resuming after step 12 of 40" in out
    (saved,) = (run / "warmup").iterdir()
    assert f"stopped after step {int(saved.name[5:])} of the warm-up; continue with: rlpost resume" in " ".join(
        out.split()
    )
    rlpost("resume", run)
    assert weights(run / "model") == expected
    rlpost("resume", run, expect=3)


@pytest.mark.long
def test_of_two_runs_that_warm_the_same_model_up_one_is_killed_and_the_other_is_not_concerned(
    start, write_config, tmp_path
):
    quick = {**PLAIN, "steps": 1, "evaluation": {"before": False, "after": False}}
    jobs = {}
    for name in ("one", "two"):
        run = tmp_path / "runs" / name
        jobs[name] = start(run, "train", "--restarts", 1, write_config(f"{name}.yaml", name=name, **quick))
    jobs["one"].until(shown(14))
    os.kill(jobs["one"].driver(), signal.SIGKILL)
    for name, job in jobs.items():
        out = job.end()
        assert job.process.returncode == 0, out
        assert not (tmp_path / "runs" / name / "warmup").exists()
        assert not job.left()
    made = sorted(p.name.split("-")[0] for p in (tmp_path / "runs" / ".models").iterdir())
    assert made == ["new", "warm"]

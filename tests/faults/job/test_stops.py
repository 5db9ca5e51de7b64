"""A stop that is asked for at any moment ends with 6 and a checkpoint of the last step, and what resumes ends the same."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import yaml

from rlpost.exit_codes import DONE, NOTHING_TO_DO, PREEMPTED
from tests.conftest import COUNTDOWN, tiny
from tests.integration.test_train import metrics, rlpost

pytestmark = pytest.mark.integration
QUICK = {"warmup": None, "evaluation": {"before": False, "after": False}}


def wait_for(file: Path, text: str, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not (file.exists() and text in file.read_text()):
        assert time.monotonic() < until, f"no {text!r} in {file}"
        time.sleep(0.1)


def test_a_stop_while_an_engine_samples_waits_for_nobody(start, write_config, tmp_path):
    """The engine never comes to an end of it: what was finished is saved all the same."""
    run = tmp_path / "runs" / "hung"
    path = write_config(name="hung", steps=3, checkpoint={"every": 0}, **QUICK)
    job = start(run, "train", path, faults="engine.sample:hang@step=3")
    wait_for(run / "metrics.jsonl", '"step": 2')
    time.sleep(2)
    job.process.send_signal(signal.SIGTERM)
    out = job.end()
    assert job.process.returncode == PREEMPTED, out
    assert f"stopped after step 2; continue with: rlpost resume {run}" in " ".join(out.split())
    assert not job.stays()
    rlpost("resume", run)
    assert [row["step"] for row in metrics(run)] == [1, 2, 3]


@pytest.mark.long
def test_time_that_runs_out_is_a_stop_in_good_time(start, write_config, tmp_path):
    run = tmp_path / "runs" / "timed"
    path = write_config(name="timed", steps=100_000, checkpoint={"every": 0, "minutes": 0.02}, **QUICK)
    job = start(run, "train", path, "time_limit=100s", "alarms.no_signal_steps=100000")
    out = job.end()
    assert job.process.returncode == PREEMPTED, out
    last = metrics(run)[-1]["step"]
    assert last > 1
    assert f"stopped after step {last}; continue with: rlpost resume {run}" in " ".join(out.split())
    kept = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert kept[-1] == f"step_{last:06d}"
    assert len(kept) == 2, "saved by the clock on its way"
    assert not job.stays()


# ------------------------------------------------------------------------------------------------- at random moments

WHOLE = {
    "steps": 4,
    "checkpoint": {"every": 2},
    "warmup": {"train": {**COUNTDOWN, "size": 60, "seed": 1}, "steps": 30, "prompts_per_step": 8},
    "evaluation": {"every": 2, "prompts": 6, "samples_per_prompt": 2, "k": [1]},
}


def result(run: Path) -> tuple[dict, dict[str, bytes]]:
    found = json.loads((run / "summary.json").read_text())
    newest = max((run / "checkpoints").glob("step_*"))
    return found["eval"], {p.name: p.read_bytes() for p in (newest / "model").glob("*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[float, tuple]:
    """How long a whole run takes here, and what comes of it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(tiny(runs_dir=str(folder), name="run", **WHOLE)))
    began = time.monotonic()
    rlpost("train", path)
    return time.monotonic() - began, result(folder / "run")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_a_stop_at_a_random_moment(start, write_config, tmp_path, undisturbed, seed, capsys):
    lasts, expected = undisturbed
    chance = random.Random(seed)
    moment, number = (
        lasts * (seed + chance.random()) / 10,
        chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]),
    )
    run = tmp_path / "runs" / "run"
    path = write_config(name="run", **WHOLE)
    job = start(run, "train", path)
    time.sleep(moment)
    began = time.monotonic()
    job.process.send_signal(number)
    out = job.end()
    with capsys.disabled():
        phase = next((line for line in reversed(out.splitlines()) if line and "stop" not in line), "")
        print(
            f"\n{number.name} after {moment:.1f} s: exit {job.process.returncode} in {time.monotonic() - began:.1f} s ({phase[:60]})"
        )
    # Before Python has come to our first line the signal is the kernel's; and a run that was done stays so.
    assert job.process.returncode in (PREEMPTED, DONE, -number), out
    begun = (run / "manifest.json").exists()
    assert job.process.returncode != -number or not begun
    assert not job.stays()
    if begun:
        rlpost("resume", run, expect=NOTHING_TO_DO if job.process.returncode == DONE else DONE)
    else:
        rlpost("train", path)
    assert result(run) == expected
    assert [row["step"] for row in metrics(run)] == [1, 2, 3, 4]


@pytest.mark.long
@pytest.mark.parametrize("place", ["engine.sample:hang@step=2", "rank.forward:hang@step=2"])
def test_the_second_signal_ends_at_once_whatever_hangs(start, write_config, tmp_path, place):
    run = tmp_path / "runs" / "hung"
    job = start(run, "train", write_config(name="hung", steps=3, checkpoint={"every": 1}, **QUICK), faults=place)
    wait_for(run / "metrics.jsonl", '"step": 1')
    time.sleep(3)
    os.kill(job.process.pid, signal.SIGTERM)
    os.kill(job.process.pid, signal.SIGINT)
    out = job.end()
    assert job.process.returncode == 130, out
    assert not job.stays()

"""A run that breaks says who broke it and saves what it can: real Ray, vLLM, DeepSpeed, real signals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlpost import events
from rlpost.exit_codes import ALARM, FAULT
from tests.conftest import tiny
from tests.faults.resume.runs import differences
from tests.integration.test_train import rlpost

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

QUICK = {
    "steps": 4,
    "warmup": None,
    "evaluation": {"before": False, "after": False},
    "checkpoint": {"every": 50},
    "learner": {"deadline": 20},
}


@pytest.fixture
def config(write_config, tmp_path):
    def write(name: str, **changes: object) -> tuple[Path, Path]:
        values = tiny(**QUICK)
        learner = {**values["learner"], **changes.pop("learner", {})}
        return write_config(
            f"{name}.yaml", name=name, **{**QUICK, **changes, "learner": learner}
        ), tmp_path / "runs" / name

    return write


def saved(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def kinds(run: Path) -> list[str]:
    return [event.kind for event in events.read(run / "events.jsonl")]


@pytest.mark.long
def test_a_rank_that_is_stopped_among_two_is_named_with_phase_and_step(config):
    path, run = config("stopped", learner={"ranks": 2})
    said = rlpost("train", path, faults="rank.backward:stop@step=2@index=1", expect=FAULT).stderr
    line = next(line for line in said.splitlines() if line.startswith("rlpost: "))
    assert "learner rank 1 (process " in line
    assert "is stopped in learning, step 2 (SIGSTOP" in line
    assert "learner rank 0" not in line
    (event,) = [e for e in events.read(run / "events.jsonl") if e.kind == "fault"]
    assert (event.who, event.step, event.phase) == ("learner rank 1", 2, "learning")
    (stacks,) = (run / "logs").glob("stacks_*.txt")
    assert "learner rank 1, process " in stacks.read_text()
    assert saved(run) == []  # the learner is what broke, in the middle of a step


@pytest.mark.long
@pytest.mark.parametrize(("place", "step"), [("driver.sampled", 2), ("driver.synced", 3)])
def test_what_is_saved_on_the_way_out_of_a_fault_goes_on_as_if_nothing_had_been(config, place, step):
    """A fault of the driver's own; a step that the learner had taken is finished first."""
    path, run = config("broken")
    rlpost("train", path, faults=f"{place}:raise@step=3", expect=FAULT)
    assert saved(run) == [f"step_{step:06d}"]
    assert [kind for kind in kinds(run) if kind in ("fault", "checkpoint")] == ["fault", "checkpoint"]
    rlpost("resume", run)
    path, straight = config("straight")
    rlpost("train", path)
    assert differences(run, straight) == []


@pytest.mark.long
def test_the_step_of_an_alarm_is_taken_by_who_asks_for_it(config):
    path, run = config("alarm", warmup=None, learner={"lr": 0.01})
    said = rlpost("train", path, faults="sync.skip@step>=1", expect=ALARM)
    (name,) = saved(run)
    step = int(name.removeprefix("alarm_"))
    assert f"--step {step} goes on from it" in said.stdout + said.stderr
    assert f"{name}: it is of an alarm; --step {step} takes it" in rlpost("resume", run, expect=2).stderr
    done = rlpost("resume", run, "--step", step)
    assert f"from {name}" in done.stdout
    assert kinds(run)[-1] == "ended"


@pytest.mark.long
def test_a_loss_that_is_no_number_stops_as_an_alarm_and_leaves_its_batch(config):
    path, run = config("wild", learner={"lr": 1e9, "grad_clip": 1e9})
    said = rlpost("train", path, expect=ALARM).stderr
    assert "not a finite number" in said
    (batch,) = (run / "logs").glob("nonfinite_step_*.npz")
    assert str(batch) in said
    arrays = np.load(batch, allow_pickle=False)
    assert arrays["response_lengths"].sum() == len(arrays["behavior_logp"])

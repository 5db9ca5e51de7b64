"""Nothing of the user's is lost, through the command a user types: real Ray, vLLM, DeepSpeed."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import COUNTDOWN, ROOT
from tests.integration.test_train import command, environment, metrics, rlpost

pytestmark = pytest.mark.integration

QUICK = {"warmup": None, "evaluation": {"before": False, "after": False}, "steps": 2, "checkpoint": {"every": 1}}


@pytest.fixture
def config(write_config, tmp_path):
    def write(name: str, **changes: object) -> tuple[Path, Path]:
        return write_config(f"{name}.yaml", name=name, **{**QUICK, **changes}), tmp_path / "runs" / name

    return write


def steps(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


def test_copies_stay_damage_is_passed_over_and_the_best_stays(config, tmp_path):
    path, run = config(
        "kept",
        steps=4,
        learner={"schedule": "linear", "lr": 1e-3},
        evaluation={"before": False, "after": True, "every": 1, "prompts": 4, "samples_per_prompt": 2, "k": [1]},
        checkpoint={"every": 2, "keep": 1, "best": {"metric": "nll", "mode": "max"}},
    )
    rlpost("train", path)
    scores = {row["step"]: row["eval/nll"] for row in metrics(run, evaluations=True)}
    best = max(scores, key=lambda step: (scores[step], step))
    assert steps(run) == sorted({f"step_{best:06d}", "step_000004"})
    shutil.copytree(run / "checkpoints" / "step_000004", run / "checkpoints" / "step_000099")
    rlpost("export", run, "--to", tmp_path / "best", "--step", "best", "--check", "transformers")
    assert f"step {best}." in (tmp_path / "best" / "README.md").read_text()
    # A copy stands in for what is damaged, under the step it was copied from.
    (run / "checkpoints" / "step_000004" / "manifest.json").write_text('{"step": 4, "fi')
    done = rlpost("resume", run, "steps=5", "evaluation.after=false")
    assert "checkpoint passed over: step_000004: manifest.json cannot be read" in done.stdout + done.stderr
    assert "resuming" in done.stdout
    rates = [row["lr"] for row in metrics(run)]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4, 1.25e-4])
    assert {"step_000004", "step_000099", "step_000005"} <= set(steps(run))


def test_other_ranks_go_on_with_the_optimizer_or_with_the_weights_alone(config):
    path, run = config("shared", steps=1, learner={"schedule": "linear", "lr": 1e-3})
    rlpost("train", path)
    alone = run.with_name("alone")
    shutil.copytree(run, alone)
    other = ("steps=3", "learner.ranks=2", "learner.zero_stage=1")
    assert "is dealt out anew" in rlpost("resume", run, *other).stdout
    assert [row["lr"] for row in metrics(run)] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3]), "it goes on falling"
    rlpost("resume", alone, *other, "resume.only=[model]")
    assert [row["lr"] for row in metrics(alone)] == pytest.approx([1e-3, 1e-3, 5e-4]), "the schedule begins anew"
    for made in (run, alone):
        assert all(row["mismatch/logp_abs_max"] < 1e-4 for row in metrics(made)), "engines serve the learner's weights"


@pytest.mark.long
def test_two_runs_at_once_that_make_one_model_both_come_to_their_end(config, tmp_path):
    runs = []
    warmup = {
        "train": {**COUNTDOWN, "size": 60, "seed": 1},
        "steps": 2,
        "prompts_per_step": 4,
    }
    for name in ("one", "two"):
        path, _ = config(name, steps=0, warmup=warmup)
        runs.append(
            subprocess.Popen(
                command("train", path),
                env=environment(),
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    said = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    made = sorted(p.name.split("-")[0] for p in (tmp_path / "runs" / ".models").iterdir())
    assert made == ["new", "warm"]


@pytest.mark.parametrize(
    ("number", "said", "where"),
    [(signal.SIGTERM, "starting the learner", "before"), (signal.SIGHUP, "evaluating (before)", "before")],
)
@pytest.mark.usefixtures("hang_ups_heard")
def test_a_stop_before_the_first_step_ends_at_once_and_leaves_nobody_behind(config, number, said, where):
    warmup = {"train": {**COUNTDOWN, "size": 60, "seed": 1}, "steps": 2, "prompts_per_step": 4}
    path, run = config("stopped", warmup=warmup, evaluation={"before": True, "after": False})
    process = subprocess.Popen(
        command("train", path),
        env={**environment(), "RLPOST_TEST_RUN": str(run)},
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        lines = []
        while said not in (line := process.stdout.readline()):
            assert line, lines
            lines.append(line)
        process.send_signal(number)
        out = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 6, out
    assert f"stopped {where} the first step; start anew with: rlpost resume {run}" in " ".join(out.split())
    assert not [pid for pid in Path("/proc").glob("[0-9]*") if _belongs(pid, str(run)) and "ray::" in _cmdline(pid)]


def _belongs(pid: Path, mark: str) -> bool:
    try:
        return f"RLPOST_TEST_RUN={mark}".encode() in (pid / "environ").read_bytes()
    except OSError:
        return False


def _cmdline(pid: Path) -> str:
    try:
        return (pid / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""

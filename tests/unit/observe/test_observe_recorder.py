"""One object records a run; what a resume undid is gone, what it kept still counts."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console as RichConsole

from rlpost import config as schema
from rlpost.config import Config, ConfigError
from rlpost.observe import Console, Recorder, RunFolder, RunFolderError, read_metrics, read_rollouts
from rlpost.types import Prompt, Rollout


def configured(**observe) -> Config:
    return schema.parse(
        {
            "steps": 4,
            "seed": 5,
            "model": {"path": "m"},
            "data": {"train": {"source": "reasoning_gym", "task": "countdown", "size": 8}, "holdout": 2},
            "verifiers": ["math"],
            "observe": {"console": "plain", "sinks": [], **observe},
        }
    )


def new_folder(tmp_path: Path, config: Config) -> RunFolder:
    return RunFolder.create(tmp_path, "a", schema.dump(config), [], config.seed)


def recorder(folder: RunFolder, config: Config, resumed_at: int | None = None) -> tuple[Recorder, io.StringIO]:
    out = io.StringIO()
    console = Console("plain", config.steps, RichConsole(file=out, width=100))
    return Recorder(folder, config, console, resumed_at), out


def one_rollout() -> tuple[Rollout, dict[str, Prompt]]:
    ids = np.zeros(2, np.int32)
    rollout = Rollout("p", 0, 0, ids, ids, ids.astype(np.float32), ids, "stop", "hi", seed=1)
    return rollout, {"p": Prompt("p", "say hi", ids)}


def record_step(r: Recorder, step: int) -> None:
    rollout, prompts = one_rollout()
    r.step(step, {"reward/mean": step / 4})
    r.rollouts(step, [rollout], prompts, [None], [False])


def test_a_whole_run_leaves_metrics_rollouts_summary_and_a_closing_table(tmp_path: Path) -> None:
    config = configured()
    folder = new_folder(tmp_path, config)
    r, out = recorder(folder, config)
    with r:
        r.evaluation("before", 0, {"pass@1": (0.2, 0.1, 0.3)})
        record_step(r, 1)
        r.evaluation("during", 1, {"pass@1": (0.3, 0.2, 0.4)})
        record_step(r, 2)
        r.evaluation("after", 2, {"pass@1": (0.6, 0.5, 0.7)})
        written = r.finish({"stopped_by": "steps"})

    rows = read_metrics(folder.metrics)
    assert [(row["step"], row.get("when")) for row in rows] == [
        (0, "before"),
        (1, None),
        (1, "during"),
        (2, None),
        (2, "after"),
    ]
    assert (rows[0]["eval/pass@1"], rows[0]["eval/pass@1/low"], rows[0]["eval/pass@1/high"]) == (0.2, 0.1, 0.3)
    assert read_rollouts(folder.rollout_file(2))["response"].to_pylist() == ["hi"]

    summary = json.loads(folder.summary.read_text())
    assert summary == json.loads(json.dumps(written))
    assert summary["eval"] == {"before": {"pass@1": [0.2, 0.1, 0.3]}, "after": {"pass@1": [0.6, 0.5, 0.7]}}
    assert (summary["steps"], summary["seed"], summary["stopped_by"]) == (2, 5, "steps")
    assert summary["seconds"] >= rows[-1]["time/elapsed"] > 0
    assert "+0.400" in out.getvalue()
    assert str(folder.summary) in out.getvalue()


def test_a_resumed_run_forgets_later_steps_and_keeps_the_evaluation_and_time_before(tmp_path: Path) -> None:
    config = configured()
    folder = new_folder(tmp_path, config)
    first, _ = recorder(folder, config)
    with first:
        first.evaluation("before", 0, {"pass@1": (0.2, 0.1, 0.3)})
        for step in (1, 2, 3):
            record_step(first, step)
    spent = read_metrics(folder.metrics)[2]["time/elapsed"]

    second, _ = recorder(RunFolder.open(folder.path), config, resumed_at=2)
    with second:
        assert [row["step"] for row in read_metrics(folder.metrics)] == [0, 1, 2]
        assert sorted(p.name for p in folder.rollouts.iterdir()) == ["step_000001.parquet", "step_000002.parquet"]
        record_step(second, 3)
        written = second.finish({})
    assert written["eval"] == {"before": {"pass@1": (0.2, 0.1, 0.3)}}
    assert written["steps"] == 3
    assert written["seconds"] > spent


def test_two_recorders_cannot_write_one_run(tmp_path: Path) -> None:
    config = configured()
    r, _ = recorder(new_folder(tmp_path, config), config)
    with r, pytest.raises(RunFolderError, match="being written"):
        recorder(RunFolder.open(tmp_path / "a"), config)
    again, _ = recorder(RunFolder.open(tmp_path / "a"), config, resumed_at=0)
    again.close()


def test_a_recorder_that_cannot_start_lets_go_of_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ConfigError, match="rlpost\\[wandb\\]"):
        recorder(new_folder(tmp_path, configured()), configured(sinks=["wandb"]))
    r, _ = recorder(RunFolder.open(tmp_path / "a"), configured())
    r.close()


def test_rollouts_are_not_kept_when_the_configuration_says_so(tmp_path: Path) -> None:
    config = configured(rollouts=False)
    folder = new_folder(tmp_path, config)
    r, _ = recorder(folder, config)
    with r:
        record_step(r, 1)
    assert list(folder.rollouts.iterdir()) == []


def test_trackers_get_steps_and_evaluations(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configured(sinks=["tensorboard"])
    folder = new_folder(tmp_path, config)
    r, _ = recorder(folder, config)
    with r:
        record_step(r, 1)
        r.evaluation("after", 1, {"pass@1": (0.5, 0.25, 0.75)})
    read = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [(e.step, e.value) for e in read.Scalars("reward/mean")] == [(1, 0.25)]
    assert [(e.step, e.value) for e in read.Scalars("eval/pass@1/high")] == [(1, 0.75)]

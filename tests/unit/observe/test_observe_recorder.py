"""One object records a run; what a resume undid is gone, what it kept still counts."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console as RichConsole

from rlpost import config as schema
from rlpost import events
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
        r.evaluation("during", 1, {"pass@1": (0.3, 0.2, 0.4)}, {"unverified": 3})
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
    assert rows[2]["eval/unverified"] == 3
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
            first.evaluation(f"step {step}", step, {"pass@1": (0.3, 0.2, 0.4)})
    spent = read_metrics(folder.metrics)[3]["time/elapsed"]

    second, _ = recorder(RunFolder.open(folder.path), config, resumed_at=2)
    with second:
        # The evaluation at step 2 comes after its checkpoint: it will be made again.
        left = [(row["step"], row.get("when")) for row in read_metrics(folder.metrics)]
        assert left == [(0, "before"), (1, None), (1, "step 1"), (2, None)]
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


class Tracker:
    """A sink that fails when told to, and counts what it is asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fails = False
        self.steps: list[int] = []
        self.closed = 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.append(step)
        if self.fails:
            raise OSError("503 from the server")

    def close(self) -> None:
        self.closed += 1
        if self.fails:
            raise OSError("still 503")


@pytest.fixture
def trackers(monkeypatch) -> list[Tracker]:
    made = [Tracker("bad"), Tracker("good")]
    monkeypatch.setattr("rlpost.observe.recorder.make_sinks", lambda *_: made)
    return made


def test_a_tracker_that_fails_is_warned_of_once_and_left_out_and_the_run_goes_on(tmp_path: Path, trackers) -> None:
    bad, good = trackers
    config = configured()
    folder = new_folder(tmp_path, config)
    r, out = recorder(folder, config)
    with r:
        record_step(r, 1)
        bad.fails = True
        r.evaluation("step 1", 1, {"pass@1": (0.3, 0.2, 0.4)})
        record_step(r, 2)
    assert (bad.steps, good.steps) == ([1, 1], [1, 1, 2])
    assert (bad.closed, good.closed) == (1, 1)
    assert out.getvalue().count("warning: ") == 1
    assert "observe.sinks: bad failed and gets nothing more" in out.getvalue()
    assert "OSError: 503 from the server" in out.getvalue()
    assert [row["step"] for row in read_metrics(folder.metrics)] == [1, 1, 2]


def test_a_tracker_that_fails_on_closing_is_a_warning(tmp_path: Path, trackers) -> None:
    config = configured()
    r, out = recorder(new_folder(tmp_path, config), config)
    with r:
        trackers[0].fails = True
    assert out.getvalue().count("warning: observe.sinks: bad failed") == 1
    assert [t.closed for t in trackers] == [1, 1]


def test_a_tracker_that_cannot_start_is_an_error(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("wrong API key")

    monkeypatch.setattr("rlpost.observe.recorder.make_sinks", refuse)
    with pytest.raises(ConnectionError, match="wrong API key"):
        recorder(new_folder(tmp_path, configured()), configured())


def test_metrics_that_cannot_be_kept_are_an_error(tmp_path: Path, monkeypatch, trackers) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    config = configured()
    r, _ = recorder(new_folder(tmp_path, config), config)
    monkeypatch.setattr("rlpost.observe.sinks.MetricsFile.log", full)
    with r, pytest.raises(OSError, match="no space left"):
        record_step(r, 1)


def test_a_full_disk_under_tensorboard_is_noticed_and_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*_: object) -> None:
        raise OSError("no space left")

    config = configured(sinks=["tensorboard"])
    r, out = recorder(new_folder(tmp_path, config), config)
    monkeypatch.setattr("threading.excepthook", lambda _: None)  # its writer's thread says so too
    with r:
        record_step(r, 1)
        monkeypatch.setattr(RecordWriter, "write", full)
        record_step(r, 2)
        record_step(r, 3)
    assert out.getvalue().count("warning: observe.sinks: tensorboard failed") == 1


def test_a_resume_leaves_what_a_user_laid_beside_the_rollouts(tmp_path: Path) -> None:
    config = configured()
    folder = new_folder(tmp_path, config)
    folder.close()
    theirs = ["step_000002_copy.parquet", "step_best.parquet", "step_3.parquet", "notes.txt"]
    for name in ("step_000001.parquet", "step_000002.parquet", *theirs):
        (folder.rollouts / name).write_text("")
    made, _ = recorder(folder, config, resumed_at=1)
    made.close()
    assert sorted(p.name for p in folder.rollouts.iterdir()) == sorted(["step_000001.parquet", *theirs])


def test_events_know_step_and_phase_and_are_not_undone_by_a_resume(tmp_path: Path) -> None:
    config = configured()
    folder = new_folder(tmp_path, config)
    r, _ = recorder(folder, config)
    with r:
        r.event("started", "now")
        record_step(r, 1)
        record_step(r, 2)
        r.console.phase("sampling")
        r.event("fault", "engine 0 is gone", who="engine 0")
        r.event("checkpoint", "step_000001", step=1)
    r, _ = recorder(folder, config, resumed_at=1)
    with r:
        r.event("resumed", "from step_000001", step=1)
    found = [(e.kind, e.step, e.phase, e.who) for e in events.read(folder.events)]
    assert found == [
        ("started", 1, None, None),
        ("fault", 3, "sampling", "engine 0"),
        ("checkpoint", 1, "sampling", None),
        ("resumed", 1, None, None),
    ]
    assert [row["step"] for row in read_metrics(folder.metrics)] == [1]


def test_events_that_cannot_be_written_are_a_warning(tmp_path: Path) -> None:
    config = configured()
    folder = new_folder(tmp_path, config)
    r, out = recorder(folder, config)
    folder.events.mkdir()
    with r:
        r.event("fault", "engine 0 is gone")
    assert "lacks an event (Is a directory): fault: engine 0 is gone" in " ".join(out.getvalue().split())

"""Numbers arrive, survive a crash, and a missing tracker says how to get it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rlpost.config import ConfigError
from rlpost.observe import MetricsFile, RunFolder, make_sinks, read_metrics


@pytest.fixture
def folder(tmp_path: Path):
    with RunFolder.create(tmp_path, "a", "", [], seed=0) as made:
        yield made


def test_a_line_is_on_disk_when_log_returns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.log(1, {"reward/mean": np.float32(0.5), "samples/consumed": 64})
    assert path.read_text() == '{"step": 1, "reward/mean": 0.5, "samples/consumed": 64}\n'
    metrics.log(1, {"eval/pass@1": 0.25}, when="after")
    assert read_metrics(path)[1] == {"step": 1, "when": "after", "eval/pass@1": 0.25}
    metrics.close()


def test_a_number_that_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m")
    metrics.log(1, {"loss": float("nan"), "kl/frozen": float("inf"), "lr": 0.1})
    metrics.close()
    row = json.loads((tmp_path / "m").read_text())
    assert row == {"step": 1, "loss": None, "kl/frozen": None, "lr": 0.1, "nonfinite": ["loss", "kl/frozen"]}


def test_truncating_forgets_later_steps_and_goes_on_from_there(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m")
    for step in (1, 2, 3, 4):
        metrics.log(step, {"lr": step / 10})
    metrics.truncate_after(2)
    metrics.log(3, {"lr": 9.0})
    metrics.close()
    assert [(row["step"], row["lr"]) for row in read_metrics(tmp_path / "m")] == [(1, 0.1), (2, 0.2), (3, 9.0)]


def test_a_line_torn_by_a_crash_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    metrics = MetricsFile(path)
    metrics.log(2, {"lr": 0.1})
    metrics.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2, "lr": 0.1}\n'


@pytest.mark.parametrize("line", ["{broken", '{"no": "step"}', "[]"])
def test_a_broken_line_elsewhere_is_an_error_that_names_it(tmp_path: Path, line: str) -> None:
    path = tmp_path / "m"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=rf"{path}:2 "):
        read_metrics(path)


def events(path: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(path)).Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_gets_every_number_before_it_is_closed(folder: RunFolder) -> None:
    (sink,) = make_sinks(["tensorboard"], folder, {})
    sink.log(1, {"reward/mean": 0.5, "train/pass@1": 0.25})
    sink.log(2, {"reward/mean": 0.75})
    assert events(folder.tensorboard) == {"reward/mean": [(1, 0.5), (2, 0.75)], "train/pass@1": [(1, 0.25)]}
    sink.close()


def test_tensorboard_hides_the_steps_a_resume_undid(folder: RunFolder) -> None:
    (first,) = make_sinks(["tensorboard"], folder, {})
    for step in (1, 2, 3):
        first.log(step, {"lr": step / 8})
    first.close()
    (resumed,) = make_sinks(["tensorboard"], folder, {}, resumed_at=1)
    resumed.log(2, {"lr": 0.5})
    resumed.close()
    assert events(folder.tensorboard) == {"lr": [(1, 0.125), (2, 0.5)]}


def test_an_unknown_sink_names_the_known_ones(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"observe\.sinks.*'tensorbord'.*tensorboard, wandb, mlflow"):
        make_sinks(["tensorbord"], folder, {})


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_names_the_install_command(
    package: str, folder: RunFolder, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ConfigError, match=rf"pip install 'rlpost\[{package}\]'"):
        make_sinks([package], folder, {})

"""Weights & Biases and MLflow, offline. Not part of `make test`, which does not install them: `make extras` does."""

from pathlib import Path

import mlflow
import pytest

from rlpost.observe import RunFolder, make_sinks


@pytest.fixture
def folder(tmp_path: Path):
    with RunFolder.create(tmp_path, "a", "", [], seed=0) as made:
        yield made


def test_wandb_continues_one_run_across_a_resume(folder: RunFolder, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for resumed_at in (None, 1):
        (sink,) = make_sinks(["wandb"], folder, {"seed": 0}, resumed_at)
        sink.log(2, {"train/pass@1": 0.5})
        sink.close()
    run_id = folder.read_manifest()["run_id"]
    assert list(folder.logs.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))


def test_mlflow_continues_one_run_across_a_resume(folder: RunFolder, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for resumed_at in (None, 1):
        (sink,) = make_sinks(["mlflow"], folder, {"seed": 0}, resumed_at)
        sink.log(2 if resumed_at else 1, {"train/pass@1": 0.5 if resumed_at else 0.25})
        sink.close()
    client = mlflow.MlflowClient(f"sqlite:///{folder.path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("rlpost").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/pass_at_1")
    assert [(m.step, m.value) for m in history] == [(1, 0.25), (2, 0.5)]
    assert run.info.status == "FINISHED"

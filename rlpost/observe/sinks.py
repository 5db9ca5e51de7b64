"""Where the numbers of a run go: always metrics.jsonl, and the trackers the configuration names."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rlpost import atomic
from rlpost.config import ConfigError
from rlpost.observe.run_folder import RunFolder


class Sink(Protocol):
    """Somewhere metrics are sent.

    Attributes:
        name: what `observe.sinks` calls it.
    """

    name: str

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step."""

    def close(self) -> None:
        """Send what is left and let go."""


class MetricsFile:
    """metrics.jsonl: one JSON object a line with `step`, on disk before `log` returns.

    Numbers JSON cannot hold are null, and named in the line's `nonfinite`. A last line torn by a crash was never
    acknowledged and is cut off on opening.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a+b")
        self._file.seek(0)
        whole = self._file.read().rfind(b"\n") + 1
        self._file.truncate(whole)

    def log(self, step: int, metrics: Mapping[str, float], when: str | None = None) -> None:
        """Append one line; `when` marks an evaluation ("before", "after", ...)."""
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
        row = {"step": step, **({} if when is None else {"when": when}), **atomic.finite(numbers)}
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def truncate_after(self, step: int) -> None:
        """Forget, atomically, what a resumed run writes again: later steps, and the evaluation between `step` and them."""
        kept = [
            json.dumps(row, allow_nan=False) + "\n"
            for row in read_metrics(self.path)
            if row["step"] < step or (row["step"] == step and row.get("when") in (None, "before", "after"))
        ]
        self._file.close()
        atomic.write_text(self.path, "".join(kept))
        self._file = self.path.open("a+b")

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, also while it is written: an unfinished last line is left out.

    Raises:
        ConfigError: naming file and line, if a finished line is no JSON object with a `step`.
    """
    rows: list[dict[str, Any]] = []
    finished, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    for number, line in enumerate(finished.splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{number} is not JSON ({error}): restore the file, or delete the line") from None
        if not isinstance(row, dict) or "step" not in row:
            raise ConfigError(f"{path}:{number} has no `step`: restore the file, or delete the line")
        rows.append(row)
    return rows


class TensorBoardSink:
    """TensorBoard event files in the run folder, flushed every step.

    After a resume at `resumed_at`, points of later steps written before it are hidden.
    """

    name = "tensorboard"

    def __init__(self, path: Path, resumed_at: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports torch: seconds

        self._writer = SummaryWriter(str(path), purge_step=None if resumed_at is None else resumed_at + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases. A resumed run continues the same W&B run; WANDB_MODE=offline and the like are respected."""

    name = "wandb"

    def __init__(self, folder: RunFolder, config: Mapping[str, Any]) -> None:
        wandb = _import("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "rlpost"),
            id=folder.read_manifest()["run_id"],
            name=folder.path.resolve().name,
            dir=str(folder.logs),
            config=dict(config),
            resume="allow",
        )
        # W&B's own step can only rise, and a resume goes back to the last checkpoint: we bring our own axis.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class MlflowSink:
    """MLflow, at MLFLOW_TRACKING_URI or else mlflow.db in the run folder. A resumed run continues the same run.

    MLflow has no `@` in names: `train/pass@1` becomes `train/pass_at_1`.
    """

    name = "mlflow"

    def __init__(self, folder: RunFolder, config: Mapping[str, Any]) -> None:
        mlflow = _import("mlflow")
        run_id = folder.read_manifest()["run_id"]
        local = f"sqlite:///{(folder.path / 'mlflow.db').resolve()}"
        self._client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
        self._metric = mlflow.entities.Metric

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "rlpost")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        known = self._client.search_runs([experiment_id], f"tags.`rlpost.run_id` = '{run_id}'", max_results=1)
        run = known[0] if known else self._client.create_run(experiment_id, run_name=folder.path.resolve().name)
        self._run = run.info.run_id
        if known:
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._client.set_tag(self._run, "rlpost.run_id", run_id)
            self._client.set_tag(self._run, "rlpost.config", json.dumps(config, default=str))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._run, [self._metric(n.replace("@", "_at_"), float(v), now, step) for n, v in metrics.items()]
        )

    def close(self) -> None:
        self._client.set_terminated(self._run)


def make_sinks(
    names: Iterable[str], folder: RunFolder, config: Mapping[str, Any], resumed_at: int | None = None
) -> list[Sink]:
    """The trackers `observe.sinks` names: tensorboard, wandb, mlflow.

    Args:
        config: the resolved configuration as plain data, shown with the run.
        resumed_at: the step a resumed run continues from; None for a new run.

    Raises:
        ConfigError: for an unknown name, or naming the package a sink needs and how to install it.
    """
    sinks: list[Sink] = []
    for name in names:
        if name == "tensorboard":
            sinks.append(TensorBoardSink(folder.tensorboard, resumed_at))
        elif name == "wandb":
            sinks.append(WandbSink(folder, config))
        elif name == "mlflow":
            sinks.append(MlflowSink(folder, config))
        else:
            raise ConfigError(f"observe.sinks: unknown sink {name!r} (known: tensorboard, wandb, mlflow)")
    return sinks


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ConfigError(
            f"observe.sinks: {package!r} needs the package {package}, which is not installed: "
            f"pip install 'rlpost[{package}]', or take it out of observe.sinks"
        ) from None

"""`rlpost train`, `resume` and `sft`."""

from __future__ import annotations

from pathlib import Path

from rlpost import checkpoint, cluster
from rlpost.cli import DONE, NOTHING_TO_DO, PREEMPTED
from rlpost.config import Config, ConfigError, dump, load
from rlpost.observe import Recorder, RunFolder
from rlpost.routing import check_experts


def start(config: Config, command: list[str]) -> int:
    """A new run."""
    check_objective(config)
    with _new_run(config, command) as recorder, cluster.connected(config):
        from rlpost.prepare import base_model

        return _train(config, recorder, base_model(config, recorder), resume=None)


def proceed(path: Path, overrides: list[str]) -> int:
    """An old run, from its newest checkpoint."""
    folder = RunFolder.open(path)
    config = load([folder.config], overrides)
    check_objective(config)
    saved, rejected = checkpoint.newest(folder.checkpoints)
    if saved is None:
        raise ConfigError(
            f"{folder.path} has no checkpoint to continue from"
            + (": " + "; ".join(rejected) if rejected else f": start again with rlpost train {folder.config}")
        )
    state = saved.state()
    with Recorder(folder, config, resumed_at=state["step"]) as recorder:
        for line in rejected:
            recorder.console.warn(f"checkpoint passed over: {line}")
        if state["step"] >= config.steps:
            recorder.console.info(
                f"nothing to do: step {state['step']} of {config.steps} is done; to go on: "
                f"rlpost resume {path} steps={config.steps + 100}"
            )
            return NOTHING_TO_DO
        recorder.console.info(f"resuming {folder.path} from {saved.path.name}")
        with cluster.connected(config):
            return _train(config, recorder, state["base"], resume=saved)


def warm_up(config: Config, command: list[str]) -> int:
    """Supervised learning alone."""
    if config.warmup is None:
        raise ConfigError("rlpost sft needs a `warmup` section: its data, steps and learning rate")
    with _new_run(config, command) as recorder, cluster.connected(config):
        from rlpost.prepare import base_model, supervise

        start_from = base_model(config.model_copy(update={"warmup": None}), recorder)
        target = recorder.folder.path / "model"
        supervise(config, config.warmup, start_from, target, recorder)
        recorder.console.info(f"model  {target}")
    return DONE


def check_objective(config: Config) -> None:
    """Build every role once, so that a wrong parameter or a broken file is refused before anything starts."""
    from rlpost.roles import Roles

    Roles(config)
    check_experts(config)


def _new_run(config: Config, command: list[str]) -> Recorder:
    return Recorder(RunFolder.create(config.runs_dir, config.name, dump(config), command, config.seed), config)


def _train(config: Config, recorder: Recorder, base: str, resume: checkpoint.Checkpoint | None) -> int:
    from rlpost.loop import train
    from rlpost.run import running

    with running(config, recorder, base, resume) as run:
        if config.evaluation.before and resume is None:
            run.evaluate("before")
        train(run)
        saved, _ = checkpoint.newest(recorder.folder.checkpoints)
        if run.step and (saved is None or saved.step < run.step):
            run.save()
        if run.stop_requested and run.step < config.steps:
            recorder.console.info(f"stopped after step {run.step}; continue with: rlpost resume {recorder.folder.path}")
            return PREEMPTED
        if config.evaluation.after:
            run.evaluate("after")
        recorder.finish({"base": base, "steps": run.step})
    return DONE

"""`rlpost train`, `resume` and `sft`."""

from __future__ import annotations

import json
from pathlib import Path

from rlpost import atomic, checkpoint, cluster
from rlpost.config import Config, ConfigError, dump, load
from rlpost.exit_codes import DONE, NOTHING_TO_DO, PREEMPTED
from rlpost.models.architecture import check_experts
from rlpost.models.families import check_family
from rlpost.observe import Recorder, RunFolder


def start(config: Config, command: list[str]) -> int:
    """A new run."""
    check_objective(config)
    return _from_the_start(config, _new_run(config, command))


def proceed(path: Path, overrides: list[str]) -> int:
    """An old run, from its newest checkpoint; from the start where it had none yet."""
    folder = RunFolder.open(path)
    config = load([folder.config], overrides)
    check_objective(config)
    store = checkpoint.Store(folder.checkpoints, folder.run_id)
    saved, rejected = store.newest()
    if saved is None:
        check_nothing_is_lost(folder, rejected)
        recorder = Recorder(folder, config, resumed_at=-1)  # the evaluation at step 0 is made again too
        recorder.console.info(f"{folder.path} has no checkpoint yet: it starts anew")
        return _from_the_start(config, recorder)
    check_same_start(load([folder.config], []), config, saved)
    state = saved.state()
    with Recorder(folder, config, resumed_at=state["step"]) as recorder:
        for line in rejected:
            recorder.console.warn(f"checkpoint passed over: {line}")
        last = state["last"] if state["length"] == config.length else config.steps
        if last is not None and state["step"] >= last and _summarized(folder, state["step"]):
            more = f"steps={last + 100}" if config.epochs is None else f"epochs={config.epochs + 1:g}"
            recorder.console.info(
                f"nothing to do: step {state['step']} of {last} is done; to go on: rlpost resume {path} {more}"
            )
            return NOTHING_TO_DO
        recorder.console.info(f"resuming {folder.path} from {saved.path.name}")
        with cluster.connected(config):
            return _train(config, recorder, store, state["base"], resume=saved)


def warm_up(config: Config, command: list[str]) -> int:
    """Supervised learning alone."""
    if config.warmup is None:
        raise ConfigError("rlpost sft needs a `warmup` section: its data, steps and learning rate")
    with _new_run(config, command) as recorder, cluster.connected(config):
        from rlpost.run.base import base_model, supervise

        start_from = base_model(config.model_copy(update={"warmup": None}), recorder)
        target = recorder.folder.path / "model"
        supervise(config, config.warmup, start_from, target, recorder)
        recorder.console.info(f"model  {target}")
    return DONE


def check_objective(config: Config) -> None:
    """Build every role once, so that a wrong parameter or a broken file is refused before anything starts."""
    from rlpost.run.roles import Roles

    Roles(config)
    check_family(config)
    check_experts(config)


def check_nothing_is_lost(folder: RunFolder, rejected: list[str]) -> None:
    """Refuse to start a run anew where that would throw away more than the steps before its first checkpoint."""
    if rejected:
        raise ConfigError(
            f"{folder.path} has no checkpoint to continue from: {'; '.join(rejected)}. To start it anew, remove "
            f"{folder.checkpoints}"
        )
    if folder.summary.is_file():
        raise ConfigError(
            f"{folder.path} is finished and its checkpoints are gone: nothing is left to continue from. Start another "
            f"run: rlpost train {folder.config} name=..."
        )
    if folder.read_manifest()["command"][1:2] == ["sft"]:
        raise ConfigError(
            f"{folder.path} is of rlpost sft, which cannot be resumed: rlpost sft {folder.config} name=..."
        )


def check_same_start(before: Config, now: Config, saved: checkpoint.Checkpoint) -> None:
    """Refuse other weights to start from: those of the checkpoint are taken."""
    for key, was, asked in (
        ("model.path", before.model.path, now.model.path),
        ("model.create", before.model.create, now.model.create),
        ("warmup", before.warmup, now.warmup),
    ):
        if asked != was:
            raise ConfigError(
                f"{key}: {asked} cannot be had on resume, the run started with {was} and goes on with the weights of "
                f"{saved.path}: leave {key} out, or start a new run with rlpost train"
            )


def _summarized(folder: RunFolder, step: int) -> bool:
    """Whether the run came to its end at this step; a summary may also be of fewer steps, before more were asked for."""
    return folder.summary.is_file() and json.loads(folder.summary.read_text(encoding="utf-8"))["steps"] >= step


def _new_run(config: Config, command: list[str]) -> Recorder:
    return Recorder(RunFolder.create(config.runs_dir, config.name, dump(config), command, config.seed), config)


def _from_the_start(config: Config, recorder: Recorder) -> int:
    with recorder, cluster.connected(config):
        from rlpost.run.base import base_model

        store = checkpoint.Store(recorder.folder.checkpoints, recorder.folder.run_id)
        return _train(config, recorder, store, base_model(config, recorder), resume=None)


def _train(
    config: Config, recorder: Recorder, store: checkpoint.Store, base: str, resume: checkpoint.Checkpoint | None
) -> int:
    from rlpost.loop import train
    from rlpost.run.start import running

    with running(config, recorder, store, base, resume) as run:
        # What was overridden on resume holds for good, but not before the checkpoint was found to fit it.
        atomic.write_text(recorder.folder.config, dump(config))
        if config.evaluation.before and resume is None:
            run.evaluate("before")
        train(run)
        if run.step and (store.last is None or store.last < run.step):
            run.save()
        if run.stop_requested and run.step < run.last:
            where = f"after step {run.step}; continue" if run.step else "before the first step; start anew"
            recorder.console.info(f"stopped {where} with: rlpost resume {recorder.folder.path}")
            return PREEMPTED
        if config.evaluation.after:
            run.evaluate("after")
        recorder.finish({"base": base, "steps": run.step})
    return DONE

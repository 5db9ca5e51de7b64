"""`rlpost train`, `resume` and `sft`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rlpost import atomic, checkpoint, cluster
from rlpost.config import Config, ConfigError, Sft, dump, load
from rlpost.exit_codes import DONE, NOTHING_TO_DO, PREEMPTED
from rlpost.faults import strike
from rlpost.observe import Recorder, RunFolder
from rlpost.run.cache import is_whole
from rlpost.run.check import checked
from rlpost.run.refusal import REFUSALS, refused_leaves_nothing
from rlpost.run.timetable import Timetable
from rlpost.stop import STOP

if TYPE_CHECKING:
    from rlpost.run.start import Material


def start(config: Config, command: list[str]) -> int:
    """A new run."""
    if config.resume.only is not None:
        raise ConfigError(
            f"resume.only: {config.resume.only} is for `rlpost resume RUN_DIR resume.only=[...]`: a new run takes nothing; "
            "leave it out"
        )
    ready = checked(config)
    config = ready.config
    with _new_run(config, command) as recorder, refused_leaves_nothing(recorder.folder):
        recorder.event("started", " ".join(command), step=0)
        _say(recorder, ready.lines)
        return _go(config, recorder, _store(recorder.folder, config))


def proceed(path: Path, overrides: list[str], step: int | None = None) -> int:
    """An old run, from its newest checkpoint; from the start where it had none yet.

    Args:
        step: of the checkpoint, where it is one that is passed over unasked.
    """
    folder = RunFolder.open(path)
    if folder.is_of_sft:
        return _proceed_warm_up(folder, overrides)
    config = load([folder.config], overrides)
    store = _store(folder, config)
    saved, rejected = store.newest()
    if step is not None:
        saved, rejected = _chosen(store, step, saved), []
    if saved is None:
        check_nothing_is_lost(folder, rejected)
        config = checked(config, begins=False).config
        anew = _read_before(folder, config)
        with Recorder(folder, config, resumed_at=-1) as recorder:  # the evaluation at step 0 is made again too
            recorder.console.info(f"{folder.path} has no checkpoint yet: it starts anew")
            recorder.event("started", "anew: there is no checkpoint yet", step=0)
            return _go(config, recorder, store, anew)
    check_same_start(load([folder.config], []), config, saved)
    state = saved.state()
    ready = checked(config, state["base"], begins=False)
    config = ready.config
    last = state["last"] if state["length"] == config.length else config.steps
    done = last is not None and state["step"] >= last and _summarized(folder, state["step"])
    material = None if done else _read_before(folder, config, state["base"])
    with Recorder(folder, config, resumed_at=state["step"]) as recorder:
        for line in rejected:
            recorder.console.warn(f"checkpoint passed over: {line}")
            recorder.event("passed over", line)
        if last is not None and done:
            more = f"steps={last + 100}" if config.epochs is None else f"epochs={config.epochs + 1:g}"
            recorder.console.info(
                f"nothing to do: step {state['step']} of {last} is done; to go on: rlpost resume {path} {more}"
            )
            return NOTHING_TO_DO
        recorder.console.info(f"resuming {folder.path} from {saved.path.name}")
        recorder.event("resumed", f"from {saved.path.name}", step=saved.step)
        _say(recorder, [*dealt_anew(config, saved), *ready.lines])
        return _go(config, recorder, store, material, saved)


def warm_up(config: Config, command: list[str]) -> int:
    """Supervised learning alone."""
    sft, ready = _sft_of(config), checked(config, served=False)
    config = ready.config
    with _new_run(config, command) as recorder, refused_leaves_nothing(recorder.folder):
        _say(recorder, ready.lines)
        return _warm_up(config, sft, recorder)


def _proceed_warm_up(folder: RunFolder, overrides: list[str]) -> int:
    """An old run of `rlpost sft`."""
    config = load([folder.config], overrides)
    sft, ready = _sft_of(config), checked(config, served=False)
    config = ready.config
    with Recorder(folder, config) as recorder:
        if is_whole(folder.path / "model"):
            recorder.console.info(f"nothing to do: {folder.path / 'model'} is there; to train another: rlpost sft")
            return NOTHING_TO_DO
        recorder.console.info(f"resuming {folder.path}")
        _say(recorder, ready.lines)
        atomic.write_text(folder.config, dump(config))
        return _warm_up(config, sft, recorder)


def _sft_of(config: Config) -> Sft:
    if config.warmup is None:
        raise ConfigError("rlpost sft needs a `warmup` section: its data, steps and learning rate")
    return config.warmup


def _warm_up(config: Config, sft: Sft, recorder: Recorder) -> int:
    target = recorder.folder.path / "model"
    try:
        Timetable(config)  # time runs while parts start
        with cluster.session(config) as join:
            from rlpost.run.base import supervised

            supervised(config, sft, target, recorder, join)
    except KeyboardInterrupt:
        if STOP.insisted:
            raise
        recorder.event("signal", f"{STOP.by or 'a stop'} was heard", who="driver")
        recorder.console.info(f"stopped{_in_warm_up(recorder)}: rlpost resume {recorder.folder.path}")
        return PREEMPTED
    except Exception as error:
        if not isinstance(error, REFUSALS):
            recorder.fault(error)
        raise
    recorder.console.info(f"model  {target}")
    return DONE


def _in_warm_up(recorder: Recorder) -> str:
    """Where a run stopped that had not done its first step, and how to go on."""
    saved = checkpoint.Store(recorder.folder.warmup, recorder.folder.run_id).finished()
    return (
        f" after step {saved[0].step} of the warm-up; continue with"
        if saved
        else " before the first step; start anew with"
    )


def _chosen(store: checkpoint.Store, step: int, newest: checkpoint.Checkpoint | None) -> checkpoint.Checkpoint:
    """The checkpoint of a step. None before the newest: what is after it would be taken for newer than what comes next."""
    if newest is not None and step < newest.step:
        raise ConfigError(
            f"--step {step}: the run has a newer checkpoint, {newest.path}: move it away, or resume without --step"
        )
    return store.choose(step, lambda _: None)


def _say(recorder: Recorder, lines: list[str]) -> None:
    for line in lines:
        recorder.console.info(line)


def check_nothing_is_lost(folder: RunFolder, rejected: list[str]) -> None:
    """Refuse to start a run anew where that would throw away more than the steps before its first checkpoint."""
    if rejected:
        raise ConfigError(
            f"{folder.path} has no checkpoint to continue from: {'; '.join(rejected)}. To start it anew, remove "
            f"{folder.checkpoints}"
        )
    if origin := folder.read_manifest().get("forked_from"):
        raise ConfigError(
            f"{folder.path} is a fork of {origin['path']} at step {origin['step']}, and its checkpoints are gone: nothing "
            f"is left to continue from. Fork again: rlpost fork {origin['path']} NAME"
        )
    if folder.summary.is_file():
        raise ConfigError(
            f"{folder.path} is finished and its checkpoints are gone: nothing is left to continue from. Start another "
            f"run: rlpost train {folder.config} name=..."
        )


def check_same_start(before: Config, now: Config, saved: checkpoint.Checkpoint) -> None:
    """Refuse other weights to start from: those of the checkpoint are taken."""
    for key, was, asked in (
        ("model.path", before.model.path, now.model.path),
        ("model.revision", before.model.revision, now.model.revision),
        ("model.create", before.model.create, now.model.create),
        ("model.lora", before.model.lora, now.model.lora),
        ("warmup", before.warmup, now.warmup),
    ):
        if asked != was:
            raise ConfigError(
                f"{key}: {asked} cannot be had on resume, the run started with {was} and goes on with the weights of "
                f"{saved.path}: leave {key} out, or start a new run with rlpost train"
            )


def dealt_anew(config: Config, saved: checkpoint.Checkpoint) -> list[str]:
    """What to say where the optimizer's state was shared by other ranks, or in another way: `rlpost.learner.convert`."""
    state, learner = saved.state(), config.learner
    was, now = (state["ranks"], state["zero_stage"]), (learner.ranks, learner.zero_stage)
    if was == now or not config.resume.takes("optimizer"):
        return []
    before, after = (f"learner.ranks={ranks} learner.zero_stage={stage}" for ranks, stage in (was, now))
    return [f"the optimizer's state, written with {before}, is dealt out anew to {after}"]


def _summarized(folder: RunFolder, step: int) -> bool:
    """Whether the run came to its end at this step; a summary may also be of fewer steps, before more were asked for."""
    return folder.summary.is_file() and json.loads(folder.summary.read_text(encoding="utf-8"))["steps"] >= step


def _new_run(config: Config, command: list[str]) -> Recorder:
    folder = RunFolder.create(config.runs_dir, config.name, dump(config), command, config.seed)
    with refused_leaves_nothing(folder):
        return Recorder(folder, config)


def _store(folder: RunFolder, config: Config) -> checkpoint.Store:
    url = config.checkpoint.mirror
    mirror = checkpoint.Mirror(url, folder.run_id) if url is not None else None
    return checkpoint.Store(folder.checkpoints, folder.run_id, config.learner.deadline, mirror)


def _read(config: Config, base: str | None = None) -> Material:
    from rlpost.models.create import tokenizer_of
    from rlpost.run.start import read_data

    return read_data(config, tokenizer_of(config.model, base))


def _read_before(folder: RunFolder, config: Config, base: str | None = None) -> Material:
    """Read the data of a run that is resumed, before what lies behind its checkpoint is taken away: it may be refused."""
    with folder:
        folder.lock()  # or a run that goes on all the same would be found out only afterwards
        return _read(config, base)


def _go(
    config: Config,
    recorder: Recorder,
    store: checkpoint.Store,
    material: Material | None = None,
    resume: checkpoint.Checkpoint | None = None,
) -> int:
    """Run to the end, to an alarm, or to a stop that was asked for, and say how to go on then.

    Args:
        material: what was read already.
    """
    try:
        Timetable(config)  # time runs while parts start
        material = material or _read(config)
        _say(recorder, material.lines)
        strike("driver.start", 0 if resume is None else resume.step)
        with cluster.session(config) as join:
            from rlpost.run.base import base_model

            base = str(resume.state()["base"]) if resume else base_model(config, recorder, join)
            if _train(config, material, recorder, store, base, resume, join):
                return DONE
    except KeyboardInterrupt:
        if STOP.insisted:
            raise
    except Exception as error:
        if not isinstance(error, REFUSALS):
            recorder.fault(error)
        raise
    recorder.event("signal", f"{STOP.by or 'a stop'} was heard", who="driver")
    where = _in_warm_up(recorder) if store.last is None else f" after step {store.last}; continue with"
    recorder.console.info(f"stopped{where}: rlpost resume {recorder.folder.path}")
    return PREEMPTED


def _train(
    config: Config,
    material: Material,
    recorder: Recorder,
    store: checkpoint.Store,
    base: str,
    resume: checkpoint.Checkpoint | None,
    join: Callable[[], None],
) -> bool:
    """Whether the run came to its end. A stop leaves a checkpoint of the last step that was finished.

    Raises:
        KeyboardInterrupt: a stop, where there is nothing more to save.
    """
    from rlpost.loop import train
    from rlpost.run.start import running
    from rlpost.run.way_out import saved_on_the_way_out

    with running(material, recorder, store, base, resume, join) as run:
        # What was overridden on resume holds for good, but not before the checkpoint was found to fit it.
        atomic.write_text(recorder.folder.config, dump(config.model_copy(update={"resume": type(config.resume)()})))
        if config.evaluation.before and resume is None:
            run.evaluate("before")
        with STOP.deferred():
            try:
                with saved_on_the_way_out(run):
                    train(run)
            except KeyboardInterrupt:  # in an evaluation between two steps
                if STOP.insisted:
                    raise
            store.join()
            if run.step and (store.last is None or store.last < run.step):
                run.save()
                store.join()
        if run.stop_requested and (run.step < run.last or config.evaluation.after):
            return False
        if config.evaluation.after:
            run.evaluate("after")
        recorder.finish({"base": base, "steps": run.step})
        recorder.event("ended", f"with all of {run.step} steps", step=run.step)
        STOP.defer()  # all is done: a stop that comes now is not to make it look otherwise
    return True

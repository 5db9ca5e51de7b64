"""Where `rlpost resume` takes up a run, and what it leaves in the folder, with a stand-in for the run itself."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import rlpost.run.base
import rlpost.run.start
import rlpost.run.training
import rlpost.run.way_out
from rlpost import checkpoint, cluster, events
from rlpost.cli import run
from rlpost.config import Learner, Model, load
from rlpost.config.schema import Checkpoint as Saving
from rlpost.data.errors import DataError
from rlpost.exit_codes import ALARM, BAD_USAGE, DONE, FAULT, NOTHING_TO_DO, PREEMPTED
from rlpost.learner.group import LearnerGroup
from rlpost.learner.learning_rate import course_state, fresh_course
from rlpost.learner.rank import LearnerRank
from rlpost.observe import Alarm
from rlpost.run.check import Checked
from rlpost.stop import STOP
from tests.archives import archive
from tests.conftest import tiny

pytestmark = pytest.mark.usefixtures("shipped_verifiers_load", "hang_ups_heard")


class StandInRun:
    """Counts steps. `script` is what goes otherwise: {"stop", "die", "refuse"}: where, by the name of an evaluation, a
    step's number, or what comes before them: "base", "restore"."""

    def __init__(self, config, recorder, store, saved, script: dict[str, object]) -> None:
        self.config, self.recorder, self.store, self.script = config, recorder, store, script
        self.step = saved.step if saved else 0
        self.fleet = self.learner = SimpleNamespace(crew=[])
        self.intact, self.close_step = "well" in script, None  # else it is as if it were killed
        self.last = config.steps if config.epochs is None else int(3 * config.epochs)  # 3 steps an epoch

    @property
    def stop_requested(self) -> bool:
        return STOP.requested

    def evaluate(self, when: str) -> None:
        with STOP.prompt():
            happens(when, self.script)
        self.recorder.evaluation(when, self.step, {"pass@1": (0.5, 0.4, 0.6)})

    def advance(self) -> None:
        self.step += 1
        self.recorder.step(self.step, {"lr": self.config.learner.lr})
        happens(self.step, self.script)
        if self.config.checkpoint.every and self.step % self.config.checkpoint.every == 0:
            self.save()

    @property
    def finished(self) -> SimpleNamespace:
        return SimpleNamespace(step=self.step)

    def save(self, alarm: bool = False) -> checkpoint.Checkpoint:
        def fill(folder: Path) -> None:
            for name in ("model/model.safetensors", "deepspeed/state/mp_rank_00_model_states.pt"):
                (folder / name).parent.mkdir(parents=True)
                (folder / name).write_bytes(archive())

        state = {"step": self.step, "base": "base", "ranks": 1, "zero_stage": 0}
        state |= {"last": self.last, "length": self.config.length}
        written = self.store.write(self.step, state, fill, alarm)
        self.store.retain(self.config.checkpoint.keep)
        return written


def happens(what: object, script: dict[str, object]) -> None:
    if script.get("stop") == what:
        signal.raise_signal(script.get("signal", signal.SIGTERM))
    if script.get("die") == what:
        raise RuntimeError("killed")
    if script.get("alarm") == what:
        raise Alarm(what, "entropy", 0.0, "below its threshold", "Look at the rollouts")
    if script.get("refuse") == what:
        raise DataError("data.train: no rows")


@pytest.fixture
def script(monkeypatch) -> dict[str, object]:
    """What goes otherwise in the next runs; without it they go through."""
    told: dict[str, object] = {}

    @contextmanager
    def running(material, recorder, store, base, resume, join):
        happens("restore", told)
        yield StandInRun(material.config, recorder, store, resume, told)

    def train(made: StandInRun) -> None:
        while made.step < made.last and not made.stop_requested:
            if made.config.evaluation.every and made.step and made.step % made.config.evaluation.every == 0:
                made.evaluate(f"step {made.step}")
            made.advance()

    def read(config, base=None):
        happens("read", told)
        return rlpost.run.start.Material(config, None, [])

    def base_model(config, recorder, join):
        happens("base", told)
        return "base"

    monkeypatch.setattr(rlpost.run.way_out, "wait", lambda *_: [])
    monkeypatch.setattr(cluster, "session", lambda config: nullcontext(lambda: None))
    monkeypatch.setattr(rlpost.run.base, "base_model", base_model)
    monkeypatch.setattr("rlpost.commands.train.checked", lambda config, *_, **__: Checked(config))
    monkeypatch.setattr("rlpost.commands.train._read", read)
    monkeypatch.setattr(rlpost.run.start, "running", running)
    monkeypatch.setattr("rlpost.loop.train", train)
    return told


@pytest.fixture
def start(tmp_path, script):
    """Train `tiny(steps=4)` in tmp_path/run as it is told, then forget what was told; returns the folder."""

    def started(expect: int, **told: object) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(tiny(steps=4, name="run", runs_dir=str(tmp_path))))
        overrides = told.pop("overrides", [])
        script.update(told)
        assert run(["train", str(path), *overrides]) == expect
        script.clear()
        return tmp_path / "run"

    return started


def rows(folder: Path) -> list[tuple[int, str | None]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row.get("when")) for row in map(json.loads, lines)]


WHOLE = [(0, "before"), (1, None), (2, None), (3, None), (4, None), (4, "after")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", ["read", "base", "restore", "before"])
def test_a_run_stopped_before_its_first_step_says_so_and_starts_anew_in_its_own_folder(start, capsys, where, number):
    folder = start(PREEMPTED, stop=where, signal=number)
    assert f"stopped before the first step; start anew with: rlpost resume {folder}" in _said(capsys)
    assert run(["resume", str(folder)]) == DONE
    assert rows(folder) == WHOLE
    assert json.loads((folder / "summary.json").read_text())["steps"] == 4


def test_a_run_that_died_before_its_first_checkpoint_starts_anew_without_its_old_rows(start):
    folder = start(FAULT, die=1)
    assert rows(folder) == [(0, "before"), (1, None)]
    assert run(["resume", str(folder)]) == DONE
    assert rows(folder) == WHOLE


def test_a_run_that_breaks_with_a_learner_that_is_well_goes_on_from_its_last_step(start, capsys):
    folder = start(FAULT, die=3, well=True)
    assert f"step 3 is saved as step_000003: rlpost resume {folder}" in _said(capsys)
    kinds = [(e.kind, e.step) for e in events.read(folder / "events.jsonl")]
    assert kinds == [("started", 0), ("fault", 4)]
    assert run(["resume", str(folder)]) == DONE
    assert "from step_000003" in [e.what for e in events.read(folder / "events.jsonl")]
    assert rows(folder) == WHOLE


def test_the_step_of_an_alarm_is_taken_by_who_asks_for_it_alone(start, script, capsys):
    folder = start(ALARM, alarm=3, well=True)
    said = _said(capsys)
    assert (
        f"step 3 is saved as alarm_000003, which a resume passes over: rlpost resume {folder} --step 3 goes on" in said
    )
    last = events.read(folder / "events.jsonl")[-1]
    assert (last.kind, last.model_extra["metric"], last.model_extra["value"]) == ("alarm", "entropy", 0.0)
    script["stop"] = "step 2"
    assert run(["resume", str(folder), "evaluation.every=2"]) == PREEMPTED
    said = _said(capsys)
    assert "checkpoint passed over: alarm_000003: it is of an alarm; --step 3 takes it" in said
    assert f"resuming {folder} from step_000002" in said
    script.clear()
    assert run(["resume", str(folder), "--step", "1"]) == BAD_USAGE
    assert "the run has a newer checkpoint" in capsys.readouterr().err
    assert run(["resume", str(folder), "--step", "3"]) == DONE
    assert f"resuming {folder} from alarm_000003" in _said(capsys)


def test_a_run_with_no_checkpoint_but_that_of_an_alarm_says_how_to_take_it(start, capsys):
    folder = start(ALARM, alarm=1, well=True)
    assert run(["resume", str(folder)]) == BAD_USAGE
    assert "alarm_000001: it is of an alarm; --step 1 takes it" in capsys.readouterr().err
    assert run(["resume", str(folder), "--step", "1"]) == DONE
    assert rows(folder) == WHOLE


def test_a_stop_after_a_step_names_it_and_goes_on_from_there(start, capsys):
    folder = start(PREEMPTED, stop=3)
    assert f"stopped after step 3; continue with: rlpost resume {folder}" in _said(capsys)
    assert run(["resume", str(folder)]) == DONE
    assert rows(folder) == WHOLE


def test_a_stop_in_an_evaluation_on_the_way_leaves_it_with_a_checkpoint_of_the_step(start, script, capsys):
    folder = start(FAULT, die=1)
    script["stop"] = "step 3"
    assert run(["resume", str(folder), "evaluation.every=3"]) == PREEMPTED
    assert f"stopped after step 3; continue with: rlpost resume {folder}" in _said(capsys)
    script.clear()
    assert run(["resume", str(folder)]) == DONE
    assert rows(folder) == [*WHOLE[:4], (3, "step 3"), *WHOLE[4:]]


@pytest.mark.parametrize("where", [4, "after"])
def test_a_stop_with_the_last_step_leaves_the_evaluation_to_who_resumes(start, where):
    folder = start(PREEMPTED, stop=where)
    assert rows(folder) == WHOLE[:-1]
    assert run(["resume", str(folder)]) == DONE
    assert rows(folder) == WHOLE


@pytest.mark.parametrize("runs", ["deep/runs", "runs"])
def test_a_refused_start_takes_away_the_folders_it_made_and_no_other(start, tmp_path, runs):
    (tmp_path / "runs").mkdir()
    start(BAD_USAGE, refuse="read", overrides=[f"runs_dir={tmp_path / runs}"])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["runs"]


@pytest.mark.parametrize("where", ["read", "base", "restore"])
def test_a_refused_start_leaves_no_folder_and_does_not_take_the_name(start, where):
    folder = start(BAD_USAGE, refuse=where)
    assert not folder.exists()
    start(DONE)
    assert rows(folder) == WHOLE


@pytest.mark.parametrize("where", ["before", 1])
def test_what_is_refused_when_there_is_something_to_look_at_keeps_its_folder(start, where):
    folder = start(BAD_USAGE, refuse=where)
    assert folder.exists() == (where == 1)


def test_a_start_that_breaks_keeps_its_folder_and_can_be_resumed(start):
    folder = start(FAULT, die="restore")
    assert run(["resume", str(folder)]) == DONE
    assert rows(folder) == WHOLE


def test_data_that_is_refused_on_resume_is_refused_before_what_lies_behind_the_checkpoint_is_undone(start, script):
    folder = start(FAULT, die=4, overrides=["checkpoint.every=2"])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert rows(folder)[-1] == (4, None)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000002"]
    script["refuse"] = "read"
    assert run(["resume", str(folder)]) == BAD_USAGE
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_resume_that_is_refused_takes_nothing_away(start, script):
    folder = start(FAULT, die="restore")
    script["refuse"] = "restore"
    assert run(["resume", str(folder)]) == BAD_USAGE
    script.clear()
    assert run(["resume", str(folder)]) == DONE


def test_a_run_killed_after_its_last_save_is_evaluated_and_summed_up(start):
    folder = start(FAULT, die="after")
    assert run(["resume", str(folder)]) == DONE
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], set(summary["eval"])) == (4, {"before", "after"})
    assert run(["resume", str(folder)]) == NOTHING_TO_DO


def test_a_summary_of_fewer_steps_is_not_the_end_of_a_run_that_went_on(start, script):
    folder = start(DONE)
    script["die"] = "after"
    assert run(["resume", str(folder), "steps=6"]) == FAULT
    script.clear()
    assert run(["resume", str(folder)]) == DONE
    assert json.loads((folder / "summary.json").read_text())["steps"] == 6


def test_epochs_are_what_the_run_is_asked_for_and_resumed_by(start, script, capsys):
    folder = start(DONE, overrides=["epochs=1"])
    assert rows(folder)[-1] == (3, "after")
    assert (yaml.safe_load((folder / "config.yaml").read_text())["steps"], load([folder / "config.yaml"]).epochs) == (
        None,
        1,
    )
    assert run(["resume", str(folder)]) == NOTHING_TO_DO
    assert f"nothing to do: step 3 of 3 is done; to go on: rlpost resume {folder} epochs=2" in _said(capsys)
    assert run(["resume", str(folder), "epochs=2"]) == DONE
    assert rows(folder)[-1] == (6, "after")
    assert run(["resume", str(folder), "steps=7"]) == DONE
    assert load([folder / "config.yaml"]).length == {"steps": 7, "epochs": None, "until": "forever"}
    assert run(["resume", str(folder)]) == NOTHING_TO_DO


def test_what_is_overridden_on_resume_holds_for_good(start, script):
    folder = start(FAULT, die=3)
    script["die"] = 4
    assert run(["resume", str(folder), "learner.lr=0.5", "steps=6"]) == FAULT
    config = load([folder / "config.yaml"], [])
    assert (config.learner.lr, config.steps) == (0.5, 6)
    script.clear()
    assert run(["resume", str(folder)]) == DONE
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-2])
    assert (last["step"], last["lr"]) == (6, 0.5)


def test_what_the_checkpoint_does_not_fit_is_not_kept(start, script):
    folder = start(FAULT, die=3)
    before = (folder / "config.yaml").read_text()
    script["die"] = "restore"
    assert run(["resume", str(folder), "learner.lr=0.5"]) == FAULT
    assert (folder / "config.yaml").read_text() == before


def test_parts_are_taken_once_and_not_by_the_next_resume(start, script):
    folder = start(FAULT, die=3)
    script["die"] = 4
    assert run(["resume", str(folder), "resume.only=[model]", "learner.ranks=2"]) == FAULT
    config = load([folder / "config.yaml"], [])
    assert (config.resume.only, config.learner.ranks) == (None, 2)


@pytest.mark.parametrize(
    ("only", "says"),
    [
        ("[optimizer]", "leaves the model out"),
        ("[]", "at least 1"),
        ("[weights]", "resume.only"),
        ("model", "must be a list"),
    ],
)
def test_parts_that_are_none_are_refused_with_the_key(start, capsys, only, says):
    folder = start(FAULT, die=3)
    assert run(["resume", str(folder), f"resume.only={only}"]) == BAD_USAGE
    said = _said(capsys)
    assert "resume.only" in said
    assert says in said


def test_a_new_run_takes_no_parts(tmp_path, script, capsys):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny(name="run", runs_dir=str(tmp_path))))
    assert run(["train", str(tmp_path / "c.yaml"), "resume.only=[model]"]) == BAD_USAGE
    assert "rlpost resume" in _said(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["learner.ranks=2", "learner.zero_stage=1"])
def test_other_ranks_take_the_optimizer_up_and_it_is_said(start, capsys, change):
    folder = start(FAULT, die=3)
    capsys.readouterr()
    assert run(["resume", str(folder), change]) == DONE
    assert "written with learner.ranks=1 learner.zero_stage=0, is dealt out anew" in _said(capsys)


def test_where_the_optimizer_begins_anew_nothing_is_dealt_out(start, capsys):
    folder = start(FAULT, die=3)
    capsys.readouterr()
    assert run(["resume", str(folder), "learner.ranks=2", "resume.only=[model]"]) == DONE
    assert "dealt out anew" not in _said(capsys)


@pytest.mark.parametrize("parts", [[], ["resume.only=[model]"]])
def test_other_adapters_are_refused_before_anything_is_taken_back(start, capsys, parts):
    folder = start(FAULT, die=3)
    before = rows(folder)
    assert run(["resume", str(folder), "model.lora={rank: 2}", *parts]) == BAD_USAGE
    said = _said(capsys)
    assert "model.lora" in said
    assert "leave model.lora out, or start a new run" in said
    assert rows(folder) == before


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_fork_goes_on_beside_the_old_run_which_stays_as_it_is(start, capsys):
    folder = start(FAULT, die=4)
    before = everything(folder)
    assert run(["fork", str(folder), "other"]) == DONE
    other = folder.with_name("other")
    assert f"rlpost resume {other}" in _said(capsys)
    made, was = (json.loads((f / "manifest.json").read_text()) for f in (other, folder))
    assert made["forked_from"] == {"run_id": was["run_id"], "path": str(folder), "step": 2}
    assert made["run_id"] != was["run_id"]
    assert load([other / "config.yaml"], []).name == "other"
    assert run(["resume", str(other), "learner.ranks=2"]) == DONE
    assert rows(other) == [(3, None), (4, None), (4, "after")]
    assert everything(folder) == before


def test_a_fork_may_begin_at_an_older_step_and_takes_no_name_that_is_taken(start, capsys):
    folder = start(DONE)
    assert run(["fork", str(folder), "other", "--step", "2"]) == DONE
    assert run(["resume", str(folder.with_name("other"))]) == DONE
    assert rows(folder.with_name("other"))[0] == (3, None)
    for name, says in (("other", "already holds a run"), ("run", "already holds a run"), ("a/b", "name")):
        capsys.readouterr()
        assert run(["fork", str(folder), name]) == BAD_USAGE
        assert says in _said(capsys)
    assert run(["fork", str(folder), "third", "--step", "7"]) == BAD_USAGE
    assert not folder.with_name("third").exists()


def test_a_checkpoint_that_goes_while_it_is_copied_is_no_fork(start, capsys, monkeypatch):
    folder = start(FAULT, die=4)
    monkeypatch.setattr("rlpost.commands.fork.shutil.copyfile", lambda source, target: target.write_bytes(b""))
    assert run(["fork", str(folder), "other"]) == BAD_USAGE
    assert "fork again" in _said(capsys)
    assert not folder.with_name("other").exists()


def test_a_fork_whose_checkpoint_is_gone_does_not_start_from_the_beginning(start, capsys):
    folder = start(FAULT, die=4)
    assert run(["fork", str(folder), "other"]) == DONE
    shutil.rmtree(folder.with_name("other") / "checkpoints")
    capsys.readouterr()
    assert run(["resume", str(folder.with_name("other"))]) == BAD_USAGE
    assert f"rlpost fork {folder}" in _said(capsys)


@pytest.mark.parametrize("torn", ["metrics.jsonl", "config.yaml", "manifest.json"])
def test_a_torn_file_of_the_run_is_named_and_nothing_is_lost(start, capsys, torn):
    folder = start(FAULT, die=3)
    whole = (folder / torn).read_bytes()
    (folder / torn).write_bytes(b"{\n" + whole[: len(whole) // 2])
    kept = sorted(p.name for p in folder.rglob("*"))
    capsys.readouterr()
    assert run(["resume", str(folder)]) == BAD_USAGE
    said = _said(capsys)
    assert f"{folder / torn}" in said
    assert "Traceback" not in said
    assert sorted(p.name for p in folder.rglob("*")) == kept


def test_the_best_checkpoint_stays_and_what_no_evaluation_says_is_refused(start, script, capsys):
    folder = start(FAULT, die=1)
    bad = "checkpoint.best={metric: pass@3}"
    assert run(["resume", str(folder), bad]) == BAD_USAGE
    assert "checkpoint.best.metric: no evaluation gives 'pass@3'" in _said(capsys)
    for metric in ("pass@4", "distinct_correct", "nll"):
        assert (
            load([folder / "config.yaml"], [f"checkpoint.best={{metric: {metric}}}"]).checkpoint.best.metric == metric
        )
    config = load(
        [folder / "config.yaml"], ["checkpoint.best={metric: pass@1}", "checkpoint.every=4", "evaluation.every=6"]
    )
    assert [step for step in range(1, 13) if config.saves(step)] == [4, 6, 8, 12]


def test_other_weights_to_start_from_are_refused_once_there_is_a_checkpoint(start, capsys):
    folder = start(FAULT, die=3)
    assert run(["resume", str(folder), "model.create.seed=7"]) == BAD_USAGE
    assert "model.create" in _said(capsys)
    assert run(["resume", str(folder), "model.path=other", "model.create=null"]) == BAD_USAGE
    assert "model.path: other cannot be had on resume" in _said(capsys)


@pytest.mark.parametrize("lost", ["damaged", "removed"])
def test_a_run_does_not_start_anew_over_what_it_had(start, capsys, lost):
    folder = start(DONE)
    for path in (folder / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
        if lost != "damaged":
            path.rename(folder / path.name)
    assert run(["resume", str(folder)]) == BAD_USAGE
    says = {"damaged": "no manifest.json", "removed": "its checkpoints are gone"}
    assert says[lost] in _said(capsys)
    assert rows(folder) == WHOLE


def test_ranks_that_do_not_see_the_folder_are_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    for disk in ("driver", "other"):
        (tmp_path / disk / "runs").mkdir(parents=True)
    ranks = [SimpleNamespace(sees=lambda folder: LearnerRank.sees(None, folder)) for _ in range(2)]
    group = LearnerGroup.__new__(LearnerGroup)
    group._all = lambda method, *args, what: [getattr(rank, method)(*args) for rank in ranks]
    assert group.unshared(tmp_path / "driver" / "runs") is None
    # A disk of the node's own, on which a folder of the same path happens to be.
    ranks[1].sees = lambda folder: LearnerRank.sees(None, folder.replace("/driver/", "/other/"))
    assert f"{tmp_path}/driver/runs cannot be seen by rank 1 on node-7: " in group.unshared(
        tmp_path / "driver" / "runs"
    )
    assert not any((tmp_path / "driver" / "runs").iterdir())
    learner = SimpleNamespace(unshared=group.unshared, log_probs=lambda batch: [])
    made = SimpleNamespace(
        say=lambda text: None,
        store=checkpoint.Store(tmp_path / "driver" / "checkpoints", "a"),
        learner=learner,
        finished=SimpleNamespace(step=1, state={}, flights=[], pending=[]),
        sampler=SimpleNamespace(settle=lambda flights: None),
        prompts=None,
        config=SimpleNamespace(rollout=SimpleNamespace(max_tokens=4), checkpoint=Saving()),
    )
    monkeypatch.setattr(rlpost.run.training, "probe_batch", lambda *_: None)
    with pytest.raises(checkpoint.CheckpointError, match=r"rank 1 on node-7.*all nodes share"):
        rlpost.run.training.Run.save(made)


def test_what_the_optimizer_is_told_once_is_told_again_after_its_old_state_was_loaded(tmp_path):
    shards = tmp_path / "deepspeed" / "state"
    shards.mkdir(parents=True)
    torch.save(
        {"ds_config": {"bf16": {"enabled": True}}, "dp_world_size": 1, "module": {}},
        shards / "mp_rank_00_model_states.pt",
    )
    rank = LearnerRank.__new__(LearnerRank)
    rank.rank, rank.world = 0, 1
    learner = Learner(betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2, lr=0.5, schedule="linear")
    rank.spec = SimpleNamespace(learner=learner, total_steps=10, model=Model(path="m"))
    rank.anchors = SimpleNamespace(load=lambda *_: None)
    rank.engine = SimpleNamespace(optimizer=SimpleNamespace(param_groups=[{}]))

    def load_checkpoint(folder: str, tag: str, custom_load_fn: None) -> tuple[str, dict[str, int]]:
        rank.engine.optimizer.param_groups = [{"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}]
        return folder, {"optimizer_steps": 5, "course": course_state(learner, fresh_course(learner, 5))}

    rank.engine.load_checkpoint = load_checkpoint
    assert rank.load(str(tmp_path)) == {"optimizer_steps": 5, "last_lr": 1.0, "lr": pytest.approx(0.5 * 0.2 * 5 / 6)}
    assert rank.engine.optimizer.param_groups == [{"lr": 1.0, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}]


def _said(capsys) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())

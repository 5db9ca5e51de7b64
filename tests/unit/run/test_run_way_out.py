"""What is saved when a run breaks: the last step that is done, unless the learner is what broke or has left it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from rlpost.faults import DeadlineError
from rlpost.learner.batch import Batch
from rlpost.observe import Alarm
from rlpost.run import way_out
from rlpost.run.credit import Lesson
from rlpost.run.lost import LostActorError
from rlpost.run.nonfinite import batch_kept
from rlpost.run.way_out import saved_on_the_way_out
from rlpost.types import Sample

ALARM = Alarm(4, "kl", 9.0, "above alarms.kl 1", "Look at learner.lr")


class StandInRun:
    """A run at step 4 whose last checkpoint is of step 2."""

    def __init__(self, tmp_path) -> None:
        self.warned: list[str] = []
        self.told: list[Exception] = []
        self.saved: list[bool] = []
        self.recorder = SimpleNamespace(
            console=SimpleNamespace(doing="sampling", warn=self.warned.append, phase=lambda _: None),
            fault=self.told.append,
            folder=SimpleNamespace(path=tmp_path, logs=tmp_path),
            doing=lambda: "sampling, step 5",
        )
        self.fleet = SimpleNamespace(crew=[])
        self.learner = SimpleNamespace(crew=[])
        self.store = SimpleNamespace(last=2, join=lambda: None)
        self.finished = SimpleNamespace(step=4)
        self.intact, self.close_step = True, None

    def save(self, alarm: bool = False) -> SimpleNamespace:
        self.saved.append(alarm)
        return SimpleNamespace(path=SimpleNamespace(name="the checkpoint"))


@pytest.fixture
def made(tmp_path, monkeypatch) -> StandInRun:
    monkeypatch.setattr(way_out, "wait", lambda *_: [])
    return StandInRun(tmp_path)


def breaks(made: StandInRun, error: Exception) -> str:
    with pytest.raises(type(error)) as raised, saved_on_the_way_out(made):
        raise error
    assert raised.value is error
    return made.warned[-1]


def test_a_run_that_goes_through_saves_nothing_here(made):
    with saved_on_the_way_out(made):
        pass
    assert (made.saved, made.told, made.warned) == ([], [], [])


@pytest.mark.parametrize("error", [LostActorError("gone", "engine 0"), DeadlineError("late"), OSError("full")])
def test_a_fault_that_is_not_the_learners_costs_no_finished_step(made, error):
    said = breaks(made, error)
    assert said == f"step 4 is saved as the checkpoint: rlpost resume {made.recorder.folder.path}"
    assert (made.saved, made.told) == ([False], [error])


def test_an_alarm_is_saved_apart_and_says_how_to_take_it(made):
    assert "--step 4 goes on from it" in breaks(made, ALARM)
    assert made.saved == [True]


def test_what_is_saved_already_is_not_saved_again(made):
    made.store.last = 4
    assert "nothing is left to save" in breaks(made, ALARM)
    assert made.saved == []


def test_before_the_first_step_there_is_nothing_to_save(made):
    made.finished = None
    assert "nothing to save" in breaks(made, OSError("full"))
    assert made.saved == []


def test_a_learner_on_its_way_to_another_step_is_not_saved_as_the_last(made):
    made.intact = False
    assert (
        "step 4 is not saved (the learner is on its way to another step); the newest checkpoint is of step 2"
        in breaks(made, DeadlineError("late"))
    )
    assert made.saved == []


def test_a_learner_that_broke_is_not_saved_nor_asked(made):
    made.learner.crew = [SimpleNamespace(name="learner rank 0")]
    made.close_step = lambda: pytest.fail("the step is not done: its anchors would be asked to move")
    assert "it is the learner that broke" in breaks(made, LostActorError("gone", "learner rank 0"))
    assert made.saved == []


def test_a_learner_that_does_not_answer_is_not_saved(made, monkeypatch):
    def late(*_: object) -> None:
        raise DeadlineError("waited for the learner to answer")

    monkeypatch.setattr(way_out, "wait", late)
    assert "not saved (DeadlineError: waited for the learner to answer)" in breaks(made, OSError("first"))
    assert made.saved == []


def test_a_step_that_was_learned_is_closed_without_the_engines_and_saved(made):
    made.intact = False

    def close() -> None:
        made.finished.step, made.intact = 5, True

    made.close_step = close
    assert breaks(made, LostActorError("gone", "engine 0")).startswith("step 5 is saved")
    assert made.saved == [False]


def test_a_step_that_turns_out_to_set_off_an_alarm_is_saved_as_such(made):
    def close() -> None:
        raise ALARM

    made.close_step = close
    assert "--step 4" in breaks(made, OSError("first"))
    assert made.saved == [True]
    assert made.told[1:] == [ALARM]


def test_a_step_that_cannot_be_closed_does_not_hide_why_the_run_ended(made):
    made.intact = False

    def close() -> None:
        raise RuntimeError("samples went missing")

    made.close_step = close
    assert "on its way to another step" in breaks(made, LostActorError("gone", "engine 0"))
    assert "the step under way cannot be finished: RuntimeError: samples went missing" in made.warned[0]
    assert made.saved == []


def test_a_checkpoint_under_way_is_waited_for_and_counts(made):
    made.store.join = lambda: setattr(made.store, "last", 4)
    assert "nothing is left to save" in breaks(made, OSError("first"))
    assert made.saved == []


def test_a_save_that_fails_does_not_hide_why_the_run_ended(made):
    def save(alarm: bool) -> None:
        raise OSError("No space left on device")

    made.save = save
    assert "not saved (OSError: No space left on device)" in breaks(made, LostActorError("gone", "engine 0"))


@pytest.fixture
def lesson() -> Lesson:
    ids = np.arange(3, dtype=np.int32)
    batch = Batch.from_samples([Sample.given(ids, ids[:2], "sft", 0), Sample.given(ids, ids, "sft", 1)])
    batch = batch.carrying(per_token={"old_logp": np.array([-1, np.nan, -1, -1, -1], np.float32)})
    return Lesson(batch, {"k3": 0.5}, {}, {})


@pytest.fixture
def recorder(tmp_path) -> SimpleNamespace:
    return SimpleNamespace(folder=SimpleNamespace(logs=tmp_path), console=SimpleNamespace(warn=[].append))


def test_a_loss_that_is_no_number_is_an_alarm_that_leaves_its_batch(recorder, lesson, tmp_path):
    says = r"loss is nan.*'loss/k3': nan.*nonfinite_step_000007\.npz"
    with pytest.raises(Alarm, match=says) as raised, batch_kept(recorder, lesson, 7):
        raise FloatingPointError("terms of the objective are not finite: {'loss/k3': nan}")
    assert (raised.value.exit_code, raised.value.step) == (4, 7)
    kept = np.load(tmp_path / "nonfinite_step_000007.npz", allow_pickle=False)
    assert kept["tokens"].tolist() == lesson.batch.tokens.tolist()
    assert kept["response_lengths"].tolist() == [2, 3]
    assert np.isnan(kept["per_token/old_logp"]).tolist() == [False, True, False, False, False]
    assert kept["coefs/k3"] == 0.5


@pytest.mark.parametrize("metrics", [{"loss": math.nan}, {"loss": 0.1, "grad_norm": math.inf}])
def test_a_gradient_that_is_no_number_leaves_its_batch_too(recorder, lesson, tmp_path, metrics):
    with batch_kept(recorder, lesson, 7) as found:
        found |= metrics
    assert (tmp_path / "nonfinite_step_000007.npz").is_file()


def test_an_update_that_is_finite_leaves_nothing(recorder, lesson, tmp_path):
    with batch_kept(recorder, lesson, 7) as found:
        found |= {"loss": 0.0, "grad_norm": 1.0}
    assert [*tmp_path.iterdir()] == []

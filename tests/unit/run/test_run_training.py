"""What a checkpoint holds of what is in flight, and what a resumed run makes of it; the parts are stand-ins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlpost import checkpoint, loop
from rlpost.config import parse
from rlpost.data import STRATEGIES, PromptOrder
from rlpost.rollout.request import Sampling
from rlpost.rollout.sampler import GroupSampler
from rlpost.run import training
from rlpost.run.training import Run
from rlpost.types import Prompt
from tests.conftest import merge, tiny
from tests.unit.rollout.test_rollout_sampler import StandInFleet, StandInPool


class StandInLearner:
    def save(self, draft: Path, step: int) -> None:
        for name in ("model/model.safetensors", "deepspeed/state/shard.pt"):
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(b"1")

    def unshared(self, draft: Path) -> None:
        return None

    def log_probs(self, probe: Any) -> list:
        return []


class StandInLikelihood:
    """A part whose state is its own, and changes."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Make a run on these parts, in which nothing but engines, learner and reports are stand-ins."""
    monkeypatch.setattr(training, "probe_batch", lambda *_: None)
    monkeypatch.setattr(training, "probe_to_json", lambda *_: {})
    monkeypatch.setattr(training, "save_chat_template", lambda *_: None)

    def made(**changes: Any) -> Run:
        values = tiny(learner={"prompts_per_step": 4}, rollout={"samples_per_prompt": 2, "max_staleness": 1})
        run = Run.__new__(Run)
        run.config = parse(merge(values, changes))
        pool = [Prompt(f"p{i}", f"p{i}", np.ones(2, np.int32)) for i in range(30)]
        run.order = PromptOrder(pool, seed=0, shuffle=False)
        run.strategy = STRATEGIES.create(run.config.data.strategy)
        run.strategy.begin(run.order)
        run.fleet = StandInFleet()
        run.sampler = GroupSampler(run.fleet, StandInPool(), 0, 30)
        run.sampling = Sampling(1.0, 4)
        run.store = checkpoint.Store(tmp_path / "checkpoints", "run")
        run.learner, run.likelihood = StandInLearner(), StandInLikelihood()
        run.base, run.tokenizer, run.prompts = "base", None, None
        state = SimpleNamespace(state_dict=dict, load_state_dict=lambda *_: None)
        run.credit = run.watch = state
        run.references = {}
        run.said = []
        run.recorder = SimpleNamespace(
            console=SimpleNamespace(phase=lambda _: None, warn=run.said.append, info=lambda _: None),
            event=lambda *_, **__: None,
        )
        run.step = run.version = run.submitted = 0
        run.drawn, run.pending, run.tried = {}, {}, training.Counter()
        return run

    return made


def one_step(run: Run) -> None:
    """Step 1, with step 2 sampled meanwhile."""
    loop.submit(run, 1)
    loop.submit(run, 2)
    run.fleet.answer()
    assert len(run.sampler.collect(1, 4)) == 4
    run.sampler.forget(1)
    del run.drawn[1]
    run.step = run.version = 1
    run.snapshot()


def resumed(run: Run) -> Run:
    saved, rejected = run.store.newest()
    assert (saved is not None, rejected) == (True, [])
    run._restore_data(saved, saved.state())
    run.sampler.load_state_dict(saved.state()["sampler"])
    run.step = run.submitted = saved.step
    return run


def test_what_is_saved_is_the_finished_step_though_the_next_has_begun(parts):
    run = parts()
    run.likelihood.seen.append(1)
    one_step(run)
    loop.submit(run, 2)
    loop.submit(run, 3)  # drawn, submitted, and one step's groups taken: none of it is of step 1
    run.sampler.collect(2, 4)
    run.likelihood.seen.append(2)
    run.save()
    saved, _ = run.store.newest()
    state = saved.state()
    assert (state["step"], state["flight"], list(state["drawn"])) == (1, 4, ["2"])
    assert state["order"]["position"] == 8
    assert checkpoint.load_roles(saved.path)["likelihood"] == {"seen": [1]}
    again = resumed(parts())
    loop.submit(again, 2)
    assert [g.id for g in again.sampler.collect(2, 4)] == [4, 5, 6, 7]


def test_what_was_in_flight_is_learned_from_and_never_sampled_again(parts):
    run = parts()
    one_step(run)
    run.save()
    again = resumed(parts())
    loop.submit(again, 2)
    loop.submit(again, 3)
    assert [r.prompt_id for r, _ in again.fleet.requests] == [f"p{i}" for i in range(8, 12)], "those of step 3 alone"
    groups, before = again.sampler.collect(2, 4), run.sampler.collect(2, 4)
    assert [(g.id, g.prompt.id) for g in groups] == [(g.id, g.prompt.id) for g in before]
    assert [r.seed for g in groups for r in g.rollouts] == [r.seed for g in before for r in g.rollouts]
    assert again.said == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rollout": {"temperature": 0.5}}, "rollout.temperature changed"),
        ({"rollout": {"max_staleness": 0}}, "rollout.max_staleness changed"),
        ({"verifiers": [{"name": "countdown", "weight": 2.0}]}, "verifiers changed"),
    ],
)
def test_what_was_sampled_under_other_settings_is_sampled_again_and_said(parts, changes, why):
    run = parts()
    one_step(run)
    run.save()
    again = resumed(parts(**changes))
    loop.submit(again, 2)
    assert [r.prompt_id for r, _ in again.fleet.requests] == [f"p{i}" for i in range(4, 8)]
    assert again.said == [
        "4 of the 4 groups that were in flight at step 1 are sampled again, of the same prompts with the weights of that "
        f"step: {why}"
    ]


def test_a_checkpoint_from_before_rollouts_in_flight_were_kept_is_taken_and_says_what_is_sampled_again(parts):
    run = parts()
    one_step(run)
    del run.finished.flights[:]
    run.save()
    again = resumed(parts())
    loop.submit(again, 2)
    assert [r.prompt_id for r, _ in again.fleet.requests] == [f"p{i}" for i in range(4, 8)]
    assert "4 of the 4 groups" in again.said[0]
    assert "the checkpoint was written without them" in again.said[0]


@pytest.mark.parametrize(("wanted", "dealt"), [(3, [3, 1]), (8, [4])])
def test_prompts_in_flight_are_dealt_anew_to_steps_of_another_size(parts, wanted, dealt):
    run = parts()
    one_step(run)
    run.save()
    again = resumed(parts(learner={"prompts_per_step": wanted}))
    assert [len(prompts) for prompts in again.drawn.values()] == dealt
    loop.submit(again, 2)
    loop.submit(again, 3)
    sampled = [r.prompt_id for r, _ in again.fleet.requests]
    assert sampled == [f"p{i}" for i in range(4, 4 + 2 * wanted)], "none is lost, and none comes twice"


def test_a_step_without_overlap_leaves_no_file(parts):
    run = parts(rollout={"max_staleness": 0})
    loop.submit(run, 1)
    run.fleet.answer()
    run.sampler.collect(1, 4)
    run.sampler.forget(1)
    del run.drawn[1]
    run.step = 1
    run.snapshot()
    run.save()
    saved, _ = run.store.newest()
    assert checkpoint.flight.FILE not in saved.files
    assert resumed(parts()).said == []

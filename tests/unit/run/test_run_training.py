"""What a checkpoint holds of what is in flight, and what a resumed run makes of it; the parts are stand-ins."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlpost import checkpoint, loop
from rlpost.checkpoint import manifest
from rlpost.config import parse
from rlpost.data import STRATEGIES
from rlpost.run import training
from rlpost.run.training import Run
from rlpost.types import Prompt
from tests.archives import archive
from tests.conftest import merge, tiny
from tests.unit.rollout.test_rollout_sampler import StandInFleet, StandInPool


class StandInLearner:
    def save(self, draft: Path, step: int) -> None:
        for name in ("model/model.safetensors", "deepspeed/state/shard.pt"):
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(archive())

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
        config = parse(merge(values, changes))
        said: list[str] = []
        recorder = SimpleNamespace(
            console=SimpleNamespace(phase=lambda _: None, warn=said.append, info=lambda _: None),
            event=lambda *_, **__: None,
            said=said,
        )
        roles = SimpleNamespace(
            credit=SimpleNamespace(state_dict=dict),
            references={},
            wanted=set(),
            strategy=STRATEGIES.create(config.data.strategy),
        )
        config = config.model_copy(update={"data": config.data.model_copy(update={"shuffle": False})})
        pool = [Prompt(f"p{i}", f"p{i}", np.ones(2, np.int32)) for i in range(30)]
        return Run(
            config,
            recorder,
            checkpoint.Store(tmp_path / "checkpoints", "run"),
            SimpleNamespace(by_source={"": pool}),
            StandInLearner(),
            StandInFleet(),
            StandInPool(),
            "base",
            None,
            roles,
            StandInLikelihood(),
        )

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


def save(run: Run) -> None:
    """Save, and wait until another can read it."""
    run.save()
    run.store.join()


def resumed(run: Run) -> Run:
    newest, rejected = run.store.newest()
    assert (newest is not None, rejected) == (True, [])
    run._restore_data(newest, newest.state())
    run.sampler.load_state_dict(newest.state()["sampler"])
    run.step = run.submitted = newest.step
    return run


def test_what_is_saved_is_the_finished_step_though_the_next_has_begun(parts):
    run = parts()
    run.likelihood.seen.append(1)
    one_step(run)
    loop.submit(run, 2)
    loop.submit(run, 3)  # drawn, submitted, and one step's groups taken: none of it is of step 1
    run.sampler.collect(2, 4)
    run.likelihood.seen.append(2)
    save(run)
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
    save(run)
    again = resumed(parts())
    loop.submit(again, 2)
    loop.submit(again, 3)
    assert [r.prompt_id for r, _ in again.fleet.requests] == [f"p{i}" for i in range(8, 12)], "those of step 3 alone"
    groups, before = again.sampler.collect(2, 4), run.sampler.collect(2, 4)
    assert [(g.id, g.prompt.id) for g in groups] == [(g.id, g.prompt.id) for g in before]
    assert [r.seed for g in groups for r in g.rollouts] == [r.seed for g in before for r in g.rollouts]
    assert again.recorder.said == []


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
    save(run)
    again = resumed(parts(**changes))
    loop.submit(again, 2)
    assert [r.prompt_id for r, _ in again.fleet.requests] == [f"p{i}" for i in range(4, 8)]
    assert again.recorder.said == [
        "4 of the 4 groups that were in flight at step 1 are sampled again, of the same prompts with the weights of that "
        f"step: {why}"
    ]


def test_a_checkpoint_from_before_rollouts_in_flight_were_kept_is_taken_and_says_what_is_sampled_again(parts):
    run = parts()
    one_step(run)
    del run.finished.flights[:]
    save(run)
    again = resumed(parts())
    loop.submit(again, 2)
    assert [r.prompt_id for r, _ in again.fleet.requests] == [f"p{i}" for i in range(4, 8)]
    assert "4 of the 4 groups" in again.recorder.said[0]
    assert "the checkpoint was written without them" in again.recorder.said[0]


@pytest.mark.parametrize(("wanted", "dealt"), [(3, [3, 1]), (8, [4])])
def test_prompts_in_flight_are_dealt_anew_to_steps_of_another_size(parts, wanted, dealt):
    run = parts()
    one_step(run)
    save(run)
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
    save(run)
    saved, _ = run.store.newest()
    assert checkpoint.flight.FILE not in saved.files
    assert resumed(parts()).recorder.said == []


class Bomb:
    def __reduce__(self):
        return (Path("bombed").touch, ())


def foreign(file: Path) -> None:
    arrays = load_file(file)
    document = json.loads(arrays["document"].tobytes()) | {"run": "another"}
    save_file(arrays | {"document": np.frombuffer(json.dumps(document).encode(), np.uint8)}, file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "flight.safetensors has"),
        (lambda file: file.unlink(), "flight.safetensors is missing"),
        (foreign, "flight.safetensors is of run another after step 1, not of run after step 1"),
        (lambda file: file.write_bytes(pickle.dumps(Bomb())), "flight.safetensors cannot be read"),
    ],
)
@pytest.mark.parametrize("resealed", [False, True])
def test_a_checkpoint_whose_rollouts_in_flight_are_damaged_or_anothers_is_passed_over_by_name(
    parts, monkeypatch, tmp_path, change, said, resealed
):
    monkeypatch.chdir(tmp_path)
    run = parts()
    one_step(run)
    save(run)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    change(folder / checkpoint.flight.FILE)
    if resealed:  # whoever can write the file can write the manifest
        sealed = json.loads((folder / "manifest.json").read_text())
        sealed["files"] = {name: entry.model_dump() for name, entry in manifest.described(folder).items()}
        (folder / "manifest.json").write_text(json.dumps(sealed))
    found, (why,) = checkpoint.Store(tmp_path / "checkpoints", "run").newest()
    assert found is None
    assert why.startswith("step_000001: ")
    assert (said if resealed and "missing" not in said and "has" not in said else checkpoint.flight.FILE) in why
    assert not Path("bombed").exists()

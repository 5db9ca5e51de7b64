"""A warmed-up model is found again by what it was taught, and by nothing less."""

from types import SimpleNamespace

import pytest

from rlpost.config import parse
from rlpost.observe.console import Console
from rlpost.run import base
from rlpost.run.warmup import Warmup
from tests.conftest import tiny


@pytest.fixture
def taught(tmp_path, monkeypatch):
    """Ask for the base of a configuration; gives how many examples each warm-up was given, so far."""
    given: list[int] = []

    def teach(warmup, into):
        if warmup.sft.lr == 9.0:
            into.mkdir()
            raise RuntimeError("cut off")
        given.append(len(warmup.examples))
        into.mkdir(parents=True)
        (into / "config.json").write_text("{}")

    monkeypatch.setattr(Warmup, "teach", teach)
    folder = SimpleNamespace(warmup=tmp_path / "run" / "warmup", run_id="r")
    recorder = SimpleNamespace(console=Console("plain", 0), folder=folder)

    def ask(**changes) -> list[int]:
        base.base_model(parse(tiny(runs_dir=str(tmp_path), **changes)), recorder, lambda: None)
        return given

    return ask


def test_the_same_is_taught_once(taught):
    assert len(taught()) == len(taught(steps=9, learner={"lr": 0.5})) == 1
    assert len(taught(warmup={"lr": 0.5})) == 2


def test_other_held_out_problems_are_another_warm_up(taught):
    """Or a model would be evaluated on problems that it was taught."""
    before = list(taught())
    after = taught(data={"test": {"seed": 1, "size": 100}})
    assert len(after) == 2
    assert after[1] < before[0], "more of the examples are held out"


def test_a_warm_up_that_is_cut_off_leaves_nothing(taught, tmp_path):
    with pytest.raises(RuntimeError, match="cut off"):
        taught(warmup={"lr": 9.0})
    assert [p.name[:4] for p in (tmp_path / ".models").iterdir()] == ["new-"]

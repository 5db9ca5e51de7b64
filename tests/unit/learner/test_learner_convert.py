"""Optimizer state by parameter: stretches copied from whoever holds them, and files in which nothing is run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from rlpost.learner.convert import WEIGHT, Piece, Saved, State


def state(*pieces: Piece) -> State:
    flats = [{WEIGHT: torch.arange(10.0)}, {WEIGHT: torch.arange(100.0, 110.0)}]
    return State(flats, {"p": list(pieces)}, step=3.0, lr=0.1)


def copied(of: State, start: int, numel: int) -> list[float]:
    into = torch.full((numel,), -1.0)
    of.copy(WEIGHT, "p", start, into)
    return into.tolist()


def test_a_stretch_may_lie_with_several_and_anywhere_in_each():
    of = state(Piece(0, 4, 0, 3), Piece(1, 1, 3, 5), Piece(0, 0, 8, 2))
    assert copied(of, 0, 10) == [4, 5, 6, 101, 102, 103, 104, 105, 0, 1]
    assert copied(of, 2, 3) == [6, 101, 102]
    assert copied(of, 9, 1) == [1]
    assert copied(of, 5, 0) == []


@pytest.mark.parametrize("start", [1, 2, 9])
def test_a_stretch_that_is_not_all_there_is_refused(start):
    of = state(Piece(0, 0, 0, 3), Piece(1, 0, 4, 6))
    with pytest.raises(ValueError, match="p has 3 values from"):
        copied(of, start, 3)


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)


MODEL = {"ds_config": {"zero_optimization": {"stage": 1}}, "dp_world_size": 1, "module": {}}


@pytest.mark.parametrize("file", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_code_in_a_shard_is_not_run(tmp_path, file):
    shards = tmp_path / "shards"
    shards.mkdir()
    torch.save(MODEL, shards / "mp_rank_00_model_states.pt")
    torch.save({**MODEL, "optimizer_state_dict": Payload(tmp_path / "run")}, shards / file)
    with pytest.raises(Exception, match="mkdir"):
        Saved(shards).read({"p": torch.Size([2])})
    assert not (tmp_path / "run").exists()


def test_a_shard_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="model_states"):
        Saved(tmp_path)
    torch.save({**MODEL, "dp_world_size": 2}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(FileNotFoundError, match="zero_pp_rank_0"):
        Saved(tmp_path).read({"p": torch.Size([2])})


def whole(tmp_path: Path, **optimizer: object) -> Saved:
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0], [4.0]])}
    base = {"state": {}, "param_groups": [{"lr": 0.5}]}
    model = {"ds_config": {}, "dp_world_size": 2, "module": weights, "optimizer": {**base, **optimizer}}
    torch.save(model, tmp_path / "mp_rank_00_model_states.pt")
    return Saved(tmp_path)


def test_before_the_first_step_there_are_weights_alone(tmp_path):
    found = whole(tmp_path).read({"a": torch.Size([2]), "b": torch.Size([2, 1])})
    assert (found.begun, found.step, found.lr) == (False, 0.0, 0.5)
    into = torch.zeros(2)
    found.copy(WEIGHT, "b", 0, into)
    assert into.tolist() == [3, 4]


@pytest.mark.parametrize("shapes", [{"a": (2,), "c": (2, 1)}, {"a": (2,), "b": (3,)}])
def test_other_parameters_are_refused_with_a_way_on(tmp_path, shapes):
    with pytest.raises(ValueError, match=r"not those that train now.*such as [bc].*model\.lora"):
        whole(tmp_path).read({name: torch.Size(shape) for name, shape in shapes.items()})


def test_masters_of_bfloat16_that_were_not_sharded_are_taken(tmp_path):
    """What was saved before ZeRO 0 was refused for bfloat16: DeepSpeed keeps float32 copies apart from the model."""
    moments = {
        i: {"step": torch.tensor(2.0), "exp_avg": torch.ones(s), "exp_avg_sq": torch.ones(s)}
        for i, s in enumerate([2, 2])
    }
    moments[1] = {k: v.reshape(2, 1) if k != "step" else v for k, v in moments[1].items()}
    inner = {"state": moments, "param_groups": [{"lr": 0.25}]}
    wide = [[torch.tensor([1.25, 2.25]), torch.tensor([[3.25], [4.25]])]]
    found = whole(tmp_path, optimizer_state_dict=inner, fp32_groups=wide).read(
        {"a": torch.Size([2]), "b": torch.Size([2, 1])}
    )
    assert (found.begun, found.step, found.lr) == (True, 2.0, 0.25)
    into = torch.zeros(2)
    found.copy(WEIGHT, "a", 0, into)
    assert into.tolist() == [1.25, 2.25]

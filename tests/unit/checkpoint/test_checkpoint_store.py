"""A checkpoint is there whole or not at all, and is verified before it is believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlpost.checkpoint import Checkpoint, CheckpointError, newest, retain, write

STATE = {"ranks": 2, "zero_stage": 1}
WEIGHTS = "model/model.safetensors"
SHARDS = [f"deepspeed/state/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]


def fill(folder: Path, left_out: str = "") -> None:
    for name in (WEIGHTS, *SHARDS):
        if name != left_out:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"w" * 1000)


def test_what_was_written_is_found_with_its_state(tmp_path):
    write(tmp_path, 3, {"step": 3, **STATE}, fill)
    write(tmp_path, 12, {"step": 12, **STATE}, fill)
    found, rejected = newest(tmp_path)
    assert (found.step, found.state(), rejected) == (12, {"step": 12, **STATE}, [])


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_the_reason_said(tmp_path, damage):
    write(tmp_path, 1, STATE, fill)
    bad = write(tmp_path, 2, STATE, fill).path
    weights = bad / WEIGHTS
    if damage == "flip":
        weights.write_bytes(b"x" + b"w" * 999)
    elif damage == "truncate":
        weights.write_bytes(b"w" * 10)
    elif damage == "delete":
        weights.unlink()
    else:
        (bad / "manifest.json").unlink()
    found, rejected = newest(tmp_path)
    assert found.step == 1
    expected = {"flip": "SHA-256", "truncate": "10 bytes", "delete": "missing", "manifest": "not finished"}[damage]
    assert len(rejected) == 1
    assert "step_000002" in rejected[0]
    assert expected in rejected[0]


def test_a_write_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    write(tmp_path, 1, STATE, fill)

    def broken(folder: Path) -> None:
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, 2, STATE, broken)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


def test_an_unfinished_write_is_never_taken_for_a_checkpoint(tmp_path):
    write(tmp_path, 1, STATE, fill)
    (tmp_path / "tmp-abc").mkdir()
    assert newest(tmp_path)[0].step == 1


def test_retention_keeps_the_newest_and_clears_leftovers(tmp_path):
    for step in (1, 2, 3, 10):
        write(tmp_path, step, STATE, fill)
    (tmp_path / "tmp-abc").mkdir()
    retain(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000003", "step_000010"]


def test_writing_a_step_again_replaces_it(tmp_path):
    write(tmp_path, 5, {"try": 1, **STATE}, fill)
    write(tmp_path, 5, {"try": 2, **STATE}, fill)
    retain(tmp_path, 2)
    assert newest(tmp_path)[0].state()["try"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["step_000005"]


@pytest.mark.parametrize("left_out", [WEIGHTS, *SHARDS])
def test_what_was_written_where_the_driver_cannot_see_it_is_no_checkpoint(tmp_path, left_out):
    """A rank wrote to a folder of its own machine, or of its own working directory."""
    write(tmp_path, 1, STATE, fill)
    with pytest.raises(CheckpointError, match=r"step_000002: no .* file system that all nodes share"):
        write(tmp_path, 2, STATE, lambda folder: fill(folder, left_out))
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


@pytest.mark.parametrize("left_out", [WEIGHTS, *SHARDS])
def test_a_manifest_without_weights_or_a_rank_s_shard_is_not_believed(tmp_path, left_out):
    path = write(tmp_path, 1, STATE, fill).path
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"][left_out]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert "no " in Checkpoint(path).problems()[0]


def test_without_zero_one_state_is_that_of_all_ranks(tmp_path):
    def whole(folder: Path) -> None:
        fill(folder)
        for name in SHARDS:
            (folder / name).unlink()
        (folder / "deepspeed/state/mp_rank_00_model_states.pt").write_bytes(b"w")

    assert write(tmp_path, 1, {"ranks": 2, "zero_stage": 0}, whole).problems() == []

"""A checkpoint is there whole or not at all, and is verified before it is believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlpost.checkpoint import newest, retain, write


def fill(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"w" * 1000)


def test_what_was_written_is_found_with_its_state(tmp_path):
    write(tmp_path, 3, {"step": 3}, fill)
    write(tmp_path, 12, {"step": 12}, fill)
    found, rejected = newest(tmp_path)
    assert (found.step, found.state(), rejected) == (12, {"step": 12}, [])


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_the_reason_said(tmp_path, damage):
    write(tmp_path, 1, {}, fill)
    bad = write(tmp_path, 2, {}, fill).path
    weights = bad / "model" / "weights"
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
    write(tmp_path, 1, {}, fill)

    def broken(folder: Path) -> None:
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, 2, {}, broken)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


def test_an_unfinished_write_is_never_taken_for_a_checkpoint(tmp_path):
    write(tmp_path, 1, {}, fill)
    (tmp_path / "tmp-abc").mkdir()
    assert newest(tmp_path)[0].step == 1


def test_retention_keeps_the_newest_and_clears_leftovers(tmp_path):
    for step in (1, 2, 3, 10):
        write(tmp_path, step, {}, fill)
    (tmp_path / "tmp-abc").mkdir()
    retain(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000003", "step_000010"]


def test_writing_a_step_again_replaces_it(tmp_path):
    write(tmp_path, 5, {"try": 1}, fill)
    write(tmp_path, 5, {"try": 2}, fill)
    retain(tmp_path, 2)
    assert newest(tmp_path)[0].state() == {"try": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["step_000005"]

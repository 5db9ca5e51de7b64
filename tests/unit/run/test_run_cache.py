"""A model is made once for all runs of a folder, whoever else makes it, dies over it, or leaves half of it there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlpost.run.cache import is_whole, made_once


def model(draft: Path, weights: bytes = b"w" * 100) -> None:
    draft.mkdir()
    (draft / "config.json").write_text("{}")
    (draft / "model.safetensors").write_bytes(weights)


def test_a_model_is_made_once(tmp_path):
    assert not made_once(tmp_path / ".models" / "new-1", model)
    assert made_once(tmp_path / ".models" / "new-1", lambda draft: pytest.fail("made again"))
    assert [p.name for p in (tmp_path / ".models").iterdir()] == ["new-1"]


def test_a_model_that_cannot_be_made_leaves_no_folder_that_was_made_for_it(tmp_path):
    def refused(draft: Path) -> None:
        draft.mkdir()
        raise ValueError("no such model")

    (tmp_path / "other").write_text("stays")
    with pytest.raises(ValueError, match="no such model"):
        made_once(tmp_path / "runs" / ".models" / "new-1", refused)
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_who_is_done_second_takes_the_first_one_s(tmp_path):
    def slow(draft: Path) -> None:
        made_once(tmp_path / "new-1", lambda theirs: model(theirs, b"first"))
        model(draft, b"second")

    made_once(tmp_path / "new-1", slow)
    assert (tmp_path / "new-1" / "model.safetensors").read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["new-1"]


def test_a_rename_that_comes_too_late_looks_again(tmp_path, monkeypatch):
    """Another maker's rename falls between our look and our rename; which error there is depends on the file system."""
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        if self.name.startswith("tmp-") and not target.exists():
            shutil.copytree(self, target)
            (target / "theirs").write_text("")
            raise OSError(17, "File exists")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    made_once(tmp_path / "new-1", model)
    assert (tmp_path / "new-1" / "theirs").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["new-1"]


HALVES = {
    "weights are missing": lambda p: (p / "model.safetensors").unlink(),
    "weights are cut off": lambda p: (p / "model.safetensors").write_bytes(b"w"),
    "a configuration alone": lambda p: ((p / "model.safetensors").unlink(), (p / "made.json").unlink()),
    "its list is torn": lambda p: (p / "made.json").write_text('{"files": {"con'),
    "nothing": lambda p: (shutil.rmtree(p), p.mkdir()),
}


@pytest.mark.parametrize("left", HALVES)
def test_half_of_a_model_is_not_taken_and_is_made_again(tmp_path, left):
    made_once(tmp_path / "new-1", model)
    HALVES[left](tmp_path / "new-1")
    assert not is_whole(tmp_path / "new-1")
    assert not made_once(tmp_path / "new-1", model)
    assert is_whole(tmp_path / "new-1")
    assert [p.name for p in tmp_path.iterdir()] == ["new-1"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_is_cut_off_leaves_nothing(tmp_path, error):
    def cut_off(draft: Path) -> None:
        model(draft)
        raise error

    with pytest.raises(error):
        made_once(tmp_path / "new-1", cut_off)
    assert list(tmp_path.iterdir()) == []


MAKER = """
import sys
from pathlib import Path
from rlpost.run.cache import made_once

def make(draft):
    draft.mkdir()
    (draft / "half").write_text("")
    print(draft.name, flush=True)
    sys.stdin.readline()

made_once(Path(sys.argv[1]) / "new-2", make)
"""


def test_a_killed_maker_s_draft_goes_and_a_live_one_s_and_a_user_s_stay(tmp_path):
    (tmp_path / "tmp-mine").mkdir()
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        dead, alive = (maker.stdout.readline().strip() for maker in makers)
        os.kill(makers[0].pid, signal.SIGKILL)
        makers[0].wait(timeout=60)
        made_once(tmp_path / "new-1", model)
        there = {p.name for p in tmp_path.iterdir()}
        assert there == {"new-1", "tmp-mine", alive, f"{alive}.lock"}, dead
        makers[1].communicate("go on\n", timeout=60)
    finally:
        for maker in makers:
            maker.kill()
            maker.wait(timeout=60)
    assert makers[1].returncode == 0
    assert {p.name for p in tmp_path.iterdir()} == {"new-1", "new-2", "tmp-mine"}

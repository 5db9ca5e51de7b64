"""A worker is always killed, so what it leaves behind is tidied up by whoever killed it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from rlpost.verify.process import WorkerProcess

WAIT = 120.0
SPEC = {"params": {}, "timeout": 60.0, "env": {}}


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The user's folder for temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_the_temporary_folder_of_a_worker_is_its_own_below_the_users_and_goes_with_it(temporary):
    worker = WorkerProcess([{"name": "exact", **SPEC}])
    worker.wait_ready(WAIT)
    (folder,) = temporary.iterdir()
    entries = Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
    assert f"TMPDIR={folder}".encode() in entries
    assert folder.stat().st_mode & 0o777 == 0o711, "a program of another user goes through, and lists nothing"
    assert len(str(folder)) - len(str(temporary)) <= 24, "the path of a socket in it has room for 107 characters"
    (folder / "closed").mkdir()
    (folder / "closed" / "file").touch()
    (folder / "closed").chmod(0)
    worker.kill()
    assert list(temporary.iterdir()) == []


def test_nothing_is_left_of_a_worker_killed_while_its_sandbox_is_tried(temporary):
    worker = WorkerProcess([{"name": "code", **SPEC}])
    with pytest.raises(TimeoutError):
        worker.wait_ready(0.0)  # it is told what to load
    deadline = time.monotonic() + WAIT
    while not list(temporary.glob("*/rlpost-bait-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert list(temporary.glob("*/rlpost-bait-*"))
    worker.kill()
    assert list(temporary.iterdir()) == []


def test_nothing_is_left_of_a_worker_that_does_not_start(temporary, monkeypatch):
    monkeypatch.setattr("sys.executable", str(temporary / "absent"))
    with pytest.raises(FileNotFoundError):
        WorkerProcess([{"name": "exact", **SPEC}])
    assert list(temporary.iterdir()) == []

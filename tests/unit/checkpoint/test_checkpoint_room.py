"""A disk without room for a checkpoint is said so in words, and what lies there already is left as it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlpost.checkpoint import DiskFullError, Store, room
from rlpost.checkpoint import store as store_module
from tests.unit.checkpoint.test_checkpoint_store import RUN, fill, names, state


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "run" / "checkpoints", RUN)
    store.write(1, state(1), fill)
    return store


def test_too_little_room_is_met_before_anything_is_written(store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))

    def no(_: Path) -> None:
        raise AssertionError("it was begun all the same")

    with pytest.raises(DiskFullError, match=r"step 2: it needs .* MiB.* 0\.00 MiB free.*rlpost resume .*/run$"):
        store.begin(2, state(2), no)
    assert (names(store.folder), store.newest()[0].step) == (["step_000001"], 1)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 500736 vs 500628"),
        RuntimeError("ray::LearnerRank.save() ...\nOSError: [Errno 28] No space left on device: 'x'"),
    ],
    ids=["space", "quota", "torch", "a rank"],
)
@pytest.mark.parametrize("where", ["fill", "seal"])
def test_a_disk_that_runs_out_in_a_save_is_said_so_and_the_draft_goes(store, monkeypatch, error, where):
    def full(folder: Path) -> None:
        fill(folder)
        raise error

    if where == "seal":
        monkeypatch.setattr(store_module, "described", full)
    with pytest.raises(DiskFullError, match=r"no space left for the checkpoint of step 2: .* free") as raised:
        store.write(2, state(2), full if where == "fill" else fill)
    monkeypatch.undo()
    assert raised.value.__cause__ is error
    assert (names(store.folder), store.newest()[0].step) == (["step_000001"], 1)


def test_another_error_stays_what_it_is(store):
    def broken(_: Path) -> None:
        raise RuntimeError("a rank lost its way")

    with pytest.raises(RuntimeError, match="lost its way") as raised:
        store.write(2, state(2), broken)
    assert not isinstance(raised.value, DiskFullError)


SMALL = """
import os, subprocess, sys
from pathlib import Path
import torch
from rlpost.checkpoint import DiskFullError, Store
from tests.unit.checkpoint.test_checkpoint_store import RUN, fill, state

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True)
store = Store(disk / "checkpoints", RUN)
store.write(1, state(1), fill)

def large(folder):
    fill(folder)
    torch.save({"weights": torch.zeros(2**20)}, folder / "deepspeed" / "more.pt")

try:
    store.write(2, state(2), large)
except DiskFullError as error:
    print(error)
print(sorted(os.listdir(store.folder)), store.newest()[0].step)
"""


def test_a_small_disk_that_torch_fills(tmp_path):
    inside = ["unshare", "-Urm", sys.executable, "-c", SMALL, str(tmp_path)]
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a user make namespaces")
    done = subprocess.run(inside, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    said, left = done.stdout.splitlines()
    assert said.startswith("no space left for the checkpoint of step 2")
    assert left == "['step_000001'] 1"


def test_a_folder_that_is_not_there_yet_has_the_room_of_its_disk(tmp_path):
    assert room.free(tmp_path / "not" / "yet") > 0

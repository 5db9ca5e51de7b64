"""Sealed checkpoints at a URL: whole once their manifest is there, taken up where the run's own folder has none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from rlpost.checkpoint import CheckpointError, Mirror, Store, mirror
from rlpost.config import ConfigError
from tests.unit.checkpoint.test_checkpoint_store import RUN, fill, names, state

URL = "memory://bucket/runs"
MEMORY = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def empty(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(mirror, "PAUSE", 0.0)
    yield
    MEMORY.store.clear()
    MEMORY.pseudo_dirs[:] = [""]


def opened(folder: Path, run: str = RUN) -> Store:
    return Store(folder, run, mirror=Mirror(URL, run))


def save(store: Store, *steps: int, keep: int = 2) -> None:
    for step in steps:
        store.begin(step, state(step), fill, keep=keep)
    store.join()


def uploaded() -> list[str]:
    return sorted({path.split("/")[4] for path in MEMORY.find(f"/bucket/runs/{RUN}")})


def test_a_run_whose_folder_lost_its_checkpoints_goes_on_from_the_url(tmp_path):
    save(opened(tmp_path), 1, 2, 3)
    assert uploaded() == names(tmp_path) == ["step_000002", "step_000003"]
    shutil.rmtree(tmp_path)
    found, rejected = opened(tmp_path).newest()
    assert (found.step, found.state(), rejected) == (3, state(3), [])
    assert names(tmp_path) == ["step_000003"]


def test_the_manifest_is_uploaded_last_and_removed_first(tmp_path, monkeypatch):
    done: list[str] = []
    for name in ("put_file", "rm_file"):
        call = getattr(type(MEMORY), name)
        monkeypatch.setattr(
            type(MEMORY), name, lambda fs, *a, _call=call, **k: (done.append(a[-1]), _call(fs, *a, **k))[1]
        )
    save(opened(tmp_path), 1, 2, keep=1)
    of = [[path.rsplit(f"step_00000{step}/")[-1] for path in done if f"step_00000{step}/" in path] for step in (1, 2)]
    half = len(of[0]) // 2
    assert of[0][half - 1] == of[0][half] == of[1][-1] == "manifest.json"
    assert uploaded() == ["step_000002"]


def test_a_part_of_a_checkpoint_and_one_that_is_damaged_are_not_taken(tmp_path):
    save(opened(tmp_path), 1, 2)
    shutil.rmtree(tmp_path)
    MEMORY.rm_file(f"/bucket/runs/{RUN}/step_000002/manifest.json")
    assert opened(tmp_path).newest()[0].step == 1
    shutil.rmtree(tmp_path)
    MEMORY.pipe_file(f"/bucket/runs/{RUN}/step_000001/state.json", b"{}")
    found, rejected = opened(tmp_path).newest()
    assert found is None
    assert "state.json has 2 bytes" in rejected[0]


def test_what_is_here_comes_first_and_other_runs_are_left_alone(tmp_path):
    save(opened(tmp_path / "other", "another"), 7)
    save(opened(tmp_path / "mine"), 1)
    save(Store(tmp_path / "mine", RUN), 2)
    assert opened(tmp_path / "mine").newest()[0].step == 2
    save(opened(tmp_path / "mine"), 3, keep=1)
    assert uploaded() == ["step_000003"]
    assert MEMORY.exists("/bucket/runs/another/step_000007/manifest.json")


def test_errors_that_pass_are_lived_through_and_others_are_said(tmp_path, monkeypatch):
    put, failures = type(MEMORY).put_file, [3]

    def shaky(files: object, *args: object, **more: object) -> None:
        if failures[0]:
            failures[0] -= 1
            raise TimeoutError("503 slow down")
        put(files, *args, **more)

    monkeypatch.setattr(type(MEMORY), "put_file", shaky)
    store = opened(tmp_path)
    save(store, 1)
    assert uploaded() == ["step_000001"]
    failures[0] = 100
    with pytest.raises(CheckpointError, match=r"memory://bucket/runs/.*, 4 times: .*503 slow down"):
        save(store, 2)
    assert (store.last, Store(tmp_path, RUN).newest()[0].step) == (2, 2)
    failures[0] = 0
    save(store, 3)
    assert uploaded() == ["step_000003"]


def test_a_kind_of_storage_that_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match=r"checkpoint.mirror: nowhere://x"):
        Mirror("nowhere://x", RUN)

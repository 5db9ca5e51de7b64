"""One run, one folder: made once, written by one, never half written."""

import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rlpost import atomic
from rlpost.observe import RunFolder, RunFolderError


def create(runs: Path, name: str | None = "a") -> RunFolder:
    return RunFolder.create(runs, name, "seed: 3\n", ["rlpost", "train", "c.yaml"], seed=3)


def test_a_new_run_has_its_configuration_and_a_manifest_of_what_made_it(tmp_path: Path) -> None:
    with create(tmp_path) as folder:
        assert folder.path == tmp_path / "a"
        assert folder.config.read_text() == "seed: 3\n"
        assert folder.rollouts.is_dir()
        assert folder.checkpoints.is_dir()
        assert folder.logs.is_dir()
        manifest = folder.read_manifest()
    assert manifest["seed"] == 3
    assert manifest["command"] == ["rlpost", "train", "c.yaml"]
    assert abs((datetime.now(UTC) - datetime.fromisoformat(manifest["started"])).total_seconds()) < 60
    for package in ("rlpost", "python", "torch", "ray", "vllm", "deepspeed", "transformers"):
        assert re.match(r"\d+\.\d+", manifest["versions"][package]), package


def test_its_path_does_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch) -> None:
    """Learner ranks write where they are told, from folders of their own."""
    monkeypatch.chdir(tmp_path)
    with create(Path("runs")) as folder:
        assert folder.path == tmp_path / "runs" / "a"
    assert RunFolder.open("runs/a").checkpoints == tmp_path / "runs" / "a" / "checkpoints"


def test_the_manifest_holds_the_commit_of_the_current_directory(tmp_path: Path, monkeypatch) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    work = tmp_path / "work"
    work.mkdir()
    (work / "f").write_text("1")
    subprocess.run([*git, "init", "-q"], cwd=work, check=True)
    subprocess.run([*git, "add", "f"], cwd=work, check=True)
    subprocess.run([*git, "commit", "-qm", "c"], cwd=work, check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], cwd=work, check=True, capture_output=True, text=True).stdout
    monkeypatch.chdir(work)
    assert create(tmp_path, "clean").read_manifest()["git"] == {"commit": commit.strip(), "dirty": False}
    (work / "f").write_text("2")
    assert create(tmp_path, "dirty").read_manifest()["git"] == {"commit": commit.strip(), "dirty": True}


def test_outside_a_repository_the_manifest_says_why_there_is_no_commit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    git = create(tmp_path).read_manifest()["git"]
    assert git["commit"] is None
    assert "not a git repository" in git["reason"]


def test_a_run_without_a_name_is_named_by_time_and_four_hex_digits(tmp_path: Path) -> None:
    first, second = create(tmp_path, None), create(tmp_path, None)
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", first.path.name)
    assert first.path != second.path
    assert first.read_manifest()["run_id"] == first.path.name


def test_a_name_taken_by_a_run_is_refused_with_the_folder_and_the_fix(tmp_path: Path) -> None:
    create(tmp_path).close()
    with pytest.raises(RunFolderError, match=rf"{tmp_path}/a already holds a run.*rlpost resume.*another name"):
        create(tmp_path)
    with RunFolder.open(tmp_path / "a") as folder:  # the refusal left no lock behind
        folder.lock()


def test_a_folder_that_never_became_a_run_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "LOCK").write_text("1234\n")
    (tmp_path / "a" / "config.yaml").write_text("of a run that was killed before it had a manifest")
    with create(tmp_path) as folder:
        assert folder.config.read_text() == "seed: 3\n"


@pytest.mark.parametrize("file", ["config.yaml", "metrics.jsonl", "summary.json", "checkpoints/step_000001/model"])
def test_a_user_s_files_are_not_written_over(tmp_path: Path, file: str) -> None:
    (tmp_path / "a" / file).parent.mkdir(parents=True)
    (tmp_path / "a" / file).write_text("mine")
    with pytest.raises(RunFolderError, match=f"{tmp_path}/a is no run but holds {file.split('/')[0]}.*another name"):
        create(tmp_path)
    assert (tmp_path / "a" / file).read_text() == "mine"


def test_what_is_discarded_leaves_the_name_free_and_what_a_user_laid_there(tmp_path: Path) -> None:
    create(tmp_path).discard()
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    folder = create(tmp_path)
    (folder.logs / "driver.log").write_text("said")
    folder.discard()
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["driver.log", "notes.txt"]
    create(tmp_path).close()


def test_runs_of_one_second_get_names_of_their_own(tmp_path: Path, monkeypatch) -> None:
    drawn = iter(["aaaa", "aaaa", "bbbb", "aaaa", "cccc"] * 3)  # the second may turn in between
    monkeypatch.setattr("secrets.token_hex", lambda size: next(drawn))
    assert len({create(tmp_path, None).path for _ in range(3)}) == 3


@pytest.mark.parametrize("torn", ["", '{"run_id": "2026', "[]", '{"run_id": 3, "command": []}', '{"command": []}'])
def test_a_torn_manifest_of_a_run_is_named(tmp_path: Path, torn: str) -> None:
    with create(tmp_path) as folder:
        folder.manifest.write_text(torn)
        with pytest.raises(RunFolderError, match=rf"{tmp_path}/a/manifest.json cannot be read .*put back"):
            folder.read_manifest()


def test_a_place_where_no_run_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(RunFolderError, match="is a file"):
        create(tmp_path)
    with pytest.raises(RunFolderError, match=r"runs_dir: .* cannot be made"):
        create(tmp_path / "a")


@pytest.mark.parametrize("name", ["", "..", "a/b", "/tmp/a"])
def test_a_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFolderError, match="runs_dir"):
        create(tmp_path, name)


def test_opening_what_is_not_a_run_is_refused_and_names_a_run_near_it(tmp_path: Path) -> None:
    create(tmp_path).close()
    with pytest.raises(RunFolderError, match=rf"{tmp_path} is not a run.*{tmp_path}/a"):
        RunFolder.open(tmp_path)
    with pytest.raises(RunFolderError, match=rf"{tmp_path}/b is not a folder.*{tmp_path}/a"):
        RunFolder.open(tmp_path / "b")


def test_a_second_writer_is_refused_with_the_pid_of_the_first_and_a_reader_is_not(tmp_path: Path) -> None:
    with create(tmp_path):
        other = RunFolder.open(tmp_path / "a")
        assert other.read_manifest()["seed"] == 3
        with pytest.raises(RunFolderError, match=rf"pid {os.getpid()}\)"):
            other.lock()
    other.lock()
    other.close()


HOLDER = """
import os, sys, time
from rlpost.observe import RunFolder
folder = RunFolder.open(sys.argv[1])
folder.lock()
if os.fork() == 0:  # a worker that outlives its parent
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


def test_a_killed_writer_lets_go_even_if_a_forked_child_lives_on(tmp_path: Path) -> None:
    create(tmp_path).close()
    writer = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    child = int(writer.stdout.readline())
    try:
        folder = RunFolder.open(tmp_path / "a")
        with pytest.raises(RunFolderError, match=rf"pid {writer.pid}\)"):
            folder.lock()
        writer.kill()
        writer.wait(timeout=30)
        os.kill(child, 0)  # still there
        folder.lock()
        folder.close()
    finally:
        os.kill(child, signal.SIGKILL)
        writer.kill()


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    atomic.write_json(path, {"steps": 1})

    def fail_half_way() -> None:
        with atomic.replacing(path) as temporary:
            temporary.write_text("{")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_half_way()
    assert json.loads(path.read_text()) == {"steps": 1}
    assert os.listdir(tmp_path) == ["summary.json"]


def test_json_names_the_numbers_it_cannot_hold() -> None:
    nan = float("nan")
    assert atomic.finite({"a": 1.0, "b": {"c": [0.5, nan]}}) == {
        "a": 1.0,
        "b": {"c": [0.5, None]},
        "nonfinite": ["b.c.1"],
    }


def test_importing_observe_imports_neither_torch_nor_ray_nor_vllm() -> None:
    check = (
        "import sys, rlpost.observe; print([m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"

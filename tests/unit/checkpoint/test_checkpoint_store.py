"""A checkpoint is there whole or not at all, is verified before it is believed, and is what its manifest says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlpost.checkpoint import CheckpointError, Store
from rlpost.config import Best, ConfigError
from tests.archives import archive

RUN = "20260101-000000-abcd"
WEIGHTS = "model/model.safetensors"
SHARDS = [f"deepspeed/state/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]


def fill(folder: Path, left_out: str = "") -> None:
    for name in (WEIGHTS, *SHARDS):
        if name != left_out:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(archive() if name in SHARDS else b"w" * 1000)


def state(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "ranks": 2, "zero_stage": 1, **more}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path, RUN)


@pytest.fixture
def write(store) -> Callable[..., Path]:
    return lambda step, **more: store.write(step, state(step, **more), fill).path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def change_manifest(path: Path, **values: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **values}))


def test_what_was_written_is_found_with_its_state(store, write):
    write(3)
    write(12)
    found, rejected = store.newest()
    assert (found.step, found.state(), rejected) == (12, state(12), [])


def test_what_an_alarm_left_is_found_by_its_step_alone_and_takes_no_place_among_those_kept(store, write):
    write(3)
    write(5)
    alarm = store.write(8, state(8), fill, alarm=True)
    assert alarm.path.name == "alarm_000008"
    store.retain(1)
    found, rejected = store.newest()
    assert (found.step, rejected) == (5, ["alarm_000008: it is of an alarm; --step 8 takes it"])
    assert store.choose(8, warn=lambda _: None).path == alarm.path
    assert names(store.folder) == ["alarm_000008", "step_000005"]
    write(8)
    assert store.choose(8, warn=lambda _: None).path.name == "step_000008"
    write(9)
    store.retain(1)
    assert names(store.folder) == ["step_000009"]


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flip": (lambda p: (p / WEIGHTS).write_bytes(b"x" + b"w" * 999), "SHA-256"),
    "truncate": (lambda p: (p / WEIGHTS).write_bytes(b"w" * 10), "10 bytes"),
    "delete": (lambda p: (p / WEIGHTS).unlink(), "missing"),
    "a folder where a file was": (lambda p: ((p / WEIGHTS).unlink(), (p / WEIGHTS).mkdir()), "no plain file"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "not finished"),
    "an empty manifest": (lambda p: (p / "manifest.json").write_text(""), "cannot be read"),
    "a torn manifest": (lambda p: (p / "manifest.json").write_text('{"step": 3, "fi'), "cannot be read"),
    "no text": (lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "another kind of JSON": (lambda p: (p / "manifest.json").write_text("[1, 2]"), "cannot be read"),
    "only a step": (lambda p: (p / "manifest.json").write_text('{"step": 2}'), "cannot be read"),
    "a step that is no number": (lambda p: change_manifest(p, step="2"), "step"),
    "files that are no mapping": (lambda p: change_manifest(p, files=["a"]), "files"),
    "a file without a sum": (lambda p: change_manifest(p, files={WEIGHTS: {"bytes": 1000}}), "sha256"),
    "a path outside": (
        lambda p: change_manifest(p, files={"../outside": {"bytes": 1, "sha256": "0" * 64}}),
        "no path below",
    ),
    "an absolute path": (
        lambda p: change_manifest(p, files={"/etc/hostname": {"bytes": 1, "sha256": "0" * 64}}),
        "no path below",
    ),
    "a later format": (lambda p: change_manifest(p, format=2), "format"),
    "another step than the state's": (lambda p: change_manifest(p, step=7), "state.json is of step 2"),
    "a link": (
        lambda p: ((p / WEIGHTS).rename(p.parent / "w"), (p / WEIGHTS).symlink_to(p.parent / "w")),
        "link to somewhere else",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_the_reason_said(store, write, damage):
    write(1)
    spoil, reason = DAMAGE[damage]
    spoil(write(2))
    found, rejected = store.newest()
    assert found.step == 1
    assert len(rejected) == 1
    assert "step_000002" in rejected[0]
    assert reason in rejected[0]
    with pytest.raises(ConfigError, match=r"--step 2: .* has no such checkpoint.*steps that are there: .*1"):
        store.choose(2, print)


@pytest.mark.parametrize("key", ["format", "id", "run", "name", "step", "files"])
def test_a_manifest_that_lacks_a_key_is_passed_over(store, write, key):
    write(1)
    path = write(2)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest[key]
    (path / "manifest.json").write_text(json.dumps(manifest))
    found, rejected = store.newest()
    assert (found.step, len(rejected)) == (1, 1)
    assert key in rejected[0]


def lay_things_beside(folder: Path) -> None:
    """What users put where checkpoints lie."""
    newest = max(p for p in folder.iterdir() if p.name.startswith("step_"))
    shutil.copytree(newest, folder / "step_000099")
    shutil.copytree(newest, folder / f"{newest.name}_best")
    shutil.copytree(newest, folder / "good one")
    (folder / "step_zz_notes.txt").write_text("mine")
    (folder / "step_000777").write_text("a file")
    (folder / "step_mine").mkdir()
    (folder / "tmp-mine").mkdir()
    (folder / "tmp-mine" / "work.txt").write_text("mine")
    (folder / "tmp-0123456789abcdef0123456789abcdef").mkdir()
    (folder / "tmp-file").write_text("mine")
    (folder / "step_000888").symlink_to(newest.name)
    (folder / "step_000889").symlink_to("nowhere")
    (folder / "tmp-link").symlink_to("nowhere")
    foreign = Store(folder / "elsewhere", "another-run").write(50, state(50), fill).path
    foreign.rename(folder / "step_000050")
    (folder / "elsewhere").rmdir()


def test_what_lies_beside_the_checkpoints_is_neither_believed_nor_touched(store, write, tmp_path):
    write(1)
    write(2)
    lay_things_beside(tmp_path)
    theirs = set(names(tmp_path)) - {"step_000001", "step_000002"}
    found, rejected = store.newest()
    assert (found.path.name, found.step) == ("step_000002", 2)
    assert rejected == ["step_000050: it is of another run (another-run)"]
    for step in (3, 4, 5):
        write(step)
        store.retain(1)
    assert set(names(tmp_path)) == theirs | {"step_000005"}
    assert (tmp_path / "tmp-mine" / "work.txt").read_text() == "mine"
    assert store.newest()[0].step == 5
    assert store.choose(2, print).path.name in ("good one", "step_000002_best", "step_000099")


def test_a_copy_is_of_the_step_it_was_copied_from_and_stands_in_for_it(store, write, tmp_path):
    write(3)
    shutil.copytree(tmp_path / "step_000003", tmp_path / "step_000009")
    write(4)
    assert store.newest()[0].step == 4
    shutil.rmtree(tmp_path / "step_000003")
    (write(4) / WEIGHTS).unlink()
    assert (store.newest()[0].path.name, store.newest()[0].step) == ("step_000009", 3)


def test_a_name_that_somebody_took_is_left_to_them(store, write, tmp_path):
    write(3)
    shutil.copytree(tmp_path / "step_000003", tmp_path / "step_000009")
    (tmp_path / "step_000010").write_text("mine")
    (tmp_path / "step_000011").symlink_to("nowhere")
    for step in (9, 10, 11):
        write(step)
        assert store.newest()[0].step == step
    store.retain(3)
    assert names(tmp_path) == [
        "step_000009",
        "step_000009-2",
        *(f"step_0000{n}{s}" for n in (10, 11) for s in ("", "-2")),
    ]
    write(9)
    assert store.choose(9, print).path.name == "step_000009-2"
    store.retain(1)
    assert names(tmp_path) == ["step_000009", "step_000010", "step_000011", "step_000011-2"]


def test_what_somebody_laid_into_a_checkpoint_outlives_it(store, write, tmp_path):
    (write(1) / "model" / "notes.txt").write_text("mine")
    write(2)
    store.retain(1)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file() and "000001" in str(p)] == [
        "step_000001/model/notes.txt"
    ]
    assert store.newest()[0].step == 2


def test_a_removal_never_follows_a_link_out_of_the_checkpoint(store, write, tmp_path):
    path = write(1)
    (path / "model").rename(tmp_path / "kept elsewhere")
    (path / "model").symlink_to(tmp_path / "kept elsewhere")
    write(2)
    store.retain(1)
    assert (tmp_path / "kept elsewhere" / "model.safetensors").is_file()


def test_a_write_that_fails_leaves_the_old_one_and_nothing_else(store, write, tmp_path):
    write(1)

    def broken(folder: Path) -> None:
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.write(2, state(2), broken)
    assert names(tmp_path) == ["step_000001"]


@pytest.mark.parametrize("finished", [False, True])
def test_a_draft_of_a_run_that_was_killed_is_cleared_by_the_next_save(store, write, tmp_path, finished):
    """Its manifest says whose it is. One that lacked only its name is as good as any, until there is another."""
    write(1)
    path = write(2)
    manifest = json.loads((path / "manifest.json").read_text())
    path.rename(tmp_path / f"tmp-{manifest['id']}")
    if not finished:
        change_manifest(tmp_path / f"tmp-{manifest['id']}", files=None)
    again = Store(tmp_path, RUN)
    found, rejected = again.newest()
    assert (found.step, rejected) == (2 if finished else 1, [])
    again.write(3, state(3), fill)
    again.retain(3)
    assert names(tmp_path) == ["step_000001", "step_000003"]


def test_retention_keeps_the_newest(store, write, tmp_path):
    for step in (1, 2, 3, 10, 1_000_001):
        write(step)
    store.retain(2)
    assert names(tmp_path) == ["step_000010", "step_1000001"]


@pytest.mark.parametrize("spoil", [name for name in DAMAGE if name != "another step than the state's"])
def test_retention_counts_only_what_can_be_believed(store, write, tmp_path, spoil):
    """A run that was resumed from before a damaged checkpoint keeps what it writes now."""
    write(2)
    path = write(4)
    DAMAGE[spoil][0](path)
    again = Store(tmp_path, RUN)
    assert again.newest()[0].step == 2
    again.write(3, state(3), fill)
    again.retain(1)
    assert Store(tmp_path, RUN).newest()[0].step == 3
    assert "step_000002" not in names(tmp_path)


def test_what_is_damaged_goes_when_it_is_older_than_what_is_kept(store, write, tmp_path):
    (write(1) / WEIGHTS).unlink()
    write(2)
    write(3)
    store.retain(2)
    assert names(tmp_path) == ["step_000002", "step_000003"]


def test_retention_reads_no_checkpoint_again(store, write, tmp_path, monkeypatch):
    for step in (1, 2, 3):
        write(step)
    again = Store(tmp_path, RUN)
    again.newest()

    def no(*_: object) -> str:
        raise AssertionError("a checkpoint was read again")

    monkeypatch.setattr("rlpost.checkpoint.manifest._sha256", no)
    store.retain(2)
    again.retain(1)
    assert names(tmp_path) == ["step_000003"]


def test_writing_a_step_again_replaces_it(store, write, tmp_path):
    write(5, attempt=1)
    write(5, attempt=2)
    store.retain(2)
    assert store.newest()[0].state()["attempt"] == 2
    assert names(tmp_path) == ["step_000005"]


@pytest.mark.parametrize("left_out", [WEIGHTS, *SHARDS])
def test_what_was_written_where_the_driver_cannot_see_it_is_no_checkpoint(store, write, tmp_path, left_out):
    """A rank wrote to a folder of its own machine, or of its own working directory."""
    write(1)
    with pytest.raises(CheckpointError, match=r"step_000002: no .* file system that all nodes share"):
        store.write(2, state(2), lambda folder: fill(folder, left_out))
    assert names(tmp_path) == ["step_000001"]


@pytest.mark.parametrize("left_out", [WEIGHTS, *SHARDS, "state.json"])
def test_a_manifest_without_weights_a_rank_s_shard_or_the_state_is_not_believed(store, write, left_out):
    path = write(1)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"][left_out]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert left_out in store.newest()[1][0] or f"no {left_out}" in store.newest()[1][0]


def test_without_zero_one_state_is_that_of_all_ranks(store):
    def whole(folder: Path) -> None:
        fill(folder)
        for name in SHARDS:
            (folder / name).unlink()
        (folder / "deepspeed/state/mp_rank_00_model_states.pt").write_bytes(archive())

    assert store.write(1, {**state(1), "zero_stage": 0}, whole).problems() == []


def test_a_run_without_checkpoints_says_so(store):
    assert store.newest() == (None, [])
    with pytest.raises(ConfigError, match="steps that are there: none"):
        store.choose(None, print)


BEST = Best(metric="pass@1")


def test_the_best_checkpoints_are_spared_and_found(store, write, tmp_path):
    for step, value in ((1, 0.2), (2, 0.7), (3, 0.5), (4, 0.7), (5, 0.1)):
        write(step)
        store.score(step, {"pass@1": value, "nll": -value})
        store.retain(1, BEST)
    assert names(tmp_path) == ["step_000004", "step_000005"]
    again = Store(tmp_path, RUN)
    found = again.choose("best", print, BEST)
    assert (found.step, found.scores()["pass@1"]) == (4, 0.7)
    assert again.newest()[0].step == 5


@pytest.mark.parametrize(("mode", "keep", "expected"), [("min", 1, [1, 4]), ("min", 2, [1, 2, 4]), ("max", 2, [3, 4])])
def test_which_are_the_best_is_a_choice(store, write, tmp_path, mode, keep, expected):
    for step in (1, 2, 3, 4):
        write(step)
        store.score(step, {"nll": float(step)})
    store.retain(1, Best(metric="nll", mode=mode, keep=keep))
    assert names(tmp_path) == [f"step_{step:06d}" for step in expected]


def test_a_best_checkpoint_that_is_damaged_is_neither_spared_nor_taken(store, write, tmp_path):
    for step in (1, 2, 3):
        write(step)
        store.score(step, {"pass@1": 1.0 / step})
    (tmp_path / "step_000001" / WEIGHTS).unlink()
    assert store.choose("best", print, BEST).step == 2
    store.retain(1, BEST)
    assert names(tmp_path) == ["step_000002", "step_000003"]


@pytest.mark.parametrize("torn", ["", "[]", '{"pass@1": "0.5"}', '{"pass@1": 0.'])
def test_a_torn_score_is_none(store, write, torn):
    (write(1) / "scores.json").write_text(torn)
    assert store.newest()[0].scores() == {}
    with pytest.raises(ConfigError, match=r"--step best: .*pass@1 is known: of none"):
        store.choose("best", print, BEST)


def test_a_score_of_a_step_without_a_checkpoint_is_let_go(store, write, tmp_path):
    write(1)
    store.score(2, {"pass@1": 1.0})
    assert names(tmp_path) == ["step_000001"]


def test_the_best_is_not_known_where_nothing_says_what_that_is(store, write):
    write(1)
    with pytest.raises(ConfigError, match=r"checkpoint\.best is not set"):
        store.choose("best", print)

"""A folder of checkpoints that somebody else had: nothing of it is run, waited for, followed or deleted.

What is refused is named, and an older checkpoint that is whole is taken.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rlpost import torch_files
from rlpost.checkpoint import Store, load_roles
from rlpost.checkpoint.manifest import Manifest
from tests.archives import Canary, archive
from tests.unit.checkpoint.test_checkpoint_store import RUN, SHARDS, WEIGHTS, change_manifest, fill, state

SHARD = SHARDS[0]


@pytest.fixture
def newer(tmp_path) -> tuple[Path, Path]:
    """The checkpoints of steps 1 and 2; the newer is to be spoiled."""
    store = Store(tmp_path / "checkpoints", RUN)
    return tuple(store.write(step, state(step), fill).path for step in (1, 2))


def sealed(path: Path, **contents: bytes) -> None:
    """Change files and let the manifest say so: whoever can write the one can write the other."""
    files = json.loads((path / "manifest.json").read_text())["files"]
    for name, content in contents.items():
        (path / name).write_bytes(content)
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_manifest(path, files=files)


def passed_over(older: Path, *said: str) -> None:
    """The older one is taken; what is wrong with the newer is said in one line."""
    found, rejected = Store(older.parent, RUN).newest()
    assert found is not None
    assert found.path == older
    line = next(line for line in rejected if "step_000002" in line)
    assert line.isprintable()
    for words in said:
        assert words in line


# ------------------------------------------------------------------------------------------------------------- code


def tar(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name in ("pickle", "storages", "tensors", "sys_info"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def legacy(content: bytes) -> bytes:
    """As torch.save wrote until 1.6: pickles one after another."""
    return pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + content


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a call": (lambda c: archive(pickle.dumps(Canary(c), 2)), "posix.mkdir"),
    "a call among tensors": (lambda c: archive(pickle.dumps({"a": 1.0, "b": [Canary(c)]}, 2)), "posix.mkdir"),
    "named by the stack": (
        lambda c: archive(b"\x80\x02" + pickle.dumps(Canary(c), 4)[11:]),
        "which torch.save does not write",
    ),
    "an instance": (lambda c: archive(b"(S'" + str(c).encode() + b"'\nios\nmkdir\n."), "STRING"),
    "eval": (lambda _: archive(b"c__builtin__\neval\n."), "__builtin__.eval"),
    "an attribute of torch": (lambda _: archive(b"ctorch.hub\nload\n."), "torch.hub.load"),
    "dots in a name": (lambda _: archive(b"ctorch\nSize.__class__\n."), "torch.Size.__class__"),
    "a name with line breaks": (lambda _: archive(b"ctorch\nx\x1b[2J\n."), r"\x1b"),
    "a bare pickle": (lambda c: pickle.dumps(Canary(c), 2), "not a file of torch.save"),
    "the format before": (lambda c: legacy(pickle.dumps(Canary(c), 2)), "not a file of torch.save"),
    "a tar": (lambda c: tar(pickle.dumps(Canary(c), 2)), "not a file of torch.save"),
    "nothing": (lambda _: b"", "not a file of torch.save"),
    "a cut pickle": (lambda _: archive(b"\x80\x02}q\x00(X\xff\xff\x00\x00abc"), "cut off or damaged"),
    "a second program": (
        lambda c: archive(more=[("shard/constants.pkl", pickle.dumps(Canary(c), 2))]),
        "constants.pkl",
    ),
    "a program elsewhere": (lambda c: archive(more=[("a/data.pkl", pickle.dumps(Canary(c), 2))]), "a/data.pkl"),
    "a program deeper": (lambda c: archive(more=[("shard/a/data.pkl", pickle.dumps(Canary(c), 2))]), "one program"),
    "two of one name": (lambda c: archive(more=[("shard/DATA.PKL", pickle.dumps(Canary(c), 2))]), "one name"),
    "compressed": (lambda _: archive(bytes(10**6), compression=zipfile.ZIP_DEFLATED), "compressed"),
    "no program": (lambda _: archive().replace(b"data.pkl", b"data.txt"), "has: none"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_shard_with_more_than_data_is_passed_over_and_not_run(newer, tmp_path, name):
    make, said = HOSTILE[name]
    canary = tmp_path / "canary"
    sealed(newer[1], **{SHARD: make(canary)})
    passed_over(newer[0], SHARD, said)
    with pytest.raises(ValueError, match="zero_pp_rank_0"):
        torch_files.load(newer[1] / SHARD)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["a call", "the format before", "named by the stack"])
def test_roles_and_anchors_with_more_than_data_are_not_run_either(newer, tmp_path, name):
    canary = tmp_path / "canary"
    for file in ("roles.pt", "anchors/teacher.pt"):
        (newer[1] / "anchors").mkdir(exist_ok=True)
        sealed(newer[1], **{file: HOSTILE[name][0](canary)})
        passed_over(newer[0], HOSTILE[name][1])
    with pytest.raises(ValueError, match=r"roles\.pt"):
        load_roles(newer[1])
    assert not canary.exists()


def test_entries_that_are_larger_than_the_file_are_refused(newer):
    """Two entries over one stretch of bytes: a small file that becomes a large one."""
    content = bytearray(archive(more=[("shard/data/1", b"x")]))
    entry = content.rindex(b"PK\1\2")
    content[entry + 20 : entry + 28] = (10**9).to_bytes(4, "little") * 2
    sealed(newer[1], **{SHARD: bytes(content)})
    passed_over(newer[0], SHARD, "larger than it is")


def test_programs_and_lists_of_entries_are_bounded(newer, monkeypatch):
    monkeypatch.setattr(torch_files, "PROGRAM_BYTES", 20)
    passed_over_both = Store(newer[0].parent, RUN).newest()
    assert passed_over_both[0] is None
    assert "data.pkl has" in passed_over_both[1][0]
    monkeypatch.setattr(torch_files, "DIRECTORY_BYTES", 20)
    assert "list of entries" in Store(newer[0].parent, RUN).newest()[1][0]


def test_what_torch_saves_of_tensors_comes_back_to_the_bit(tmp_path):
    import torch

    torch.manual_seed(0)
    shared = torch.randn(6)
    held = {
        "weights": {dtype: torch.randn(3, 4).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)},
        "view": [shared[:3], shared[3:]],
        "numbers": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "size": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
        "plain": (1, 2.5, None, "text", [True], 10**30),
    }
    torch.save(held, tmp_path / "held.pt")
    found = torch_files.load(tmp_path / "held.pt")
    torch.testing.assert_close(found["weights"], held["weights"], rtol=0, atol=0)
    for name in ("numbers", "flags", "parameter"):
        assert torch.equal(found[name], held[name])
    assert (found["size"], found["dtype"], found["plain"]) == (held["size"], held["dtype"], held["plain"])
    assert found["view"][0].untyped_storage().data_ptr() == found["view"][1].untyped_storage().data_ptr()


# ------------------------------------------------------------------------------------------------ files of other kinds


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def bound(path: Path) -> None:
    """A socket of this name; names of sockets are short."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "no plain file"),
    "a socket": (bound, "cannot be read"),
    "an endless device": (lambda p: p.symlink_to("/dev/zero"), "cannot be read"),
    "a link to itself": (lambda p: p.symlink_to(p.name), "cannot be read"),
    "a folder": (Path.mkdir, "cannot be read"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_of_another_kind_is_not_waited_for(newer, kind):
    make, _ = KINDS[kind]
    replaced(newer[1] / "manifest.json", make)
    passed_over(newer[0], "manifest.json cannot be read")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [SHARD, WEIGHTS, "state.json"])
@pytest.mark.parametrize("kind", ["a pipe", "a socket", "an endless device", "a link to itself"])
def test_a_file_of_another_kind_is_not_waited_for_or_followed(newer, kind, name):
    replaced(newer[1] / name, KINDS[kind][0])
    passed_over(newer[0], name)


@pytest.mark.timeout(20)
def test_scores_of_another_kind_are_none(newer):
    os.mkfifo(newer[1] / "scores.json")
    assert Store(newer[0].parent, RUN).newest()[0].scores() == {}


def test_a_link_within_a_checkpoint_is_refused_and_a_hard_link_is_a_copy(newer, tmp_path):
    (newer[1] / SHARDS[1]).unlink()
    os.link(newer[0] / SHARDS[1], newer[1] / SHARDS[1])
    assert Store(newer[0].parent, RUN).newest()[0].path == newer[1]
    replaced(newer[1] / SHARDS[1], lambda p: p.symlink_to(Path(SHARD).name))
    passed_over(newer[0], SHARDS[1], "link")


def test_a_folder_that_is_a_link_is_not_followed(newer, tmp_path):
    (newer[1] / "deepspeed").rename(tmp_path / "away")
    (newer[1] / "deepspeed").symlink_to(tmp_path / "away")
    passed_over(newer[0], "link")
    (newer[1] / "deepspeed").unlink()
    (tmp_path / "away").rename(newer[1] / "deepspeed")
    (newer[1] / "anchors").symlink_to("/")
    passed_over(newer[0], "anchors is not in manifest.json")


@pytest.mark.parametrize(
    "name",
    [
        "deepspeed/state/mp_rank_01_model_states.pt",
        "model/model-00001-of-00002.safetensors",
        "model/modeling.py",
        "model/pytorch_model.bin",
        "anchors/teacher.pt",
    ],
)
def test_a_part_that_the_manifest_does_not_name_is_no_part_of_it(newer, name):
    (newer[1] / name).parent.mkdir(exist_ok=True)
    (newer[1] / name).write_bytes(b"laid in")
    passed_over(newer[0], f"{name} is not in manifest.json")


# -------------------------------------------------------------------------------------------------------- manifests

ENTRY = {"bytes": 1, "sha256": "0" * 64}
TEXTS: dict[str, Callable[[str], str]] = {
    "a key twice": lambda text: text.replace('"step"', '"step": 9, "step"', 1),
    "deep": lambda _: "[" * 100_000 + "]" * 100_000,
    "deep in a key": lambda text: text.replace(
        '"files": {', '"files": {"a": ' + '{"a":' * 50_000 + "1" + "}" * 50_001, 1
    ),
    "no number": lambda text: text.replace('"step": 2', '"step": NaN'),
    "too large a number": lambda text: text.replace('"step": 2', '"step": 1e309'),
    "a negative step": lambda text: text.replace('"step": 2', '"step": -2'),
    "a number of ten thousand digits": lambda text: text.replace('"step": 2', f'"step": {"9" * 10_000}'),
    "a step that is true": lambda text: text.replace('"step": 2', '"step": true'),
    "a size that is not whole": lambda text: text.replace('"bytes": 1000', '"bytes": 1000.5'),
    "another letter case": lambda text: text.replace('"step"', '"Step"'),
    "nothing but spaces": lambda _: " " * 1000,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", TEXTS)
def test_a_manifest_that_is_no_manifest_is_passed_over(newer, text):
    file = newer[1] / "manifest.json"
    before = file.read_text()
    file.write_text(TEXTS[text](before))
    assert file.read_text() != before
    passed_over(newer[0], "manifest.json cannot be read")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "model/../../x", "a//b", "./a", ".", "", "a/", "a\0b", "a/./b"]
)
def test_a_path_that_is_not_plainly_below_the_folder_is_refused(newer, name):
    change_manifest(newer[1], files={**json.loads((newer[1] / "manifest.json").read_text())["files"], name: ENTRY})
    passed_over(newer[0], "is no path below the folder")


@pytest.mark.timeout(60)
def test_a_manifest_longer_than_any_run_writes_is_not_read(newer):
    with (newer[1] / "manifest.json").open("r+b") as file:
        file.truncate(10**12)
    passed_over(newer[0], "manifest.json cannot be read", "more than")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ranks", [10**12, "2", None, [2], 1e309])
def test_a_number_of_ranks_that_cannot_be_is_refused(newer, ranks):
    content = json.dumps({"step": 2, "ranks": ranks, "zero_stage": 1}).encode()
    sealed(newer[1], **{"state.json": content})
    passed_over(newer[0])


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b'{"step": 2', b"\xff", b'{"step":' + b"[" * 10**5, b'{"step": 2}']
)
def test_a_state_that_is_no_state_is_refused(newer, content):
    sealed(newer[1], **{"state.json": content})
    passed_over(newer[0], "state.json cannot be read")


# ------------------------------------------------------------------------------------------------------- what lies beside


def test_names_of_any_kind_are_said_on_one_line_and_left_alone(newer):
    folder = newer[0].parent
    strange = [
        "step_3\nresuming from step 9",
        "\x1b[2J",
        "ünïcode ✓",
        "[red]bold",
        "-rf",
        "step_٣",
        b"step_\xff\xfe",
    ]
    for name in strange:
        path = folder / (os.fsdecode(name))
        shutil.copytree(newer[0], path)
        change_manifest(path, run="\x1b[31mother\n")
    before = sorted(os.listdir(folder))
    store = Store(folder, RUN)
    found, rejected = store.newest()
    assert found.step == 2
    assert len(rejected) == len(strange), rejected
    assert all(line.isprintable() for line in rejected)
    store.write(3, state(3), fill)
    store.retain(3)
    assert sorted(os.listdir(folder)) == sorted([*before, "step_000003"])


@pytest.mark.timeout(120)
def test_ten_thousand_things_beside_the_checkpoints_are_neither_believed_nor_touched(newer):
    folder = newer[0].parent
    for number in range(5000):
        (folder / f"step_{number:08d}").touch()
        (folder / f"tmp-{number:032x}").mkdir()
    store = Store(folder, RUN)
    assert store.newest()[0].step == 2
    store.write(3, state(3), fill)
    store.retain(1)
    assert len(os.listdir(folder)) == 10_001
    assert store.newest()[0].step == 3


AS_NOBODY = """
import os, sys
from pathlib import Path
from rlpost.checkpoint import Store
store = Store(Path(sys.argv[1]), sys.argv[2])
store.newest()  # what is imported on the way may be out of nobody's reach
os.setgid(65534); os.setuid(65534)
found, rejected = store.newest()
print(found and found.step, rejected)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
@pytest.mark.parametrize("closed", ["", "manifest.json", "state.json", SHARD, "deepspeed"])
def test_what_may_not_be_read_is_passed_over_by_name(newer, tmp_path, closed):
    for path in (tmp_path, *tmp_path.parents):
        if path.is_relative_to(Path(tempfile.gettempdir())) and path != Path(tempfile.gettempdir()):
            path.chmod(0o755)
    (newer[1] / closed).chmod(0)
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, newer[0].parent, RUN], capture_output=True, text=True)
    (newer[1] / closed).chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 ['step_000002: "), done.stdout
    assert "Permission denied" in done.stdout


def test_every_manifest_that_is_written_can_be_read(newer):
    assert Manifest.model_validate_json((newer[1] / "manifest.json").read_bytes()).step == 2

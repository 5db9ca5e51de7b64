"""What travels to a cluster with a job, and what is refused before anything is uploaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from rlpost import cli
from rlpost.commands.submit import entrypoint, environment
from rlpost.commands.travel import check_travels, imported_beside, pack
from rlpost.config import load, split_arguments
from tests.conftest import tiny

pytestmark = pytest.mark.usefixtures("shipped_verifiers_load")


NOWHERE = "http://127.0.0.1:9"  # discard: nothing listens there, and nothing may get so far as to ask


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration, data, a verifier that imports its neighbours, and the current directory above it."""
    folder = tmp_path / "p"
    (folder / "dd").mkdir(parents=True)
    (folder / "dd" / "train.jsonl").write_text('{"q": "1+1:", "a": "2"}\n{"q": "1+2:", "a": "3"}\n')
    (folder / "rew.py").write_text(
        "import helper\nfrom tools import counts\n\n\ndef score(response, table=''):\n    return 1.0\n"
    )
    (folder / "helper.py").write_text("X = 1\n")
    (folder / "tools").mkdir()
    (folder / "tools" / "__init__.py").write_text("")
    (folder / "tools" / "counts.py").write_text("from . import more\n")
    (folder / "tools" / "more.py").write_text("")
    values = tiny(
        warmup=None, verifiers=["exact", {"name": "rew.py:score"}], evaluation={"before": False, "after": False}
    )
    values["data"] = {
        "train": {"source": "jsonl", "path": "dd/train.jsonl", "prompt": "q", "reference": "a"},
        "max_prompt_tokens": 24,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, folder: str = "p") -> str:
    code = cli.run(["submit", *arguments, "--working-dir", folder, "--address", NOWHERE, "--deadline", "1"])
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    assert NOWHERE not in said, "it asked the cluster"
    return said


def travelled(project: Path, to: Path, *overrides: str) -> list[str]:
    """Do as Ray does: copy what travels to another folder. The job's arguments."""
    files = [str(project / "tiny.yaml")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        config = load(files, overrides)
        luggage = pack(project, config.runs_dir)
        check_travels(config, [Path(f) for f in files], luggage, project.parent)
    for path in luggage.sizes:
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project / path, to / path)
    return entrypoint(files, overrides, project).split()[4:]


def test_a_folder_other_than_the_current_one_travels_with_its_relative_data(project, tmp_path, monkeypatch, capsys):
    job = travelled(project, tmp_path / "cluster", "steps=3")
    assert job == ["tiny.yaml", "steps=3"]
    shutil.rmtree(project)
    monkeypatch.chdir(tmp_path / "cluster")
    assert cli.run(["plan", *job]) == 0, capsys.readouterr().err


def test_a_submission_that_is_whole_asks_the_cluster_and_says_what_travels(project, capsys):
    code = cli.run(["submit", "p/tiny.yaml", "--working-dir", "p", "--address", NOWHERE, "--deadline", "1"])
    printed = capsys.readouterr()
    assert code == 2
    assert NOWHERE in printed.err
    assert "travels: 7 files" in printed.out
    assert "MiB  dd" in printed.out
    assert "runs_dir 'runs' is relative" in printed.err


def test_the_working_directory_comes_first_though_the_current_one_has_the_file_too(project, tmp_path, capsys):
    shutil.move(project / "dd", tmp_path / "dd")
    assert "data.train.path: 'dd/train.jsonl' does not exist" in refused(capsys, "p/tiny.yaml")


def test_a_model_that_only_the_current_directory_has_is_not_taken_for_a_hubs(project, tmp_path, capsys):
    (tmp_path / "m" / "llama").mkdir(parents=True)
    said = refused(capsys, "p/tiny.yaml", "model.create=null", "model.path=m/llama")
    assert "model.path: 'm/llama': it does not exist there" in said


@pytest.mark.parametrize(
    ("name", "patterns", "lost"),
    [
        (".gitignore", "*.jsonl", "data.train.path: 'dd/train.jsonl'"),
        (".gitignore", "dd/", "data.train.path: 'dd/train.jsonl'"),
        (".rayignore", "rew.py", "verifiers.1.name: 'rew.py:score'"),
        (".gitignore", "helper.py", "verifiers.1.name: 'rew.py:score' imports: 'helper.py'"),
        ("tools/.gitignore", "more.py", "verifiers.1.name: 'rew.py:score' imports: 'tools/more.py'"),
        (".gitignore", "*.yaml", "the configuration file"),
    ],
)
def test_what_git_or_ray_ignores_does_not_travel_and_is_refused(project, capsys, name, patterns, lost):
    (project / name).write_text(patterns + "\n")
    said = refused(capsys, "p/tiny.yaml")
    assert lost in said
    assert f"{project / name} leaves it out" in said


@pytest.mark.parametrize("place", ["runs/x", ".git/x", "out/x"])
def test_data_in_a_folder_that_stays_is_refused(project, capsys, place):
    (project / place).mkdir(parents=True)
    (project / place / "t.jsonl").write_text('{"q": "1", "a": "1"}\n')
    said = refused(capsys, "p/tiny.yaml", "runs_dir=out", f"data.train.path={place}/t.jsonl")
    assert f"data.train.path: '{place}/t.jsonl'" in said
    assert "never travels" in said


def test_a_model_whose_weights_are_ignored_is_refused(project, capsys):
    (project / "m").mkdir()
    (project / "m" / "config.json").write_text("{}")
    (project / "m" / "model.safetensors").write_bytes(b"0" * 10)
    (project / ".gitignore").write_text("*.safetensors\n")
    for key in (
        "objective.references={t: {name: teacher, path: m}}",
        "objective.references={t: {name: soup, members: [m]}}",
    ):
        said = refused(capsys, "p/tiny.yaml", key)
        assert "1 of 2 files stay, such as m/model.safetensors" in said
        assert "objective.references.t." in said


def test_a_file_that_the_users_own_code_gets_travels_or_is_refused(project, tmp_path, capsys):
    (tmp_path / "table.json").write_text("{}")
    said = refused(capsys, "p/tiny.yaml", "verifiers.1.table=table.json")
    assert "verifiers.1.table: 'table.json': it does not exist there" in said


@pytest.mark.parametrize("path", ["../outside.jsonl", "dd/../../outside.jsonl"])
def test_a_relative_path_that_leaves_the_working_directory_is_refused(project, tmp_path, capsys, path):
    (tmp_path / "outside.jsonl").write_text('{"q": "1", "a": "1"}\n')
    assert "lies outside of it" in refused(capsys, "p/tiny.yaml", f"data.train.path={path}")


def test_a_configuration_file_outside_is_refused_and_several_inside_travel_in_their_order(project, tmp_path, capsys):
    (tmp_path / "more.yaml").write_text("steps: 5\n")
    assert f"the configuration file {tmp_path / 'more.yaml'} lies outside" in refused(
        capsys, "p/tiny.yaml", "more.yaml"
    )
    files, overrides = split_arguments(["p/tiny.yaml", "p/b.yaml", "seed=1"])
    assert entrypoint([f"{tmp_path}/{f}" for f in files], overrides, project).endswith("train tiny.yaml b.yaml seed=1")
    watched = entrypoint([f"{tmp_path}/{f}" for f in files], overrides, project, restarts=2)
    assert watched.endswith("train --restarts 2 tiny.yaml b.yaml seed=1")


@pytest.mark.parametrize("folder", ["nowhere", "p/tiny.yaml"])
def test_a_working_directory_that_is_none_is_refused(project, capsys, folder):
    assert f"--working-dir {folder!r} is not a folder" in refused(capsys, "p/tiny.yaml", folder=folder)


def test_more_than_ray_takes_is_refused_with_the_largest_file_and_what_to_do(project, capsys):
    (project / "big").mkdir()
    with (project / "big" / "model.safetensors").open("wb") as file:
        file.truncate(600 * 2**20)  # of holes: no bytes are written
    said = refused(capsys, "p/tiny.yaml")
    assert "the largest file is big/model.safetensors (600 MiB)" in said
    assert "a folder that all nodes share" in said


def test_links_travel_as_what_they_lead_to_and_circles_are_refused(project, tmp_path, capsys):
    (tmp_path / "shared.jsonl").write_text('{"q": "1", "a": "1"}\n')
    (project / "link.jsonl").symlink_to(tmp_path / "shared.jsonl")
    job = travelled(project, tmp_path / "cluster", "data.train.path=link.jsonl")
    assert (tmp_path / "cluster" / "link.jsonl").read_text() == (tmp_path / "shared.jsonl").read_text()
    assert job[-1] == "data.train.path=link.jsonl"
    (project / "tools" / "loop").symlink_to(project)
    assert "tools/loop is a link to a folder that it lies in" in refused(capsys, "p/tiny.yaml")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:8265", "http://", "http://127.0.0.1:x", "http://h:99999", "auto", "http://no.such.host.invalid:1"],
)
def test_an_address_that_is_none_or_answers_nothing_is_refused_by_name(project, capsys, address):
    assert cli.run(["submit", "p/tiny.yaml", "--working-dir", "p", "--address", address]) == 2
    assert f"--address {address}" in capsys.readouterr().err.replace("'", "")


def test_variables_of_paths_travel_and_no_others(project, monkeypatch):
    monkeypatch.setenv("DATA", str(project / "dd"))
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.chdir(project)
    config = load(["tiny.yaml"], ["data.train.path=$DATA/train.jsonl", "runs_dir=~/runs"])
    assert environment(config).get("DATA") == str(project / "dd")
    assert not {"SECRET", "HOME"} & environment(config).keys()


def test_modules_beside_a_verifier_are_found_through_packages(project):
    names = [str(p.relative_to(project)) for p in imported_beside(project / "rew.py")]
    assert sorted(names) == ["helper.py", "tools/__init__.py", "tools/counts.py", "tools/more.py"]

"""Paths of a configuration: `~` and variables replaced, found by one walk."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest

from rlpost.config import ConfigError, ConfiguredPath, dump, load, parse, paths_of
from rlpost.config.paths import PARAMETERS, expanded
from rlpost.objective import REFERENCES
from rlpost.verify.registry import BUILT_IN, resolve
from tests.conftest import tiny

pytestmark = pytest.mark.usefixtures("shipped_verifiers_load")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with data, a verifier and a model; the current directory is another one."""
    (tmp_path / "home" / "d").mkdir(parents=True)
    (tmp_path / "home" / "d" / "train.jsonl").write_text('{"q": "1+1=", "a": "2"}\n')
    (tmp_path / "home" / "rew.py").write_text("def score(response):\n    return 1.0\n")
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "home" / "d"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def _everywhere(**changes: object) -> dict:
    source = {"source": "jsonl", "path": "$DATA/train.jsonl", "prompt": "q", "reference": "a"}
    values = tiny(warmup=None, runs_dir="~/runs", verifiers=["exact", {"name": "~/rew.py:score"}])
    values["model"] = {"path": "~/m", "dtype": "float32"}
    values["data"] = {
        "train": source,
        "test": {**source, "path": "${DATA}/train.jsonl"},
        "max_prompt_tokens": 24,
        "strategy": {"name": "replay_mixture", "source": {**source, "completion": "a"}, "per_step": 1},
    }
    values["objective"] = {
        "references": {
            "two": {"name": "soup", "members": ["~/m1", None, "$DATA/m2"]},
            "t": {"name": "teacher", "path": "~/t"},
        },
        "regularizers": [{"divergence": "k3", "anchor": "t", "coef": 0.1}],
        "terms": [{"loss": "sft", "source": "sft"}],
    }
    return {**values, **changes}


def test_the_walk_finds_every_path_with_its_key_its_kind_and_its_value(home):
    found = {p.key: (p.kind, str(p.value)) for p in paths_of(parse(_everywhere()))}
    train = f"{home}/d/train.jsonl"
    assert found == {
        "runs_dir": ("output", f"{home}/runs"),
        "model.path": ("hub", f"{home}/m"),
        "data.train.path": ("file", train),
        "data.test.path": ("file", train),
        "data.strategy.source.path": ("file", train),
        "verifiers.1.name": ("code", f"{home}/rew.py:score"),
        "objective.references.two.members.0": ("hub", f"{home}/m1"),
        "objective.references.two.members.2": ("hub", f"{home}/d/m2"),
        "objective.references.t.path": ("hub", f"{home}/t"),
    }


def test_a_runs_own_file_needs_no_environment_and_reads_as_the_same_configuration(home, monkeypatch, tmp_path):
    config = parse(_everywhere())
    (tmp_path / "config.yaml").write_text(dump(config))
    monkeypatch.delenv("DATA")
    assert load([tmp_path / "config.yaml"]) == config
    assert "$" not in dump(config)
    assert "~" not in dump(config)


def test_a_dollar_sign_is_written_twice_and_comes_back_so(home, tmp_path):
    (home / "d" / "a$b.jsonl").write_text('{"q": "1", "a": "1"}\n')
    values = tiny(warmup=None, verifiers=[{"name": "sql", "directory": "$DATA/x$$y"}])
    values["data"]["train"] = {"source": "jsonl", "path": "$DATA/a$$b.jsonl", "prompt": "q"}
    config = parse(values)
    assert config.data.train.path == f"{home}/d/a$b.jsonl"
    assert config.verifiers[0].params["directory"] == f"{home}/d/x$y"
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load([tmp_path / "config.yaml"]) == config


def test_a_path_knows_what_was_typed_and_travels_between_processes(home):
    path = expanded("$DATA/x", "file")
    again = pickle.loads(pickle.dumps(path))
    assert (again, again.typed, again.kind) == (f"{home}/d/x", "$DATA/x", "file")
    assert path.shown == f"'$DATA/x' ({home}/d/x)"
    assert path.variables == ["DATA"]
    assert expanded("d/x", "file").shown == "'d/x'"
    assert expanded("~/r.py:f", "code").file == f"{home}/r.py"
    assert expanded("a.b:f", "code").file == ""


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("runs_dir", "$NOWHERE/x", "environment variable NOWHERE is not set: export NOWHERE="),
        ("runs_dir", "${NOWHERE}/x", "environment variable NOWHERE is not set"),
        ("runs_dir", "a$", "a dollar sign is written $$"),
        ("runs_dir", "~nobody_of_this_name/x", "no user of this machine"),
        ("runs_dir", " ", "is empty"),
        ("model.path", "${}/x", "a dollar sign is written $$"),
        ("data.train.path", "$DATA/tain.jsonl", "'$DATA/tain.jsonl' (/"),
        ("data.strategy.source.path", "$NOWHERE/x", "environment variable NOWHERE is not set"),
        ("data.strategy.source.split_", "x", "unknown key"),
        ("verifiers.1.name", "$NOWHERE/rew.py:score", "environment variable NOWHERE is not set"),
        ("objective.references.t.path", "$NOWHERE/m", "environment variable NOWHERE is not set"),
        ("objective.references.two.members.0", "~nobody_of_this_name/m", "no user of this machine"),
    ],
)
def test_a_path_that_cannot_be_expanded_is_refused_by_key(home, tmp_path, key, value, says):
    (tmp_path / "c.yaml").write_text(dump(parse(_everywhere())))
    with pytest.raises(ConfigError) as refused:
        load([tmp_path / "c.yaml"], [f"{key}={value!r}"])
    lines = [line for line in str(refused.value).splitlines() if says in line]
    # A list of parameters has one key: which of its items is at fault, its text says.
    assert lines, refused.value
    assert lines[0].strip().startswith(key.removesuffix(".0")), refused.value
    assert value.strip() in lines[0]


def test_parameters_that_are_paths_are_parameters_of_their_components():
    for name, parameters in PARAMETERS.items():
        entry = resolve(name) if name in BUILT_IN else REFERENCES._find(name)
        assert set(parameters) <= set(inspect.signature(entry).parameters), name
    for name in REFERENCES.names():
        for parameter in inspect.signature(REFERENCES._find(name)).parameters:
            assert ("path" in parameter or "members" in parameter) == (parameter in PARAMETERS.get(name, {})), name


def test_registry_names_are_no_paths():
    config = parse(tiny(warmup=None))
    assert [p.key for p in paths_of(config)] == ["runs_dir"]
    assert isinstance(config.runs_dir, ConfiguredPath)
    assert config.runs_dir == "runs"

"""`rlpost eval` evaluates on what it says: the held-out prompts, or those of train when asked for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rlpost.cli import run
from rlpost.commands.evaluate import Request, _asked, _resolve
from rlpost.config import ConfigError, Data
from rlpost.data import load_prompts, make_tokenizer
from rlpost.exit_codes import BAD_USAGE
from tests.conftest import tiny


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, object]:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"q": f"{n}+1=", "a": str(n + 1)}) + "\n" for n in range(4)))
    return {"source": "jsonl", "path": str(path), "prompt": "q", "reference": "a"}


def request(**changes: object) -> Request:
    values: dict[str, object] = {name: None for name in Request.__dataclass_fields__}
    return Request(**{**values, "target": "runs/x", "on": "test", **changes})  # type: ignore[arg-type]


def test_an_evaluation_without_a_test_set_is_exit_2_and_says_what_to_give(tmp_path, rows, capsys):
    make_tokenizer("bytes").save_pretrained(tmp_path / "model")
    values = {**tiny(), "data": {"train": rows, "max_prompt_tokens": 24}, "verifiers": ["exact"], "warmup": None}
    values["evaluation"] = {"before": False, "after": False}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    asked = ["eval", str(tmp_path / "model"), "--config", str(tmp_path / "run.yaml")]
    assert run(asked) == BAD_USAGE
    said = " ".join(capsys.readouterr().err.split())
    assert "has no test set" in said
    assert "--on train" in said
    assert run([*asked, "--on", "tests"]) == BAD_USAGE
    assert "--on tests: must be test (held-out prompts) or train" in " ".join(capsys.readouterr().err.split())


def test_code_that_comes_with_a_model_and_its_revision_are_asked_for_on_the_command_line(tmp_path, rows):
    asked = request(
        target="some/model", k=[1], data=Path(str(rows["path"])), prompt="q", reference="a", verifier="exact"
    )
    _, config, _ = _resolve(asked)
    assert (config.model.trust_remote_code, config.model.revision) == (False, None)
    _, config, _ = _resolve(replace(asked, trust_remote_code=True, revision="v2"))
    assert (config.model.trust_remote_code, config.model.revision) == (True, "v2")


def test_what_is_evaluated_on_is_what_was_asked_for(rows, tmp_path):
    sets = load_prompts(Data.model_validate({"train": rows, "holdout": 1}), make_tokenizer("bytes"), seed=0)
    assert _asked(request(), sets) == ("test", {"": sets.test})
    assert _asked(request(on="train"), sets) == ("train", {"": sets.train})
    assert _asked(request(data=tmp_path / "train.jsonl"), sets) == ("data", {"": sets.train})
    with pytest.raises(ConfigError, match="--on train and --data"):
        _asked(request(data=tmp_path / "train.jsonl", on="train"), sets)


def test_of_several_sets_all_are_asked_or_the_one_that_is_named(rows):
    data = {"train": {"a": rows, "b": {**rows, "limit": 2}}, "holdout": 1}
    sets = load_prompts(Data.model_validate(data), make_tokenizer("bytes"), seed=0)
    assert _asked(request(), sets) == ("test", sets.tests)
    assert _asked(request(set_name="b"), sets) == ("test", {"b": sets.tests["b"]})
    assert _asked(request(on="train", set_name="a"), sets) == ("train", {"a": sets.by_source["a"]})
    with pytest.raises(ConfigError, match=r"--set c: no set of that name.*there is a, b"):
        _asked(request(set_name="c"), sets)

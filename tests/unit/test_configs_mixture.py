"""One source or several by name: what the schema takes, what overrides reach, and what is refused with its key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlpost.config import Config, ConfigError, dump, load, parse
from tests.conftest import COUNTDOWN, merge, tiny

ONE = {**COUNTDOWN, "size": 60}


def two(**data: object) -> dict:
    """`tiny` with two training sources and two test sets."""
    values = tiny(verifiers=["countdown", {"name": "exact", "label": "sum"}])
    values["data"]["train"] = {
        "a": {**ONE, "weight": 3, "verifiers": ["countdown"]},
        "b": {**ONE, "verifiers": ["sum"], "template": {"prompt": "{prompt}="}},
    }
    values["data"]["test"] = {"a": ONE, "b": {**ONE, "verifiers": ["sum"], "k": [1, 2], "samples_per_prompt": 2}}
    values["data"] = merge(values["data"], data)
    return values


def refused(values: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(values)
    return str(caught.value)


@pytest.fixture
def loaded(tmp_path: Path):
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(two()))
    return lambda *overrides: load([path], overrides)


def test_several_sources_are_what_one_is_by_name_and_the_resolved_file_gives_them_again(loaded, tmp_path: Path):
    config: Config = loaded()
    assert {name: (s.weight, s.verifiers) for name, s in config.data.train_sources.items()} == {
        "a": (3, ["countdown"]),
        "b": (1, ["sum"]),
    }
    assert [key for key, _ in config.data.sources()] == ["data.train.a", "data.train.b", "data.test.a", "data.test.b"]
    assert list(parse(tiny()).data.train_sources) == [""]
    (tmp_path / "resolved.yaml").write_text(dump(config))
    assert load([tmp_path / "resolved.yaml"]) == config


def test_overrides_reach_into_a_source_by_its_name_and_one_and_several_take_each_others_place(loaded, write_config):
    assert loaded("data.train.a.weight=2", "data.test.b.k=[1]").data.train_sources["a"].weight == 2
    alone = loaded("data.train={source: reasoning_gym, task: countdown, size: 5}", "data.train.seed=7")
    assert (alone.data.train_sources[""].size, alone.data.train_sources[""].seed) == (5, 7)
    several = load([write_config()], ["data.train={x: {source: reasoning_gym, task: countdown, size: 5}}"])
    assert list(several.data.train_sources) == ["x"]
    assert load([write_config()], ["data.train.size=5"]).data.train_sources[""].size == 5


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("data.train.a.wieght=2", "data.train.a.wieght: unknown key, value 2, did you mean 'weight'?"),
        ("data.test.b.samples=2", "data.test.b.samples: unknown key, value 2, did you mean 'samples_per_prompt'?"),
        ("data.train.a.weight=0", "data.train.a.weight: must be greater than 0, got 0"),
        ("data.train.c.size=4", "data.train.c.source: missing"),
        ("data.train.a.source=jsnl", "data.train.a.source: must be 'jsonl'"),
        ("data.train.size=4", "data.train.size: must be a mapping"),
        (
            'data.train={"a b": {source: reasoning_gym, task: countdown, size: 5}}',
            "data.train.a b: String should match",
        ),
        ("data.train.a.verifiers=[sum, sum]", "data.train.a.verifiers: ['sum', 'sum'] names a verifier twice"),
        ("data.train.a.verifiers=[]", "data.train.a.verifiers: List should have at least 1 item"),
        (
            "data.train.a.verifiers=[exact]",
            "data.train.a.verifiers: 'exact' is no label of verifiers (there are: countdown, sum)",
        ),
        ("data.test.b.verifiers=[sums]", "data.test.b.verifiers: 'sums' is no label of verifiers, did you mean 'sum'?"),
        ("data.test.b.k=[4]", "data.test.b: pass@4 needs at least 4 samples: raise data.test.b.samples_per_prompt (2;"),
        ("data.mix.until=end", "data.mix.until: must be 'forever', 'first_ends' or 'all_end'"),
        ("verifiers.1.label=countdown", "their label, their name by default, which must be unique"),
        ("verifiers.1.weight=0", "every verifier that scores data.train.b has weight 0: there is no reward"),
        (
            "objective.references.old={name: hard_reset, patience: 2}",
            "follows pass@1 of evaluations on the way: set evaluation.every (now 0) and have its k in evaluation.k (now "
            "[1, 4]); evaluations give a/pass@1, a/pass@4, b/pass@1, b/pass@2",
        ),
    ],
)
def test_what_is_wrong_with_a_source_is_refused_with_its_whole_key(override: str, why: str, loaded):
    with pytest.raises(ConfigError) as caught:
        loaded(override)
    assert why in str(caught.value)


def test_the_scorer_of_a_procedural_task_is_for_rows_of_such_a_source_alone(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{"q": "1", "a": "1"}\n')
    other = {"source": "jsonl", "path": str(tmp_path / "x.jsonl"), "prompt": "q", "reference": "a"}
    values = {**tiny(verifiers=["reasoning_gym", "exact"])}
    values["data"] |= {"train": {"a": ONE, "b": other}, "test": None, "holdout": 2}
    assert "the reasoning_gym verifier scores rows of a reasoning_gym source; data.train.b is another" in refused(
        values
    )
    values["data"]["train"]["b"] = {**other, "verifiers": ["exact"]}
    assert parse(values).judge_of(parse(values).data.train_sources["b"]) == "exact"


def test_an_anchor_may_follow_one_test_set():
    reference = {"name": "hard_reset", "patience": 2, "metric": "b/pass@2"}
    values = two() | {"objective": {"references": {"old": reference}}}
    values["evaluation"] |= {"every": 2}
    parse(values)
    reference["metric"] = "pass@2"
    assert "evaluations give a/pass@1, a/pass@4, b/pass@1, b/pass@2" in refused(values)


def test_a_warm_up_has_several_sources_too_and_each_needs_its_worked_example():
    values = two()
    values["warmup"]["train"] = {"a": ONE, "b": ONE}
    assert list(parse(values).warmup.sources) == ["a", "b"]
    values["warmup"]["train"]["b"] = {**ONE, "completion": None}
    assert "warmup.train.b: warm-up needs `completion`" in refused(values)


def test_a_mixture_that_ends_needs_no_other_length():
    values = {**two(mix={"until": "first_ends"}), "steps": None}
    assert parse(values).length == {"steps": None, "epochs": 1.0, "until": "first_ends"}
    assert parse({**values, "steps": 9}).length == {"steps": 9, "epochs": None, "until": "first_ends"}

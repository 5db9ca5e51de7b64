"""Several sources in one order: shares met in every step, own epochs, resumed to the prompt; and their problems."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.config import Component, Data
from rlpost.data import (
    STRATEGIES,
    DataError,
    MixedOrder,
    PromptOrder,
    load_prompts,
    make_tokenizer,
    order_of,
    steps_until,
)
from rlpost.data.mixture import Shares
from rlpost.types import Checked, Prompt

TOKENIZER = make_tokenizer("0123456789+-= :Qabc")


def prompts(source: str, count: int) -> list[Prompt]:
    return [Prompt(f"{source}/{i}", f"{source} {i}", np.ones(1, np.int32), source=source) for i in range(count)]


def mixed(sizes: dict[str, int], weights: dict[str, float], step: int = 4, seed: int = 0) -> MixedOrder:
    return MixedOrder({name: prompts(name, n) for name, n in sizes.items()}, weights, step, seed, shuffle=True)


def drawn(order: PromptOrder, count: int) -> list[str]:
    return [order.next().id for _ in range(count)]


# ------------------------------------------------------------------------------------------------------ shares


@given(st.lists(st.sampled_from([0.05, 0.1, 0.3, 1.0, 2.0, 2.5, 3.0, 7.0]), min_size=1, max_size=8), st.integers(1, 64))
def test_every_step_takes_of_each_source_its_share_to_within_one_prompt(weights: list[float], size: int):
    shares, total = Shares(weights, size), [0] * len(weights)
    for _ in range(50):
        counts = shares.next()
        assert sum(counts) == size
        assert all(abs(count - ideal) < 1 for count, ideal in zip(counts, shares.ideal, strict=True))
        total = [before + count for before, count in zip(total, counts, strict=True)]
    assert all(abs(count - 50 * ideal) < 2 for count, ideal in zip(total, shares.ideal, strict=True)), "no drift"


def test_the_sources_take_turns_within_a_step_and_each_has_its_own_epochs():
    order = mixed({"a": 9, "b": 2}, {"a": 3, "b": 1})
    first = drawn(order, 12)
    assert [Counter(i[0] for i in first[s : s + 4]) for s in (0, 4, 8)] == [{"a": 3, "b": 1}] * 3
    assert len(set(first)) == 9 + 2, "nine of a are an epoch; the third of b is its first again"
    assert order.seen() == {"a": 1, "b": Fraction(3, 2)}
    assert order.consumed == 12
    assert {p.id for p in order.prompts} == set(first)


def test_weights_that_divide_no_step_meet_their_shares_over_steps():
    order = mixed({"a": 50, "b": 50, "c": 50}, {"a": 0.1, "b": 0.2, "c": 0.3}, step=4)
    assert Counter(i[0] for i in drawn(order, 60)) == {"a": 10, "b": 20, "c": 30}


def test_what_is_passed_over_goes_to_the_same_source():
    order = mixed({"a": 9, "b": 9}, {"a": 1, "b": 1})
    taken = []
    for _ in range(8):
        prompt = order.next()
        while prompt.id in ("a/0", "a/1", "a/2", "b/5"):
            prompt = order.next(instead=True)
        taken.append(prompt.id[0])
    assert Counter(taken) == {"a": 4, "b": 4}


@pytest.mark.parametrize("strategy", ["uniform", "curriculum"])
def test_a_strategy_that_passes_prompts_over_keeps_the_shares(strategy: str):
    made = STRATEGIES.create(Component(name=strategy))
    made.begin(mixed({"a": 12, "b": 12}, {"a": 3, "b": 1}))
    if strategy == "curriculum":
        made.load_state_dict({"ids": [f"a/{i}" for i in range(10)], "rates": np.ones(10)})
    found = [made.next().source for _ in range(40)]
    assert [Counter(found[s : s + 4]) for s in range(0, 40, 4)] == [{"a": 3, "b": 1}] * 10


# ------------------------------------------------------------------------------------------------------ resume


@given(st.integers(0, 40))
def test_an_order_goes_on_where_it_stood_in_the_middle_of_a_step_too(position: int):
    sizes, weights = {"a": 7, "b": 3, "c": 5}, {"a": 3, "b": 0.7, "c": 1.1}
    straight, again = mixed(sizes, weights, step=5), mixed(sizes, weights, step=5)
    drawn(straight, position)
    again.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    assert drawn(again, 40) == drawn(straight, 40)


@pytest.mark.parametrize("sizes", [{"a": 9}, {"a": 9, "b": 2, "c": 1}, {"b": 2, "a": 9}])
def test_a_source_that_came_or_went_is_refused_on_resume(sizes: dict[str, int]):
    state = mixed({"a": 9, "b": 2}, {"a": 3, "b": 1}).state_dict()
    with pytest.raises(
        DataError, match=r"data\.train: the saved order of prompts is of the sources a, b, and this run"
    ):
        mixed(sizes, dict.fromkeys(sizes, 1.0)).load_state_dict(state)


def test_one_source_and_several_are_not_resumed_from_each_other():
    one, several = PromptOrder(prompts("", 9), 0, True), mixed({"a": 9}, {"a": 1})
    with pytest.raises(DataError, match="of the sources a, and this run has one without a name"):
        one.load_state_dict(several.state_dict())
    with pytest.raises(DataError, match="is of one source without a name, and this run has a"):
        several.load_state_dict(one.state_dict())


def test_other_rows_of_a_source_are_refused_on_resume_by_its_key():
    state = mixed({"a": 9, "b": 2}, {"a": 3, "b": 1}).state_dict()
    with pytest.raises(DataError, match=r"data\.train\.b: the saved order of prompts has fingerprint"):
        mixed({"a": 9, "b": 3}, {"a": 3, "b": 1}).load_state_dict(state)


def test_one_source_without_a_name_has_the_order_it_always_had():
    plain = order_of({"": prompts("", 9)}, {"": 1.0}, 4, seed=3, shuffle=True)
    assert type(plain) is PromptOrder
    assert drawn(plain, 30) == drawn(PromptOrder(prompts("", 9), 3, True), 30)


@pytest.mark.parametrize(("all_of", "epochs", "steps"), [(False, 1, 5), (True, 1, 15), (True, Fraction(1, 2), 8)])
def test_the_step_with_which_sources_are_seen_is_that_in_which_they_are(all_of: bool, epochs: Fraction, steps: int):
    assert steps_until([90, 10], [3, 1], 8, Fraction(epochs), all_of) == steps
    order, enough = mixed({"a": 90, "b": 10}, {"a": 3, "b": 1}, step=8), all if all_of else any
    for step in range(1, steps + 1):
        drawn(order, 8)
        assert enough(seen >= epochs for seen in order.seen().values()) == (step == steps)


# ----------------------------------------------------------------------------------------------------- loading


def write(path: Path, rows: list[dict]) -> dict:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "jsonl", "path": str(path), "prompt": "q", "reference": "a", "id": "i"}


def rows(*questions: str) -> list[dict]:
    return [{"q": q, "a": "1", "i": i} for i, q in enumerate(questions)]


def test_prompts_of_several_sources_have_ids_templates_and_verifiers_of_their_own(tmp_path: Path):
    one, two = write(tmp_path / "1.jsonl", rows("1+1", "1+2")), write(tmp_path / "2.jsonl", rows("2+1", "2+2"))
    data = Data.model_validate(
        {
            "train": {"a": {**one, "verifiers": ["x"], "template": {"prompt": "Q{prompt}"}}, "b": two},
            "template": {"prompt": "{prompt}="},
        }
    )
    seen: list[tuple] = []
    sets = load_prompts(data, TOKENIZER, 0, lambda ps: seen.append({p.verifiers for p in ps}) or [Checked()] * len(ps))
    assert [(p.id, p.text, p.source, p.verifiers) for p in sets.train] == [
        ("a/0", "Q1+1", "a", ("x",)),
        ("a/1", "Q1+2", "a", ("x",)),
        ("b/0", "2+1=", "b", ()),
        ("b/1", "2+2=", "b", ()),
    ]
    assert {name: len(mine) for name, mine in sets.by_source.items()} == {"a": 2, "b": 2}
    assert seen == [{("x",)}, {()}], "each source is checked by its own verifiers"
    assert [source.place for source in sets.report.sources] == ["data.train.a", "data.train.b"]


def test_no_source_keeps_a_problem_of_any_test_set_and_what_sources_share_is_counted(tmp_path: Path):
    names = {
        "1": ("1+1", "1+2", "3+3"), "2": ("2+1", "1+2", "4+4"), "t": ("3+3",), "u": ("4 + 4", "5+5"),
    }  # fmt: skip
    made = {name: write(tmp_path / f"{name}.jsonl", rows(*questions)) for name, questions in names.items()}
    data = Data.model_validate({"train": {"a": made["1"], "b": made["2"]}, "test": {"t": made["t"], "u": made["u"]}})
    sets = load_prompts(data, TOKENIZER, 0)
    assert [p.text for p in sets.train] == ["1+1", "1+2", "2+1", "1+2"]
    assert {name: [p.id for p in mine] for name, mine in sets.tests.items()} == {"t": ["t/0"], "u": ["u/0", "u/1"]}
    a, b, *_ = sets.report.sources
    assert (a.leaked, b.leaked) == (1, 1)
    assert b.notes == ["1 of its problems are in data.train.a too, and stay in both"]


def test_a_holdout_of_several_sources_is_a_test_set_of_each(tmp_path: Path):
    one = write(tmp_path / "1.jsonl", rows(*(f"1+{i}" for i in range(8))))
    two = write(tmp_path / "2.jsonl", rows(*(f"2+{i}" for i in range(4))))
    data = Data.model_validate({"train": {"a": {**one, "verifiers": ["x"]}, "b": two}, "holdout": 0.5})
    sets = load_prompts(data, TOKENIZER, 0)
    assert {name: len(mine) for name, mine in sets.tests.items()} == {"a": 4, "b": 2}
    assert {name: len(mine) for name, mine in sets.by_source.items()} == {"a": 4, "b": 2}
    assert {p.verifiers for p in sets.tests["a"]} == {("x",)}
    assert len({p.id for p in [*sets.train, *sets.test]}) == 12


def test_a_source_of_which_nothing_is_left_is_named(tmp_path: Path):
    one, two = write(tmp_path / "1.jsonl", rows("1+1")), write(tmp_path / "2.jsonl", rows("2+1"))
    data = Data.model_validate({"train": {"a": one, "b": two}, "test": {"t": two}})
    with pytest.raises(DataError, match=r"data\.train\.b leaves no prompt to train on"):
        load_prompts(data, TOKENIZER, 0)

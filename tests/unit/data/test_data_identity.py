"""No problem is both taught and asked: one is known by what is asked, however it is spelled, stored or wrapped."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.config import Data, Identity, parse
from rlpost.data import PromptSets, load_prompts, make_tokenizer
from rlpost.data.identity import Problems, normalized
from rlpost.observe.console import Console
from rlpost.run import base
from rlpost.types import Prompt
from tests.conftest import tiny

TOKENIZER = make_tokenizer("bytes")
Rows = list[dict[str, Any]]
SOURCE = {"source": "jsonl", "prompt": "question", "reference": "answer"}
OTHER = {"question": "What is 3+1?", "answer": "4"}


def jsonl(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(tmp_path: Path, train: Rows, test: Rows | None = None, **data: Any) -> PromptSets:
    """Rows of two files; `train_source` and `test_source` change how they are read."""
    sources = {"train": {**SOURCE, "path": jsonl(tmp_path / "train.jsonl", train)} | data.pop("train_source", {})}
    if test is not None:
        other = {**SOURCE, "path": jsonl(tmp_path / "test.jsonl", test)} | data.pop("test_source", {})
        sources["test"] = other
    return load_prompts(Data.model_validate({**sources, **data}), TOKENIZER, seed=3)


def questions(sets: PromptSets) -> list[str]:
    return [prompt.text for prompt in sets.train]


def test_a_test_question_leaves_train_however_its_reference_is_spelled(tmp_path: Path) -> None:
    train = [{"question": "What is 2+1?", "answer": "two and one. #### 3"}, {**OTHER, "answer": "#### 4"}]
    sets = load(tmp_path, train, [{"question": "What is 2+1?", "answer": "3"}])
    assert questions(sets) == ["What is 3+1?"]
    assert sets.report.lines()[0].endswith("2 rows: 1 kept, 1 also in test (same prompt)")


@pytest.mark.parametrize(
    "spelled",
    [
        "What is 2 + 1?",
        "  What is 2+1?\n",
        "What\tis\u00a0 2+1 ?",
        "\ufeffWhat is 2+1?",
        "What is 2+1?\r\n\r\n",
    ],
)
def test_white_space_makes_no_other_problem(tmp_path: Path, spelled: str) -> None:
    train = [{"question": spelled, "answer": "3"}, OTHER]
    test = [{"question": "What is 2+1?", "answer": "3"}]
    assert questions(load(tmp_path, train, test)) == ["What is 3+1?"]
    strict = load(tmp_path, train, test, identity={"ignore_space": False})
    assert questions(strict) == [spelled, "What is 3+1?"]


def test_white_space_between_two_numbers_or_words_counts() -> None:
    rule = Identity()
    assert normalized("12 3 =", rule) != normalized("1 23 =", rule)
    assert normalized("a nice day", rule) == normalized("a  nice\nday", rule) != normalized("an ice day", rule)


def test_forms_of_a_character_and_kinds_of_quotes_make_no_other_problem_but_an_exponent_does(tmp_path: Path) -> None:
    train = [{"question": q, "answer": 1} for q in ("Zoe\u0308’s cafe\u0301 – “open”?", "What is x²?")]
    test = [{"question": q, "answer": 1} for q in ('Zo\u00eb\'s caf\u00e9 - "open"?', "What is x2?")]
    assert questions(load(tmp_path, train, test)) == ["What is x²?"]


def test_case_makes_another_problem_unless_it_is_ignored(tmp_path: Path) -> None:
    train, test = [{"question": "WHAT is 2+1?", "answer": 3}, OTHER], [{"question": "What is 2+1?", "answer": 3}]
    assert len(load(tmp_path, train, test).train) == 2
    assert questions(load(tmp_path, train, test, identity={"ignore_case": True})) == ["What is 3+1?"]


@pytest.mark.parametrize(
    ("train_prompt", "test_prompt"),
    [
        ("Q: {question}\nA:", "question"),
        ("question", "{question} Put the answer in a box."),
        ("{question} Think.", "Solve: {question}"),
    ],
)
def test_words_around_the_columns_make_no_other_problem(tmp_path: Path, train_prompt: str, test_prompt: str) -> None:
    train, test = [{"question": "What is 2+1?", "answer": "3"}, OTHER], [{"question": "What is 2+1?", "answer": 3}]
    asked = {"train_source": {"prompt": train_prompt}, "test_source": {"prompt": test_prompt}}
    sets = load(tmp_path, train, test, **asked)
    assert len(sets.train) == 1
    assert sets.report.sources[0].also_in_test == {"same question": 1}
    assert len(load(tmp_path, train, test, **asked, identity={"ignore_template": False}).train) == 2


def test_what_is_formatted_already_is_known_by_the_text_that_is_read(tmp_path: Path) -> None:
    train = [{"question": "What is 2+1?", "answer": 3}, OTHER]
    test = [{"question": "What is 2+1?\nA:", "answer": 3}]
    assert len(load(tmp_path, train, test, train_source={"prompt": "{question}\nA:"}).train) == 1


def test_a_number_and_its_text_are_one_value_of_a_template(tmp_path: Path) -> None:
    train, test = [{"a": 2, "b": "1", "answer": 3}, {"a": 3, "b": 1, "answer": 4}], [{"a": "2", "b": 1, "answer": 3}]
    asked = {"train_source": {"prompt": "{a}+{b}="}, "test_source": {"prompt": "{a} plus {b}?"}}
    assert questions(load(tmp_path, train, test, **asked)) == ["3+1="]


def test_ids_of_two_files_say_nothing(tmp_path: Path) -> None:
    train = [{"i": 0, "question": "a", "answer": "1"}, {"i": 1, "question": "b", "answer": "2"}]
    test = [{"i": 0, "question": "c", "answer": "1"}]
    numbered = {"train_source": {"id": "i"}, "test_source": {"id": "i"}}
    assert questions(load(tmp_path, train, test, **numbered)) == ["a", "b"]


def test_ids_of_one_file_say_that_a_row_is_the_same_whatever_is_asked_of_it(tmp_path: Path) -> None:
    rows = [{"i": n, "short": f"{n}+1?", "question": f"Sum up {n} and 1.", "answer": n + 1} for n in range(3)]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    sources = {
        "train": {**SOURCE, "path": path, "id": "i"},
        "test": {**SOURCE, "path": path, "prompt": "short", "id": "i", "limit": 1},
    }
    sets = load_prompts(Data.model_validate(sources), TOKENIZER, seed=0)
    assert questions(sets) == ["Sum up 1 and 1.", "Sum up 2 and 1."]
    assert sets.report.sources[0].also_in_test == {"same id": 1}


def test_the_same_rows_in_another_format_are_the_same_problems(tmp_path: Path) -> None:
    rows = [{"question": f"{n}+1=", "answer": n + 1} for n in range(4)]
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "test.parquet")
    stored = {"source": "parquet", "path": str(tmp_path / "test.parquet")}
    sets = load(tmp_path, rows, rows, test_source=stored)
    assert questions(sets) == ["2+1=", "3+1="]


def test_a_holdout_takes_all_spellings_of_its_problems_out_of_train(tmp_path: Path) -> None:
    rows = [
        {"question": question, "answer": answer}
        for n in range(12)
        for question, answer in ((f"{n}+1=", n + 1), (f"{n} + 1 =\n", f"#### {n + 1}"))
    ]
    sets = load(tmp_path, rows, holdout=5)
    assert len(sets.test) == 5
    asked = {normalized(prompt.text, Identity()) for prompt in sets.test}
    assert not asked & {normalized(prompt.text, Identity()) for prompt in sets.train}
    (report,) = sets.report.sources
    assert report.rows == 24 == report.kept + report.held_out + report.leaked
    assert report.leaked >= 1


def test_one_prompt_with_two_references_stays_two_prompts_and_is_said(tmp_path: Path) -> None:
    rows = [{"question": "What is 2+1?", "answer": answer} for answer in ("3", "4")]
    sets = load(tmp_path, [*rows, OTHER])
    assert len(sets.train) == 3
    assert sets.report.lines()[1] == (
        '  1 prompts have more than one reference, such as "3" and "4": one of them may be wrong'
    )
    assert len(load(tmp_path, [OTHER]).report.lines()) == 1


def test_ids_and_their_order_do_not_depend_on_the_rule(tmp_path: Path) -> None:
    rows = [{"question": f"{n}+1=", "answer": n + 1} for n in range(5)]
    rules: list[dict[str, bool]] = [{}, {"ignore_case": True, "ignore_space": False, "ignore_template": False}]
    plain, strict = ([p.id for p in load(tmp_path, rows, identity=rule).train] for rule in rules)
    assert plain == strict


@given(st.text(), st.text())
def test_texts_that_differ_in_a_letter_or_digit_are_other_problems(a: str, b: str) -> None:
    rule = Identity()
    if [c for c in normalized(a, rule) if c.isalnum()] != [c for c in normalized(b, rule) if c.isalnum()]:
        empty = np.zeros(1, np.int32)
        assert Problems([Prompt("a", a, empty)]).why(Prompt("b", b, empty)) is None


def test_a_warm_up_teaches_no_problem_of_the_test_however_it_is_spelled(tmp_path: Path) -> None:
    test = [{"question": "What is 2+1?", "answer": "3"}]
    taught = [
        {"question": "What is 2 + 1?\n", "answer": "3", "solution": "3"},
        {**OTHER, "solution": "4"},
    ]
    sources = {
        "train": {**SOURCE, "path": jsonl(tmp_path / "train.jsonl", [OTHER])},
        "test": {**SOURCE, "path": jsonl(tmp_path / "test.jsonl", test)},
    }
    examples = {**SOURCE, "path": jsonl(tmp_path / "taught.jsonl", taught), "completion": "solution"}
    values = tiny() | {"data": {**sources, "max_prompt_tokens": 40}, "warmup": {"train": examples, "steps": 1}}
    config = parse(values | {"verifiers": ["exact"]})
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    recorder: Any = SimpleNamespace(console=Console("plain", 0))
    assert config.warmup is not None
    kept = base.worked_examples(config, config.warmup, TOKENIZER, recorder)
    assert [prompt.text for prompt, _ in kept] == ["What is 3+1?"]

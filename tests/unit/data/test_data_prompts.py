"""Every row becomes a prompt or is counted; train and test never share one; ids do not depend on order."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from rlpost.config import Data, Source
from rlpost.data import DataError, PromptSets, load_examples, load_prompts, make_tokenizer

GSM8K = Path(__file__).parents[2] / "data" / "gsm8k_sample.jsonl"
TOKENIZER = make_tokenizer("bytes")
Rows = list[dict[str, Any]]
Load = Callable[..., PromptSets]


def _source(path: Path, rows: Rows, **changes: Any) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "jsonl", "path": str(path), "prompt": "q", "reference": "a", **changes}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load rows written to a file: `source` changes the source, the other names change `data`."""

    def load(rows: Rows, *, test: Rows | None = None, source: dict[str, Any] | None = None, **data: Any) -> PromptSets:
        data["train"] = _source(tmp_path / "train.jsonl", rows, **(source or {}))
        if test is not None:
            data["test"] = _source(tmp_path / "test.jsonl", test, **(source or {}))
        return load_prompts(Data.model_validate(data), TOKENIZER, seed=7)

    return load


def _rows(count: int) -> Rows:
    return [{"q": f"What is {i} + 1?", "a": i + 1} for i in range(count)]


def test_real_gsm8k_rows_become_prompts() -> None:
    source = Source(source="jsonl", path=str(GSM8K), prompt="question", reference="final", id="id", metadata=["answer"])
    sets = load_prompts(Data(train=source, max_prompt_tokens=1024), TOKENIZER, seed=0)
    first = sets.train[0]
    assert len(sets.train) == 40
    assert first.id == "gsm8k/train/0"
    assert first.reference == "72"
    assert str(first.metadata["answer"]).endswith("#### 72")
    assert first.token_ids.dtype == np.int32
    assert TOKENIZER.decode(first.token_ids, skip_special_tokens=True) == first.text
    assert first.text.startswith("Natalia sold clips")
    assert sets.report.lines() == [f"data.train (jsonl {GSM8K}): 40 rows: 40 kept"]


@pytest.mark.parametrize("reference", [3, 2.5, True, "text", "", [1, [2]], {"unit": "m", "value": 3}])
def test_a_reference_keeps_the_type_of_its_column(load: Load, reference: Any) -> None:
    (prompt,) = load([{"q": "?", "a": reference}]).train
    assert prompt.reference == reference
    assert type(prompt.reference) is type(reference)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1).filter(str.strip))
def test_braces_in_prompt_and_template_are_only_braces(load: Load, text: str) -> None:
    text += "{prompt} {0} \\frac{1}{2} {"
    (prompt,) = load([{"q": text, "a": 1}], template={"prompt": "Q: {prompt}\nuse \\boxed{}:"}).train
    assert prompt.text == "Q: " + text + "\nuse \\boxed{}:"


def test_a_plain_prompt_begins_with_bos_and_never_ends_with_eos(load: Load) -> None:
    from tokenizers import processors

    (prompt,) = load([{"q": "hi", "a": 1}]).train
    assert prompt.token_ids.tolist()[0] == TOKENIZER.bos_token_id

    closing = make_tokenizer("bytes")
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    assert closing("hi")["input_ids"][-1] == closing.eos_token_id
    data = Data.model_validate({"train": {"source": "jsonl", "path": str(GSM8K), "prompt": "question"}})
    ids = load_prompts(data, closing, seed=0).train[0].token_ids
    assert (ids[0], ids[-1] == closing.eos_token_id) == (1, False)


def test_a_chat_prompt_is_the_tokenizers_chat_and_no_more_special_tokens(load: Load) -> None:
    template = {"kind": "chat", "system": "Be brief.", "prompt": "{prompt} Think."}
    (prompt,) = load([{"q": "hi", "a": 1}], template=template).train
    assert prompt.text == "system: Be brief.\nuser: hi Think.\nassistant:"
    assert prompt.token_ids.tolist() == TOKENIZER(prompt.text, add_special_tokens=False)["input_ids"]


def test_templates_that_cannot_be_applied_are_refused(load: Load) -> None:
    bare = make_tokenizer("bytes")
    bare.chat_template = None
    data = {"train": {"source": "jsonl", "path": str(GSM8K), "prompt": "question"}, "template": {"kind": "chat"}}
    with pytest.raises(DataError, match=r"data\.template\.kind"):
        load_prompts(Data.model_validate(data), bare, seed=0)
    bare.chat_template = "{{ raise_exception('users only') }}"
    with pytest.raises(DataError, match="users only"):
        load_prompts(Data.model_validate(data), bare, seed=0)
    with pytest.raises(ValidationError, match=r"template\.system needs template\.kind: chat"):
        load(_rows(1), template={"system": "Be brief."})


BAD: Rows = [
    {"a": 1},
    {"q": None, "a": 1},
    {"q": " \n", "a": 1},
    {"q": 5, "a": 1},
    {"q": "?", "a": None},
    {"q": "?"},
    {"q": "\ud800", "a": 1},
]


@pytest.mark.parametrize("row", BAD)
def test_a_row_without_prompt_or_reference_is_bad_and_named(load: Load, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"1 of 3 rows are bad[\s\S]*row 2: "):
        load([{"q": "fine", "a": 1}, row, {"q": "also fine", "a": 1}])


def test_an_error_lists_ten_bad_rows_and_the_total(load: Load) -> None:
    with pytest.raises(DataError) as error:
        load([{"q": "fine", "a": 1}] + [{"a": 1}] * 25)
    lines = str(error.value).splitlines()
    assert "25 of 26 rows are bad" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:]] == [f"row {n}" for n in range(2, 12)] + ["and 15 more"]


def test_bad_rows_are_skipped_and_counted_within_the_budget_only(load: Load) -> None:
    rows = [*BAD, *_rows(3)]
    sets = load(rows, bad_rows="skip", bad_rows_budget=len(BAD))
    (report,) = sets.report.sources
    assert len(sets.train) == 3
    assert [number for number, _ in report.bad] == list(range(1, len(BAD) + 1))
    with pytest.raises(DataError, match=f"bad_rows_budget is {len(BAD) - 1}"):
        load(rows, bad_rows="skip", bad_rows_budget=len(BAD) - 1)


def test_a_prompt_the_tokenizer_has_no_tokens_for_is_a_bad_row(tmp_path: Path) -> None:
    data = Data.model_validate({"train": _source(tmp_path / "r.jsonl", [{"q": "1+1", "a": 2}, {"q": "1%1", "a": 0}])})
    with pytest.raises(DataError, match="row 2: the tokenizer has no token for '%'"):
        load_prompts(data, make_tokenizer("01+"), seed=0)


def test_long_prompts_are_dropped_and_counted_or_an_error(load: Load) -> None:
    rows = [{"q": "x" * length, "a": 1} for length in (3, 9, 10)]
    sets = load(rows, max_prompt_tokens=10)
    assert [len(prompt.token_ids) for prompt in sets.train] == [4, 10]
    assert sets.report.sources[0].too_long == 1
    with pytest.raises(DataError, match=r"1 prompts are longer[\s\S]*row 3: 11 tokens"):
        load(rows, max_prompt_tokens=10, too_long="error")


def test_of_a_text_of_megabytes_the_begin_is_enough(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    call = PreTrainedTokenizerFast.__call__

    def counted(self: Any, texts: list[str], **settings: Any) -> Any:
        read.append(sum(map(len, texts)))
        return call(self, texts, **settings)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)
    rows = [{"q": "x" * length, "a": 1} for length in (3, 5_000_000, 9)]
    sets = load(rows, max_prompt_tokens=10)
    assert [len(prompt.token_ids) for prompt in sets.train] == [4, 10]
    assert sets.report.sources[0].too_long == 1
    assert sum(read) < 2000
    with pytest.raises(DataError, match=r"row 2: 5000000 characters"):
        load(rows, max_prompt_tokens=10, too_long="error")


def test_ids_come_from_content_alone_and_differ_by_reference(load: Load) -> None:
    rows = [{"q": "?", "a": 1}, {"q": "?", "a": "1"}, {"q": "?", "a": {"x": 1, "y": 2}}]
    plain, reordered = load(rows).train, load(rows[::-1], template={"prompt": "Q: {prompt}"}).train
    assert [p.id for p in plain] == [p.id for p in reordered][::-1]
    assert len({p.id for p in plain}) == 3
    assert load([{"q": "?", "a": {"y": 2, "x": 1}}]).train[0].id == plain[2].id
    assert all(len(p.id) == 16 and int(p.id, 16) >= 0 for p in plain)


def test_repeated_content_is_counted_and_repeated_ids_of_other_content_are_bad(load: Load) -> None:
    same = [{"id": 1, "q": "a", "a": 1}, {"id": 1, "q": "a", "a": 1}]
    sets = load(same, source={"id": "id"})
    assert [p.id for p in sets.train] == ["1"]
    assert sets.report.sources[0].duplicates == 1
    assert load(same).report.sources[0].duplicates == 1
    with pytest.raises(DataError, match="row 2: id '1' is also row 1's"):
        load([same[0], {"id": 1, "q": "b", "a": 1}], source={"id": "id"})


@pytest.mark.parametrize("value", [None, True, [1], " ", 1.5])
def test_an_id_is_text_or_a_whole_number(load: Load, value: Any) -> None:
    with pytest.raises(DataError, match="row 1: "):
        load([{"id": value, "q": "a", "a": 1}], source={"id": "id"})


def test_metadata_columns_are_carried_null_included_and_missing_ones_are_bad(load: Load) -> None:
    rows = [{"q": "a", "a": 1, "level": 3, "unit": None}]
    (prompt,) = load(rows, source={"metadata": ["level", "unit"]}).train
    assert prompt.metadata == {"level": 3, "unit": None}
    with pytest.raises(DataError, match="did you mean 'level'"):
        load(rows, source={"metadata": ["levle"]})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(count=st.integers(2, 30), share=st.integers(1, 29) | st.floats(0.05, 0.9), shuffle=st.randoms())
def test_the_holdout_does_not_depend_on_the_order_of_rows(
    load: Load, count: int, share: int | float, shuffle: random.Random
) -> None:
    rows = _rows(count)
    if isinstance(share, int):
        share = min(share, count - 1)
    elif max(1, round(share * count)) == count:
        share = 1
    sets = load(rows, holdout=share)
    shuffled = rows.copy()
    shuffle.shuffle(shuffled)
    again = load(shuffled, holdout=share)
    assert [p.id for p in sets.test] == [p.id for p in again.test]
    assert {p.id for p in sets.train} == {p.id for p in again.train}
    assert len(sets.train) + len(sets.test) == count
    assert sets.report.sources[0].held_out == len(sets.test) >= 1
    assert not {p.id for p in sets.train} & {p.id for p in sets.test}


def test_a_holdout_of_everything_is_refused(load: Load) -> None:
    with pytest.raises(DataError, match=r"data\.holdout 5 takes 5 of 5"):
        load(_rows(5), holdout=5)


def test_train_prompts_that_are_test_prompts_leak_and_are_left_out(load: Load) -> None:
    sets = load(_rows(6), test=_rows(2))
    train, test = sets.report.sources
    assert (len(sets.train), len(sets.test)) == (4, 2)
    assert (train.leaked, train.kept, test.kept) == (2, 4, 2)
    assert "2 also in test" in sets.report.lines()[0]
    with pytest.raises(DataError, match="leaves no prompt to train on"):
        load(_rows(2), test=_rows(2))


def test_the_same_task_under_another_id_leaks_too(load: Load) -> None:
    twins = [{"id": name, "q": "same", "a": 1} for name in ("one", "two")]
    sets = load([twins[0], {"id": "x", "q": "other", "a": 1}], test=[twins[1]], source={"id": "id"})
    assert [p.id for p in sets.train] == ["x"]


def test_every_row_is_counted_once(load: Load) -> None:
    rows = [*_rows(6), *_rows(2), {"q": "x" * 999, "a": 1}, {"a": 1}]
    sets = load(rows, test=_rows(1), bad_rows="skip", bad_rows_budget=1)
    for r in sets.report.sources:
        assert r.rows == r.kept + r.held_out + len(r.bad) + r.too_long + r.duplicates + r.leaked
    assert sets.report.lines()[0].endswith(
        "10 rows: 5 kept, 1 bad, 1 too long, 2 duplicates, 1 also in test (same prompt)"
    )


def test_nothing_to_train_on_or_to_test_on_is_an_error(load: Load) -> None:
    with pytest.raises(DataError, match=r"data\.train leaves no prompt"):
        load([])
    with pytest.raises(DataError, match=r"data\.test leaves no prompt"):
        load(_rows(1), test=[])


def test_a_procedural_prompt_carries_the_entry_its_task_scores() -> None:
    import reasoning_gym

    train = {"source": "reasoning_gym", "task": "countdown", "size": 20, "seed": 1}
    train |= {"prompt": "{metadata[numbers]} {metadata[target]}: ", "metadata": ["metadata"]}
    data = Data.model_validate({"train": train, "test": {**train, "seed": 2, "size": 5}})
    sets = load_prompts(data, TOKENIZER, seed=0)
    scorer = reasoning_gym.create_dataset("countdown", seed=0, size=1)
    for prompt in [*sets.train, *sets.test]:
        entry = prompt.metadata["entry"]
        assert prompt.metadata["task"] == "countdown"
        assert prompt.text == f"{entry['metadata']['numbers']} {entry['metadata']['target']}: "
        assert prompt.text.startswith("[")
        assert scorer.score_answer(entry["metadata"]["expression"], entry) == 1.0
        assert json.loads(json.dumps(dict(prompt.metadata))) == prompt.metadata


def test_a_task_with_many_right_answers_needs_no_reference() -> None:
    source = {"source": "reasoning_gym", "task": "graph_color", "size": 3}
    sets = load_prompts(Data.model_validate({"train": source, "max_prompt_tokens": 4096}), TOKENIZER, seed=0)
    assert [p.reference for p in sets.train] == [None] * 3


def test_overlapping_procedural_sets_are_kept_apart() -> None:
    task = {"source": "reasoning_gym", "task": "chain_sum", "size": 200}
    task["params"] = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    data = Data.model_validate({"train": {**task, "seed": 1}, "test": {**task, "seed": 2, "size": 50}})
    sets = load_prompts(data, TOKENIZER, seed=0)
    assert sets.report.sources[0].leaked > 0
    assert not {p.text for p in sets.train} & {p.text for p in sets.test}


def test_examples_carry_completions_and_two_completions_are_two_examples(tmp_path: Path) -> None:
    rows = [{"q": "1+1", "a": 2, "c": c} for c in ("two", "2", "2")]
    source = Source.model_validate(_source(tmp_path / "r.jsonl", rows, completion=" {c}"))
    data = Data.model_validate({"train": source.model_dump(), "template": {"prompt": "Q: {prompt} A:"}})
    examples, report = load_examples(source, data, TOKENIZER)
    assert [(e.text, e.completion) for e in examples] == [("Q: 1+1 A:", " two"), ("Q: 1+1 A:", " 2")]
    assert len({e.id for e in examples}) == 2
    assert report.sources[0].duplicates == 1
    assert [p.completion for p in load_prompts(data, TOKENIZER, seed=0).train] == [None]


def test_examples_need_a_completion(tmp_path: Path) -> None:
    source = Source.model_validate(_source(tmp_path / "r.jsonl", _rows(1)))
    data = Data.model_validate({"train": source.model_dump()})
    with pytest.raises(DataError, match=r"warmup\.train\.completion"):
        load_examples(source, data, TOKENIZER)
    missing = source.model_copy(update={"completion": "c"})
    with pytest.raises(DataError, match="row 1: no column 'c'"):
        load_examples(missing, data, TOKENIZER)


def test_text_that_the_tokenizer_changes_is_said_with_an_example(tmp_path: Path) -> None:
    from tokenizers import normalizers

    rows = [{"q": "what is 1+1?", "a": 2, "c": "two"}, {"q": "What is 2+1?", "a": 3, "c": "Three"}]
    source = Source.model_validate(_source(tmp_path / "r.jsonl", rows, completion="c"))
    data = Data.model_validate({"train": source.model_dump()})
    lower = make_tokenizer("bytes")
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    (line,) = load_prompts(data, lower, seed=0).report.lines()[1:]
    assert line.strip() == (
        "warning: the tokenizer does not give 1 prompts back as they are written: row 2, 'What is 2+1?' comes back as "
        "'what is 2+1?'"
    )
    assert "does not give 1 completions back" in load_examples(source, data, lower)[1].lines()[2]
    assert len(load_prompts(data, TOKENIZER, seed=0).report.lines()) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1).filter(str.strip))
def test_a_tokenizer_that_gives_everything_back_changes_nothing(load: Load, text: str) -> None:
    for template in ({"kind": "plain"}, {"kind": "chat"}):
        assert len(load([{"q": text, "a": 1}], template=template).report.lines()) == 1

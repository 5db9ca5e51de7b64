"""A conversation reaches the model as it is, by the template that is asked for; what cannot be taken says so in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from rlpost.config import Data, Source, Template
from rlpost.data import DataError, PromptSets, load_examples, load_prompts, make_tokenizer
from rlpost.data.chat import save_chat_template, saved_template
from rlpost.models.load import load_tokenizer
from rlpost.models.source import ModelSource

TOKENIZER = make_tokenizer("bytes")
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "What is 2+1?"}
TURNS = [ASKED, {"role": "assistant", "content": "3"}, {"role": "user", "content": "And one more?"}]


def load(tmp_path: Path, rows: list[Any], *, test: list[Any] | None = None, **data: Any) -> PromptSets:
    """Rows whose column `m` is the prompt; `train_source` and `test_source` change how they are read."""
    sources = {}
    for name, given in (("train", rows), ("test", test)):
        if given is not None:
            path = tmp_path / f"{name}.jsonl"
            path.write_text("".join(json.dumps({"m": value, "a": "1"}) + "\n" for value in given))
            source = {"source": "jsonl", "path": str(path), "prompt": "m", "reference": "a"}
            sources[name] = source | data.pop(f"{name}_source", {})
    data.setdefault("template", {"kind": "chat"})
    return load_prompts(Data.model_validate({**sources, **data}), TOKENIZER, seed=0)


def texts(sets: PromptSets) -> list[str]:
    return [prompt.text for prompt in sets.train]


@pytest.mark.parametrize("as_text", [False, True])
def test_messages_go_to_the_chat_template_as_they_are(tmp_path: Path, as_text: bool) -> None:
    messages = [SYSTEM, *TURNS]
    (prompt,) = load(tmp_path, [json.dumps(messages, indent=1) if as_text else messages]).train
    assert prompt.text == ("system: Be brief.\nuser: What is 2+1?\nassistant: 3\nuser: And one more?\nassistant:")
    assert prompt.token_ids.tolist() == TOKENIZER(prompt.text, add_special_tokens=False)["input_ids"]


def test_messages_of_parquet_are_the_same_prompt_with_the_same_id(tmp_path: Path) -> None:
    rows = [{"m": [SYSTEM, ASKED], "a": "1"}, {"m": [{**ASKED, "content": "?"}], "a": "1"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    stored = {"source": "parquet", "path": str(tmp_path / "rows.parquet"), "prompt": "m", "reference": "a"}
    template = {"kind": "chat"}
    of_parquet = load_prompts(Data.model_validate({"train": stored, "template": template}), TOKENIZER, seed=0)
    of_jsonl = load(tmp_path, [row["m"] for row in rows])
    assert [(p.id, p.text) for p in of_parquet.train] == [(p.id, p.text) for p in of_jsonl.train]


def test_words_around_the_prompt_go_around_the_last_user_message(tmp_path: Path) -> None:
    sets = load(tmp_path, [TURNS], template={"kind": "chat", "system": "Think.", "prompt": "{prompt} Use {}."})
    assert texts(sets) == ["system: Think.\nuser: What is 2+1?\nassistant: 3\nuser: And one more? Use {}.\nassistant:"]


def test_the_begin_of_an_answer_is_continued(tmp_path: Path) -> None:
    sets = load(tmp_path, [[ASKED, {"role": "assistant", "content": "It is"}]])
    assert texts(sets) == ["user: What is 2+1?\nassistant: It is"]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "empty list"),
        ([SYSTEM], "ends with a system message"),
        ([{"role": "user", "content": " "}], r"m\[0\]\.content is empty"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}], r"parts \(image, text\)"),
        ([{"role": "user", "content": [{"type": "text", "text": "?"}]}], r"parts \(text\)"),
        ([{"from": "human", "value": "?"}], "from and value"),
        ([{"role": "human", "content": "?"}], "role is 'human'"),
        ([ASKED, {"role": "tool", "content": "3"}], "calls of tools"),
        ([ASKED, {"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}], "tool_calls beside"),
        ([{"role": "user"}], r"m\[0\] has role; a message has role and content"),
        ([1, 2], "is a int, not a message"),
        ([ASKED, "text"], r"m\[1\] is a str"),
        ({"role": "user", "content": "?"}, "is a dict, not text"),
        ([{"role": "user", "content": "\ud800"}], "not valid Unicode"),
        (json.dumps([{"role": "human", "content": "?"}]), "role is 'human'"),
    ],
)
def test_what_is_no_conversation_is_a_bad_row_and_never_its_repr(tmp_path: Path, messages: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        load(tmp_path, [messages])
    assert "'role':" not in str(error.value)


def test_messages_need_the_chat_template_and_the_error_says_how(tmp_path: Path) -> None:
    for value in ([ASKED], json.dumps([ASKED])):
        with pytest.raises(DataError, match=r"set data\.template\.kind: chat.*\{m\[0\]\[content\]\}"):
            load(tmp_path, [value], template={"kind": "plain"})
    taken = load(tmp_path, [[ASKED]], template={"kind": "plain"}, train_source={"prompt": "{m[0][content]}"})
    assert texts(taken) == ["What is 2+1?"]


def test_a_template_never_prints_a_value_with_keys_as_python_would(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\{column!j\} for JSON"):
        load(tmp_path, [[ASKED]], train_source={"prompt": "{m}"})
    sets = load(tmp_path, [{"rows": [1, None]}], train_source={"prompt": "{m!j} and {m[rows]}"})
    assert texts(sets) == ['user: {"rows": [1, null]} and [1, None]\nassistant:']


def test_two_system_messages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"system message of its own, and data\.template\.system is set too"):
        load(tmp_path, [[SYSTEM, ASKED]], template={"kind": "chat", "system": "Think."})


def test_a_text_that_begins_like_a_list_is_text(tmp_path: Path) -> None:
    rows = ["[1, 2] 3:", "[x", '[{"a": 1}]']
    assert texts(load(tmp_path, rows)) == [f"user: {text}\nassistant:" for text in rows]


@pytest.mark.parametrize(
    "train",
    [
        [SYSTEM, ASKED],
        [{"role": "user", "content": " What is 2 + 1?\n"}],
        [{"role": "developer", "content": "x"}, ASKED, {"role": "assistant", "content": "It is"}],
        json.dumps([SYSTEM, ASKED]),
        "What is 2+1?",
    ],
)
@pytest.mark.parametrize("test", [[ASKED], "What is 2+1?"])
def test_a_system_message_or_the_begin_of_an_answer_makes_no_other_problem(
    tmp_path: Path, train: Any, test: Any
) -> None:
    sets = load(tmp_path, [train, "another"], test=[test])
    assert texts(sets) == ["user: another\nassistant:"]


def test_other_turns_before_the_last_are_another_problem(tmp_path: Path) -> None:
    assert len(load(tmp_path, [TURNS], test=[[TURNS[-1]]]).train) == 1


def test_a_worked_example_may_be_a_message_of_the_assistant(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"prompt": [ASKED], "completion": [{"role": "assistant", "content": "It is 3."}]}
    path.write_text(json.dumps(row) + "\n")
    values = {"source": "jsonl", "path": str(path), "prompt": "prompt", "completion": "completion"}
    data = Data.model_validate({"train": values, "template": {"kind": "chat"}})
    ((example,), _) = load_examples(Source.model_validate(values), data, TOKENIZER)
    assert example.completion == "It is 3."
    path.write_text(json.dumps({**row, "completion": [ASKED]}) + "\n")
    with pytest.raises(DataError, match="one assistant message; its messages are of user"):
        load_examples(Source.model_validate(values), data, TOKENIZER)


def test_alpaca_columns_are_a_template(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "Add.", "input": "2, 1", "output": "3"}) + "\n")
    train = {"source": "jsonl", "path": str(path), "prompt": "{instruction}\n{input}", "reference": "output"}
    sets = load_prompts(Data.model_validate({"train": train}), TOKENIZER, seed=0)
    assert texts(sets) == ["Add.\n2, 1"]


# ------------------------------------------------------------------------------------------------------- templates

OWN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if thinking is defined and not thinking %}<quick>{% endif %}{% endif %}"
)


def own(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    (tmp_path / "own.jinja").write_text(OWN)
    return {"kind": "chat", "chat_template": str(tmp_path / "own.jinja"), **changes}


def test_a_chat_template_of_a_file_and_its_arguments_make_the_text(tmp_path: Path) -> None:
    assert texts(load(tmp_path, ["?"], template=own(tmp_path))) == ["<user>?<assistant>"]
    quick = own(tmp_path, chat_template_kwargs={"thinking": False})
    assert texts(load(tmp_path, ["?"], template=quick)) == ["<user>?<assistant><quick>"]


def test_a_saved_model_gets_the_chat_template_that_its_sources_agree_on_or_a_line_says_which(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(OWN)
    (tmp_path / "rows.jsonl").write_text('{"q": "?"}\n')
    rows = {"source": "jsonl", "path": str(tmp_path / "rows.jsonl"), "prompt": "q"}
    quick = {**own(tmp_path), "chat_template_kwargs": {"thinking": False}}

    def saved(*templates: dict[str, Any] | None) -> tuple[Template, str | None]:
        data = Data.model_validate({"train": {f"s{i}": {**rows, "template": t} for i, t in enumerate(templates)}})
        return saved_template(data, data.train_sources.values())

    assert saved(quick, quick) == (Template.model_validate(quick), None)
    assert saved(quick, {"kind": "plain"}) == (Template.model_validate(quick), None)
    assert saved(None, {"kind": "plain"}) == (Template(), None)
    template, line = saved(quick, own(tmp_path))
    assert template == Template()
    assert line == "the sources have chat templates that differ: a saved model gets its tokenizer's"


def test_a_saved_model_renders_as_it_was_trained(tmp_path: Path) -> None:
    model = tmp_path / "model"
    TOKENIZER.save_pretrained(model)
    before = (model / "chat_template.jinja").read_text()
    save_chat_template(model, Template(kind="chat"), TOKENIZER)
    save_chat_template(model, Template(), TOKENIZER)
    assert (model / "chat_template.jinja").read_text() == before
    arguments = {"thinking": False, "style": 'say "ö" {%', "sizes": [1, None, 2.5]}
    (tmp_path / "own.jinja").write_text(OWN + "{{ style }}{{ sizes }}")
    template = Template(kind="chat", chat_template=str(tmp_path / "own.jinja"), chat_template_kwargs=arguments)
    save_chat_template(model, template, TOKENIZER)
    saved = load_tokenizer(ModelSource(str(model)))
    chat = [{"role": "user", "content": "?"}]
    text = saved.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    given = TOKENIZER.apply_chat_template(
        chat, chat_template=OWN + "{{ style }}{{ sizes }}", add_generation_prompt=True, tokenize=False, **arguments
    )
    assert text == given == "<user>?<assistant><quick>" + 'say "ö" {%[1, None, 2.5]'
    thinking = saved.apply_chat_template(chat, add_generation_prompt=True, tokenize=False, thinking=True)
    assert "<quick>" not in thinking
    # A run that starts from the saved model, with the arguments alone, does not pile up defaults.
    save_chat_template(model, Template(kind="chat", chat_template_kwargs=arguments), saved)
    assert (model / "chat_template.jinja").read_text() == saved.chat_template


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"chat_template_kwargs": {"thinknig": False}}, "has no use for 'thinknig'"),
        ({"chat_template": "broken.jinja"}, "the chat template refuses"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(
    tmp_path: Path, changes: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jinja").write_text("{% for m in messages %}")
    with pytest.raises(DataError, match=says):
        load(tmp_path, ["?"], template=own(tmp_path, **changes))


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ({"kind": "chat", "chat_template": "nowhere.jinja"}, "nowhere.jinja"),
        ({"kind": "plain", "chat_template_kwargs": {"x": 1}}, "needs template.kind: chat"),
        ({"kind": "chat", "chat_template_kwargs": {"messages": 1}}, "given by rlpost"),
        ({"kind": "chat", "chat_template_kwargs": {"a b": 1}}, "no variable"),
    ],
)
def test_a_template_that_makes_no_sense_is_refused(template: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Template.model_validate(template)

"""Rows become prompts: read, identified, put into the template, tokenized, and kept apart from the test."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rlpost.config import Data, Source, Template, TemplatedSource, TestSource, TrainSource
from rlpost.data.chat import Messages, asked_in, check_messages, completion_of, messages_in, renderer
from rlpost.data.columns import Column, find
from rlpost.data.errors import DataError, RowError
from rlpost.data.identity import Problems, problem_of
from rlpost.data.report import DataReport, SourceReport, bad_lines, measured
from rlpost.data.sources import Row, dataset, describe, plain, read_rows
from rlpost.data.tokenizer import encode_completion, read_otherwise, unknown_characters
from rlpost.types import Checked, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptSets:
    """Prompts to learn from, prompts to be judged by (may be empty), and what became of every row.

    Attributes:
        train: of all sources, one source after the other.
        tests: by the name of the test set; by "" where there is one without a name.
    """

    train: list[Prompt]
    tests: dict[str, list[Prompt]]
    report: DataReport

    @property
    def test(self) -> list[Prompt]:
        """Of all test sets, one after the other."""
        return [prompt for prompts in self.tests.values() for prompt in prompts]

    @property
    def by_source(self) -> dict[str, list[Prompt]]:
        """`train` by the name of its source; by "" where there is one without a name."""
        found: dict[str, list[Prompt]] = {}
        for prompt in self.train:
            found.setdefault(prompt.source, []).append(prompt)
        return found


# What the verifiers say of each prompt's row; `rlpost.verify.references.checker` makes one.
Checker = Callable[[Sequence[Prompt]], Sequence[Checked]]


def load_prompts(data: Data, tokenizer: PreTrainedTokenizerBase, seed: int, check: Checker | None = None) -> PromptSets:
    """The train and test prompts of a run; no problem is in both (`data.identity`), and no row of one file.

    `data.holdout` chooses by a hash of (seed, prompt id), so the choice does not depend on the order of the rows;
    the test then comes in the order of that hash, and any first part of it is a fair sample; of several sources each
    gives its own test set. Ids are the configured column, or 16 hex digits of the SHA-256 of (prompt before the
    template, reference), behind `name/` for a source with a name.

    Args:
        check: what it objects to is a bad row.

    Raises:
        DataError: a source cannot be read, has more bad rows than the configuration allows or too long prompts where
            those are errors; or nothing is left to train on or, where a test is asked for, to test on.
    """
    train = {name: _source("data.train", name, s, data, tokenizer, check) for name, s in data.train_sources.items()}
    test = {name: _source("data.test", name, s, data, tokenizer, check) for name, s in data.test_sources.items()}
    reports = [loaded.report for loaded in (*train.values(), *test.values())]
    for loaded in test.values():
        if not loaded.items:
            place = loaded.report.place
            raise DataError("\n".join([f"{place} leaves no prompt to be judged by:", *loaded.report.lines()]))
    if data.holdout is not None:
        for name, loaded in train.items():
            loaded.items, held = _hold_out(loaded.items, data.holdout, seed, loaded.report.place)
            loaded.report.held_out = len(held)
            test[name] = _Loaded(loaded.source, held, loaded.report)
    asked = [item for loaded in test.values() for item in loaded.items]
    for loaded in train.values():
        loaded.items = _without_leaks(loaded.items, asked, loaded.report)
        if not loaded.items:
            place = loaded.report.place
            long = f" (data.max_prompt_tokens is {data.max_prompt_tokens}: raise it)" if loaded.report.too_long else ""
            raise DataError(
                "\n".join([f"{place} leaves no prompt to train on{long}:", *DataReport(tuple(reports)).lines()])
            )
    _count_shared(train)
    return PromptSets(
        [prompt for name, loaded in train.items() for prompt in loaded.prompts(name)],
        {name: loaded.prompts(name) for name, loaded in test.items()},
        DataReport(tuple(reports)),
    )


@dataclass
class _Loaded:
    """A source, its prompts, and what became of its rows."""

    source: TrainSource | TestSource
    items: list[_Item]
    report: SourceReport

    def prompts(self, name: str) -> list[Prompt]:
        """With ids that no other source has."""
        chosen = tuple(self.source.verifiers or ())
        return [
            replace(item.prompt, id=_named(name, item.prompt.id), source=name, verifiers=chosen) for item in self.items
        ]


def _source(
    key: str,
    name: str,
    source: TrainSource | TestSource,
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    check: Checker | None,
) -> _Loaded:
    """One source, checked by the verifiers it names, in its own template or that of `data`."""
    chosen = tuple(source.verifiers or ())

    def checked(prompts: Sequence[Prompt]) -> Sequence[Checked]:
        assert check is not None
        return check([replace(prompt, verifiers=chosen) for prompt in prompts])

    place = f"{key}.{name}" if name else key
    rules, verified = in_template(source, data), checked if check else None
    try:
        items, report = _load(place, source, rules, tokenizer, with_completion=False, check=verified)
    except DataError as error:
        if source.template is None:
            raise
        raise DataError(str(error).replace("data.template", f"{place}.template")) from error
    return _Loaded(source, items, report)


def _count_shared(train: Mapping[str, _Loaded]) -> None:
    """Say how many problems of a source an earlier one has too. They stay: its verifiers or template are others."""
    before: list[_Loaded] = []
    for loaded in train.values():
        for other in before:
            shared = Problems(item.prompt for item in other.items)
            if count := sum(shared.why(item.prompt) is not None for item in loaded.items):
                loaded.report.notes.append(f"{count} of its problems are in {other.report.place} too, and stay in both")
        before.append(loaded)


def load_examples(
    source: Source, data: Data, tokenizer: PreTrainedTokenizerBase, name: str = ""
) -> tuple[list[Prompt], DataReport]:
    """Worked examples for supervised warm-up: prompts with `completion`, by the template and policies of `data`.

    Here the completion is part of the content: one prompt with two completions is two examples, with two ids.

    Args:
        name: of the source, where there are several. A template of its own is used.

    Raises:
        DataError: as `load_prompts`; or the source names no completion.
    """
    place = f"warmup.train.{name}" if name else "warmup.train"
    if source.completion is None:
        raise DataError(f"{place}.completion: missing; name the column or template of the worked example")
    items, report = _load(place, source, in_template(source, data), tokenizer, with_completion=True)
    if not items:
        raise DataError("\n".join([f"{place} leaves no example:", *report.lines()]))
    examples = [replace(item.prompt, id=_named(name, item.prompt.id), source=name) for item in items]
    return examples, DataReport((report,))


def in_template(source: Source, data: Data) -> Data:
    """`data` with the template that the rows of this source get."""
    own = source.template if isinstance(source, TemplatedSource) else None
    return data.model_copy(update={"template": own}) if own is not None else data


def _named(source: str, prompt: str) -> str:
    """An id that no prompt of another source has."""
    return f"{source}/{prompt}" if source else prompt


def check_source(place: str, source: Source, data: Data, with_completion: bool = False) -> None:
    """Refuse a source whose rows cannot be read or have not what it names, as far as that needs no tokenizer.

    Raises:
        DataError: as `load_prompts`; or there is no row, or none that can be used.
    """
    try:
        rows = read_rows(source)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    report = SourceReport(place, describe(source), rows=len(rows))
    _distinct(rows, _reader(place, source, data.template, with_completion), report)
    if not rows:
        raise DataError(f"{place} ({report.origin}) has no rows")
    if len(report.bad) == len(rows):
        title = (
            f"{_at_fault(place, source, rows[0])} ({report.origin}): none of the first {len(rows)} rows can be used:"
        )
        raise DataError("\n".join([title, *bad_lines(report.bad)]))
    _enforce(report, [], data)


def check_encoded(
    place: str, source: Source, data: Data, tokenizer: PreTrainedTokenizerBase, with_completion: bool = False
) -> int:
    """Refuse a source whose rows the tokenizer or the template does not take. Returns how many rows it has.

    Raises:
        DataError: as `load_prompts` and `encode_completion`.
    """
    rules = in_template(source, data)
    try:
        items, report = _load(place, source, rules, tokenizer, with_completion=with_completion)
    except DataError as error:
        if rules is data:
            raise
        raise DataError(str(error).replace("data.template", f"{place}.template")) from error
    for item in items if with_completion else ():
        try:
            encode_completion(item.prompt.completion or "", tokenizer)
        except DataError as error:
            raise DataError(f"{place}.completion ({report.origin}): {error}") from error
    return report.rows


def _at_fault(place: str, source: Source, row: Row) -> str:
    """The key, and its value, that a row has nothing for; the source's where it is the row itself."""
    columns = [(role, getattr(source, role)) for role in ("prompt", "reference", "completion", "id")]
    for role, spec in [*columns, *(("metadata", name) for name in source.metadata)] if row.error is None else []:
        try:
            if spec is not None:
                Column(f"{place}.{role}", spec).of(row.values)
        except RowError:
            return f"{place}.{role}: {spec!r}"
    return place


@dataclass(frozen=True)
class _Draft:
    """A row that could be read, before the template and the tokenizer.

    `content` is a digest of all that was read of it, `asked` what its prompt is made of.
    """

    number: int
    id: str
    content: str
    prompt: str | Messages
    asked: list[Any]
    reference: Any
    completion: str | None
    metadata: dict[str, Any]


@dataclass(frozen=True)
class _Item:
    """A prompt, and for one whose id is a column the data set it is an id of: ids of two sets say nothing of rows."""

    prompt: Prompt
    namespace: str | None

    @property
    def row(self) -> tuple[str, str] | None:
        return None if self.namespace is None else (self.namespace, self.prompt.id)


def _load(
    place: str,
    source: Source,
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    *,
    with_completion: bool,
    check: Checker | None = None,
) -> tuple[list[_Item], SourceReport]:
    rows = read_rows(source)
    report = SourceReport(place, describe(source), rows=len(rows))
    drafts = _distinct(rows, _reader(place, source, data.template, with_completion), report)
    render = renderer(data.template, tokenizer)
    texts = [render(draft.prompt) for draft in drafts]
    namespace = dataset(source) if source.id is not None else None
    items: list[_Item] = []
    numbers: list[int] = []
    encoded = _encode(texts, data.template, tokenizer, data.max_prompt_tokens)
    too_long: list[tuple[int, str]] = []
    for draft, text, ids in zip(drafts, texts, encoded, strict=True):
        if ids is None:
            too_long.append((draft.number, f"{len(text)} characters"))
        elif unknown := unknown_characters(text, ids, tokenizer):
            report.bad.append((draft.number, f"the tokenizer has no token for {unknown} of the prompt"))
        elif len(ids) > data.max_prompt_tokens:
            too_long.append((draft.number, f"{len(ids)} tokens"))
        else:
            token_ids = np.array(ids, dtype=np.int32)
            problem = problem_of(text, draft.asked, data.identity)
            prompt = Prompt(draft.id, text, token_ids, draft.reference, draft.completion, draft.metadata, problem)
            items.append(_Item(prompt, namespace))
            numbers.append(draft.number)
    if check is not None:
        found = check([item.prompt for item in items])
        report.notes += measured(numbers, found)
        problems = [one.problem for one in found]
        report.bad += [(number, why) for number, why in zip(numbers, problems, strict=True) if why is not None]
        items = [item for item, why in zip(items, problems, strict=True) if why is None]
    # Rows of several files count through; a message says where one is found.
    places = {row.number: row.place for row in rows if row.place is not None}
    report.bad = sorted((n, f"{places[n]}: {why}" if n in places else why) for n, why in report.bad)
    too_long = [(n, f"{places[n]}: {why}" if n in places else why) for n, why in too_long]
    report.too_long, report.kept = len(too_long), len(items)
    whole = [i for i, ids in enumerate(encoded) if ids is not None]
    read = [ids for ids in encoded if ids is not None]
    report.notes += _changed("prompts", [drafts[i] for i in whole], [texts[i] for i in whole], read, tokenizer)
    if with_completion:
        examples = [str(draft.completion) for draft in drafts]
        tokens = tokenizer(examples, add_special_tokens=False, verbose=False)["input_ids"] if examples else []
        report.notes += _changed("completions", drafts, examples, tokens, tokenizer)
    if not with_completion and source.source != "reasoning_gym":  # whose problems have many right answers
        report.notes += _contradictions([item.prompt for item in items])
    _enforce(report, too_long, data)
    return items, report


def _reader(place: str, source: Source, template: Template, with_completion: bool) -> Callable[[Row], _Draft]:
    def column(role: str, spec: str | None) -> Column | None:
        return Column(f"{place}.{role}", spec) if spec is not None else None

    prompt = Column(f"{place}.prompt", str(source.prompt))
    reference = column("reference", source.reference)
    completion = column("completion", source.completion) if with_completion else None
    identity = column("id", source.id)
    procedural = source.source == "reasoning_gym"

    def read(row: Row) -> _Draft:
        if row.error is not None:
            raise RowError(row.error)
        values = row.values
        messages = None if prompt.is_template else messages_in(prompt.spec, prompt.of(values))
        if messages is None:
            text: str | Messages = prompt.text_of(values)
            asked = [text, prompt.parts_of(values)]
        else:
            check_messages(prompt.spec, messages, template)
            text, asked = messages, [asked_in(messages)]
        # Tasks with many right answers (graph_color, rush_hour) have no answer to show; their scorer reads the entry.
        open_ended = procedural and source.reference == "answer" and values["answer"] is None
        answer = plain(reference.of(values)) if reference and not open_ended else None
        example = _example(completion, values) if completion else None
        metadata = {name: plain(find(values, name)) for name in source.metadata}
        if procedural:
            metadata |= {"entry": values, "task": source.task}
        content = _digest([text, answer] if example is None else [text, answer, example])
        name = content if identity is None else _configured_id(identity, row)
        return _Draft(row.number, name, content, text, asked, answer, example, metadata)

    return read


def _example(column: Column, values: Mapping[str, Any]) -> str:
    message = None if column.is_template else completion_of(column.spec, column.of(values))
    return column.text_of(values) if message is None else message


def _configured_id(column: Column, row: Row) -> str:
    value = column.of(row.values)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise RowError(f"{column.role} {column.spec!r} must be text or a whole number, got {value!r}")
    return str(value)


def _digest(content: list[Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _distinct(rows: list[Row], read: Callable[[Row], _Draft], report: SourceReport) -> list[_Draft]:
    """The readable rows, the first of each id; the others are counted in `report`."""
    drafts: dict[str, _Draft] = {}
    for row in rows:
        try:
            draft = read(row)
        except RowError as error:
            report.bad.append((row.number, str(error)))
            continue
        first = drafts.setdefault(draft.id, draft)
        if first is draft:
            continue
        if first.content == draft.content:
            report.duplicates += 1
        else:
            report.bad.append((row.number, f"id {draft.id!r} is also row {first.number}'s, with other content"))
    return list(drafts.values())


def _encode(
    texts: list[str], template: Template, tokenizer: PreTrainedTokenizerBase, limit: int
) -> list[list[int] | None]:
    """Token ids by text. A chat template writes its own special tokens; else the tokenizer's defaults, less an EOS.

    None for a text of which the begin alone has twice as many tokens as the limit: the rest is not looked at, as a
    tokenizer takes minutes for megabytes.
    """
    if not texts:
        return []

    def tokens(some: list[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(some, add_special_tokens=template.kind == "plain", verbose=False)[
            "input_ids"
        ]
        return found

    far = 64 * limit
    long = [i for i, text in enumerate(texts) if len(text) > far]
    heads = tokens([texts[i][:far] for i in long]) if long else []
    hopeless = {i for i, ids in zip(long, heads, strict=True) if len(ids) > 2 * limit}
    kept = [text for i, text in enumerate(texts) if i not in hopeless]
    encoded = iter(tokens(kept) if kept else [])
    if template.kind != "chat":
        encoded = (ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids for ids in encoded)
    return [None if i in hopeless else next(encoded) for i in range(len(texts))]


def _enforce(report: SourceReport, too_long: list[tuple[int, str]], data: Data) -> None:
    """Raise where the configuration allows fewer bad rows or long prompts than there are."""
    allowed = data.bad_rows_budget if data.bad_rows == "skip" else 0
    if len(report.bad) > allowed:
        fix = (
            f"data.bad_rows_budget is {allowed}"
            if data.bad_rows == "skip"
            else "mend them, or set data.bad_rows: skip with a data.bad_rows_budget"
        )
        title = f"{report.place} ({report.origin}): {len(report.bad)} of {report.rows} rows are bad ({fix}):"
        raise DataError("\n".join([title, *bad_lines(report.bad)]))
    if too_long and data.too_long == "error":
        title = (
            f"{report.place} ({report.origin}): {len(too_long)} prompts are longer than data.max_prompt_tokens "
            f"{data.max_prompt_tokens} (raise it, or set data.too_long: drop):"
        )
        raise DataError("\n".join([title, *bad_lines(too_long)]))


def _changed(
    what: str,
    drafts: Sequence[_Draft],
    texts: list[str],
    ids: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """A line where the tokenizer gives another text back than it was given."""
    found = read_otherwise(texts, ids, tokenizer)
    if not found:
        return []
    index, read = found[0]
    start = next((i for i, (a, b) in enumerate(zip(texts[index], read, strict=False)) if a != b), 0)
    here = slice(max(0, start - 10), start + 30)
    return [
        f"warning: the tokenizer does not give {len(found)} {what} back as they are written: row "
        f"{drafts[index].number}, {texts[index][here]!r} comes back as {read[here]!r}"
    ]


def _contradictions(prompts: Sequence[Prompt]) -> list[str]:
    """A line where one text is asked with several references: each stays a prompt of its own."""
    references: dict[str, dict[str, None]] = {}
    for prompt in prompts:
        references.setdefault(prompt.problem[0], {})[json.dumps(prompt.reference, sort_keys=True)] = None
    several = [list(spelled) for spelled in references.values() if len(spelled) > 1]
    if not several:
        return []
    example = " and ".join(text if len(text) <= 60 else text[:57] + "..." for text in several[0][:2])
    return [f"{len(several)} prompts have more than one reference, such as {example}: one of them may be wrong"]


def _hold_out(items: list[_Item], holdout: int | float, seed: int, place: str) -> tuple[list[_Item], list[_Item]]:
    """(rest in its order, held out in the order of their hashes)."""
    count = holdout if isinstance(holdout, int) else max(1, round(holdout * len(items)))
    if count >= len(items):
        raise DataError(
            f"data.holdout {holdout} takes {count} of {len(items)} prompts of {place} and leaves none to train on"
        )
    held = sorted(items, key=lambda item: hashlib.sha256(f"{seed}/{item.prompt.id}".encode()).digest())[:count]
    ids = {item.prompt.id for item in held}
    return [item for item in items if item.prompt.id not in ids], held


def _without_leaks(train: list[_Item], test: Collection[_Item], report: SourceReport) -> list[_Item]:
    problems, rows = Problems(item.prompt for item in test), {item.row for item in test} - {None}
    why = [problems.why(item.prompt) or ("same id" if item.row in rows else None) for item in train]
    report.also_in_test = Counter(filter(None, why))
    report.kept = len(train) - report.leaked
    return [item for item, reason in zip(train, why, strict=True) if reason is None]

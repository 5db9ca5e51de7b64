"""What `rlpost verify` scores: the recorded rollouts of a run, or a file of responses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpost.checkpoint import Store
from rlpost.config import Config, ConfigError, Source, VerifierSpec, load
from rlpost.data import load_prompts
from rlpost.data.columns import Column, find
from rlpost.data.errors import DataError, RowError, did_you_mean
from rlpost.data.sources import Row, plain, read_rows
from rlpost.models.load import load_tokenizer
from rlpost.models.source import ModelSource
from rlpost.observe.rollouts import SCHEMA, TOKENS
from rlpost.observe.run_folder import RunFolder, RunFolderError
from rlpost.verify.contract import Case, make_case

if TYPE_CHECKING:
    from rlpost.commands.verify import Request

ROLES = ("prompt", "prompt_id", "finish_reason", "token_count")  # columns taken as those fields where a file has them
POSITIVE, NEGATIVE = ("correct", "true", "yes", "right", "1"), ("wrong", "incorrect", "false", "no", "0")
DEFAULT_RESPONSE, DEFAULT_REFERENCE = "response", "reference"
SHOWN_ERRORS = 5
RECORDED = set(SCHEMA.names) - set(TOKENS)


@dataclass(frozen=True)
class Loaded:
    """What there is to score.

    Attributes:
        labels: one a case; whether the response is right, None where that is not known.
        label_name: where the labels come from, None without labels.
        notes: what the reader should know of how the file was read.
    """

    cases: list[Case]
    labels: list[bool | None]
    label_name: str | None
    notes: list[str]


def read(request: Request) -> Loaded:
    """The rows of `--data`.

    Raises:
        ConfigError: there is no such file, or it is of another kind.
        DataError: rows that cannot be scored; a column that is not there.
    """
    files = _files(request.data)
    rows: list[tuple[str, Row]] = []
    for file in files:
        limit = None if request.limit is None else request.limit - len(rows)
        if limit == 0:
            break
        # The reader asks for a prompt's column, which scoring does not need.
        kind = "parquet" if file.suffix == ".parquet" else "jsonl"
        source = Source.model_validate({"source": kind, "path": str(file), "prompt": "prompt", "limit": limit})
        prefix = f"{file.name} " if len(files) > 1 else ""
        rows += [(f"{prefix}row {row.number}", row) for row in read_rows(source)]
    _refuse([(name, row.error) for name, row in rows if row.error], request.data)
    values = [(name, row.values) for name, row in rows]
    if values and set(values[0][1]) >= RECORDED:
        return _recorded(values, request)
    return _responses(values, request)


def applying(spec: VerifierSpec, loaded: Loaded) -> Loaded:
    """The rows that the verifier is for, by the `when` of the run's configuration."""
    kept = [i for i, case in enumerate(loaded.cases) if spec.applies(case.prompt.metadata)]
    if len(kept) == len(loaded.cases):
        return loaded
    note = f"{len(loaded.cases) - len(kept)} rows are left out: the verifier is for those with {spec.when}"
    cases, labels = [loaded.cases[i] for i in kept], [loaded.labels[i] for i in kept]
    return Loaded(cases, labels, loaded.label_name, [*loaded.notes, note])


def _files(path: Path) -> list[Path]:
    """The files to read: the file itself, or the rollouts of a run."""
    if path.is_file():
        if path.suffix not in (".jsonl", ".parquet"):
            raise ConfigError(f"--data {path} must be a .jsonl or .parquet file, or a run's folder")
        return [path]
    if not path.is_dir():
        raise ConfigError(f"--data {path} does not exist")
    folder = path if path.name == "rollouts" else path / "rollouts"
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ConfigError(f"--data {path} is a folder without rollouts: there is no {folder}/*.parquet")
    return files


def _recorded(rows: Sequence[tuple[str, Mapping[str, Any]]], request: Request) -> Loaded:
    """Rollouts of a run. Their labels are the verdicts recorded there, of the same verifier where it was one."""
    notes = []
    kept = [(name, row) for name, row in rows if row["finish_reason"] != "abort"]
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} aborted rollouts are left out: they are never scored")
    columns = _columns_of_prompts(request.data, kept, notes) if "metadata" not in rows[0][1] else {}
    cases = [
        make_case(
            name,
            row["response"],
            None if row["reference"] is None else json.loads(row["reference"]),
            raw=row.get("response_raw"),
            prompt=row["prompt"],
            prompt_id=row["prompt_id"],
            finish_reason=row["finish_reason"],
            tokens=row["response_tokens"],
            metadata=json.loads(row["metadata"]) if row.get("metadata") else columns.get(row["prompt_id"], {}),
            group=f"{row['step']} {row['group']} {row['prompt_id']}",
        )
        for name, row in kept
    ]
    if request.label is not None:
        return Loaded(cases, [_label(name, row, request.label) for name, row in kept], request.label, notes)
    recorded = [json.loads(row["verdicts"]) for _, row in kept]
    names = list(dict.fromkeys(name for verdicts in recorded for name in verdicts))
    if not names:
        return Loaded(cases, [None] * len(cases), None, notes)
    judge = request.verifier if request.verifier in names else names[0]
    labels = [_recorded_label(verdicts.get(judge)) for verdicts in recorded]
    return Loaded(cases, labels, f"recorded verdicts of {judge}", notes)


def _columns_of_prompts(
    data: Path, rows: Sequence[tuple[str, Mapping[str, Any]]], notes: list[str]
) -> dict[str, Mapping[str, Any]]:
    """The other columns of a run's prompts, by id, from the data it was trained on: its rollouts do not hold them."""
    run, config = _run_folder(data), run_config(data)
    if run is None or config is None:
        return {}
    if not any(source.metadata or source.source == "reasoning_gym" for _, source in config.data.sources()):
        return {}
    try:
        folder = RunFolder.open(run)
        models = [str(saved.model) for saved in Store(folder.checkpoints, folder.run_id).finished()]
        model = models[0] if models else config.model.path
        if model is None:
            raise DataError("the run has no checkpoint with a tokenizer")
        sets = load_prompts(config.data, load_tokenizer(ModelSource.of(config.model, model)), config.seed)
    except (DataError, OSError, RunFolderError) as error:
        notes.append(f"verifiers get no other columns, the run's data cannot be read again: {error}")
        return {}
    columns = {prompt.id: prompt.metadata for prompt in [*sets.test, *sets.train]}
    if gone := len({row["prompt_id"] for _, row in rows} - columns.keys()):
        notes.append(f"{gone} prompts are no longer in the run's data, so verifiers get no other columns of theirs")
    return columns


def _recorded_label(verdict: Mapping[str, Any] | None) -> bool | None:
    return None if verdict is None or verdict["status"] == "unverified" else verdict["status"] == "correct"


def _responses(rows: Sequence[tuple[str, Mapping[str, Any]]], request: Request) -> Loaded:
    """Rows of a user's file; all columns but those that are named go to the verifier by name."""
    if not rows:
        return Loaded([], [], request.label, [])
    columns = set().union(*(row.keys() for _, row in rows))
    notes = []
    response = Column("--response", request.response or DEFAULT_RESPONSE)
    reference = Column("--reference", request.reference or DEFAULT_REFERENCE)
    if request.response is None and DEFAULT_RESPONSE not in columns:
        raise DataError(
            f"{request.data} has no column {DEFAULT_RESPONSE!r} ({did_you_mean(DEFAULT_RESPONSE, columns)}); "
            "name the column of the responses by --response"
        )
    with_reference = request.reference is not None or DEFAULT_REFERENCE in columns
    if not with_reference:
        notes.append(f"no column {DEFAULT_REFERENCE!r} and no --reference: the verifier gets None as the reference")
    if request.label is not None and request.label not in columns:
        raise DataError(
            f"{request.data} has no column {request.label!r} for --label; {did_you_mean(request.label, columns)}"
        )
    used = {response.spec, reference.spec, request.label}
    cases, labels, bad = [], [], []
    left_out: dict[str, str] = {}
    for name, row in rows:
        try:
            text = response.of(row)
            if not isinstance(text, str):
                raise RowError(f"--response {response.spec!r} is a {type(text).__name__}, not text")
            expected = plain(_or_none(reference, row)) if with_reference else None
            labels.append(_label(name, row, request.label) if request.label is not None else None)
            cases.append(
                make_case(
                    name,
                    text,
                    expected,
                    prompt=str(row.get("prompt") or ""),
                    prompt_id=str(row.get("prompt_id") or name),
                    finish_reason="length" if row.get("finish_reason") == "length" else "stop",
                    tokens=_tokens(row, text),
                    metadata=_metadata(row, used, left_out),
                    group=None if request.group is None else str(find(row, request.group)),
                )
            )
        except RowError as error:
            bad.append((name, str(error)))
    _refuse(bad or _mixed_groups(cases), request.data)
    notes += [f"column {key!r} is left out: {problem}" for key, problem in left_out.items()]
    return Loaded(cases, labels, request.label, notes)


def _mixed_groups(cases: Sequence[Case]) -> list[tuple[str, str]]:
    """Rows that are no responses to the prompt of their group's first row, and why."""
    first: dict[str, Case] = {}
    mixed = []
    for case in cases:
        if case.group is None:
            continue
        one, this = first.setdefault(case.group, case).prompt, case.prompt
        columns = [key for key in {**one.metadata, **this.metadata} if one.metadata.get(key) != this.metadata.get(key)]
        differs = ["prompt"] * (one.text != this.text) + ["reference"] * (one.reference != this.reference) + columns
        if differs:
            where = f"its {', '.join(differs)} is not that of {first[case.group].name}"
            mixed.append((case.name, f"{where}, of the same --group: a group is the responses to one prompt"))
    return mixed


def _or_none(column: Column, row: Mapping[str, Any]) -> Any:
    """A reference that is null stays null: what the verifier makes of it is what one wants to see."""
    return None if column.spec in row and row[column.spec] is None else column.of(row)


def _tokens(row: Mapping[str, Any], text: str) -> int:
    """`token_count` where the file has it, else the number of words."""
    given = row.get("token_count")
    if given is None:
        return len(text.split())
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or not 0 <= given < 2**31 or given != int(given):
        raise RowError(f"token_count is {given!r}; it must be the number of the response's tokens, or null")
    return int(given)


def _metadata(row: Mapping[str, Any], used: set[str | None], left_out: dict[str, str]) -> dict[str, Any]:
    kept = {}
    for key, value in row.items():
        if key in used or key in ROLES:
            continue
        try:
            kept[key] = plain(value)
        except RowError as error:
            left_out.setdefault(key, str(error))
    return kept


def _label(name: str, row: Mapping[str, Any], column: str) -> bool | None:
    value = row.get(column)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value >= 1
    word = str(value).strip().lower()
    if word in POSITIVE or word in NEGATIVE:
        return word in POSITIVE
    raise DataError(
        f"{name}: --label {column!r} is {value!r}; it must be true or false, a number (1 is correct), "
        f"{', '.join(POSITIVE[:-1])}, or {', '.join(NEGATIVE[:-1])}"
    )


def _refuse(bad: Sequence[tuple[str, str | None]], path: Path) -> None:
    if bad:
        more = [f"and {len(bad) - SHOWN_ERRORS} more"] if len(bad) > SHOWN_ERRORS else []
        lines = [f"  {name}: {problem}" for name, problem in bad[:SHOWN_ERRORS]]
        raise DataError("\n".join([f"{path} has {len(bad)} rows that cannot be scored:", *lines, *more]))


def run_config(data: Path) -> Config | None:
    """The configuration of the run that a folder or a file of rollouts belongs to."""
    run = _run_folder(data)
    return load([run / "config.yaml"]) if run is not None and (run / "config.yaml").is_file() else None


def _run_folder(data: Path) -> Path | None:
    """The run's folder, given that, its folder of rollouts, or a file of those."""
    folder = data if data.is_dir() else data.parent
    if folder.name == "rollouts":
        return folder.parent
    return data if data.is_dir() else None

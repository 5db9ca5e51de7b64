"""`rlpost verify`: score recorded rollouts or a file of responses offline, as a training run would."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rlpost.atomic import write_json
from rlpost.cli import ALARM, DONE, NOTHING_TO_DO
from rlpost.config import Config, ConfigError, Source, VerifierPool, VerifierSpec, load
from rlpost.data import load_prompts, load_tokenizer
from rlpost.data.columns import Column, find
from rlpost.data.errors import DataError, RowError, did_you_mean
from rlpost.data.sources import Row, plain, read_rows
from rlpost.observe.rollouts import SCHEMA
from rlpost.types import Verdict
from rlpost.verify.contract import STOPPED, Case, Check, contract, make_case, score, short, why
from rlpost.verify.references import checker

ROLES = ("prompt", "prompt_id", "finish_reason", "token_count")  # columns taken as those fields where a file has them
POSITIVE, NEGATIVE = ("correct", "true", "yes", "right", "1"), ("wrong", "incorrect", "false", "no", "0")
DEFAULT_RESPONSE, DEFAULT_REFERENCE = "response", "reference"
SHOWN_ERRORS = 5


@dataclass(frozen=True)
class Request:
    """The command line of `rlpost verify`."""

    verifier: str
    data: Path
    response: str | None = None
    reference: str | None = None
    label: str | None = None
    group: str | None = None
    params: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workers: int = 2
    timeout: float | None = None
    contract: bool = False
    limit: int | None = None
    show: int = 10
    max_unverified: float = 0.05
    max_errors: float | None = None
    out: Path | None = None


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


def run(request: Request) -> int:
    """Score, print what was found, write JSON; the exit code."""
    out = Console(soft_wrap=True, markup=False, emoji=False)
    spec = _spec(request)
    loaded = _applying(spec, _load(request))
    for note in loaded.notes:
        out.print(f"note: {note}")
    if not loaded.cases:
        out.print(f"{request.data} has no row to score")
        return NOTHING_TO_DO
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("scoring", total=len(loaded.cases))
        verdicts = score(spec, loaded.cases, workers=request.workers, progress=lambda n: progress.advance(bar, n))
    problems = checker([spec], VerifierPool(workers=request.workers))([case.prompt for case in loaded.cases])
    checks = contract(spec, loaded.cases, verdicts, workers=request.workers) if request.contract else []
    found = _found(spec, loaded, verdicts, checks, request)
    found["references"] = {c.name: why for c, why in zip(loaded.cases, problems, strict=True) if why is not None}
    _print(out, found, request.show)
    if request.out is not None:
        write_json(request.out, found)
        out.print(f"results  {request.out}")
    return ALARM if found["failures"] else DONE


# --------------------------------------------------------------------------------------------------- what was asked for


def _spec(request: Request) -> VerifierSpec:
    """The verifier; one that the run's configuration has under this name comes with what is set there."""
    config = _run_config(request.data)
    known = [spec for spec in (config.verifiers if config else []) if spec.name == request.verifier]
    set_there = known[0].model_dump(exclude={"weight"}) if known else {}
    values = {**set_there, **dict(_param(text) for text in request.params), "name": request.verifier}
    if request.timeout is not None:
        values["timeout"] = request.timeout
    if request.env:
        values["env"] = list(request.env)
    try:
        return VerifierSpec.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"rlpost verify: {problem['loc'][0]}: {problem['msg']}, got {problem['input']!r}") from None


def _run_config(data: Path) -> Config | None:
    """The configuration of the run that a folder or a file of rollouts belongs to."""
    run = _run_folder(data)
    return load([run / "config.yaml"]) if run is not None and (run / "config.yaml").is_file() else None


def _run_folder(data: Path) -> Path | None:
    """The run's folder, given that, its folder of rollouts, or a file of those."""
    folder = data if data.is_dir() else data.parent
    if folder.name == "rollouts":
        return folder.parent
    return data if data.is_dir() else None


def _param(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--param {text!r} must look like key=value, for example --param tolerance=0.01")
    if key in VerifierSpec.model_fields:
        raise ConfigError(
            f"--param {text!r}: {key} is a setting of the pool; only --timeout and --env can be given here"
        )
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--param {text!r}: the value is not valid YAML: {error}") from None


# -------------------------------------------------------------------------------------------------------------- reading


def _load(request: Request) -> Loaded:
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
    if values and set(SCHEMA.names) <= set(values[0][1]):
        return _recorded(values, request)
    return _responses(values, request)


def _applying(spec: VerifierSpec, loaded: Loaded) -> Loaded:
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
    run, config = _run_folder(data), _run_config(data)
    if run is None or config is None or not (config.data.train.metadata or config.data.train.source == "reasoning_gym"):
        return {}
    models = [str(path) for path in sorted((run / "checkpoints").glob("step_*/model"))]
    model = models[-1] if models else config.model.path
    try:
        if model is None:
            raise DataError("the run has no checkpoint with a tokenizer")
        sets = load_prompts(config.data, load_tokenizer(model, config.model.trust_remote_code), config.seed)
    except (DataError, OSError) as error:
        notes.append(f"verifiers get no other columns, the run's data cannot be read again: {error}")
        return {}
    columns = {prompt.id: prompt.metadata for prompt in [*sets.train, *sets.test]}
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
    return len(text.split()) if given is None else int(given)


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


# -------------------------------------------------------------------------------------------------------- what was found


def _found(
    spec: VerifierSpec, loaded: Loaded, verdicts: Sequence[Verdict], checks: Sequence[Check], request: Request
) -> dict[str, Any]:
    """The whole report as JSON data."""
    labels = _against_labels(loaded.labels, verdicts) if loaded.label_name is not None else None
    statuses = Counter(verdict.status for verdict in verdicts)
    rows = [
        {
            "row": case.name,
            "status": verdict.status,
            "score": verdict.score,
            "reason": verdict.reason,
            "extracted": verdict.extracted,
            "seconds": verdict.seconds,
            "attempts": verdict.attempts,
            "label": label,
            "response": short(case.rollout.text, 200),
            "error": why(verdict) if verdict.score is None or verdict.reason in STOPPED else None,
        }
        for case, verdict, label in zip(loaded.cases, verdicts, loaded.labels, strict=True)
    ]
    found: dict[str, Any] = {
        "verifier": spec.name,
        "params": spec.params,
        "timeout": spec.timeout,
        "workers": request.workers,
        "data": str(request.data),
        "rows": len(rows),
        "statuses": {status: statuses[status] for status in ("correct", "wrong", "partial", "unverified")},
        "reasons": {
            f"{status}/{reason}": count
            for (status, reason), count in Counter((v.status, v.reason or "-") for v in verdicts).most_common()
        },
        "labels": labels and {"from": loaded.label_name, **labels},
        "seconds": _latency([v.seconds for v in verdicts if not v.cached]),
        "contract": [
            {"name": c.name, "passed": c.passed, "tried": c.tried, "problems": list(c.problems), "notes": list(c.notes)}
            for c in checks
        ],
        "verdicts": rows,
    }
    return {**found, "failures": _failures(found, checks, request)}


def _against_labels(labels: Sequence[bool | None], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Correct is the positive class, wrong and partial the negative; unverified verdicts are counted apart."""
    counts = Counter(
        (label, "unverified" if verdict.score is None else verdict.status == "correct")
        for label, verdict in zip(labels, verdicts, strict=True)
        if label is not None
    )
    tp, fn, fp, tn = counts[True, True], counts[True, False], counts[False, True], counts[False, False]
    compared = tp + fn + fp + tn
    return {
        "true_positive": tp,
        "false_negative": fn,
        "false_positive": fp,
        "true_negative": tn,
        "unverified_positive": counts[True, "unverified"],
        "unverified_negative": counts[False, "unverified"],
        "unlabelled": sum(label is None for label in labels),
        "true_positive_rate": tp / (tp + fn) if tp + fn else None,
        "false_positive_rate": fp / (fp + tn) if fp + tn else None,
        "error_rate": (fp + fn) / compared if compared else None,
    }


def _latency(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    p50, p99 = (float(np.percentile(seconds, share)) for share in (50, 99))
    return {"p50": p50, "p99": p99, "max": max(seconds), "mean": float(np.mean(seconds))}


def _failures(found: Mapping[str, Any], checks: Sequence[Check], request: Request) -> list[str]:
    """Why the exit code is not 0, one sentence each."""
    failures = []
    share = found["statuses"]["unverified"] / found["rows"]
    if share > request.max_unverified:
        failures.append(
            f"{share:.1%} of the rows are unverified, more than --max-unverified {request.max_unverified:g}"
        )
    if request.max_errors is not None:
        errors = found["labels"] and found["labels"]["error_rate"]
        if errors is None:
            failures.append("--max-errors is given, and no row has both a label and a verdict")
        elif errors > request.max_errors:
            failures.append(f"{errors:.1%} of the labels disagree, more than --max-errors {request.max_errors:g}")
    return failures + [f"contract: {check.name}" for check in checks if not check.passed]


# ------------------------------------------------------------------------------------------------------------- printing


def _print(out: Console, found: Mapping[str, Any], show: int) -> None:
    rows, total = found["verdicts"], found["rows"]
    verdicts = Table("verdict", "rows", "share", "mostly because", box=None)
    for status, count in found["statuses"].items():
        reasons = [
            f"{key.partition('/')[2]} {n}"
            for key, n in found["reasons"].items()
            if key.startswith(f"{status}/") and key != f"{status}/-"
        ]
        verdicts.add_row(status, str(count), f"{count / total:.1%}", short(", ".join(reasons[:4]), 80))
    out.print(f"{found['verifier']} on {total} rows of {found['data']}")
    out.print(verdicts)
    if found["labels"]:
        _print_labels(out, found["labels"])
    if seconds := found["seconds"]:
        said = ", ".join(f"{name} {_time(value)}" for name, value in seconds.items())
        out.print(f"latency: {said} (time-out {found['timeout']:g} s)")
    slowest = sorted(rows, key=lambda row: row["seconds"], reverse=True)[: min(show, 5)]
    _print_rows(out, "slowest", slowest, len(slowest))
    failing = [row for row in rows if row["error"] is not None]
    _print_rows(out, "no verdict, killed or crashed", failing, show)
    if found["references"]:
        out.print(f"cannot be verified, whatever the response: {len(found['references'])} rows")
        for name, why_not in list(found["references"].items())[:show]:
            out.print(f"    {name}: {short(why_not, 160)}")
    mistaken = [row for row in rows if _disagrees(row)]
    _print_rows(out, "against the label", mistaken, show)
    for check in found["contract"]:
        out.print(
            f"contract: {check['name']:<12} {'kept' if check['passed'] else 'BROKEN'}  ({check['tried']})", markup=False
        )
        for kind in ("problems", "notes"):
            for line in check[kind][:show]:
                out.print(f"    {'note: ' if kind == 'notes' else ''}{line}")
            if len(check[kind]) > show:
                out.print(f"    and {len(check[kind]) - show} more {kind}")
    for failure in found["failures"]:
        out.print(f"FAILED: {failure}")


def _disagrees(row: Mapping[str, Any]) -> bool:
    return row["label"] is not None and row["score"] is not None and row["label"] != (row["status"] == "correct")


def _print_labels(out: Console, labels: Mapping[str, Any]) -> None:
    table = Table(f"label ({labels['from']})", "correct", "wrong or partial", "unverified", box=None)
    for name, cells in (
        ("correct", ("true_positive", "false_negative", "unverified_positive")),
        ("wrong", ("false_positive", "true_negative", "unverified_negative")),
    ):
        table.add_row(name, *(str(labels[cell]) for cell in cells))
    out.print(table)
    rates = [("TPR", "true_positive_rate"), ("FPR", "false_positive_rate"), ("errors", "error_rate")]
    said = ", ".join(f"{name} {'-' if labels[key] is None else format(labels[key], '.2%')}" for name, key in rates)
    out.print(f"{said}; {labels['unlabelled']} rows without a label")


def _print_rows(out: Console, title: str, rows: Sequence[Mapping[str, Any]], show: int) -> None:
    if not rows:
        return
    out.print(f"{title}: {len(rows)} rows" + (f", the first {show}" if len(rows) > show else ""))
    for row in rows[:show]:
        label = "" if row["label"] is None else f", label {'correct' if row['label'] else 'wrong'}"
        said = row["error"] or ", ".join(
            filter(None, [row["reason"], row["extracted"] and f"answer {short(row['extracted'])}"])
        )
        status = row["status"] if row["score"] is None else f"{row['status']} {row['score']:g}"
        out.print(
            f"    {row['row']}: {status} in {_time(row['seconds'])}{label}; {said or '-'}; {short(row['response'], 60)!r}",
        )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"

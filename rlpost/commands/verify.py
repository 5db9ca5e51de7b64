"""`rlpost verify`: score recorded rollouts or a file of responses offline, as a training run would."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rlpost.atomic import write_json
from rlpost.commands.responses import Loaded, applying, read, run_config
from rlpost.config import ConfigError, VerifierPool, VerifierSpec, yaml_text
from rlpost.data.report import measured
from rlpost.exit_codes import ALARM, DONE, NOTHING_TO_DO
from rlpost.types import Verdict
from rlpost.verify.contract import STOPPED, Check, contract, pool_of, scored, short, why
from rlpost.verify.references import checker


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
    raw: bool | None = None
    contract: bool = False
    limit: int | None = None
    show: int = 10
    max_unverified: float = 0.05
    max_errors: float | None = None
    out: Path | None = None


def run(request: Request) -> int:
    """Score, print what was found, write JSON; the exit code."""
    out = Console(soft_wrap=True, markup=False, emoji=False)
    spec = _spec(request)
    with pool_of(spec, request.workers) as pool:  # first: without it no column of the data means anything
        loaded = applying(spec, read(request))
        for note in loaded.notes:
            out.print(f"note: {note}")
        if not loaded.cases:
            out.print(f"{request.data} has no row to score")
            return NOTHING_TO_DO
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
            bar = progress.add_task("scoring", total=len(loaded.cases))
            verdicts = list(scored(pool, spec, loaded.cases, progress=lambda n: progress.advance(bar, n)))
    rows = checker([spec], VerifierPool(workers=request.workers))([case.prompt for case in loaded.cases])
    for line in measured(range(1, len(rows) + 1), rows):
        out.print(line, highlight=False, markup=False)
    checks = contract(spec, loaded.cases, verdicts, workers=request.workers) if request.contract else []
    found = _found(spec, loaded, verdicts, checks, request)
    found["references"] = {
        c.name: why for c, row in zip(loaded.cases, rows, strict=True) if (why := row.problem) is not None
    }
    _print(out, found, request.show)
    if request.out is not None:
        write_json(request.out, found)
        out.print(f"results  {request.out}")
    return ALARM if found["failures"] else DONE


# --------------------------------------------------------------------------------------------------- what was asked for


def _spec(request: Request) -> VerifierSpec:
    """The verifier; one that the run's configuration has under this label or name comes with what is set there."""
    config = run_config(request.data)
    known = [spec for spec in (config.verifiers if config else []) if request.verifier in (spec.label, spec.name)]
    set_there = known[0].model_dump(exclude={"weight"}) if known else {}
    values = {
        **set_there,
        **dict(_param(text) for text in request.params),
        "name": known[0].name if known else request.verifier,
    }
    if request.timeout is not None:
        values["timeout"] = request.timeout
    if request.raw is not None:
        values["raw"] = request.raw
    if request.env:
        values["env"] = list(request.env)
    try:
        return VerifierSpec.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"rlpost verify: {problem['loc'][0]}: {problem['msg']}, got {problem['input']!r}") from None


def _param(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--param {text!r} must look like key=value, for example --param tolerance=0.01")
    if key in VerifierSpec.model_fields:
        raise ConfigError(
            f"--param {text!r}: {key} is a setting of the pool; only --timeout, --env and --raw can be given here"
        )
    return key, yaml_text.read(value, f"--param {text!r}")


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
    if all(row["reason"] in STOPPED for row in found["verdicts"]):
        failures.append("no row has a verdict: the verifier times out or crashes on each of them")
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

"""What can be said of a step from its groups and its lesson alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np

from rlpost.config import SAMPLED, SOURCES
from rlpost.run.credit import Lesson
from rlpost.types import Group, Status
from rlpost.verify.task import ON_ROW

if TYPE_CHECKING:
    from rlpost.run.training import Run


def step_metrics(
    run: Run, groups: Sequence[Group], kept: Sequence[Group], lesson: Lesson | None, seconds: float
) -> dict[str, float]:
    """What can be said of a step from its groups alone."""
    rollouts = [r for g in groups for r in g.rollouts]
    usable = [r for r in rollouts if r.usable]
    versions = np.unique(lesson.batch.versions) if lesson is not None else []
    judged = [run.judge(g) for g in groups]
    lengths = np.array([len(r.response_ids) for r in rollouts] or [0])
    account = run.sampler.account
    metrics = {
        "length/mean": float(lengths.mean()),
        "length/max": float(lengths.max()),
        "length/truncated": float(np.mean([float(r.finish_reason == "length") for r in rollouts] or [0.0])),
        "prompts/repeated": len(groups) - len({g.prompt.id for g in groups}),
        "groups/total": len(groups),
        "groups/with_signal": sum(len(set(g.rewards) - {None}) > 1 for g in groups),
        "groups/no_signal": sum(len(set(g.rewards) - {None}) == 1 for g in groups),
        "groups/incomplete": judged.count("incomplete"),
        "groups/dropped": len(groups) - len(kept),
        "samples/submitted": account.submitted,
        "samples/consumed": account.consumed,
        "samples/dropped": account.dropped,
        "samples/running": account.running,
        "samples/learned": 0,
        "staleness/max": max((run.version - 1 - int(v) for v in versions if v >= 0), default=0),
        "tokens_per_second": float(lengths.sum()) / max(seconds, 1e-9),
        "version": run.version,
    }
    if lesson is not None:
        counts = lesson.batch.counts()
        metrics["samples/learned"] = sum(counts[s][0] for s in SAMPLED if s in counts)
        metrics |= {f"samples/{s}": int(n) for s in SOURCES if (n := len(lesson.batch.of(s)))}
    metrics |= verdict_metrics(groups, [v.label for v in run.config.verifiers])
    metrics |= source_metrics(groups, run.config.data.train_sources)
    if usable:
        metrics["reward/mean"] = float(np.mean([r.reward for r in usable]))
        metrics["reward/std"] = float(np.std([r.reward for r in usable]))
        metrics["train/pass@1"] = float(np.mean([r.judged(run.referee).status == "correct" for r in usable]))
    return metrics


def source_metrics(groups: Sequence[Group], names: Iterable[str]) -> dict[str, float]:
    """Of each source with a name: its groups, their share of the step, reward, pass@1 by its judge, length."""
    metrics: dict[str, float] = {}
    for name in filter(None, names):
        mine = [g for g in groups if g.prompt.source == name]
        rollouts = [r for g in mine for r in g.rollouts]
        usable = [r for r in rollouts if r.usable]
        metrics |= {f"source/{name}/groups": len(mine), f"source/{name}/share": len(mine) / max(1, len(groups))}
        if rollouts:
            metrics[f"source/{name}/length/mean"] = float(np.mean([len(r.response_ids) for r in rollouts]))
        if usable:
            metrics[f"source/{name}/reward/mean"] = float(np.mean([r.reward for r in usable]))
            metrics[f"source/{name}/train/pass@1"] = float(np.mean([r.judged().status == "correct" for r in usable]))
    return metrics


def verdict_metrics(groups: Sequence[Group], names: Sequence[str]) -> dict[str, float]:
    """By verifier how many verdicts there are of each status, on how many rows, and what programs ran in.

    `verifier/<name>/rows_hung` of its `rows` are those on which it timed out or crashed whatever the answer, and
    `hangs_on_row`, `crashes_on_row` the unverified verdicts this gave.
    `verifier/sandbox_tier` is that of the worst sandbox used: 1 for A to 4 for D; absent when no program ran.
    """
    metrics: dict[str, float] = {}
    for name in names:
        rows = [
            [r.verdicts[name] for r in g.rollouts if name in r.verdicts and r.finish_reason != "abort"] for g in groups
        ]
        verdicts = [verdict for row in rows for verdict in row]
        hung = [any(verdict.reason in ON_ROW.values() for verdict in row) for row in rows]
        metrics |= {f"verifier/{name}/{s}": sum(v.status == s for v in verdicts) for s in get_args(Status)}
        metrics |= {
            f"verifier/{name}/{reason}": sum(v.reason == reason for v in verdicts) for reason in ON_ROW.values()
        }
        metrics |= {f"verifier/{name}/rows": sum(map(bool, rows)), f"verifier/{name}/rows_hung": sum(hung)}
    boxes = [verdict.details.get("sandbox") for g in groups for r in g.rollouts for verdict in r.verdicts.values()]
    # A user's verifier may have a detail of that name too.
    tiers = [box["tier"] for box in boxes if isinstance(box, dict) and box.get("tier") in tuple("ABCD")]
    if tiers:
        metrics["verifier/sandbox_tier"] = 1 + "ABCD".index(max(tiers))
    return metrics

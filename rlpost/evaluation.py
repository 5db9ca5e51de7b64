"""pass@k of the weights the engines serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlpost.observe import bootstrap, summarize
from rlpost.verify.task import ON_ROW

if TYPE_CHECKING:
    from rlpost.rollout.request import Sampling
    from rlpost.rollout.sampler import GroupSampler
    from rlpost.types import Group, Prompt


@dataclass(frozen=True)
class Results:
    """An evaluation.

    Attributes:
        intervals: by name (value, low, high), 95 % bootstrap over prompts: `pass@k`; `distinct_correct`, how many
            different correct responses a prompt's samples hold; `nll`, mean over prompts of the mean -log p of a
            sampled token in nats, which estimates the entropy of what was sampled from (not when greedy).
        correct: for each prompt its samples' verdicts; unverified samples are left out, all of them where the verifier
            hangs or crashes on the row.
        unverified: how many samples no verdict was reached on.
        hung: how many prompts the intervals leave out: the verifier hangs or crashes on their rows, whatever the answer.
        groups: what was sampled and scored.
    """

    intervals: dict[str, tuple[float, float, float]]
    correct: list[list[bool]]
    unverified: int
    hung: int
    groups: list[Group]


def evaluate(
    sampler: GroupSampler,
    prompts: Sequence[Prompt],
    samples: int,
    k: Sequence[int],
    sampling: Sampling,
    seed: int,
    judge: str,
) -> Results:
    """Sample every prompt and count what the verifier `judge` calls correct.

    Raises:
        RuntimeError: a prompt is left with fewer verdicts than the largest k, or the verifier fails on every row.
    """
    groups = sampler.sample_all(prompts, samples, sampling, seed)
    correct: list[list[bool]] = []
    unverified = 0
    for group in groups:
        verdicts = [r.judged(judge) for r in group.rollouts]
        known = [v.status == "correct" for v in verdicts if v.status != "unverified"]
        reasons = {v.reason for v in verdicts if v.status == "unverified"}
        unverified += len(verdicts) - len(known)
        if len(known) < max(k) and not (reasons and reasons <= {*ON_ROW.values()}):
            raise RuntimeError(
                f"prompt {group.prompt.id}: {len(known)} of {len(verdicts)} samples have a verdict of {judge!r}, too few "
                f"for pass@{max(k)}; reasons: {sorted(reasons)}"
            )
        correct.append(known)
    known_groups = [g for g, known in zip(groups, correct, strict=True) if known]
    if not known_groups:
        raise RuntimeError(f"{judge!r} hangs or crashes on all {len(groups)} prompts of the evaluation")
    intervals = {
        **summarize([known for known in correct if known], k),
        **diversity(known_groups, judge, greedy=sampling.temperature == 0),
    }
    return Results(intervals, correct, unverified, len(groups) - len(known_groups), groups)


def diversity(groups: Sequence[Group], judge: str, greedy: bool) -> dict[str, tuple[float, float, float]]:
    """How many ways to be right, and how spread out the samples are, with intervals over prompts."""
    right = [len({r.text for r in g.rollouts if r.judged(judge).status == "correct"}) for g in groups]
    columns = {"distinct_correct": [float(n) for n in right]}
    if not greedy:
        columns["nll"] = [-float(np.concatenate([r.logprobs for r in g.rollouts]).mean()) for g in groups]
    return dict(zip(columns, bootstrap(np.array(list(columns.values())).T), strict=True))

"""pass@k of the weights the engines serve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from rlpost.observe import Alarm, bootstrap, summarize
from rlpost.observe.alarms import RECENT
from rlpost.stop import STOP
from rlpost.verify.task import ON_ROW

if TYPE_CHECKING:
    from rlpost.config import Alarms
    from rlpost.rollout.request import Sampling
    from rlpost.rollout.sampler import GroupSampler
    from rlpost.types import Group, Prompt

V = TypeVar("V")


@dataclass(frozen=True)
class Results:
    """An evaluation.

    Attributes:
        intervals: by name (value, low, high), 95 % bootstrap over prompts: `pass@k`, of the prompts with k verdicts or
            more; `distinct_correct`, how many different correct responses a prompt's samples hold; `nll`, mean over
            prompts of the mean -log p of a sampled token in nats, which estimates the entropy of what was sampled from
            (not when greedy).
        correct: for each prompt its samples' verdicts; unverified samples are left out, all of them where the verifier
            hangs or crashes on the row.
        unverified: how many samples no verdict was reached on.
        left_out: how many prompts have fewer verdicts than the largest k.
        caveat: what to warn of, where prompts are left out; else empty.
        groups: what was sampled and scored.
    """

    intervals: dict[str, tuple[float, float, float]]
    correct: list[list[bool]]
    unverified: int
    left_out: int
    caveat: str
    groups: list[Group]

    @property
    def counts(self) -> dict[str, float]:
        """What was not measured, for the metrics."""
        return {"unverified": self.unverified, "prompts_left_out": self.left_out}


def evaluate(
    sampler: GroupSampler,
    prompts: Sequence[Prompt],
    samples: int,
    k: Sequence[int],
    sampling: Sampling,
    seed: int,
    judge: str,
    alarms: Alarms,
    step: int = 0,
    name: str = "",
) -> Results:
    """Sample every prompt and count what the verifier `judge` calls correct.

    Args:
        step: of the run, which an alarm names. name: of the test set.

    Raises:
        Alarm: more samples than `alarms.unverified_share` have no verdict, those on rows on which the verifier hangs or
            crashes aside; or no prompt has enough of them.
    """
    with STOP.prompt():
        groups = sampler.sample_all(prompts, samples, sampling, seed)
    verdicts = [[r.judged(judge) for r in group.rollouts] for group in groups]
    correct = [[v.status == "correct" for v in row if v.status != "unverified"] for row in verdicts]
    reasons = Counter(v.reason or "no reason" for row in verdicts for v in row if v.status == "unverified")
    on_rows = sum(reasons[reason] for reason in ON_ROW.values())
    lost, of = reasons.total() - on_rows, sum(map(len, verdicts)) - on_rows
    of_set = f" in data.test.{name}" if name else ""
    why = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    look = (
        f"Look at the reasons{of_set} ({why}): `aborted` samples did not end within rollout.deadline; for others at the log of "
        f"{judge}, and at its rows with `rlpost verify`"
    )
    if lost / max(of, RECENT) > alarms.unverified_share:  # as among a step's verdicts: one is never a large share
        limit = f"above alarms.unverified_share {alarms.unverified_share:g} ({lost} of {of})"
        raise Alarm(step, f"share of the evaluation's samples without a verdict of {judge}", lost / of, limit, look)
    most = max(k, default=1)
    left_out = sum(len(known) < most for known in correct)
    if left_out == len(groups):
        limit = f"of {len(groups)} in the evaluation: there is no pass@{most}"
        raise Alarm(step, f"prompts with {most} verdicts of {judge}", 0.0, limit, look)
    caveat = (
        f"{name}/pass@{most}".lstrip("/")
        + f" leaves out {left_out} of {len(groups)} prompts, with too few verdicts of {judge}: {why}"
    )
    intervals = {
        **pass_at(correct, k),
        **diversity([g for g, known in zip(groups, correct, strict=True) if known], judge, sampling.temperature == 0),
    }
    return Results(intervals, correct, reasons.total(), left_out, caveat if left_out else "", groups)


def by_name(found: Mapping[str, Mapping[str, V]]) -> dict[str, V]:
    """What was found of several test sets in one: `pass@1` of the set `sums` is `sums/pass@1`."""
    return {f"{name}/{key}" if name else key: value for name, mine in found.items() for key, value in mine.items()}


def pass_at(correct: Sequence[Sequence[bool]], ks: Sequence[int]) -> dict[str, tuple[float, float, float]]:
    """`summarize`, for each k over the prompts that have as many verdicts."""
    return {
        name: interval
        for k in ks
        for name, interval in summarize([known for known in correct if len(known) >= k], [k]).items()
    }


def diversity(groups: Sequence[Group], judge: str, greedy: bool) -> dict[str, tuple[float, float, float]]:
    """How many ways to be right, and how spread out the samples are, with intervals over prompts."""
    right = [len({r.text for r in g.rollouts if r.judged(judge).status == "correct"}) for g in groups]
    columns = {"distinct_correct": [float(n) for n in right]}
    if not greedy:
        columns["nll"] = [-float(np.concatenate([r.logprobs for r in g.rollouts]).mean()) for g in groups]
    return dict(zip(columns, bootstrap(np.array(list(columns.values())).T), strict=True))

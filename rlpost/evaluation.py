"""pass@k of the weights the engines serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlpost.observe import summarize

if TYPE_CHECKING:
    from rlpost.rollout.request import Sampling
    from rlpost.rollout.sampler import Group, GroupSampler
    from rlpost.types import Prompt


@dataclass(frozen=True)
class Results:
    """An evaluation.

    Attributes:
        intervals: {"pass@k": (value, low, high)}, 95 % bootstrap over prompts.
        correct: for each prompt its samples' verdicts; unverified samples are left out.
        unverified: how many samples no verdict was reached on.
        groups: what was sampled and scored.
    """

    intervals: dict[str, tuple[float, float, float]]
    correct: list[list[bool]]
    unverified: int
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
        RuntimeError: a prompt is left with fewer verdicts than the largest k.
    """
    groups = sampler.sample_all(prompts, samples, sampling, seed)
    correct = []
    unverified = 0
    for group in groups:
        verdicts = [r.verdicts[judge] for r in group.rollouts]
        known = [v.status == "correct" for v in verdicts if v.status != "unverified"]
        unverified += len(verdicts) - len(known)
        if len(known) < max(k):
            reasons = {v.reason for v in verdicts if v.status == "unverified"}
            raise RuntimeError(
                f"prompt {group.prompt.id}: {len(known)} of {len(verdicts)} samples have a verdict of {judge!r}, too few "
                f"for pass@{max(k)}; reasons: {sorted(reasons)}"
            )
        correct.append(known)
    return Results(summarize(correct, k), correct, unverified, groups)

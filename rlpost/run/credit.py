"""From samples to the batch the learner gets: the objective's driver half applied to what was collected in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rlpost.learner.batch import Batch
from rlpost.objective.credit import Credit
from rlpost.objective.types import CreditInputs
from rlpost.types import Sample


@dataclass(frozen=True)
class Lesson:
    """What a step learns from.

    Attributes:
        batch: every sample, credited.
        coefs: coefficients of the terms that have one for all samples.
        metrics: what the objective's driver half reports.
        credited: mean advantage of each on-policy sample, by (group, number).
    """

    batch: Batch
    coefs: dict[str, float]
    metrics: dict[str, float]
    credited: dict[tuple[int, int], float]


def credited(
    batch: Batch, samples: Sequence[Sample], credit: Credit, *, step: int, seed: int, max_tokens: int
) -> Lesson:
    """Advantages, corrections, selections and coefficients for a batch of these samples.

    Args:
        batch: `Batch.from_samples(samples)`, carrying the scores that `credit.needs`.
        step: from 1. seed: the step's.
        max_tokens: the longest response there can be.
    """
    per_token: dict[str, np.ndarray] = {}
    coefs: dict[str, float] = {}
    per_sequence: dict[str, np.ndarray] = {}
    metrics: dict[str, float] = {}
    by_sample: dict[tuple[int, int], float] = {}
    advantages = batch.advantages.copy()

    bare = batch.without_routes()
    for source in sorted({s.source for s in samples}):
        chosen = batch.of(source)
        part, flat = bare.select(chosen), batch.tokens_of(chosen)
        inputs = credit_inputs(part, [samples[i] for i in chosen], step, seed, max_tokens)
        worth = torch.from_numpy(part.padded(part.advantages)).double()
        if source == "on_policy":
            found = credit.credit(inputs)
            worth = found.advantages
            advantages[flat] = part.flat(worth.float().numpy())
            metrics.update(found.metrics)
            for name, values, outside in (("weights", found.weights, 1.0), ("keep", found.keep, True)):
                if values is not None:
                    kind = bool if name == "keep" else np.float32
                    per_token[name] = np.full(len(advantages), outside, kind)
                    per_token[name][flat] = part.flat(values.numpy().astype(kind))
            mean = (worth.sum(1) / inputs.lengths.clamp(min=1)).tolist()
            by_sample = {(samples[i].group, samples[i].number): a for i, a in zip(chosen, mean, strict=True)}
            for label, coef in credit.coefficients(step, inputs, worth).items():
                if isinstance(coef, torch.Tensor):
                    per_sequence[f"coef.{label}"] = np.ones(len(batch), np.float32)
                    per_sequence[f"coef.{label}"][chosen] = coef.float().numpy()
                    metrics[f"coef/{label}"] = float(coef.mean())
                else:
                    coefs[label] = coef
        for label, mask in credit.select(source, worth, inputs).items():
            values = per_token.setdefault(f"where.{label}", np.zeros(len(advantages), bool))
            values[flat] = part.flat(mask.numpy())
            metrics[f"where/{label}"] = float(mask[inputs.mask].double().mean()) if inputs.mask.any() else 0.0
    if not by_sample:
        coefs = {label: float(coef) for label, coef in credit.coefficients(step).items()}
    metrics |= {f"coef/{label}": value for label, value in coefs.items()}
    whole = replace(batch.carrying(per_token, per_sequence), advantages=advantages)
    return Lesson(whole, coefs, metrics, by_sample)


def credit_inputs(part: Batch, samples: Sequence[Sample], step: int, seed: int, max_tokens: int) -> CreditInputs:
    """A batch of one source as tensors, padded to its longest response."""
    mask = torch.from_numpy(part.padded(part.mask))

    def wide(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(part.padded(values)).double()

    return CreditInputs(
        rewards=torch.tensor([s.reward for s in samples], dtype=torch.float64),
        group=torch.from_numpy(part.group),
        correct=torch.tensor([s.correct for s in samples], dtype=torch.bool),
        truncated=torch.tensor([s.truncated for s in samples], dtype=torch.bool),
        tokens=torch.from_numpy(part.padded(part.response_tokens())).long().masked_fill(~mask, 0),
        mask=mask,
        max_tokens=max_tokens,
        step=step,
        seed=seed,
        behavior_logp=wide(part.behavior_logp),
        **{name: wide(part.per_token[name]) for name in ("old_logp", "entropy") if name in part.per_token},
        anchors={
            name.removeprefix("anchors."): wide(values)
            for name, values in part.per_token.items()
            if name.startswith("anchors.")
        },
    )

"""Sequences alone, and in packed grids: whatever the attention, the same log-probs and the same gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from rlpost.learner.attention import register
from rlpost.learner.batch import Batch, MicroBatch, make_grid
from rlpost.learner.logprobs import Policy
from rlpost.learner.model import without_noise

LENGTHS = (23, 3, 12, 40, 9, 30, 2, 17)
# What a plan makes of eight sequences with one, two and four rows a micro-batch, and with one sequence a row.
ROWS = {
    1: (tuple(range(8)),),
    2: ((3, 0, 2), (5, 7, 4, 1, 6)),
    4: ((3,), (5, 4), (0, 7), (2, 1, 6)),
}
PADDED = tuple((i,) for i in range(8))


class Found(NamedTuple):
    """
    Attributes:
        logp: (M,), of the response tokens of all sequences in their order.
        gradients: by name, of a weighted sum of them, with other weights for each.
    """

    logp: torch.Tensor
    gradients: dict[str, torch.Tensor]

    def far_from(self, other: Found) -> float:
        """The most by which a log-prob differs, or a gradient as a share of the largest there is."""
        largest = max(float(g.abs().max()) for g in other.gradients.values())
        apart = [float((self.gradients[name] - g).abs().max()) / largest for name, g in other.gradients.items()]
        assert self.gradients.keys() == other.gradients.keys()
        return max(float((self.logp - other.logp).abs().max()), *apart)


def sequences(vocabulary: int, lengths: Sequence[int] = LENGTHS) -> Batch:
    """Random tokens; about a quarter of each sequence is its prompt."""
    rng = np.random.default_rng(0)
    tokens = [rng.integers(3, vocabulary, n).astype(np.int32) for n in lengths]
    return Batch.from_examples([t[: 1 + len(t) // 4] for t in tokens], [t[1 + len(t) // 4 :] for t in tokens])


def learned(
    model: Any, batch: Batch, grids: Sequence[tuple[tuple[int, ...], ...]], attention: str, **given: Any
) -> Found:
    """Log-probs and gradients by way of these grids, each some rows of sequences.

    Args:
        attention: an implementation.
        given: to `Policy`.
    """
    register()
    model = without_noise(model.train())
    model.set_attn_implementation(attention)
    assert model.config._attn_implementation == attention
    policy = Policy(model, 1024, **given)
    ends = np.cumsum(batch.response_lengths)
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=ends[-1])).float()
    logp = torch.zeros(int(ends[-1]))
    model.zero_grad()
    for rows in grids:
        micro = MicroBatch(rows)
        grid = make_grid(batch, micro, 0)
        routes = {} if grid.routes is None else {"routes": grid.routes}
        scored = policy(
            grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 1.0, segments=grid.segments, **routes
        ).logp
        places = torch.from_numpy(batch.tokens_of(np.array(micro.sequences)))
        (scored * weights[places]).sum().backward()
        logp[places] = scored.detach()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return Found(logp, gradients)


def alone(model: Any, batch: Batch, attention: str = "sdpa") -> Found:
    """One sequence a forward."""
    return learned(model, batch, [((i,),) for i in range(len(batch))], attention)

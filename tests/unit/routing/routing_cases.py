"""Sequences laid out in a grid, and routes for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlpost.learner.replay import Replay, RouteGrid, RouterStats

VOCABULARY = 60


@dataclass(frozen=True)
class Layout:
    """Sequences in rows, as `rlpost.learner.batch.Grid` has them.

    Attributes:
        token: int64 (rows x width,), which token of all sequences laid end to end stands there; -1 on padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    token: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        return self.token >= 0

    def forward(self, model: Any) -> torch.Tensor:
        """(rows x width, V) logits."""
        return model(input_ids=self.input_ids, position_ids=self.position_ids, use_cache=False).logits.flatten(0, 1)

    def grid(self, rows: torch.Tensor, index: torch.Tensor | None = None) -> RouteGrid:
        """Routes for the layout: token t of all sequences has row `index[t]`, by default row t."""
        index = torch.arange(len(rows)) if index is None else index
        return RouteGrid(rows, torch.where(self.real, index[self.token.clamp(min=0)], -1), self.real)


def sequences(seed: int, lengths: Sequence[int] = (5, 9, 3, 7)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, VOCABULARY, (length,), generator=generator) for length in lengths]


def lay_out(chosen: Sequence[torch.Tensor], rows: Sequence[Sequence[int]] | None = None) -> Layout:
    """Sequences by number in each row, one after the other, and padding; by default a row for each."""
    rows = [[i] for i in range(len(chosen))] if rows is None else rows
    starts = [0, *torch.tensor([len(s) for s in chosen]).cumsum(0).tolist()]
    width = max(sum(len(chosen[i]) for i in row) for row in rows)
    input_ids, position_ids, token = [], [], []
    for row in rows:
        rest = width - sum(len(chosen[i]) for i in row)
        input_ids.append(torch.cat([*(chosen[i] for i in row), torch.zeros(rest, dtype=torch.int64)]))
        position_ids.append(torch.cat([*(torch.arange(len(chosen[i])) for i in row), torch.arange(rest)]))
        token += [torch.arange(starts[i], starts[i + 1]) for i in row] + [torch.full((rest,), -1)]
    return Layout(torch.stack(input_ids), torch.stack(position_ids), torch.cat(token))


def random_rows(replay: Replay, count: int, seed: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """(count, layers, top_k) distinct experts, in random order."""
    shape = (count, len(replay.layers), replay.experts)
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return scores.argsort(-1)[..., : replay.top_k].to(dtype)


def own_choice(model: Any, replay: Replay, layout: Layout) -> torch.Tensor:
    """(tokens of all sequences, layers, top_k), what the live routers choose."""
    with torch.no_grad(), replay.using(None, record=True) as stats:
        layout.forward(model)
    return by_token(layout, stats)


def by_token(layout: Layout, stats: RouterStats) -> torch.Tensor:
    """What was recorded in a layout's grid, by token of all sequences."""
    assert stats.recorded is not None
    found = torch.empty_like(stats.recorded[: int(layout.real.sum())])
    found[layout.token[layout.real]] = stats.recorded[layout.real]
    return found


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all gradients, which are then gone."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def loss(logits: torch.Tensor, layout: Layout) -> torch.Tensor:
    """A loss with a different pull on every real token and logit."""
    logp = logits.float().log_softmax(-1)[layout.real]
    pull = torch.cos(torch.arange(logits.shape[-1]) + 1.0 + layout.token[layout.real].unsqueeze(-1))
    return (logp * pull).sum()

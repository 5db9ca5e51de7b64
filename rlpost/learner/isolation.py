"""Whether a model keeps sequences apart that share a forward pass: asked of the model itself, before it learns.

transformers leaves it to each model to start attention, a convolution or a state anew where positions do. Some do not,
some do for one row and not for several, and nothing but the log-probs tells. A tolerance cannot tell either: in bfloat16
rounding moves log-probs by as much as some leaks do. So two grids of one shape hold the same sequence in the same place
and nothing else that is alike. What does not read its neighbours does the same arithmetic on the same numbers in both, in
any dtype, and gives the same bits.

Experts are the exception: how many tokens share a matrix product depends on what the others are, and with it the order
of its sums. There the gradient decides: of the log-probs of the sequence, with regard to the embeddings of all other
places. It is exactly zero where nothing leads from there to here, whatever was rounded on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from rlpost.learner.batch import Batch, Grid, Layout, MicroBatch, make_grid

LogProbsOf = Callable[[Grid], torch.Tensor]
# Past two chunks of the kernels of linear attention (64 tokens), past one of Mamba's (256), a multiple of neither.
WIDTH = 331
# Regrouped experts do not move log-probs so far on average, in nats, by rounding and by the few choices that it tips.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.25}


@dataclass(frozen=True)
class Leak:
    """A sequence reads what shares a forward with it.

    Attributes:
        rows: of the grid it was seen in.
        moved: the most that a log-prob of the sequence moves with its neighbours, in nats.
    """

    rows: int
    moved: float


def find_leak(
    logp: LogProbsOf,
    embeddings: nn.Module,
    layout: Layout,
    tokens_per_micro_batch: int,
    row_tokens: int | None,
    pad_id: int,
    device: torch.device | str = "cpu",
    experts: bool = False,
) -> Leak | None:
    """Whether sequences read each other in the grids that a plan of this layout makes. None: they do not.

    Every process of a group runs as many forwards, and as many backwards, when all hold the same model.

    Args:
        logp: float (M,), log-probs of the targets of a grid, in the order of `Grid.predictors`.
        embeddings: what the model looks its input tokens up in.
        experts: whether the model has routers, whose experts may round differently beside other tokens.
    """
    for a, b, probe in grids(layout, tokens_per_micro_batch, row_tokens, embeddings.num_embeddings, pad_id, device):
        with torch.no_grad():
            first, second = logp(a), logp(b)
        if torch.equal(first, second):
            continue
        moved = (first.float() - second.float()).abs()
        rounded = experts and bool(moved.mean() <= ROUNDING[embeddings.weight.dtype])
        if not rounded or _reads(logp, embeddings, a, probe):
            return Leak(len(a.input_ids), float(moved.max()))
    return None


def grids(
    layout: Layout,
    tokens_per_micro_batch: int,
    row_tokens: int | None,
    vocabulary: int,
    pad_id: int,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Grid, Grid, torch.Tensor]]:
    """Pairs of grids to compare: one row, and two and four where a plan makes as many; none where nothing ever shares a grid.

    In both grids of a pair, of the same shape, one sequence has the same tokens in the same places, and its response
    alone is predicted. Different are the tokens of all others, how long those behind it are, and so where padding begins.

    Yields:
        the two grids, and where the sequence stands, bool (rows, length).
    """
    draw = _Draw(vocabulary)
    if layout == "packed":
        capacity = row_tokens or tokens_per_micro_batch
        width = min(capacity, WIDTH)
        before, length = width // 4, width * 2 // 5
        behind = width - before - length - 1  # and a token of padding
        if before < 2 or behind < 4:
            return
        probe = draw(length)
        most = tokens_per_micro_batch // capacity
        for rows in sorted({1, min(2, most), min(4, most)}):
            pair = []
            for tails in ([behind], [behind // 2, behind - behind // 2]):
                others = [[draw(width)] for _ in range(rows - 1)]
                row = [draw(before), probe, *map(draw, tails)]
                pair.append(_grid([row, *others], 1, length, pad_id, device))
            yield *pair, _places(pair[0], before, length)
        return
    rows = min(3, max(2, tokens_per_micro_batch // WIDTH))
    width = min(tokens_per_micro_batch // rows, WIDTH)
    length = width * 2 // 5
    if length < 2:
        return
    probe = draw(length)
    pair = []
    for tail in (0, width // 3):
        row = np.concatenate([probe, draw(tail)])  # what padding hides in one is read on in the other
        others = [[draw(width)], [draw(width // 2)]]
        pair.append(_grid([[row], *others[: rows - 1]], 0, length, pad_id, device))
    yield *pair, _places(pair[0], 0, length)


class _Draw:
    """Random tokens, other ones with each call."""

    def __init__(self, vocabulary: int) -> None:
        self._rng, self._vocabulary = np.random.default_rng(0), vocabulary

    def __call__(self, count: int) -> np.ndarray:
        drawn: np.ndarray = self._rng.integers(0, self._vocabulary, count).astype(np.int32)
        return drawn


def _grid(rows: list[list[np.ndarray]], which: int, length: int, pad_id: int, device: torch.device | str) -> Grid:
    """These sequences in these rows, of which only the first `length` tokens of one are predicted."""
    sequences = [tokens for row in rows for tokens in row]
    batch = Batch.from_examples([s[:1] for s in sequences], [s[1:] for s in sequences])
    numbers = iter(range(len(sequences)))
    grid = make_grid(batch, MicroBatch(tuple(tuple(next(numbers) for _ in row) for row in rows)), pad_id, device)
    own = (grid.sequence == which) & (grid.offset < length - 1)
    return replace(
        grid,
        predictors=grid.predictors[own],
        targets=grid.targets[own],
        sequence=grid.sequence[own],
        offset=grid.offset[own],
    )


def _places(grid: Grid, start: int, length: int) -> torch.Tensor:
    places = torch.zeros_like(grid.input_ids, dtype=torch.bool)
    places[0, start : start + length] = True
    return places


def _reads(logp: LogProbsOf, embeddings: nn.Module, grid: Grid, probe: torch.Tensor) -> bool:
    """Whether the log-probs of the grid's targets have a gradient at places that are not the sequence's own."""
    with _watched(embeddings) as outputs, torch.enable_grad():
        total = logp(grid).sum()
        (gradient,) = torch.autograd.grad(total, outputs[:1])
    return bool((gradient[~probe] != 0).any())


@contextmanager
def _watched(embeddings: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What the embeddings give, as leaves of the graph, so that gradients end there and reach no parameter."""
    outputs: list[torch.Tensor] = []

    def cut(module: nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = embeddings.register_forward_hook(cut)
    try:
        yield outputs
    finally:
        handle.remove()

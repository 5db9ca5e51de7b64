"""Sequences that share a forward pass do not read each other, or it is seen, in any dtype."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.small_models import small_model
from rlpost.learner.batch import Grid
from rlpost.learner.isolation import Leak, find_leak, grids
from rlpost.learner.logprobs import Policy
from rlpost.learner.model import without_noise

BUDGETS = [(64, None), (200, None), (1000, None), (1000, 300), (96, 48)]


def leak_of(family: str, dtype: torch.dtype, layout: str, row_tokens: int | None = None) -> Leak | None:
    model = without_noise(small_model(family, dtype=dtype).train())
    policy = Policy(model, 1024)

    def logp(grid: Grid) -> torch.Tensor:
        return policy(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 1.0).logp

    experts = family == "mixtral"
    return find_leak(logp, model.get_input_embeddings(), layout, 1000, row_tokens, 0, experts=experts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_attention_that_restarts_with_positions_is_found_apart(family, dtype):
    assert leak_of(family, dtype, "packed") is None
    assert leak_of(family, dtype, "packed", row_tokens=300) is None
    assert leak_of(family, dtype, "padded") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3_5_text", "mamba2"])
def test_a_state_that_runs_on_between_packed_sequences_is_found_in_any_dtype(family, dtype):
    assert leak_of(family, dtype, "packed") is not None
    assert leak_of(family, dtype, "padded") is None


class Reader(nn.Module):
    """Embeddings, and how a place is mixed with what else is in the grid, by a very small share."""

    def __init__(self, mix: str, share: float = 1e-3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)
        self.mix, self.share = mix, share

    def forward(self, grid: Grid) -> torch.Tensor:
        x = self.embeddings(grid.input_ids)
        match self.mix:
            case "itself":
                x = x + self.share * x.square()
            case "the row":  # what any model does that never looks at positions
                x = x + self.share * x.cumsum(1)
            case "the batch":
                x = x - self.share * x.mean((0, 1))
            case "what follows":
                x = x + self.share * x.flip(1).cumsum(1).flip(1)
            case "the row, of several":
                x = x + self.share * x.cumsum(1) * (len(x) > 1)
            case "the row, of four":
                x = x + self.share * x.cumsum(1) * (len(x) == 4)
            case "the number of the first token":  # leads through no gradient
                x = x + grid.input_ids[:1, :1, None]
        hidden = x.flatten(0, 1)[grid.predictors]
        return self.head(hidden).float().log_softmax(-1).gather(1, grid.targets[:, None])[:, 0]


def found(reader: Reader, layout: str, budget: int, row_tokens: int | None = None, experts: bool = False) -> bool:
    return find_leak(reader, reader.embeddings, layout, budget, row_tokens, 0, experts=experts) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("budget", "row_tokens"), BUDGETS)
def test_a_model_that_looks_at_its_own_sequence_alone_is_never_refused(budget, row_tokens, dtype):
    reader = Reader("itself").to(dtype)
    assert not found(reader, "packed", budget, row_tokens)
    assert not found(reader, "padded", budget)


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("budget", "row_tokens"), BUDGETS)
def test_a_leak_far_below_rounding_is_seen_in_every_shape(budget, row_tokens, dtype, experts):
    assert found(Reader("the row").to(dtype), "packed", budget, row_tokens, experts)
    for mix in ("the batch", "what follows"):
        assert found(Reader(mix, 0.02).to(dtype), "padded", budget, None, experts)


def test_a_leak_between_several_rows_alone_is_seen_where_a_plan_makes_several():
    reader = Reader("the row, of several")
    assert not found(reader, "packed", 300)
    assert found(reader, "packed", 600, 300)
    assert find_leak(reader, reader.embeddings, "packed", 600, 300, 0).rows == 2
    reader = Reader("the row, of four")
    assert not found(reader, "packed", 900, 300)
    assert find_leak(reader, reader.embeddings, "packed", 1200, 300, 0).rows == 4


@pytest.mark.parametrize(("budget", "expected"), [(300, [1]), (600, [1, 2]), (900, [1, 2, 3]), (1200, [1, 2, 4])])
def test_as_many_rows_are_tried_as_a_plan_makes_up_to_four(budget, expected):
    assert [len(a.input_ids) for a, _, _ in grids("packed", budget, 300, 100, 0)] == expected


def test_experts_excuse_rounding_and_nothing_larger():
    """What no gradient shows, such as an expert that is full, moves log-probs further than rounding."""
    assert found(Reader("the number of the first token"), "packed", 300, experts=True)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(("budget", "row_tokens"), BUDGETS)
def test_the_grids_compared_have_one_shape_and_one_sequence_in_common(layout, budget, row_tokens):
    for a, b, places in grids(layout, budget, row_tokens, 1000, 0):
        assert a.input_ids.shape == b.input_ids.shape == places.shape
        assert a.input_ids.numel() <= budget
        assert torch.equal(a.predictors, b.predictors)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.input_ids[places], b.input_ids[places])
        assert torch.equal(a.position_ids[places], torch.arange(int(places.sum())))
        same = a.input_ids == b.input_ids
        assert same[~places].float().mean() < 0.3


def test_a_budget_in_which_nothing_shares_a_grid_asks_nothing():
    assert list(grids("packed", 8, None, 100, 0)) == list(grids("padded", 6, None, 100, 0)) == []

"""Slicing, packing and dealing: nothing is lost, nothing moves away from its token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.learner.batch import Batch, make_grid, plan
from rlpost.types import Rollout

lengths = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=24)


def make_batch(sizes: list[tuple[int, int]]) -> Batch:
    """Sequences whose every value names its sequence and place, so that a slip shows."""
    prompts = [np.arange(p, dtype=np.int32) + 1000 * i for i, (p, _) in enumerate(sizes)]
    responses = [np.arange(r, dtype=np.int32) + 1000 * i + 500 for i, (_, r) in enumerate(sizes)]
    return Batch.build(
        prompts,
        responses,
        behavior_logp=[-(r.astype(np.float32)) for r in responses],
        versions=[r + 1 for r in responses],
        advantages=[float(i) for i in range(len(sizes))],
        learn=[i % 3 != 0 for i in range(len(sizes))],
    )


@given(lengths, st.data())
def test_select_keeps_every_array_with_its_sequence(sizes, data):
    batch = make_batch(sizes)
    indices = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=10))
    chosen = batch.select(indices)
    whole, response = 0, 0
    for place, i in enumerate(indices):
        p, r = sizes[i]
        assert list(chosen.tokens[whole : whole + p + r]) == [1000 * i + k for k in range(p)] + [
            1000 * i + 500 + k for k in range(r)
        ]
        assert list(chosen.behavior_logp[response : response + r]) == [-(1000.0 * i + 500 + k) for k in range(r)]
        assert list(chosen.versions[response : response + r]) == [1000 * i + 501 + k for k in range(r)]
        assert set(chosen.advantages[response : response + r]) == {float(i)}
        assert chosen.learn[place] == (i % 3 != 0)
        whole, response = whole + p + r, response + r


@given(lengths, st.integers(1, 4), st.sampled_from(["packed", "padded"]), st.sampled_from([15, 20, 64]), st.booleans())
@settings(max_examples=150)
def test_a_plan_deals_every_sequence_once_within_budget_and_evenly(sizes, ranks, layout, budget, short_rows):
    batch = make_batch(sizes)
    row_tokens = 15 if short_rows else None
    ranks_plan = plan(batch.lengths, ranks, layout, budget, row_tokens)
    dealt = [i for r in ranks_plan for m in r if not m.muted for i in m.sequences]
    assert sorted(dealt) == list(range(len(sizes)))
    assert len({len(r) for r in ranks_plan}) == 1, "ranks would differ in how many forwards they run"
    for micro in (m for r in ranks_plan for m in r):
        width = max(sum(int(batch.lengths[i]) for i in row) for row in micro.rows)
        assert width * len(micro.rows) <= budget
        assert layout == "packed" or all(len(row) == 1 for row in micro.rows)
        assert not short_rows or layout == "padded" or width <= 15


@given(lengths, st.sampled_from(["packed", "padded"]))
def test_a_grid_points_at_the_token_before_each_response_token(sizes, layout):
    batch = make_batch(sizes)
    for micro in plan(batch.lengths, 1, layout, 64, 15)[0]:
        grid = make_grid(batch, micro, pad_id=-7)
        tokens = grid.input_ids.flatten()
        # The position that predicts a token stands right before it in the same sequence.
        follows = grid.predictors + 1
        inside = follows < tokens.numel()
        assert torch.equal(tokens[follows[inside]], grid.targets[inside])
        positions = grid.position_ids.flatten()
        assert torch.equal(positions[follows[inside]], positions[grid.predictors[inside]] + 1)
        spread = grid.spread(grid.targets.double(), fill=-1)
        for b, i in enumerate(micro.sequences):
            r = sizes[i][1]
            assert spread[b, :r].tolist() == [1000.0 * i + 500 + k for k in range(r)]
            assert grid.mask()[b].tolist() == [True] * r + [False] * (grid.shape[1] - r)


def test_a_rank_without_work_runs_muted_copies():
    plans = plan(np.array([5, 4]), ranks=3, layout="padded", tokens_per_micro_batch=5)
    assert [m.muted for m in plans[2]] == [True] * len(plans[0])


def test_a_sequence_longer_than_a_row_is_refused_by_name():
    with pytest.raises(ValueError, match=r"30 tokens does not fit .*16"):
        plan(np.array([30]), 1, "packed", 64, 16)


def test_misaligned_arrays_are_refused():
    with pytest.raises(ValueError, match="behavior_logp"):
        Batch(
            tokens=np.zeros(4, np.int32),
            prompt_lengths=np.array([2]),
            response_lengths=np.array([2]),
            behavior_logp=np.zeros(1, np.float32),
            versions=np.zeros(2, np.int32),
            advantages=np.zeros(2, np.float32),
            learn=np.ones(1, bool),
        )
    with pytest.raises(ValueError, match="weight versions"):
        Rollout(
            "p", 0, 0, np.zeros(1, np.int32), np.zeros(2, np.int32), np.zeros(2, np.float32), np.zeros(1), "stop", "", 0
        )

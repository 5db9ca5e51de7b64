"""Slicing, packing and dealing: nothing is lost, nothing moves away from its token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.config import SOURCES
from rlpost.learner.batch import Batch, make_grid, plan
from rlpost.types import Rollout, Sample

lengths = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=24)


def make_batch(sizes: list[tuple[int, int]]) -> Batch:
    """Sequences whose every value names its sequence and place, so that a slip shows."""
    prompts = [np.arange(p, dtype=np.int32) + 1000 * i for i, (p, _) in enumerate(sizes)]
    responses = [np.arange(r, dtype=np.int32) + 1000 * i + 500 for i, (_, r) in enumerate(sizes)]
    return Batch.from_samples(
        [
            Sample(
                prompt,
                response,
                source=SOURCES[i % len(SOURCES)],
                group=i // 2,
                logprobs=-(response.astype(np.float32)),
                versions=response + 1,
                weight=float(i),
                mask=np.full(len(response), i % 3 != 0),
                anchors={"cached": response.astype(np.float32) / 2},
            )
            for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
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
        assert set(chosen.mask[response : response + r]) == {i % 3 != 0}
        cached = chosen.per_token["anchors.cached"][response : response + r]
        assert list(cached) == [(1000 * i + 500 + k) / 2 for k in range(r)]
        assert (chosen.source[place], chosen.group[place]) == (i % len(SOURCES), i // 2)
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
            source=np.zeros(1, np.int8),
            group=np.zeros(1, np.int64),
            empty=np.zeros(1, bool),
            mask=np.ones(2, bool),
            behavior_logp=np.zeros(1, np.float32),
            versions=np.zeros(2, np.int32),
            advantages=np.zeros(2, np.float32),
        )
    with pytest.raises(ValueError, match=r"per_token\['keep'\] has 3 entries, expected 2"):
        make_batch([(1, 2)]).carrying({"keep": np.ones(3, bool)})
    with pytest.raises(ValueError, match="weight versions"):
        Rollout(
            "p", 0, 0, np.zeros(1, np.int32), np.zeros(2, np.int32), np.zeros(2, np.float32), np.zeros(1), "stop", "", 0
        )


@given(lengths, st.integers(1, 3), st.sampled_from(["packed", "padded"]))
@settings(max_examples=100)
def test_sequences_that_belong_together_share_a_micro_batch(sizes, ranks, layout):
    batch = make_batch(sizes)
    units = np.arange(len(sizes)) // 2
    for micro_batches in plan(batch.lengths, ranks, layout, 40, None, units):
        for micro in (m for m in micro_batches if not m.muted):
            here = set(micro.sequences)
            assert all(i in here for i in range(len(sizes)) for j in here if units[i] == units[j])
            width = max(sum(int(batch.lengths[i]) for i in row) for row in micro.rows)
            assert width * len(micro.rows) <= 40


def test_sequences_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="2 sequences that belong together of 14 tokens does not fit"):
        plan(np.array([7, 7]), 1, "packed", 10, None, np.array([0, 0]))


@given(lengths, st.integers(1, 4))
def test_shares_hold_every_sequence_once_and_every_source_alike(sizes, parts):
    batch = make_batch(sizes)
    shares = batch.shares(parts)
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    for source in range(len(SOURCES)):
        units = [len({int(u) for u in batch.units[share[batch.source[share] == source]]}) for share in shares]
        assert max(units) - min(units) <= 1


def test_only_the_two_of_a_pair_belong_together():
    batch = Batch.from_samples(
        [
            Sample.given(np.ones(1, np.int32), np.ones(2, np.int32), source, group)
            for source, group in (("pair", 3), ("sft", 3), ("pair", 3), ("sft", 3), ("pair", 4))
        ]
    )
    units = batch.units.tolist()
    assert units[0] == units[2]
    assert len(set(units)) == 4


@given(lengths)
def test_padding_and_taking_it_off_again_loses_nothing(sizes):
    batch = make_batch(sizes)
    assert np.array_equal(batch.flat(batch.padded(batch.versions)), batch.versions)
    for i, row in enumerate(batch.padded(batch.response_tokens())):
        assert list(row) == [1000 * i + 500 + k for k in range(sizes[i][1])] + [0] * (len(row) - sizes[i][1])


def test_counts_are_by_source_and_the_policy_loss_counts_what_it_keeps():
    sizes = [(1, 2), (1, 3), (1, 4)]
    ones = np.ones(1, np.int32)
    samples = [
        Sample.given(ones, np.ones(r, np.int32), source, 0)
        for (_, r), source in zip(sizes, ("on_policy", "on_policy", "sft"), strict=True)
    ]
    batch = Batch.from_samples(samples)
    assert batch.counts() == {"on_policy": (2, 5), "sft": (1, 4), "policy_loss": (2, 5)}
    keep = np.array([False, False, True, True, False, True, True, True, True])
    assert batch.carrying({"keep": keep}).counts()["policy_loss"] == (1, 2)


def test_a_sequence_that_is_empty_counts_and_one_that_is_masked_does_not():
    ones, nothing = np.ones(3, np.int32), np.zeros(3, bool)
    whole = Sample.given(ones, ones, "on_policy", 0)
    masked, empty = replace(whole, mask=nothing), replace(whole, mask=nothing, empty=True)
    answer = Sample.given(ones, ones, "reference", 0)
    batch = Batch.from_samples([whole, masked, empty, answer, answer])
    assert batch.counts() == {"on_policy": (2, 3), "reference": (2, 6), "policy_loss": (2, 3)}
    assert batch.select([2, 0]).counts()["policy_loss"] == (2, 3)
    kept = np.repeat([True, False], [3, 12])
    assert batch.carrying({"keep": kept}).counts()["policy_loss"] == (2, 3)
    assert batch.select([1, 2, 3]).counts()["policy_loss"] == (0, 0)  # nothing to take a mean of

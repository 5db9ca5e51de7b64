"""Every epoch holds every prompt once, resuming changes nothing, and groups are judged by their usable rewards."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.config import Groups
from rlpost.data import DataError, PromptOrder, judge_group
from rlpost.types import Prompt


def _prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", text=str(i), token_ids=np.array([i], dtype=np.int32)) for i in range(count)]


def _take(order: PromptOrder, count: int) -> list[str]:
    return [order.next().id for _ in range(count)]


seeds = st.integers(-(2**40), 2**40)


@given(st.integers(1, 30), seeds, st.booleans())
def test_each_epoch_holds_each_prompt_exactly_once(count: int, seed: int, shuffle: bool) -> None:
    order = PromptOrder(_prompts(count), seed, shuffle)
    for epoch in range(3):
        assert sorted(_take(order, count)) == sorted(f"p{i}" for i in range(count))
        assert order.consumed == (epoch + 1) * count


@given(st.integers(1, 12), seeds, st.booleans(), st.integers(0, 40))
def test_a_resumed_order_continues_as_if_never_interrupted(count: int, seed: int, shuffle: bool, taken: int) -> None:
    whole, first, second = (PromptOrder(_prompts(count), seed, shuffle) for _ in range(3))
    expected = _take(whole, taken + 30)
    _take(first, taken)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.consumed == taken
    assert _take(second, 30) == expected[taken:]


def test_shuffling_differs_by_epoch_and_by_seed_and_not_shuffling_keeps_the_order() -> None:
    order = PromptOrder(_prompts(50), seed=1, shuffle=True)
    first, second = _take(order, 50), _take(order, 50)
    other = _take(PromptOrder(_prompts(50), seed=2, shuffle=True), 50)
    given_order = [f"p{i}" for i in range(50)]
    assert len({tuple(sequence) for sequence in (first, second, other, given_order)}) == 4
    assert _take(PromptOrder(_prompts(50), seed=1, shuffle=False), 50) == given_order


def test_a_state_of_other_prompts_is_refused_with_both_fingerprints() -> None:
    saved, ours = PromptOrder(_prompts(4), 0, True), PromptOrder(_prompts(5), 0, True)
    with pytest.raises(DataError) as error:
        ours.load_state_dict(saved.state_dict())
    assert saved.state_dict()["fingerprint"] in str(error.value)
    assert ours.state_dict()["fingerprint"] in str(error.value)


@pytest.mark.parametrize("change", [{"seed": 1}, {"shuffle": False}, {"position": 9}, {"epoch": -1}])
def test_a_state_that_would_break_the_epoch_is_refused(change: dict[str, int]) -> None:
    order = PromptOrder(_prompts(4), 0, True)
    with pytest.raises(DataError):
        order.load_state_dict({**order.state_dict(), **change})


def test_there_is_no_order_of_no_prompts() -> None:
    with pytest.raises(DataError, match="no prompts"):
        PromptOrder([], 0, True)


@pytest.mark.parametrize(
    ("rewards", "judged"),
    [
        ([1.0, 0.0], "keep"),
        ([1.0, 0.0, None], "keep"),
        ([1.0, 1.0], "no_signal"),
        ([0.0, None, 0.0], "no_signal"),
        ([1.0, None], "incomplete"),
        ([None, None], "incomplete"),
        ([1.0], "keep"),
        ([None], "incomplete"),
        ([], "incomplete"),
    ],
)
def test_a_group_is_judged_by_its_usable_rewards(rewards: list[float | None], judged: str) -> None:
    assert judge_group(rewards, Groups(no_signal="drop")) == judged
    assert judge_group(rewards, Groups(no_signal="refill", incomplete="refill")) == judged


def test_groups_without_signal_are_kept_where_the_policy_keeps_them() -> None:
    assert judge_group([1.0, 1.0], Groups(no_signal="keep")) == "keep"
    assert judge_group([1.0, None], Groups(no_signal="keep")) == "incomplete"


def test_a_reward_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="finite"):
        judge_group([1.0, float("nan")], Groups())

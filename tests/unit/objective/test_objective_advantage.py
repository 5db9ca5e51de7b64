"""Group-relative credit: values by hand, samples without a verdict, groups without a signal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.config import Component, ConfigError
from rlpost.objective import ADVANTAGES


def grpo(rewards, group, usable=None, **params):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    usable = torch.ones(len(rewards), dtype=torch.bool) if usable is None else torch.tensor(usable)
    return ADVANTAGES.create(Component(name="grpo", **params))(rewards, torch.tensor(group), usable)


def test_each_group_is_centred_and_scaled_by_its_own_sample_deviation():
    # Group 7: mean 0.25, squared deviations 0.5625 + 3 * 0.0625 = 0.75, / 3 = 0.25, root 0.5.
    # Group 3: mean 3, squared deviations 1 + 1 = 2, / 1 = 2.
    found = grpo([1, 2, 0, 0, 4, 0], [7, 3, 7, 7, 3, 7], eps=1e-12)
    half = 2**-0.5
    assert found.tolist() == pytest.approx([1.5, -half, -0.5, -0.5, half, -0.5], abs=1e-10)


def test_eps_is_added_to_the_deviation():
    assert grpo([1, 0, 0, 0], [0] * 4, eps=0.5).tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25], abs=1e-12)


def test_ddof_0_is_the_population_deviation():
    # mean 0.5, variance 0.25
    assert grpo([1, 0], [0, 0], ddof=0, eps=1e-12).tolist() == pytest.approx([1, -1], abs=1e-10)


def test_without_normalize_std_only_the_mean_is_taken_off():
    assert grpo([3, 1, 5, 5], [0, 0, 1, 1], normalize_std=False).tolist() == [1, -1, 0, 0]


def test_an_unusable_sample_gets_exactly_0_and_is_outside_the_statistics_whatever_its_reward():
    without = grpo([1, 0, 0], [0, 0, 0])
    for reward in (-1e6, float("nan"), float("inf")):
        found = grpo([1, reward, 0, 0], [0, 0, 0, 0], [True, False, True, True])
        assert found[1] == 0
        assert torch.equal(found[[0, 2, 3]], without)


def test_a_group_of_equal_rewards_gets_exactly_0_even_when_their_mean_rounds():
    assert grpo([0.1] * 7 + [0.3] * 3, [0] * 7 + [1] * 3).tolist() == [0.0] * 10


def test_groups_with_fewer_than_two_usable_samples_get_exactly_0():
    found = grpo([5, 1, 2, 9, 8], [0, 1, 1, 2, 2], [True, True, False, False, False])
    assert found.tolist() == [0.0] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_has_the_dtype_of_the_rewards(dtype):
    found = ADVANTAGES.create(Component(name="grpo"))(
        torch.tensor([0.0, 1.0], dtype=dtype), torch.tensor([4, 4]), torch.tensor([True, True])
    )
    assert found.dtype == dtype


many = settings(max_examples=200, deadline=None, derandomize=True)
samples = st.lists(
    st.tuples(st.integers(-8, 8).map(lambda n: n / 8), st.integers(-3, 3), st.booleans()), min_size=1, max_size=24
)


@many
@given(samples, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(batch, random):
    order = list(range(len(batch)))
    random.shuffle(order)
    direct = grpo(*map(list, zip(*batch, strict=True)))
    shuffled = grpo(*map(list, zip(*(batch[i] for i in order), strict=True)))
    torch.testing.assert_close(shuffled, direct[order], rtol=0, atol=1e-10)


@many
@given(samples, st.integers(-1000, 1000))
def test_the_names_of_the_groups_do_not_matter(batch, shift):
    rewards, group, usable = map(list, zip(*batch, strict=True))
    renamed = [-7 * g + shift for g in group]
    torch.testing.assert_close(grpo(rewards, renamed, usable), grpo(rewards, group, usable), rtol=0, atol=1e-10)


@many
@given(samples)
def test_credit_sums_to_zero_in_every_group_and_keeps_the_order_of_the_rewards(batch):
    rewards, group, usable = map(list, zip(*batch, strict=True))
    found = grpo(rewards, group, usable)
    for g in set(group):
        members = [i for i in range(len(batch)) if group[i] == g and usable[i]]
        assert abs(sum(found[i].item() for i in members)) < 1e-9
        by_reward = sorted(members, key=lambda i: rewards[i])
        assert [found[i] for i in by_reward] == sorted(found[i] for i in by_reward)


@pytest.mark.parametrize("params", [{"eps": 0.0}, {"eps": "small"}, {"ddof": 2}])
def test_values_that_make_no_sense_are_refused_by_name(params):
    with pytest.raises(ConfigError, match=rf"advantage 'grpo': parameter '{next(iter(params))}'"):
        ADVANTAGES.create(Component(name="grpo", **params))

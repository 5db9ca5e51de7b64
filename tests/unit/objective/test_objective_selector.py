"""Selectors: which tokens, by truth table and by hand; nothing outside the mask is ever chosen or looked at."""

import math

import pytest
import torch

from rlpost import config
from rlpost.config import Component, ConfigError
from rlpost.objective.selector import SELECTORS, covariance, largest, share_of
from rlpost.objective.types import CreditInputs

NAN = math.nan


def batch(mask, **given):
    mask = torch.tensor(mask, dtype=torch.bool)
    n = len(mask)
    defaults = {
        "rewards": torch.zeros(n, dtype=torch.float64),
        "group": torch.arange(n),
        "correct": torch.zeros(n, dtype=torch.bool),
        "truncated": torch.zeros(n, dtype=torch.bool),
        "tokens": torch.zeros(mask.shape, dtype=torch.int64),
    }
    given = {k: v if isinstance(v, torch.Tensor) else torch.tensor(v) for k, v in given.items()}
    return CreditInputs(mask=mask, max_tokens=mask.shape[1], **{**defaults, **given})


def select(name, advantages, inputs, **params):
    found = SELECTORS.create(Component(name=name, **params))(torch.tensor(advantages, dtype=torch.float64), inputs)
    assert found.dtype == torch.bool
    assert found.shape == inputs.mask.shape
    assert not (found & ~inputs.mask).any()
    return found.int().tolist()


def real(rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_the_names_are_those_the_configuration_knows():
    assert SELECTORS.names() == sorted(config.SELECTORS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("positive", [[1, 0, 0, 0], [0, 0, 1, 0]]), ("negative", [[0, 1, 0, 0], [1, 0, 0, 0]])],
)
def test_positive_and_negative_go_by_the_sign_of_each_token_and_0_is_neither(name, expected):
    inputs = batch([[1, 1, 1, 0], [1, 0, 1, 0]])
    assert select(name, [[0.5, -2.0, 0.0, 7.0], [-1e-300, -3.0, 1e-300, NAN]], inputs) == expected


def test_incorrect_goes_by_the_verdict_and_not_by_the_advantage():
    inputs = batch([[1, 1], [1, 0], [0, 0]], correct=[True, False, False])
    assert select("incorrect", [[-1.0, -1.0], [1.0, 1.0], [1.0, 1.0]], inputs) == [[0, 0], [1, 0], [0, 0]]


def test_group_all_wrong_is_every_sample_of_a_group_without_a_correct_one_wherever_they_stand():
    inputs = batch([[1]] * 5, group=[9, -2, 9, -2, 4], correct=[False, False, True, False, False])
    assert select("group_all_wrong", [[0.0]] * 5, inputs) == [[0], [1], [0], [1], [1]]


def test_top_entropy_is_the_share_with_the_highest_entropy_of_the_whole_batch():
    entropy = real([[0.1, 0.9, 99.0, 0.4], [0.8, 0.2, 0.3, NAN], [0.5, NAN, NAN, NAN]])
    inputs = batch([[1, 1, 0, 1], [1, 1, 1, 0], [1, 0, 0, 0]], entropy=entropy)
    flat = [[0.0] * 4] * 3
    assert select("top_entropy", flat, inputs, share=0.3) == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]  # 2 of 7
    assert select("top_entropy", flat, inputs, share=0.01) == [[0, 1, 0, 0], [0] * 4, [0] * 4]
    assert select("top_entropy", flat, inputs, share=1.0) == inputs.mask.int().tolist()


def test_the_entropies_that_are_chosen_are_those_above_the_quantile():
    entropy = torch.rand(20, 50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inputs = batch([[1] * 50] * 20, entropy=entropy)
    found = torch.tensor(select("top_entropy", [[0.0] * 50] * 20, inputs)).bool()
    assert torch.equal(found, entropy > entropy.quantile(0.8))
    assert found.sum() == 200


def test_a_batch_without_tokens_selects_none():
    inputs = batch([[0, 0]], entropy=real([[NAN, NAN]]), old_logp=real([[NAN, NAN]]))
    for name in SELECTORS.names():
        assert select(name, [[1.0, -1.0]], inputs) == [[0, 0]]


def test_covariance_is_taken_over_unmasked_tokens_and_averages_to_that_of_the_batch():
    old = real([[-1.0, -3.0, NAN], [-2.0, 50.0, -6.0]])
    inputs = batch([[1, 1, 0], [1, 0, 1]], old_logp=old)
    advantages = real([[1.0, 1.0, 9.0], [-1.0, NAN, -5.0]])
    # means: log-prob -3, advantage -1; deviations (2, 0, 1, -3) and (2, 2, 0, -4).
    found = covariance(advantages, inputs)
    assert found.tolist() == [[4.0, 0.0, 0.0], [0.0, 0.0, 12.0]]
    pairs = torch.stack([old[inputs.mask], advantages[inputs.mask]])
    assert float(found.sum() / 4) == pytest.approx(float(torch.cov(pairs, correction=0)[0, 1]), abs=1e-12)


def test_high_covariance_is_the_tokens_with_the_largest_product():
    inputs = batch([[1, 1, 0], [1, 0, 1]], old_logp=real([[-1.0, -3.0, NAN], [-2.0, 50.0, -6.0]]))
    advantages = [[1.0, 1.0, 9.0], [-1.0, NAN, -5.0]]
    assert select("high_covariance", advantages, inputs) == [[0, 0, 0], [0, 0, 1]]
    assert select("high_covariance", advantages, inputs, share=0.5) == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("tokens", "share", "expected"), [(0, 0.5, 0), (3, 1e-9, 1), (100, 0.29, 29), (9, 0.5, 4), (7, 1.0, 7)]
)
def test_a_share_is_rounded_down_but_is_at_least_one_token(tokens, share, expected):
    assert share_of(share, torch.arange(7 + tokens) < tokens) == expected


def test_among_equal_values_the_first_tokens_are_taken_and_no_more_than_the_share():
    values = torch.zeros(3, 4, dtype=torch.float64)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert largest(values, mask, 4 / 9).int().tolist() == [[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(("name", "needed"), [("top_entropy", "entropy"), ("high_covariance", "old_logp")])
def test_what_a_selector_needs_is_declared_and_refused_when_missing(name, needed):
    assert SELECTORS.trait(name, "needs", ()) == (needed,)
    with pytest.raises(ValueError, match=needed):
        select(name, [[1.0]], batch([[1]]))


@pytest.mark.parametrize("share", [0.0, 1.5, -1, NAN])
def test_a_share_that_makes_no_sense_is_refused(share):
    with pytest.raises(ConfigError, match="selector 'top_entropy': parameter 'share'"):
        SELECTORS.create(Component(name="top_entropy", share=share))

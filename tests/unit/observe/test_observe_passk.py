"""pass@k equals what counting every subset gives; the interval is that of resampled prompts."""

import math
from itertools import combinations, product

import numpy as np
import pytest

from rlpost.observe import pass_at_k, summarize


def test_it_is_the_share_of_all_subsets_of_k_samples_that_hold_a_correct_one() -> None:
    for n in range(1, 8):
        for c, k in product(range(n + 1), range(1, n + 1)):
            subsets = list(combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12), (n, c, k)


def test_it_is_unbiased_over_every_outcome_of_n_samples() -> None:
    n, k, p = 6, 3, 0.3
    outcomes = product([True, False], repeat=n)
    expected = sum(math.prod(p if x else 1 - p for x in o) * pass_at_k(n, sum(o), k) for o in outcomes)
    assert expected == pytest.approx(1 - (1 - p) ** k)


def test_it_stays_exact_where_binomials_overflow_a_float() -> None:
    n, c, k = 10_000, 7, 2_000
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)  # integers, divided once
    assert pass_at_k(n, c, k) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_impossible_counts_are_errors(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"pass@|cannot be correct"):
        pass_at_k(n, c, k)


def test_the_interval_is_that_of_every_possible_resample() -> None:
    correct = [[True, True], [True, False], [False, False], [False, True]]
    values = [1.0, 0.5, 0.0, 0.5]
    means = [np.mean(resample) for resample in product(values, repeat=4)]  # all 256, equally likely
    value, low, high = summarize(correct, [1], resamples=50_000, level=0.8)["pass@1"]
    assert value == 0.5
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        _, low, high = summarize(rng.random((60, 4)) < 0.4, [1], seed=seed, resamples=300)["pass@1"]
        covered += low <= 0.4 <= high
    assert 0.88 <= covered / 200 <= 1.0


def test_prompts_may_have_different_numbers_of_samples() -> None:
    summary = summarize([[True], [True, False, False, False]], [1])
    assert summary["pass@1"][0] == pytest.approx((1 + 0.25) / 2)


def test_the_same_seed_gives_the_same_interval_whatever_else_is_asked() -> None:
    correct = np.random.default_rng(1).random((5_000, 4)) < 0.5  # large enough for several blocks
    alone = summarize(correct, [1], resamples=2_000)
    both = summarize(correct, [1, 4], resamples=2_000)
    assert alone["pass@1"] == pytest.approx(both["pass@1"], abs=1e-12)
    assert summarize(correct, [1], seed=1, resamples=2_000) != alone


def test_too_few_samples_name_the_prompt_and_no_prompts_are_an_error() -> None:
    with pytest.raises(ValueError, match="pass@2: prompt 1 has only 1 samples"):
        summarize([[True, True], [True]], [1, 2])
    with pytest.raises(ValueError, match="empty"):
        summarize([], [1])


def test_prompts_that_agree_give_an_interval_of_no_width() -> None:
    assert summarize([[True, False]] * 3, [1, 2]) == {"pass@1": (0.5, 0.5, 0.5), "pass@2": (1.0, 1.0, 1.0)}

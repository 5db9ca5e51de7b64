"""Rollout corrections: identity, exact bias by enumeration, closed forms, and no ratio counted twice."""

import math

import pytest
import torch
from objective_cases import V, gradient, parameters, two_tokens

from rlpost import config
from rlpost.config import Component, ConfigError
from rlpost.objective.correction import CORRECTIONS, check_chain
from rlpost.objective.types import CreditInputs

NAN = math.nan
LEVELS = ("token", "sequence", "geometric")
EVERY = [
    *({"name": "importance", "level": level, "mode": mode} for level in LEVELS for mode in ("truncate", "mask")),
    *({"name": "importance", "level": level, "normalize": True} for level in LEVELS),
    *({"name": "reject", "level": level, "low": 0.999, "high": 1.001} for level in LEVELS),
    {"name": "opsm"},
]


def batch(log_rho, mask=None, **given):
    """Samples whose log(pi_old / mu) is `log_rho`; mu is far from 1."""
    log_rho = torch.as_tensor(log_rho, dtype=torch.float64)
    mask = torch.ones(log_rho.shape) if mask is None else torch.tensor(mask)
    n = len(log_rho)
    behavior = -1.5 - torch.arange(log_rho.numel(), dtype=torch.float64).reshape(log_rho.shape) / 8
    defaults = {
        "rewards": torch.zeros(n, dtype=torch.float64),
        "group": torch.zeros(n, dtype=torch.int64),
        "correct": torch.zeros(n, dtype=torch.bool),
        "truncated": torch.zeros(n, dtype=torch.bool),
        "tokens": torch.zeros(log_rho.shape, dtype=torch.int64),
        "old_logp": behavior + log_rho,
        "behavior_logp": behavior,
    }
    return CreditInputs(mask=mask.bool(), max_tokens=log_rho.shape[1], **{**defaults, **given})


def correct(inputs, name, **params):
    found = CORRECTIONS.create(Component(name=name, **params))(inputs)
    assert found.weights.shape == inputs.mask.shape
    assert found.weights.dtype == torch.float64
    assert (found.weights[~inputs.mask] == 0).all()
    return found


def weights(log_rho, name, mask=None, **params):
    return correct(batch(log_rho, mask), name, **params).weights.tolist()


def logs(*rows):
    return [[math.log(x) if x else NAN for x in row] for row in rows]


def test_the_names_are_those_the_configuration_knows():
    assert CORRECTIONS.names() == sorted(config.CORRECTIONS)


@pytest.mark.parametrize(("name", "weighs"), [("importance", True), ("reject", False), ("opsm", False)])
def test_traits(name, weighs):
    assert CORRECTIONS.trait(name, "weighs", None) is weighs
    assert set(CORRECTIONS.trait(name, "needs", ())) == {"old_logp", "behavior_logp"}


@pytest.mark.parametrize("params", EVERY)
def test_without_a_mismatch_every_token_has_weight_exactly_1(params):
    rewards = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    inputs = batch(torch.zeros(3, 4), [[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], rewards=rewards)
    found = correct(inputs, **params)
    assert torch.equal(found.weights, inputs.mask.double())
    name = params["name"]
    assert found.metrics == {
        f"correction/{name}_kept": 1.0,
        f"correction/{name}_mean": 1.0,
        f"correction/{name}_clipped": 0.0,
        f"correction/{name}_clamped": 0.0,
    }


@pytest.mark.parametrize("params", EVERY)
def test_log_ratios_up_to_50_stay_finite_and_what_was_held_is_counted(params):
    found = correct(batch([[50.0, 50.0], [-50.0, -50.0], [0.0, 0.0], [0.0, 0.0]]), **params)
    assert found.weights.isfinite().all()
    assert found.metrics[f"correction/{params['name']}_clamped"] == 0.5


@pytest.mark.parametrize("params", EVERY)
def test_what_stands_outside_the_mask_does_not_matter(params):
    generator = torch.Generator().manual_seed(0)
    log_rho = 0.3 * torch.randn(5, 6, generator=generator, dtype=torch.float64)
    mask = (torch.rand(5, 6, generator=generator) < 0.7).int()
    mask[4] = 0
    clean = correct(batch(log_rho, mask.tolist()), **params)
    dirty = correct(batch(log_rho.masked_fill(mask == 0, NAN), mask.tolist()), **params)
    assert torch.equal(clean.weights, dirty.weights)
    assert clean.metrics == dirty.metrics
    # A row is the same whether its masked places are there or not.
    packed = [[x for x, m in zip(row, keep, strict=True) if m] for row, keep in zip(log_rho, mask, strict=True)]
    again = torch.zeros(5, 6, dtype=torch.float64)
    lengths = [len(row) for row in packed]
    for i, row in enumerate(packed):
        again[i, : len(row)] = torch.tensor(row)
    other = correct(batch(again, [[int(t < n) for t in range(6)] for n in lengths]), **params)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(other.weights[i, :n], clean.weights[i][mask[i] == 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("params", EVERY)
def test_a_batch_without_tokens_is_all_zeros(params):
    found = correct(batch([[NAN, NAN]], [[0, 0]]), **params)
    assert found.weights.tolist() == [[0, 0]]
    assert all(v == 0 for v in found.metrics.values())


# importance

RATIOS = logs([0.25, 0.5, 1.0], [2.0, 3.0, 0])
MASK = [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [[0.25, 0.5, 1.0], [2.0, 2.0, 0]]),
        ({"low": 0.4, "high": 2.5}, [[0.4, 0.5, 1.0], [2.0, 2.5, 0]]),
        ({"mode": "mask", "low": 0.4, "high": 2.5}, [[0, 0.5, 1.0], [2.0, 0, 0]]),
        ({"level": "sequence", "low": 0.2, "high": 5}, [[0.2] * 3, [5.0, 5.0, 0]]),
        ({"level": "sequence", "high": 10}, [[0.125] * 3, [6.0, 6.0, 0]]),
        ({"level": "sequence", "mode": "mask", "high": 5}, [[0.125] * 3, [0, 0, 0]]),
        ({"level": "geometric", "high": 10}, [[0.5] * 3, [6**0.5, 6**0.5, 0]]),
        ({"level": "geometric", "mode": "mask"}, [[0.5] * 3, [0, 0, 0]]),
    ],
)
def test_weights_worked_out_by_hand(params, expected):
    found = torch.tensor(weights(RATIOS, "importance", MASK, **params))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)


def test_metrics_worked_out_by_hand():
    found = correct(batch(RATIOS, MASK), "importance", mode="mask", low=0.4, high=2.5).metrics
    assert found["correction/importance_kept"] == pytest.approx(3 / 5)
    assert found["correction/importance_mean"] == pytest.approx(3.5 / 5)
    assert found["correction/importance_clipped"] == pytest.approx(2 / 5)
    held = correct(batch(RATIOS, MASK), "importance", level="sequence", high=5).metrics
    assert held["correction/importance_kept"] == 1
    assert held["correction/importance_clipped"] == pytest.approx(2 / 5)
    assert held["correction/importance_mean"] == pytest.approx((3 * 0.125 + 2 * 5) / 5)


def test_normalized_weights_have_mean_1_over_tokens_or_over_sequences():
    by_token = correct(batch(RATIOS, MASK), "importance", normalize=True, mode="mask", high=2.5).weights
    assert by_token.flatten().tolist() == pytest.approx([x / 0.75 for x in (0.25, 0.5, 1.0, 2.0, 0, 0)], abs=1e-12)
    by_sequence = correct(batch(RATIOS, MASK), "importance", normalize=True, level="sequence", high=10).weights
    assert by_sequence[:, 0].tolist() == pytest.approx([0.125 / 3.0625, 6 / 3.0625], abs=1e-12)
    nothing = correct(batch(RATIOS, MASK), "importance", normalize=True, mode="mask", low=90.0, high=99.0)
    assert nothing.weights.abs().sum() == 0


def test_a_log_ratio_is_held_at_20_after_a_sequence_is_summed_and_not_before():
    far = weights([[50.0, -25.0], [50.0, -45.0]], "importance", level="sequence", high=1e30)
    assert [row[0] for row in far] == pytest.approx([math.exp(20), math.exp(5)], rel=1e-12)
    each = weights([[50.0], [-50.0]], "importance", high=1e30)
    assert [row[0] for row in each] == pytest.approx([math.exp(20), math.exp(-20)], rel=1e-12)


# Bias, by enumeration of all two-token sequences.


def behaviour():
    """A policy, the engine's somewhat different one, and the 16 sequences' log-probs under both."""
    theta = parameters(two_tokens, 0)
    mu = two_tokens(theta.detach() + 0.4 * parameters(two_tokens, 1).detach())
    return theta, two_tokens(theta), mu


def estimate(theta, logp, mu, rewards, **params):
    """E_mu of sum_t W_t R grad log pi(y_t)."""
    old = logp.detach()
    inputs = batch(torch.zeros(V * V, 2), old_logp=old, behavior_logp=mu)
    found = correct(inputs, "importance", high=1e8, **params).weights
    return gradient((mu.sum(1).exp() * rewards * (found * logp).sum(1)).sum(), theta)


def test_sequence_weights_are_unbiased_and_the_others_are_not():
    theta, logp, mu = behaviour()
    rewards = torch.randn(V * V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = gradient((logp.sum(1).exp() * rewards).sum(), theta)
    torch.testing.assert_close(estimate(theta, logp, mu, rewards, level="sequence"), exact, rtol=0, atol=1e-10)
    for level in ("token", "geometric"):
        assert (estimate(theta, logp, mu, rewards, level=level) - exact).norm() > 0.05 * exact.norm()
    # and so are sequence weights once they are bounded
    inputs = batch(torch.zeros(V * V, 2), old_logp=logp.detach(), behavior_logp=mu)
    bounded = correct(inputs, "importance", level="sequence", high=1.0).weights
    assert (gradient((mu.sum(1).exp() * rewards * (bounded * logp).sum(1)).sum(), theta) - exact).norm() > 0.01


def test_the_expectation_of_a_ratio_is_1_by_sequence_and_by_token():
    _, logp, mu = behaviour()
    inputs = batch(torch.zeros(V * V, 2), old_logp=logp.detach(), behavior_logp=mu)
    for level in ("sequence", "token"):
        found = correct(inputs, "importance", level=level, high=1e8).weights
        mean = (mu.sum(1).exp()[:, None] * found).sum(0)
        assert mean.tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_token_weights_have_the_bias_that_is_known_for_them():
    """Rewarding (a, a) alone: the first token is credited with how *mu* would have gone on, the second with how often
    mu begins with a. With mu less likely to do either, token weights make both steps too small, by just these ratios.
    """
    theta, logp, _ = behaviour()
    shift = torch.zeros_like(theta.detach())
    shift[0, 0], shift[1, 0] = -0.5, -1.0  # mu: less of a at first, and less of a after a
    mu = two_tokens(theta.detach() + shift)
    rewards = torch.zeros(V * V, dtype=torch.float64)
    rewards[0] = 1.0
    exact = gradient((logp.sum(1).exp() * rewards).sum(), theta)
    by_token = estimate(theta, logp, mu, rewards, level="token")
    ratio = (mu[0] - logp[0].detach()).exp()
    assert ratio[0] < 1
    assert ratio[1] < 1
    torch.testing.assert_close(by_token[0], exact[0] * ratio[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(by_token[1], exact[1] * ratio[0], rtol=0, atol=1e-10)
    assert 0 < by_token[0, 0] < exact[0, 0]
    assert 0 < by_token[1, 0] < exact[1, 0]


# The length trap.


def test_bounds_on_a_sequence_fall_on_long_responses_and_the_geometric_mean_does_not_care():
    mask = [[int(t < n) for t in range(100)] for n in (5, 100)]
    log_rho = torch.full((2, 100), math.log(1.1), dtype=torch.float64)
    raw = correct(batch(log_rho, mask), "importance", level="sequence", high=1e6).weights[:, 0]
    assert raw.tolist() == pytest.approx([1.1**5, 1.1**100], rel=1e-10)
    assert raw[1] == pytest.approx(1.378e4, rel=1e-3)
    window = {"low": 0.5, "high": 2.0}
    by_sequence = correct(batch(log_rho, mask), "reject", level="sequence", **window).weights[:, 0]
    assert by_sequence.tolist() == [1, 0]
    by_mean = correct(batch(log_rho, mask), "reject", level="geometric", **window).weights[:, 0]
    assert by_mean.tolist() == [1, 1]
    mean = correct(batch(log_rho, mask), "importance", level="geometric").weights[:, 0]
    assert mean.tolist() == pytest.approx([1.1, 1.1], abs=1e-12)


# reject


@pytest.mark.parametrize(
    ("level", "expected"),
    [("token", [[0, 1, 1], [1, 0, 0]]), ("sequence", [[0, 0, 0], [0, 0, 0]]), ("geometric", [[1, 1, 1], [1, 1, 0]])],
)
def test_reject_keeps_what_is_within_the_bounds_at_full_weight(level, expected):
    assert weights(RATIOS, "reject", MASK, level=level, low=0.4, high=2.5) == expected


def test_both_bounds_of_reject_belong_to_what_is_kept():
    log_rho = [[0.0]]
    assert weights(log_rho, "reject", low=1.0, high=1.0) == [[1]]
    assert weights(log_rho, "reject", low=1.0 + 1e-12, high=2.0) == [[0]]


def test_reject_reports_under_its_label():
    found = correct(batch(RATIOS, MASK), "reject", level="token", low=0.4, high=2.5, label="token_window")
    assert found.metrics["correction/token_window_kept"] == pytest.approx(3 / 5)
    assert found.metrics["correction/token_window_clipped"] == pytest.approx(2 / 5)


def test_reject_has_no_bounds_of_its_own():
    with pytest.raises(ConfigError, match="missing low, high"):
        CORRECTIONS.create(Component(name="reject"))


# opsm


def test_opsm_drops_a_bad_sequence_that_the_learner_finds_much_less_likely_than_the_engine():
    # Mean log(mu / pi_old) per row: 0.6, 0.6, 0.4, -0.6, 0.6; the last is alone in its group, so not below its mean.
    log_rho = [[-1.0, -0.2], [-0.2, -1.0], [-0.4, -0.4], [0.6, 0.6], [-0.6, -0.6]]
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    group = torch.tensor([3, 3, 3, 3, 8])
    found = correct(batch(log_rho, rewards=rewards, group=group), "opsm")
    assert found.weights[:, 0].tolist() == [1, 0, 1, 1, 1]
    assert found.weights[:, 1].tolist() == [1, 0, 1, 1, 1]
    assert found.metrics["correction/opsm_kept"] == pytest.approx(0.8)
    lower = correct(batch(log_rho, rewards=rewards, group=group), "opsm", delta=0.3)
    assert lower.weights[:, 0].tolist() == [1, 0, 0, 1, 1]


def test_opsm_judges_by_the_return_so_rewards_at_tokens_count():
    log_rho, rewards = [[-1.0], [-1.0]], torch.tensor([1.0, 0.0], dtype=torch.float64)
    at_tokens = torch.tensor([[-2.0], [0.0]], dtype=torch.float64)
    assert correct(batch(log_rho, rewards=rewards), "opsm").weights.tolist() == [[1], [0]]
    assert correct(batch(log_rho, rewards=rewards, token_rewards=at_tokens), "opsm").weights.tolist() == [[0], [1]]


def test_opsm_leaves_a_group_of_equal_rewards_alone_even_when_their_mean_rounds():
    rewards = torch.full((7,), 0.1, dtype=torch.float64)
    assert correct(batch([[-5.0]] * 7, rewards=rewards), "opsm").weights.sum() == 7


# Chains


def chain(*names):
    return [Component(name=n, low=0.5, high=2.0) if n == "reject" else Component(name=n) for n in names]


def test_a_ratio_counted_twice_is_refused():
    with pytest.raises(ConfigError, match=r"importance and importance each weigh.*counted 2 times"):
        check_chain(chain("importance", "reject", "importance"), "learner")
    with pytest.raises(ConfigError, match=r"proximal: behavior.*counted twice"):
        check_chain(chain("reject", "importance"), "behavior")


@pytest.mark.parametrize("proximal", ["learner", "behavior"])
def test_entries_that_only_leave_out_may_stand_together(proximal):
    check_chain(chain("reject", "opsm", "reject"), proximal)
    check_chain([], proximal)


def test_one_entry_that_weighs_may_stand_with_others_that_leave_out():
    check_chain(chain("importance", "reject", "opsm"), "learner")


def test_an_entry_of_ones_own_weighs_unless_it_says_otherwise(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "def silent(batch): ...\n\n\ndef leaves_out(batch): ...\n\n\nleaves_out.weighs = False\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"silent.*weighs = False"):
        check_chain([*chain("importance"), Component(name=f"{file}:silent")], "learner")
    check_chain([*chain("importance"), Component(name=f"{file}:leaves_out")], "learner")


@pytest.mark.parametrize(("name", "params"), [("importance", {}), ("reject", {"level": "token"})])
def test_bounds_the_wrong_way_round_are_refused(name, params):
    with pytest.raises(ConfigError, match=f"'{name}': low 3.0 is above high 1.0"):
        weights([[0.0]], name, low=3.0, high=1.0, **params)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("importance", {"level": "word"}),
        ("importance", {"mode": "clip"}),
        ("importance", {"high": 0}),
        ("importance", {"low": -1}),
        ("opsm", {"delta": -0.1}),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(name, params):
    with pytest.raises(ConfigError, match=f"rollout correction '{name}': parameter '{next(iter(params))}'"):
        CORRECTIONS.create(Component(name=name, **params))


def test_log_probs_that_are_missing_are_asked_for_by_name():
    with pytest.raises(ValueError, match="old_logp"):
        correct(batch([[0.0]], old_logp=None), "importance")

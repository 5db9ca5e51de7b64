"""The surrogates: where their gradient is, where it is exactly zero, and that on policy it is the policy gradient.

`rpg` has a file of its own.
"""

import math

import pytest
import torch
from objective_cases import expected_loss, gradient, inputs, one_token, parameters, two_tokens

from rlpost.config import Component, ConfigError
from rlpost.objective.policy_loss import POLICY_LOSSES

EXACT = {"rtol": 0, "atol": 1e-10}
RATIOS = torch.logspace(math.log10(0.2), math.log10(12.0), 400, dtype=torch.float64)  # none of them on a bound
NEAR_ONE = torch.linspace(1 - 1.01e-3, 1 + 1.003e-3, 401, dtype=torch.float64)
PER_TOKEN = ["ppo_clip", "gspo_token", "cispo", "reinforce", "sapo", "minirl"]
PER_SEQUENCE = ["gspo", "gmpo"]
# Bounds that nothing in the sweep reaches.
WIDE = {
    "ppo_clip": {"low": 1.0, "high": 1e9, "dual": 1e9},
    "gspo": {"low": 1.0, "high": 1e9},
    "gspo_token": {"low": 1.0, "high": 1e9},
    "cispo": {"high": 1e9},
    "gmpo": {"low": 30.0, "high": 30.0},
    "minirl": {"low": 1.0, "high": 1e9, "cap": 1e9},
}


def loss_of(name, **params):
    return POLICY_LOSSES.create(Component(name=name, **params))


def at_ratios(ratios, advantages, weight=1.0, **given):
    """Inputs with the given (B, T) ratios pi / pi_old; advantages are a number or (B, T). Engine and learner agree."""
    old = torch.full_like(ratios, -30.0)
    advantages = torch.as_tensor(advantages, dtype=ratios.dtype).expand(ratios.shape)
    return inputs(
        (old + ratios.log()).requires_grad_(),
        **{
            "old_logp": old,
            "behavior_logp": old,
            "advantages": advantages,
            "weights": torch.full_like(ratios, weight),
            **given,
        },
    )


def at_ratio(ratio, advantage, weight=1.0):
    """One sequence, with one of the ratios at each token."""
    return at_ratios(ratio[None], advantage, weight)


def of_geometric_mean(s):
    """(B, 3) ratios whose geometric mean over each row is s (B,), no two of them alike."""
    return s[:, None] * torch.tensor([0.7, 1.0, 1 / 0.7], dtype=s.dtype)


def slope(name, batch, **params):
    return gradient(loss_of(name, **params)(batch).loss.sum(), batch.logp)


def assert_zero_exactly_on(zero, found, expected):
    """`found` is 0 to the last bit where `zero` is true, and `expected`, which is not 0, elsewhere."""
    assert zero.any()
    assert not zero.all()
    assert (found[zero] == 0).all()
    assert (expected[~zero] != 0).all()
    torch.testing.assert_close(found[~zero], expected[~zero], **EXACT)


@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.5, 4.0)])
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_ppo_clip_has_gradient_minus_w_r_a_and_exactly_zero_on_its_documented_region(advantage, low, high, dual):
    ratio = RATIOS
    found = slope("ppo_clip", at_ratio(ratio, advantage, 0.7), low=low, high=high, dual=dual)[0]
    zero = ratio > 1 + high if advantage > 0 else ratio < 1 - low
    if dual is not None and advantage < 0:
        zero = zero | (ratio > dual)
    assert_zero_exactly_on(zero, found, -0.7 * ratio * advantage)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.1, 2.0, -2.2),
        (2.0, 2.0, -2.4),
        (0.5, 2.0, -1.0),
        (0.5, -2.0, 1.6),
        (2.0, -2.0, 4.0),
        (10.0, -2.0, 6.0),
        (10.0, 2.0, -2.4),
        (3.0, 0.0, 0.0),
    ],
)
def test_ppo_clip_with_dual_clip_3_has_the_values_worked_out_by_hand(ratio, advantage, loss):
    batch = at_ratio(torch.tensor([ratio], dtype=torch.float64), advantage)
    assert loss_of("ppo_clip", dual=3.0)(batch).loss.item() == pytest.approx(loss, abs=1e-10)


def test_ppo_clip_counts_each_clip_where_it_acts():
    ratio = torch.tensor([0.5, 1.0, 2.0, 5.0], dtype=torch.float64)
    bad = loss_of("ppo_clip", dual=3.0)(at_ratio(ratio, -1.0))
    assert bad.means["clip/low"].tolist() == [[True, False, False, False]]
    assert bad.means["clip/high"].tolist() == [[False] * 4]
    assert bad.means["clip/dual"].tolist() == [[False, False, False, True]]
    good = loss_of("ppo_clip", dual=3.0)(at_ratio(ratio, 1.0))
    assert good.means["clip/low"].tolist() == [[False] * 4]
    assert good.means["clip/high"].tolist() == [[False, False, True, True]]
    assert good.means["clip/dual"].tolist() == [[False] * 4]


def test_ppo_clip_says_nothing_of_a_dual_clip_that_is_off():
    assert "clip/dual" not in loss_of("ppo_clip")(at_ratio(RATIOS, 1.0)).means


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize(("sweep", "params"), [(NEAR_ONE, {}), (RATIOS, {}), (RATIOS, {"low": 0.2, "high": 0.3})])
def test_gspo_has_gradient_minus_w_s_a_over_n_and_exactly_zero_for_whole_sequences(sweep, params, advantage):
    batch = at_ratios(of_geometric_mean(sweep), advantage, 0.7)
    found = slope("gspo", batch, **params)
    low, high = params.get("low", 3e-4), params.get("high", 4e-4)
    zero = sweep > 1 + high if advantage > 0 else sweep < 1 - low
    expected = -0.7 * sweep * advantage / 3
    assert_zero_exactly_on(zero[:, None].expand(-1, 3), found, expected[:, None].expand(-1, 3))


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("sweep", [NEAR_ONE, RATIOS])
def test_gspo_token_has_gradient_minus_w_s_a_and_exactly_zero_where_gspo_has(sweep, advantage):
    batch = at_ratios(of_geometric_mean(sweep), advantage, 0.7)
    zero = sweep > 1 + 4e-4 if advantage > 0 else sweep < 1 - 3e-4
    expected = (-0.7 * sweep * advantage)[:, None].expand(-1, 3)
    assert_zero_exactly_on(zero[:, None].expand(-1, 3), slope("gspo_token", batch), expected)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_gspo_token_is_gspo_when_the_advantage_is_constant_even_on_ragged_sequences(advantage):
    ratios = of_geometric_mean(NEAR_ONE)
    mask = torch.ones_like(ratios).bool()
    mask[::3, 2] = False
    mask[1::3, 1:] = False
    mask[2::6] = False
    batch = at_ratios(ratios, advantage, 0.7, mask=mask)
    sequence, token = loss_of("gspo")(batch.masked()), loss_of("gspo_token")(batch.masked())
    lengths = mask.sum(1).clamp(min=1)
    means = token.loss.sum(1) / lengths
    torch.testing.assert_close(sequence.loss, means, **EXACT)
    found = gradient(sequence.loss.sum(), batch.logp)
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, gradient(means.sum(), batch.logp), **EXACT)
    for family in ("clip/low", "clip/high"):
        assert torch.equal(sequence.means[family] & mask, token.means[family] & mask)


def test_gspo_takes_the_mean_of_advantages_that_differ_within_a_sequence_gspo_token_each():
    ratios = torch.ones(1, 2, dtype=torch.float64)
    batch = at_ratios(ratios, [[3.0, -1.0]], weights=torch.tensor([[1.0, 0.5]], dtype=torch.float64))
    assert slope("gspo", batch).tolist() == [[-0.75 * 1.0 / 2] * 2]
    assert slope("gspo_token", batch).tolist() == [[-3.0, 0.5]]


@pytest.mark.parametrize("name", PER_SEQUENCE)
def test_padding_changes_no_loss_of_a_sequence(name):
    ratios = torch.tensor([[1.2, 0.9], [0.8, 1.3]], dtype=torch.float64)
    short = at_ratios(ratios, [[1.0], [-1.0]])
    padded = torch.cat([ratios, torch.full_like(ratios, 7.0)], dim=1)
    mask = torch.tensor([[True, True, False, False]] * 2)
    long = at_ratios(padded, [[1.0], [-1.0]], mask=mask)
    loss = loss_of(name)(long.masked()).loss
    torch.testing.assert_close(loss, loss_of(name)(short).loss, **EXACT)
    found = gradient(loss.sum(), long.logp)
    torch.testing.assert_close(found[:, :2], slope(name, short), **EXACT)
    assert not found[:, 2:].any()


@pytest.mark.parametrize("name", PER_SEQUENCE)
def test_a_sequence_without_a_token_has_loss_0_and_no_gradient(name):
    batch = at_ratios(torch.ones(1, 2, dtype=torch.float64), 1.0, mask=torch.zeros(1, 2).bool())
    loss = loss_of(name)(batch.masked()).loss
    assert loss.tolist() == [0.0]
    assert gradient(loss.sum(), batch.logp).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("params", [{}, {"high": 0.28}, {"low": 0.3, "high": 0.28}])
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_cispo_cuts_the_weight_of_a_token_and_never_drops_it(advantage, params):
    batch = at_ratio(RATIOS, advantage, 0.7)
    found = slope("cispo", batch, **params)[0]
    floor, ceiling = 1 - params.get("low", 1.0), 1 + params.get("high", 4.0)
    assert found.all()
    torch.testing.assert_close(found, -0.7 * RATIOS.clamp(floor, ceiling) * advantage, **EXACT)
    means = loss_of("cispo", **params)(batch).means
    assert torch.equal(means["clip/high"][0], ceiling < RATIOS)
    assert means["clip/high"].any()
    assert ("clip/low" in means) == ("low" in params)
    if "low" in params:
        assert torch.equal(means["clip/low"][0], floor > RATIOS)
        assert means["clip/low"].any()


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_reinforce_has_the_same_gradient_at_every_ratio_and_reports_the_ratio(advantage):
    batch = at_ratio(RATIOS, advantage, 0.7)
    assert slope("reinforce", batch).unique().tolist() == [-0.7 * advantage]
    outputs = loss_of("reinforce")(batch)
    torch.testing.assert_close(outputs.means["ratio/mean"][0], RATIOS, **EXACT)
    torch.testing.assert_close(outputs.maxima["ratio/max"][0], RATIOS, **EXACT)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_gmpo_drops_the_clipped_tokens_of_a_sequence_and_keeps_its_others(advantage):
    # The third token of each row is within the bounds, the first sweeps over them.
    ratios = torch.stack([RATIOS, torch.full_like(RATIOS, 0.9), torch.full_like(RATIOS, 1.2)], dim=1)
    batch = at_ratios(ratios, advantage, 0.7)
    zero = ratios.log() > 0.4 if advantage > 0 else ratios.log() < -0.4
    clipped = ratios.log().clamp(max=0.4) if advantage > 0 else ratios.log().clamp(min=-0.4)
    value = -0.7 * advantage * clipped.mean(1).exp()
    torch.testing.assert_close(loss_of("gmpo")(batch).loss, value, **EXACT)
    assert_zero_exactly_on(zero, slope("gmpo", batch), (value / 3)[:, None].expand(-1, 3))
    acts = loss_of("gmpo")(batch).means
    assert torch.equal(acts["clip/high"] | acts["clip/low"], zero)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_gmpo_bounds_are_in_log_space(advantage):
    ratios = torch.tensor([[math.exp(0.39), math.exp(-0.39)]], dtype=torch.float64)
    assert slope("gmpo", at_ratios(ratios, advantage)).all()
    assert not slope("gmpo", at_ratios(ratios, advantage), low=0.38, high=0.38).all()


@pytest.mark.parametrize(("advantage", "tau"), [(1.5, 1.0), (-1.5, 1.05)])
def test_sapo_fades_on_both_sides_of_1_and_is_cut_off_nowhere(advantage, tau):
    batch = at_ratio(RATIOS, advantage, 0.7)
    gate = torch.sigmoid(tau * (RATIOS - 1))
    found = slope("sapo", batch)[0]
    assert found.all()
    torch.testing.assert_close(found, -0.7 * advantage * RATIOS * 4 * gate * (1 - gate), **EXACT)
    # As share of the unclipped gradient: at most 1, reached at r = 1, and ever less away from it.
    share = found / (-0.7 * advantage * RATIOS)
    assert share.max() <= 1
    assert (share.diff()[RATIOS[1:] < 1] > 0).all()
    assert (share.diff()[RATIOS[:-1] > 1] < 0).all()
    torch.testing.assert_close(loss_of("sapo")(batch).loss[0], -0.7 * advantage * 4 / tau * gate, **EXACT)


def test_sapo_lets_the_gradient_of_bad_tokens_fade_faster():
    good, bad = (slope("sapo", at_ratio(RATIOS, a))[0].abs() for a in (1.0, -1.0))
    assert (bad[RATIOS > 1] < good[RATIOS > 1]).all()


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_minirl_weighs_by_the_engine_ratio_masks_by_the_learner_ratio_and_owns_the_correction(advantage):
    # pi_old / mu is 2 everywhere, weights are nonsense that must not be read.
    batch = at_ratio(RATIOS, advantage, weight=7.0)
    batch = inputs(
        batch.logp,
        old_logp=batch.old_logp,
        behavior_logp=batch.old_logp - math.log(2),
        advantages=batch.advantages,
        weights=batch.weights,
    )
    zero = RATIOS > 1.27 if advantage > 0 else RATIOS < 0.8
    assert_zero_exactly_on(zero, slope("minirl", batch)[0], -(2 * RATIOS).clamp(max=5) * advantage)
    means = loss_of("minirl")(batch).means
    assert torch.equal(means["clip/high" if advantage > 0 else "clip/low"][0], zero)
    assert not means["clip/low" if advantage > 0 else "clip/high"].any()
    assert torch.equal(means["clip/cap"][0], RATIOS > 2.5)
    assert POLICY_LOSSES.trait("minirl", "owns_correction", False)


@pytest.mark.parametrize("name", [n for n in PER_TOKEN + PER_SEQUENCE if n != "minirl"])
def test_all_others_apply_the_weights_and_own_no_correction(name):
    ratios = torch.full((2, 2), 1.1, dtype=torch.float64)
    plain, weighted = (loss_of(name)(at_ratios(ratios, -1.0, weight)).loss for weight in (1.0, 0.3))
    assert plain.all()
    torch.testing.assert_close(weighted, 0.3 * plain, **EXACT)
    assert not POLICY_LOSSES.trait(name, "owns_correction", False)


@pytest.mark.parametrize("advantage", [1.5, -1.5, 0.0])
@pytest.mark.parametrize("name", PER_TOKEN + PER_SEQUENCE)
def test_at_ratio_1_every_loss_has_the_gradient_of_reinforce(name, advantage):
    batch = at_ratios(torch.ones(3, 4, dtype=torch.float64), advantage)
    expected = slope("reinforce", batch)
    torch.testing.assert_close(slope(name, batch), expected / 4 if name in PER_SEQUENCE else expected, **EXACT)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("name", sorted(WIDE))
def test_with_bounds_that_nothing_reaches_every_clip_is_off(name, advantage):
    ratios = of_geometric_mean(RATIOS)
    batch = at_ratios(ratios, advantage, weight=1.0)
    geometric = name.startswith("g")
    expected = -advantage * (RATIOS[:, None].expand(-1, 3) if geometric else ratios)
    torch.testing.assert_close(
        slope(name, batch, **WIDE[name]), expected / 3 if name in PER_SEQUENCE else expected, **EXACT
    )
    means = loss_of(name, **WIDE[name])(batch).means
    assert not any(value.any() for family, value in means.items() if family.startswith("clip"))


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("name", ["ppo_clip", "gspo", "gmpo", "sapo"])
def test_gradients_are_those_of_finite_differences(name, advantage):
    ratios = of_geometric_mean(RATIOS) if name == "gspo" else RATIOS[:, None]
    params = {"low": 0.2, "high": 0.3} if name == "gspo" else {}
    batch = at_ratios(ratios, advantage)
    h = 1e-6
    step = torch.zeros_like(ratios)
    step[:, 0] = h
    up, down = (loss_of(name, **params)(at_ratios(ratios * x.exp(), advantage)).loss for x in (step, -step))
    numeric = (up - down).detach().reshape(len(ratios), -1).sum(1) / (2 * h)
    torch.testing.assert_close(slope(name, batch, **params)[:, 0], numeric, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("name", PER_TOKEN + PER_SEQUENCE)
def test_everything_is_finite_at_log_ratios_of_50_and_the_clamp_is_counted(name, advantage, dtype):
    logp = torch.tensor([[-50.0, -50.0], [0.0, 0.0], [-25.0, -25.0]], dtype=dtype, requires_grad=True)
    old = torch.tensor([[0.0, 0.0], [-50.0, -50.0], [-25.0, -25.0]], dtype=dtype)
    batch = inputs(logp, old_logp=old, behavior_logp=old, advantages=torch.full_like(old, advantage))
    outputs = loss_of(name)(batch)
    assert outputs.loss.isfinite().all()
    assert outputs.loss.dtype == dtype
    assert gradient(outputs.loss.sum(), logp).isfinite().all()
    assert outputs.means["clamp/ratio"].tolist() == [[True, True], [True, True], [False, False]]
    for reported in (*outputs.means.values(), *outputs.maxima.values()):
        assert reported.shape == logp.shape
        assert reported.isfinite().all()
        assert not reported.requires_grad


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("name", ["ppo_clip", "gspo", "gmpo", "sapo"])
def test_where_the_clamp_acts_the_ratio_has_no_gradient(name, advantage):
    logp = torch.tensor([[-50.0], [0.0], [-25.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[0.0], [-50.0], [-25.0]], dtype=torch.float64)
    batch = inputs(logp, old_logp=old, advantages=torch.full_like(old, advantage))
    assert slope(name, batch)[:, 0].tolist() == [0, 0, -advantage]


@pytest.mark.parametrize("policy", [one_token, two_tokens])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        *((name, {}) for name in PER_TOKEN + PER_SEQUENCE),
        ("ppo_clip", {"high": 0.28}),
        ("ppo_clip", {"low": 0.0, "high": 0.0}),
        ("ppo_clip", {"dual": 3.0}),
    ],
)
def test_on_policy_every_loss_has_exactly_the_gradient_of_the_expected_advantage(policy, name, params):
    theta = parameters(policy, seed=1)
    logp = policy(theta)
    credit = torch.linspace(-1.0, 2.0, len(logp), dtype=torch.float64)[:, None].expand_as(logp)
    expected_credit = (logp.sum(-1).exp() * credit[:, 0]).sum()

    loss = loss_of(name, **params)(inputs(logp, advantages=credit)).loss
    if name in PER_SEQUENCE:  # a mean over its tokens, where the others are summed
        loss = (loss * logp.shape[1])[:, None]
    found = gradient(expected_loss(logp, loss), theta)
    torch.testing.assert_close(found, -gradient(expected_credit, theta), **EXACT)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("ppo_clip", {"dual": 1.0}),
        ("ppo_clip", {"low": 1.1}),
        ("gspo", {"high": -0.1}),
        ("cispo", {"low": 2.0}),
        ("gmpo", {"low": -0.1}),
        ("sapo", {"tau_neg": 0.0}),
        ("minirl", {"cap": 0.0}),
        ("reinforce", {"low": 0.2}),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(name, params):
    with pytest.raises(ConfigError, match=next(iter(params))):
        loss_of(name, **params)

"""The surrogates: where their gradient is, where it is exactly zero, and that on policy it is the policy gradient."""

import math

import pytest
import torch
from objective_cases import V, expected_loss, gradient, inputs, one_token, parameters, two_tokens

from rlpost.config import Component
from rlpost.objective import POLICY_LOSSES

EXACT = {"rtol": 0, "atol": 1e-10}
RATIOS = torch.logspace(math.log10(0.2), math.log10(12.0), 400, dtype=torch.float64)  # none of them on a bound


def loss_of(name, **params):
    return POLICY_LOSSES.create(Component(name=name, **params))


def at_ratio(ratio, advantage, weight=1.0):
    """Inputs with the given ratio pi / pi_old at each token."""
    old = torch.full_like(ratio, -30.0)
    logp = (old + ratio.log())[None].requires_grad_()
    return inputs(
        logp,
        old_logp=old[None],
        advantages=torch.full_like(logp, advantage, requires_grad=False),
        weights=torch.full_like(logp, weight, requires_grad=False),
    )


@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.5, 4.0)])
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_ppo_clip_has_gradient_minus_w_r_a_and_exactly_zero_on_its_documented_region(advantage, low, high, dual):
    ratio = RATIOS
    batch = at_ratio(ratio, advantage, weight=0.7)
    found = gradient(loss_of("ppo_clip", low=low, high=high, dual=dual)(batch).loss.sum(), batch.logp)[0]

    zero = ratio > 1 + high if advantage > 0 else ratio < 1 - low
    if dual is not None and advantage < 0:
        zero = zero | (ratio > dual)
    assert zero.any()
    assert not zero.all()
    assert (found[zero] == 0).all()
    torch.testing.assert_close(found[~zero], (-0.7 * ratio * advantage)[~zero], **EXACT)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_ppo_clip_is_finite_at_log_ratios_of_50_and_counts_the_clamp(dtype, advantage):
    logp = torch.tensor([[-50.0, 0.0, -25.0]], dtype=dtype, requires_grad=True)
    old = torch.tensor([[0.0, -50.0, -25.0]], dtype=dtype)
    outputs = loss_of("ppo_clip")(inputs(logp, old_logp=old, advantages=torch.full_like(old, advantage)))
    assert outputs.loss.isfinite().all()
    assert outputs.means["clamp/ratio"].tolist() == [[True, True, False]]
    assert gradient(outputs.loss.sum(), logp)[0].tolist() == [0, 0, -advantage]


@pytest.mark.parametrize("policy", [one_token, two_tokens])
@pytest.mark.parametrize("params", [{}, {"high": 0.28}, {"low": 0.0, "high": 0.0}, {"dual": 3.0}])
def test_on_policy_ppo_clip_has_exactly_the_gradient_of_the_expected_advantage(policy, params):
    theta = parameters(policy, seed=1)
    logp = policy(theta)
    credit = torch.linspace(-1.0, 2.0, len(logp), dtype=torch.float64)[:, None].expand_as(logp)
    expected_credit = (logp.sum(-1).exp() * credit[:, 0]).sum()

    found = gradient(expected_loss(logp, loss_of("ppo_clip", **params)(inputs(logp, advantages=credit)).loss), theta)
    torch.testing.assert_close(found, -gradient(expected_credit, theta), **EXACT)


def test_sft_is_the_negative_log_likelihood_and_ignores_advantages_and_weights():
    theta = parameters(two_tokens, seed=2)
    logp = two_tokens(theta)
    nonsense = torch.full_like(logp, 7.0, requires_grad=False)
    loss = loss_of("sft")(inputs(logp, advantages=nonsense, weights=nonsense)).loss
    torch.testing.assert_close(loss, -logp, **EXACT)
    # Of the sequence (0, 0): softmax minus one-hot in the two rows it passes through, nothing elsewhere.
    expected = torch.zeros(1 + V, V, dtype=torch.float64)
    expected[:2] = theta.detach()[:2].softmax(-1)
    expected[:2, 0] -= 1
    torch.testing.assert_close(gradient(loss[0].sum(), theta), expected, **EXACT)

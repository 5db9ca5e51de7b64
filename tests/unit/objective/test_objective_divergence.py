"""What k1, k2 and k3 estimate, and whose gradient each really has: exact enumeration, methods.md 1.1 and T2."""

import pytest
import torch
from objective_cases import (
    expected_loss,
    gradient,
    inputs,
    one_token,
    parameters,
    per_token_kl,
    sequence_kl,
    two_tokens,
)

from rlpost.config import Component
from rlpost.objective import DIVERGENCES

EXACT = {"rtol": 0, "atol": 1e-10}


def in_loss_gradient(name, policy, theta, theta_ref):
    logp, ref = policy(theta), policy(theta_ref).detach()
    return gradient(expected_loss(logp, DIVERGENCES.create(Component(name=name))(inputs(logp), ref).loss), theta)


@pytest.fixture
def one():
    return parameters(one_token, seed=1), parameters(one_token, seed=2).detach()


@pytest.fixture
def two():
    return parameters(two_tokens, seed=3), parameters(two_tokens, seed=4).detach()


def test_k1_in_the_loss_has_no_gradient_at_all_in_expectation(one, two):
    assert in_loss_gradient("k1", one_token, *one).abs().max() < 1e-10
    assert in_loss_gradient("k1", two_tokens, *two).abs().max() < 1e-10


def test_k2_in_the_loss_has_the_gradient_of_the_reverse_kl(one):
    theta, ref = one
    reverse = gradient(sequence_kl(one_token(theta), one_token(ref)), theta)
    torch.testing.assert_close(in_loss_gradient("k2", one_token, theta, ref), reverse, **EXACT)


def test_k3_in_the_loss_has_the_gradient_of_the_forward_kl_not_of_the_kl_its_value_estimates(one):
    theta, ref = one
    forward = gradient(sequence_kl(one_token(ref), one_token(theta)), theta)
    reverse = gradient(sequence_kl(one_token(theta), one_token(ref)), theta)
    found = in_loss_gradient("k3", one_token, theta, ref)
    torch.testing.assert_close(found, forward, **EXACT)
    assert (found - reverse).abs().max() > 1e-2


def test_k2_of_sequences_is_the_per_token_reverse_kl_with_prefixes_held_not_the_sequence_kl(two):
    theta, ref = two
    prefixes = theta[0].softmax(-1).detach()
    found = in_loss_gradient("k2", two_tokens, theta, ref)
    torch.testing.assert_close(found, gradient(per_token_kl(theta, ref, prefixes), theta), **EXACT)
    assert (found - gradient(sequence_kl(two_tokens(theta), two_tokens(ref)), theta)).abs().max() > 1e-2


def test_k3_of_sequences_is_the_per_token_forward_kl_with_prefixes_of_the_policy_held(two):
    theta, ref = two
    prefixes = theta[0].softmax(-1).detach()
    found = in_loss_gradient("k3", two_tokens, theta, ref)
    torch.testing.assert_close(found, gradient(per_token_kl(ref, theta, prefixes), theta), **EXACT)
    assert (found - gradient(sequence_kl(two_tokens(ref), two_tokens(theta)), theta)).abs().max() > 1e-2


def test_k3_on_samples_of_an_older_policy_is_neither_direction(one):
    theta, ref = one
    old = one_token(parameters(one_token, seed=5)).detach()
    logp, ref_logp = one_token(theta), one_token(ref)
    k3 = DIVERGENCES.create(Component(name="k3"))
    found = gradient((old.exp() * k3(inputs(logp, old_logp=old), ref_logp).loss).sum(), theta)
    for kl in (sequence_kl(logp, ref_logp), sequence_kl(ref_logp, logp)):
        assert (found - gradient(kl, theta)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_the_values_of_k1_and_k3_are_unbiased_for_the_reverse_kl_even_of_sequences(name, two):
    logp, ref = (two_tokens(t).detach() for t in two)
    value = expected_loss(logp, DIVERGENCES.create(Component(name=name))(inputs(logp), ref).means["kl"])
    torch.testing.assert_close(value, sequence_kl(logp, ref), **EXACT)


def test_the_value_of_k2_is_biased(two):
    logp, ref = (two_tokens(t).detach() for t in two)
    value = expected_loss(logp, DIVERGENCES.create(Component(name="k2"))(inputs(logp), ref).means["kl"])
    assert (value - sequence_kl(logp, ref)).abs() > 1e-2


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_a_policy_equal_to_its_anchor_has_no_divergence(name, one):
    logp = one_token(one[0]).detach()
    assert torch.equal(DIVERGENCES.create(Component(name=name))(inputs(logp), logp).loss, torch.zeros_like(logp))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_log_ratios_beyond_20_are_held_there_without_gradient_and_counted(name, dtype):
    d = torch.tensor([[-50.0, -20.0, -1.0, 0.0, 20.0, 50.0]], dtype=dtype)
    logp = (d - 60).requires_grad_()
    outputs = DIVERGENCES.create(Component(name=name))(inputs(logp), torch.full_like(d, -60.0))
    assert outputs.means["clamp"].tolist() == [[True, False, False, False, False, True]]
    assert outputs.loss.isfinite().all()
    assert outputs.loss[0, 0] == outputs.loss[0, 1]
    assert outputs.loss[0, 5] == outputs.loss[0, 4]
    slope = gradient(outputs.loss.sum(), logp)[0]
    assert slope[[0, 5]].tolist() == [0, 0]
    assert slope[[1, 4]].all()


def test_k3_can_be_clamped_in_value_which_removes_the_gradient_and_is_counted():
    logp = torch.tensor([[-1.0, -4.0]], dtype=torch.float64, requires_grad=True)
    outputs = DIVERGENCES.create(Component(name="k3", max_value=10.0))(inputs(logp), torch.zeros_like(logp))
    torch.testing.assert_close(outputs.loss.detach(), torch.tensor([[torch.e - 2, 10.0]], dtype=torch.float64), **EXACT)
    assert outputs.means["clamp"].tolist() == [[False, True]]
    torch.testing.assert_close(
        gradient(outputs.loss.sum(), logp), torch.tensor([[1 - torch.e, 0.0]], dtype=torch.float64), **EXACT
    )

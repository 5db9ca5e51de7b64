"""What the estimators of the KL estimate, and whose gradient each really has: exact enumeration, methods.md 1.1, T2."""

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

from rlpost import config
from rlpost.config import Component, ConfigError
from rlpost.objective import DIVERGENCES

EXACT = {"rtol": 0, "atol": 1e-10}
ESTIMATORS = ("k1", "k2", "k3", "k1_st", "k3_st")


def in_loss_gradient(name, policy, theta, theta_ref):
    logp, ref = policy(theta), policy(theta_ref).detach()
    return gradient(expected_loss(logp, DIVERGENCES.create(Component(name=name))(inputs(logp), ref).loss), theta)


def under(old, loss):
    """E over sequences sampled from `old`, (sequences, T) log-probs, of sum_t l_t."""
    return (old.detach().sum(-1).exp() * loss.sum(-1)).sum()


def test_the_entries_are_those_of_the_configuration():
    assert DIVERGENCES.names() == sorted(config.DIVERGENCES)
    assert [n for n in DIVERGENCES.names() if not DIVERGENCES.trait(n, "anchored", True)] == ["entropy"]


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


@pytest.mark.parametrize("name", ["k1", "k3", "k1_st", "k3_st"])
def test_the_values_of_all_but_k2_are_unbiased_for_the_reverse_kl_even_of_sequences(name, two):
    logp, ref = (two_tokens(t).detach() for t in two)
    value = expected_loss(logp, DIVERGENCES.create(Component(name=name))(inputs(logp), ref).means["kl"])
    torch.testing.assert_close(value, sequence_kl(logp, ref), **EXACT)


def test_the_value_of_k2_is_biased(two):
    logp, ref = (two_tokens(t).detach() for t in two)
    value = expected_loss(logp, DIVERGENCES.create(Component(name="k2"))(inputs(logp), ref).means["kl"])
    assert (value - sequence_kl(logp, ref)).abs() > 1e-2


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_policy_equal_to_its_anchor_has_no_divergence(name, one):
    logp = one_token(one[0]).detach()
    assert torch.equal(DIVERGENCES.create(Component(name=name))(inputs(logp), logp).loss, torch.zeros_like(logp))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ESTIMATORS)
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


@pytest.mark.parametrize("name", ["k1_st", "k3_st"])
def test_straight_through_has_the_value_of_its_estimator_and_the_gradient_of_k2(name, two):
    logp, ref = two_tokens(two[0]).detach().requires_grad_(), two_tokens(two[1]).detach()
    found, value, slope = (
        DIVERGENCES.create(Component(name=n))(inputs(logp), ref) for n in (name, name.removesuffix("_st"), "k2")
    )
    torch.testing.assert_close(found.loss, value.loss, **EXACT)
    torch.testing.assert_close(found.means["kl"], value.means["kl"], **EXACT)
    torch.testing.assert_close(gradient(found.loss.sum(), logp), gradient(slope.loss.sum(), logp), **EXACT)


# --------------------------------------------------------------------------------------- samples of an older policy

# Whose gradient an estimator in the loss has on samples of pi_old. None: that of no KL.
OFF_POLICY = {
    ("k1", "none"): None,
    ("k1", "detached"): "zero",
    ("k1", "differentiable"): "reverse",
    ("k2", "none"): None,
    ("k2", "detached"): "reverse",
    ("k2", "differentiable"): None,
    ("k3", "none"): None,
    ("k3", "detached"): "forward",
    ("k3", "differentiable"): "reverse",
    ("k1_st", "none"): None,
    ("k1_st", "detached"): "reverse",
    ("k3_st", "none"): None,
    ("k3_st", "detached"): "reverse",
}


@pytest.mark.parametrize(("name", "is_weight"), OFF_POLICY)
def test_whose_gradient_an_estimator_has_on_samples_of_an_older_policy(name, is_weight, one):
    theta, ref = one
    logp, anchor = one_token(theta), one_token(ref)
    gradients = {
        "reverse": gradient(sequence_kl(logp, anchor), theta),
        "forward": gradient(sequence_kl(anchor, logp), theta),
        "zero": torch.zeros_like(theta),
    }
    old = one_token(parameters(one_token, seed=5)).detach()
    outputs = DIVERGENCES.create(Component(name=name, is_weight=is_weight))(inputs(logp, old_logp=old), anchor)
    found = gradient(under(old, outputs.loss), theta)
    for which, expected in gradients.items():
        off = (found - expected).abs().max()
        assert off < 1e-10 if which == OFF_POLICY[name, is_weight] else off > 1e-2
    if name != "k2":
        off = (under(old, outputs.means["kl"]) - sequence_kl(logp, anchor)).abs()
        assert off > 1e-2 if is_weight == "none" else off < 1e-10


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_a_differentiable_weight_is_the_gradient_of_what_the_value_estimates_on_policy_too(name, one):
    theta, ref = one
    logp, anchor = one_token(theta), one_token(ref)
    estimator = DIVERGENCES.create(Component(name=name, is_weight="differentiable"))
    found = gradient(expected_loss(logp, estimator(inputs(logp), anchor).loss), theta)
    d = logp - anchor
    value = {"k1": d, "k2": d.square() / 2, "k3": (-d).exp() - 1 + d}[name]
    torch.testing.assert_close(found, gradient((logp.exp() * value).sum(), theta), **EXACT)
    reverse = gradient(sequence_kl(logp, anchor), theta)
    assert ((found - reverse).abs().max() < 1e-10) == (name != "k2")


@pytest.mark.parametrize(
    ("name", "is_weight"), [("k3", "differentiable"), ("k1", "differentiable"), ("k2", "detached")]
)
def test_weights_of_tokens_leave_the_prefixes_to_the_policy_that_sampled(name, is_weight, two):
    theta, ref = two
    logp, anchor = two_tokens(theta), two_tokens(ref)
    first = parameters(two_tokens, seed=5).detach()
    estimator = DIVERGENCES.create(Component(name=name, is_weight=is_weight))
    found = gradient(under(two_tokens(first), estimator(inputs(logp, old_logp=two_tokens(first)), anchor).loss), theta)
    expected = gradient(per_token_kl(theta, ref, first[0].softmax(-1)), theta)
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("is_weight", ["detached", "differentiable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_beyond_20_nats_are_held_and_counted(is_weight, dtype):
    logp = torch.zeros(1, 4, dtype=dtype).requires_grad_()
    old = torch.tensor([[-50.0, -20.0, 20.0, 50.0]], dtype=dtype)
    anchor = torch.full_like(old, -1.0)
    k3 = DIVERGENCES.create(Component(name="k3", is_weight=is_weight))
    outputs = k3(inputs(logp, old_logp=old), anchor)
    assert outputs.means["clamp"].tolist() == [[True, False, False, True]]
    assert outputs.loss[0, 0] == outputs.loss[0, 1]
    assert outputs.loss[0, 2] == outputs.loss[0, 3]
    assert gradient(outputs.loss.sum(), logp).isfinite().all()


@pytest.mark.parametrize("name", ["k1_st", "k3_st", "split_kl"])
def test_a_weight_that_cannot_be_differentiated_is_refused(name):
    with pytest.raises(ConfigError, match=f"divergence '{name}': parameter 'is_weight', value 'differentiable'"):
        DIVERGENCES.create(Component(name=name, is_weight="differentiable"))


# ----------------------------------------------------------------------------------------------------- in the reward


def in_reward_gradient(name, policy, theta, theta_ref, **given):
    """Of REINFORCE for which each sequence is credited with minus the sum of its penalties."""
    logp, ref = policy(theta), policy(theta_ref).detach()
    outputs = DIVERGENCES.create(Component(name=name, **given))(inputs(logp), ref)
    assert outputs.penalty.shape == logp.shape
    assert not outputs.penalty.requires_grad
    return gradient(expected_loss(logp, outputs.penalty.sum(-1, keepdim=True) * logp), theta)


@pytest.mark.parametrize("name", ["k1", "k1_st", "split_kl"])
def test_k1_in_the_reward_has_the_gradient_of_the_reverse_kl_of_whole_sequences(name, two):
    theta, ref = two
    reverse = gradient(sequence_kl(two_tokens(theta), two_tokens(ref)), theta)
    torch.testing.assert_close(in_reward_gradient(name, two_tokens, theta, ref), reverse, **EXACT)


@pytest.mark.parametrize("name", ["k2", "k3", "k3_st"])
def test_the_other_values_in_the_reward_have_the_gradient_of_neither_kl(name, one):
    theta, ref = one
    found = in_reward_gradient(name, one_token, theta, ref)
    for p, q in ((theta, ref), (ref, theta)):
        assert (found - gradient(sequence_kl(one_token(p), one_token(q)), theta)).abs().max() > 1e-2


def test_k3_in_the_reward_has_the_gradient_of_the_reverse_kl_minus_that_of_the_forward_kl(one):
    theta, ref = one
    reverse = gradient(sequence_kl(one_token(theta), one_token(ref)), theta)
    forward = gradient(sequence_kl(one_token(ref), one_token(theta)), theta)
    torch.testing.assert_close(in_reward_gradient("k3", one_token, theta, ref), reverse - forward, **EXACT)


def test_a_penalty_is_the_value_before_any_weight():
    d = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    given = inputs(d, old_logp=d - 1)
    for name, value in (("k1", d), ("k2", d.square() / 2), ("k3", torch.expm1(-d) + d)):
        k = DIVERGENCES.create(Component(name=name, is_weight="detached"))
        torch.testing.assert_close(k(given, torch.zeros_like(d)).penalty, value, **EXACT)


# --------------------------------------------------------------------------------------------- entropy and split KL


def entropies(theta):
    """(V^2, 2) entropy at each token of all sequences of `two_tokens` parameters."""
    each = -(theta.softmax(-1) * theta.log_softmax(-1)).sum(-1)
    return torch.stack([each[0].expand(4, 4), each[1:, None].expand(4, 4)], dim=-1).reshape(16, 2)


def test_entropy_in_the_loss_raises_the_entropy_of_each_token_with_prefixes_held(two):
    theta, _ = two
    logp, entropy = two_tokens(theta), entropies(theta)
    outputs = DIVERGENCES.create(Component(name="entropy"))(inputs(logp, entropy=entropy), None)
    torch.testing.assert_close(outputs.loss, -entropy, **EXACT)
    prefixes = theta[0].softmax(-1).detach()
    held = entropy[0, 0] + (prefixes * entropy[::4, 1]).sum()
    torch.testing.assert_close(
        gradient(expected_loss(logp, outputs.loss), theta), gradient(-held, theta), rtol=0, atol=1e-10
    )
    assert outputs.means == {}


def test_entropy_in_the_reward_raises_the_entropy_of_whole_sequences(two):
    theta, ref = two
    whole = two_tokens(theta).sum(-1)
    negative = (whole.exp() * whole).sum()
    torch.testing.assert_close(
        in_reward_gradient("entropy", two_tokens, theta, ref), gradient(negative, theta), **EXACT
    )


def split_kl(theta, ref, old=None, **given):
    """Loss (expected), and outputs, on samples of the policy or of another."""
    logp = two_tokens(theta)
    samples = logp.detach() if old is None else two_tokens(old)
    batch = inputs(logp, entropy=entropies(theta), old_logp=samples)
    outputs = DIVERGENCES.create(Component(name="split_kl", **given))(batch, two_tokens(ref).detach())
    return under(samples, outputs.loss), outputs


def cross_entropy(theta, ref, prefixes):
    each = -(theta.softmax(-1) * ref.log_softmax(-1)).sum(-1)
    return each[0] + (prefixes * each[1:]).sum()


def test_split_kl_with_both_coefficients_1_is_the_reverse_kl_in_value_and_gradient(two):
    theta, ref = two
    loss, outputs = split_kl(theta, ref)
    expected = per_token_kl(theta, ref, theta[0].softmax(-1).detach())
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(gradient(loss, theta), gradient(expected, theta), **EXACT)
    torch.testing.assert_close(under(two_tokens(theta), outputs.means["divergence"]), expected, **EXACT)


def test_split_kl_weighs_its_parts_apart(two):
    theta, ref = two
    loss, outputs = split_kl(theta, ref, entropy_coef=0.5, cross_entropy_coef=2.0)
    prefixes = theta[0].softmax(-1).detach()
    crossed = cross_entropy(theta, ref, prefixes)
    negative = per_token_kl(theta, ref, prefixes) - crossed
    expected = 0.5 * negative + 2 * crossed
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(gradient(loss, theta), gradient(expected, theta), **EXACT)
    torch.testing.assert_close(under(two_tokens(theta), outputs.means["divergence"]), expected, **EXACT)
    assert (gradient(loss, theta) - gradient(split_kl(theta, ref)[0], theta)).abs().max() > 1e-2


@pytest.mark.parametrize("is_weight", ["none", "detached"])
def test_split_kl_on_samples_of_an_older_policy_needs_a_weight(is_weight, two):
    theta, ref = two
    old = parameters(two_tokens, seed=5).detach()
    loss, outputs = split_kl(theta, ref, old, is_weight=is_weight)
    expected = per_token_kl(theta, ref, old[0].softmax(-1))
    off = (gradient(loss, theta) - gradient(expected, theta)).abs().max()
    reported = (under(two_tokens(old), outputs.means["divergence"]) - expected).abs()
    if is_weight == "none":
        assert off > 1e-2
        assert reported > 1e-2
    else:
        assert off < 1e-10
        assert reported < 1e-10

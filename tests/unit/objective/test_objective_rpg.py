"""RPG: all eight surrogates have the gradient of their objective, and its clips stop it where they say."""

import math

import pytest
import torch
from objective_cases import V, gradient, inputs, one_token, parameters, two_tokens

from rlpost.config import Component, ConfigError
from rlpost.objective.divergence import DIVERGENCES
from rlpost.objective.policy_loss import POLICY_LOSSES
from rlpost.objective.rpg import Rpg

EXACT = {"rtol": 0, "atol": 1e-10}
RATIOS = torch.logspace(math.log10(0.2), math.log10(12.0), 400, dtype=torch.float64)  # none of them on a bound
KINDS = ["fkl", "ufkl", "rkl", "urkl"]
STYLES = ["differentiable", "reinforce"]
CLIP = {"low": 0.2, "high": 0.28, "dual": 10.0}
WIDE = {"low": 1.0, "high": 1e9, "dual": 1e9}
BETA = 0.3


def divergence(kind, p, old):
    """D of whole distributions, which need not be normalised, from log-measures over the same events."""
    if kind in ("fkl", "ufkl"):
        value = (old.exp() * (old - p)).sum()
    else:
        value = (p.exp() * (p - old)).sum()
    excess = p.exp().sum() - old.exp().sum()
    return value + {"fkl": 0, "ufkl": excess, "rkl": 0, "urkl": -excess}[kind]


def at_ratio(ratio, advantage, weight=1.0):
    old = torch.full_like(ratio, -30.0)[None]
    return inputs(
        (old + ratio.log()).requires_grad_(),
        old_logp=old,
        advantages=torch.full_like(old, advantage),
        weights=torch.full_like(old, weight),
    )


def slope(batch, **params):
    return gradient(Rpg(**params)(batch).loss.sum(), batch.logp)[0]


def derivative(kind, w):
    return {"fkl": -torch.ones_like(w), "ufkl": w - 1, "rkl": w * (w.log() + 1), "urkl": w * w.log()}[kind]


@pytest.fixture
def credit():
    return torch.linspace(-1.0, 2.0, V, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_on_samples_of_pi_old_the_gradient_is_exactly_that_of_the_objective(kind, style, credit):
    theta, old = parameters(one_token, seed=1), one_token(parameters(one_token, seed=2)).detach()
    logp = one_token(theta)
    j = (logp.exp() * credit).sum() - BETA * divergence(kind, logp, old)
    loss = Rpg(divergence=kind, style=style, beta=BETA)(inputs(logp, old_logp=old, advantages=credit)).loss
    torch.testing.assert_close(gradient((old.exp() * loss).sum(), theta), -gradient(j, theta), **EXACT)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_so_it_is_for_a_measure_that_is_not_normalised_where_all_four_divergences_differ(kind, style, credit):
    theta, old = parameters(one_token, seed=1), one_token(parameters(one_token, seed=2)).detach()
    logp = theta[:, None]

    def of_j(name):
        return gradient((logp.exp() * credit).sum() - BETA * divergence(name, logp, old), theta)

    loss = Rpg(divergence=kind, style=style, beta=BETA)(inputs(logp, old_logp=old, advantages=credit)).loss
    found = gradient((old.exp() * loss).sum(), theta)
    torch.testing.assert_close(found, -of_j(kind), **EXACT)
    for other in set(KINDS) - {kind}:
        assert (found + of_j(other)).abs().max() > 1e-2


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_so_it_is_for_whole_sequences_of_two_tokens_when_each_is_one_event(kind, style):
    theta, old = parameters(two_tokens, seed=3), two_tokens(parameters(two_tokens, seed=4)).detach()
    logp, old = two_tokens(theta).sum(-1, keepdim=True), old.sum(-1, keepdim=True)
    credit = torch.linspace(-1.0, 2.0, V * V, dtype=torch.float64)[:, None]
    j = (logp.exp() * credit).sum() - BETA * divergence(kind, logp, old)
    loss = Rpg(divergence=kind, style=style, beta=BETA)(inputs(logp, old_logp=old, advantages=credit)).loss
    torch.testing.assert_close(gradient((old.exp() * loss).sum(), theta), -gradient(j, theta), **EXACT)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_per_token_it_is_the_objective_of_each_token_with_everything_around_it_sampled_by_pi_old(kind, style):
    theta, theta_old = parameters(two_tokens, seed=3), parameters(two_tokens, seed=4).detach()
    logp, old = two_tokens(theta), two_tokens(theta_old)
    credit = torch.linspace(-1.0, 2.0, V * V, dtype=torch.float64)

    p, q = theta.log_softmax(-1), theta_old.log_softmax(-1)
    by_first = credit.reshape(V, V)
    first = (p[0].exp() * (q[1:].exp() * by_first).sum(-1)).sum() - BETA * divergence(kind, p[0], q[0])
    second = sum(
        q[0, a].exp() * ((p[1 + a].exp() * by_first[a]).sum() - BETA * divergence(kind, p[1 + a], q[1 + a]))
        for a in range(V)
    )
    batch = inputs(logp, old_logp=old, advantages=credit[:, None].expand_as(logp))
    loss = Rpg(divergence=kind, style=style, beta=BETA)(batch).loss
    found = gradient((old.sum(-1).exp() * loss.sum(-1)).sum(), theta)
    torch.testing.assert_close(found, -gradient(first + second, theta), **EXACT)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_pi_old_over_mu_make_it_exact_on_samples_of_mu(kind, style, credit):
    theta = parameters(one_token, seed=1)
    old, mu = (one_token(parameters(one_token, seed=s)).detach() for s in (2, 5))
    logp = one_token(theta)
    j = (logp.exp() * credit).sum() - BETA * divergence(kind, logp, old)
    batch = inputs(logp, old_logp=old, advantages=credit, weights=(old - mu).exp())
    loss = Rpg(divergence=kind, style=style, beta=BETA)(batch).loss
    torch.testing.assert_close(gradient((mu.exp() * loss).sum(), theta), -gradient(j, theta), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reported_divergence_is_unbiased_on_samples_of_pi_old(kind, credit):
    logp, old = (one_token(parameters(one_token, seed=s)).detach() for s in (1, 2))
    reported = Rpg(divergence=kind)(inputs(logp, old_logp=old, advantages=credit)).means["divergence/rpg"]
    torch.testing.assert_close((old.exp() * reported).sum(), divergence(kind, logp, old), **EXACT)


def test_k3_is_the_unnormalised_kl_seen_from_either_side():
    # Of measures that are not normalised, for which KL and UKL differ.
    p, old = (parameters(one_token, seed=s).detach()[:, None] for s in (1, 2))
    k3 = DIVERGENCES.create(Component(name="k3"))

    def expected(samples, policy, anchor):
        return (samples.exp() * k3(inputs(policy), anchor).means["kl"]).sum()

    # k3 of (policy, anchor) is x - 1 - log x with x = anchor / policy.
    torch.testing.assert_close(expected(old, old, p), divergence("ufkl", p, old), **EXACT)
    torch.testing.assert_close(expected(p, p, old), divergence("urkl", p, old), **EXACT)
    assert (divergence("ufkl", p, old) - divergence("fkl", p, old)).abs() > 1e-2


def test_k3_in_the_loss_needs_the_ratio_differentiated_to_be_the_reverse_kl_off_policy(credit):
    theta, old = parameters(one_token, seed=1), one_token(parameters(one_token, seed=2)).detach()
    logp, ref = one_token(theta), one_token(parameters(one_token, seed=5)).detach()
    k3 = DIVERGENCES.create(Component(name="k3"))(inputs(logp, old_logp=old), ref).loss
    ratio = (logp - old).exp()
    reverse = gradient(divergence("rkl", logp, ref), theta)
    torch.testing.assert_close(gradient((old.exp() * ratio * k3).sum(), theta), reverse, **EXACT)
    assert (gradient((old.exp() * k3).sum(), theta) - reverse).abs().max() > 1e-2


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_unclipped_each_sample_has_gradient_minus_w_a_plus_beta_times_the_derivative(kind, style, advantage):
    found = slope(at_ratio(RATIOS, advantage, 0.7), divergence=kind, style=style, beta=BETA)
    torch.testing.assert_close(found, -0.7 * (RATIOS * advantage - BETA * derivative(kind, RATIOS)), **EXACT)


@pytest.mark.parametrize("clip", [{}, CLIP, {**CLIP, "compat": "code"}])
@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("kind", KINDS)
def test_reinforce_has_zero_gradient_exactly_where_algorithm_2_says(kind, advantage, clip):
    outputs = Rpg(divergence=kind, beta=BETA, **clip)(batch := at_ratio(RATIOS, advantage, 0.7))
    code = "compat" in clip
    w = RATIOS.clamp(0.8, 1.28) if code else RATIOS
    credit = RATIOS * advantage - BETA * derivative(kind, w)
    found = gradient(outputs.loss.sum(), batch.logp)[0]

    good = torch.full_like(RATIOS, advantage > 0).bool() if code else credit >= 0
    zero = torch.where(good, RATIOS > 1.28, (RATIOS < 0.8) | (RATIOS > 10)) & bool(clip)
    assert zero.any() == bool(clip)
    assert (found[zero] == 0).all()
    assert found[~zero].all()
    torch.testing.assert_close(found[~zero], -0.7 * credit[~zero], **EXACT)
    acts = [value for family, value in outputs.means.items() if family.startswith("clip")]
    assert len(acts) == (3 if clip else 0)
    if clip:
        assert torch.equal(torch.stack(acts).any(0)[0], zero)


def test_the_branch_is_on_the_sign_of_the_regularized_credit_in_the_code_on_that_of_the_advantage():
    # w = 2: A = 0.1 is outweighed by the divergence, so Algorithm 2 lets the pull back to pi_old through.
    batch = at_ratio(torch.tensor([2.0], dtype=torch.float64), 0.1)
    params = {"divergence": "urkl", "beta": 1.0, **CLIP}
    assert slope(batch, **params).item() == pytest.approx(2 * math.log(2) - 0.2, abs=1e-10)
    assert slope(batch, **params, compat="code").item() == 0


@pytest.mark.parametrize(
    ("w", "advantage", "paper", "code"),
    [
        # l (b A - beta (w - 1)), l = -log pi = 30 - log w; in the code beta (clip(w) - 1), and + for - but at dual.
        (2.0, 1.0, 1.28 - 0.1, 1.28 + 0.028),
        (0.5, -1.0, -0.8 + 0.05, -0.8 - 0.02),
        (11.0, -1.0, -10 - 1.0, -10 - 0.028),
    ],
)
def test_the_loss_on_the_clipped_regions_is_a_constant_worked_out_by_hand(w, advantage, paper, code):
    batch = at_ratio(torch.tensor([w], dtype=torch.float64), advantage)
    rpg = {"divergence": "ufkl", "beta": 0.1, **CLIP}
    surprise = 30 - math.log(w)
    assert Rpg(**rpg)(batch).loss.item() == pytest.approx(surprise * paper, abs=1e-10)
    assert Rpg(**rpg, compat="code")(batch).loss.item() == pytest.approx(surprise * code, abs=1e-10)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("kind", ["fkl", "ufkl"])
def test_differentiable_forward_kls_clip_the_advantage_alone_and_keep_their_pull(kind, advantage):
    outputs = Rpg(divergence=kind, style="differentiable", beta=BETA, **CLIP)(batch := at_ratio(RATIOS, advantage, 0.7))
    found = gradient(outputs.loss.sum(), batch.logp)[0]
    zero = RATIOS > 1.28 if advantage > 0 else (RATIOS < 0.8) | (RATIOS > 10)
    expected = -0.7 * (RATIOS * advantage).masked_fill(zero, 0.0) + 0.7 * BETA * derivative(kind, RATIOS)
    torch.testing.assert_close(found, expected, **EXACT)
    acts = torch.stack([value for family, value in outputs.means.items() if family.startswith("clip")])
    assert torch.equal(acts.any(0)[0], zero)
    # Without a divergence what remains is exactly zero.
    assert (slope(batch, divergence=kind, style="differentiable", beta=0.0, **CLIP)[zero] == 0).all()


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("kind", ["rkl", "urkl"])
def test_differentiable_reverse_kls_clip_the_regularized_advantage_which_pulls_back_on(kind, advantage):
    found = slope(batch := at_ratio(RATIOS, advantage, 0.7), divergence=kind, style="differentiable", beta=BETA, **CLIP)
    regularized = advantage - BETA * (RATIOS.log() + (kind == "rkl"))
    good = regularized >= 0
    bound = torch.full_like(RATIOS, torch.nan)
    bound[good & (RATIOS > 1.28)] = 1.28
    bound[~good & (RATIOS < 0.8)] = 0.8
    bound[~good & (RATIOS > 10)] = 10.0
    clipped = ~bound.isnan()
    assert clipped.any()
    assert not clipped.all()
    expected = torch.where(clipped, BETA * bound, -RATIOS * regularized + BETA * RATIOS)
    torch.testing.assert_close(found, 0.7 * expected, **EXACT)
    assert (slope(batch, divergence=kind, style="differentiable", beta=0.0, **CLIP) == 0).any()


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize(("kind", "style"), [(k, s) for s in STYLES for k in KINDS])
def test_bounds_that_nothing_reaches_clip_nothing(kind, style, advantage):
    batch = at_ratio(RATIOS, advantage)
    params = {"divergence": kind, "style": style, "beta": BETA}
    difference = slope(batch, **params, **WIDE) - slope(batch, **params)
    # Only the differentiable reverse KLs differ, by the gradient of sum pi: nothing in expectation (next test).
    zero_mean = BETA * RATIOS if style == "differentiable" and kind in ("rkl", "urkl") else torch.zeros_like(RATIOS)
    torch.testing.assert_close(difference, zero_mean, **EXACT)


@pytest.mark.parametrize("kind", ["rkl", "urkl"])
def test_of_the_reverse_kls_the_regularized_advantage_is_exact_in_expectation_when_nothing_is_clipped(kind, credit):
    theta, old = parameters(one_token, seed=1), one_token(parameters(one_token, seed=2)).detach()
    logp = one_token(theta)
    j = (logp.exp() * credit).sum() - BETA * divergence(kind, logp, old)
    rpg = Rpg(divergence=kind, style="differentiable", beta=BETA, **WIDE)
    loss = rpg(inputs(logp, old_logp=old, advantages=credit)).loss
    torch.testing.assert_close(gradient((old.exp() * loss).sum(), theta), -gradient(j, theta), **EXACT)


@pytest.mark.parametrize("clip", [{}, CLIP])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_at_ratio_1_it_is_the_plain_policy_gradient(kind, style, clip):
    theta = parameters(two_tokens, seed=1)
    logp = two_tokens(theta)
    credit = torch.linspace(-1.0, 2.0, len(logp), dtype=torch.float64)[:, None].expand_as(logp)
    loss = Rpg(divergence=kind, style=style, beta=BETA, **clip)(inputs(logp, advantages=credit)).loss
    found = gradient((logp.detach().sum(-1).exp() * loss.sum(-1)).sum(), theta)
    expected = gradient((logp.sum(-1).exp() * credit[:, 0]).sum(), theta)
    torch.testing.assert_close(found, -expected, **EXACT)


@pytest.mark.parametrize("clip", [{}, CLIP])
@pytest.mark.parametrize("style", STYLES)
def test_without_a_divergence_it_is_ppo_clip(style, clip):
    bounds = clip or WIDE
    for advantage in (1.5, -1.5):
        batch = at_ratio(RATIOS, advantage, 0.7)
        ppo = POLICY_LOSSES.create(Component(name="ppo_clip", **bounds))(batch)
        expected = gradient(ppo.loss.sum(), batch.logp)[0]
        torch.testing.assert_close(slope(batch, style=style, beta=0.0, **clip), expected, **EXACT)


@pytest.mark.parametrize("style", STYLES)
def test_of_the_forward_kls_only_the_unnormalised_is_still_for_each_sample_at_ratio_1(style):
    batch = at_ratio(torch.ones(1, dtype=torch.float64), 0.0)
    assert slope(batch, divergence="ufkl", style=style, beta=BETA).item() == 0
    assert slope(batch, divergence="fkl", style=style, beta=BETA).item() == -BETA


@pytest.mark.parametrize("bound", ["low", "high", "dual"])
@pytest.mark.parametrize("style", STYLES)
def test_a_bound_that_is_not_given_is_none(style, bound):
    clip = {k: v for k, v in CLIP.items() if k == bound}
    means = Rpg(divergence="ufkl", style=style, **clip)(at_ratio(RATIOS, 1.0 if bound == "high" else -1.0)).means
    assert {family for family in means if family.startswith("clip")} == {f"clip/{bound}"}
    assert means[f"clip/{bound}"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [{}, CLIP, {**CLIP, "compat": "code"}])
@pytest.mark.parametrize(("kind", "style"), [(k, s) for s in STYLES for k in KINDS])
def test_everything_is_finite_at_log_ratios_of_50_and_the_clamp_is_counted(kind, style, clip, dtype):
    if style == "differentiable":
        clip = {k: v for k, v in clip.items() if k != "compat"}
    for advantage in (1.0, -1.0, 0.0):
        logp = torch.tensor([[-50.0, 0.0, -25.0]], dtype=dtype, requires_grad=True)
        old = torch.tensor([[0.0, -50.0, -25.0]], dtype=dtype)
        batch = inputs(logp, old_logp=old, advantages=torch.full_like(old, advantage))
        outputs = Rpg(divergence=kind, style=style, **clip)(batch)
        found = gradient(outputs.loss.sum(), logp)
        assert outputs.loss.dtype == dtype
        assert outputs.loss.isfinite().all()
        assert found.isfinite().all()
        assert outputs.means["clamp/ratio"].tolist() == [[True, True, False]]
        for reported in (*outputs.means.values(), *outputs.maxima.values()):
            assert reported.isfinite().all()
            assert not reported.requires_grad


def test_the_registry_knows_it_and_that_its_divergence_is_inside():
    rpg = POLICY_LOSSES.create(Component(name="rpg", divergence="ufkl", style="differentiable", high=0.28))
    assert isinstance(rpg, Rpg)
    assert rpg.beta == 1e-4
    assert POLICY_LOSSES.trait("rpg", "owns_divergence", False)
    assert not POLICY_LOSSES.trait("ppo_clip", "owns_divergence", False)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"divergence": "js"}, "divergence"),
        ({"style": "policy"}, "style"),
        ({"beta": -1.0}, "beta"),
        ({"dual": 0.9}, "dual"),
        ({"compat": "code"}, "set low and high"),
        ({"compat": "code", "style": "differentiable", **CLIP}, "style: reinforce"),
    ],
)
def test_what_makes_no_sense_is_refused(params, message):
    with pytest.raises(ConfigError, match=message):
        POLICY_LOSSES.create(Component(name="rpg", **params))

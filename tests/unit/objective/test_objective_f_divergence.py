"""f-divergences against their textbook generators, by exact enumeration: methods.md 1.2, 1.3, T3 and T4."""

import math

import pytest
import torch
from objective_cases import expected_loss, gradient, inputs, one_token, parameters, sequence_kl, two_tokens

from rlpost.config import F_DIVERGENCES, Component, ConfigError
from rlpost.objective import DIVERGENCES
from rlpost.objective.f_divergence import exact_divergence, f_divergence

EXACT = {"rtol": 0, "atol": 1e-10}
A = 0.3

# f(t) as methods.md writes it.
TABLE = {
    "reverse_kl": lambda t: t * t.log(),
    "forward_kl": lambda t: -t.log(),
    "js": lambda t: t * t.log() - (t + 1) * ((t + 1) / 2).log(),
    "alpha": lambda t: (t ** (1 - A) - (1 - A) * t - A) / (A * (A - 1)),
    "tv": lambda t: (t - 1).abs() / 2,
    "pearson": lambda t: (t - 1) ** 2,
    "neyman": lambda t: (1 - t) ** 2 / t,
    "hellinger": lambda t: (t.sqrt() - 1) ** 2,
}
# f'(t) at infinity and f(0), of the f that has f'(1) = 0; inf where there is no bound.
LIMITS = {
    "reverse_kl": (math.inf, 1.0),
    "forward_kl": (1.0, math.inf),
    "js": (math.log(2), math.log(2)),
    "alpha": (1 / A, 1 / (1 - A)),
    "tv": (0.5, 0.5),
    "pearson": (math.inf, 1.0),
    "neyman": (1.0, math.inf),
    "hellinger": (1.0, 1.0),
}
# What is added to the table's f to have f'(1) = 0, as a multiple of t - 1.
CENTRE = {"reverse_kl": -1.0, "forward_kl": 1.0}


def params(name):
    return {"alpha": A} if name == "alpha" else {}


def generator(name):
    return f_divergence(name, **params(name))


def entry(name, **given):
    return DIVERGENCES.create(Component(name=name, **params(name), **given))


def by_table(name, p, q):
    """sum q f(p / q) over sequences, from (sequences, T) log-probs."""
    p, q = p.sum(-1).exp(), q.sum(-1).exp()
    return (q * TABLE[name](p / q)).sum()


def under(weights, loss):
    """Expectation of a loss (B, T) or (B,) over sequences with log-probs `weights` (B, T)."""
    loss = loss.sum(-1) if loss.ndim == 2 else loss
    return (weights.detach().sum(-1).exp() * loss).sum()


@pytest.fixture
def one():
    return parameters(one_token, seed=1), parameters(one_token, seed=2).detach()


@pytest.fixture
def two():
    return parameters(two_tokens, seed=3), parameters(two_tokens, seed=4).detach()


def test_the_tables_are_those_of_the_configuration():
    assert tuple(TABLE) == tuple(LIMITS) == F_DIVERGENCES


# --------------------------------------------------------------------------------------------------- the generators


@pytest.mark.parametrize("name", TABLE)
def test_f_is_the_table_up_to_a_multiple_of_t_minus_1(name):
    t = torch.linspace(0.05, 6, 60, dtype=torch.float64).requires_grad_()
    expected = TABLE[name](t) + CENTRE.get(name, 0.0) * (t - 1)
    f, u = generator(name), t.detach().log()
    torch.testing.assert_close(f.value(u), expected.detach(), **EXACT)
    torch.testing.assert_close(f.derivative(u), gradient(expected.sum(), t), **EXACT)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_f_has_neither_value_nor_slope_where_the_policies_agree_and_is_positive_elsewhere(name, dtype):
    f, zero, u = generator(name), torch.zeros((), dtype=dtype), torch.linspace(-3, 3, 8, dtype=dtype)
    assert f.value(zero).abs() < 1e-7
    assert f.derivative(zero).abs() < 1e-7
    assert (f.value(u) > 0).all()
    assert torch.equal(f.derivative(u).sign(), u.sign())
    assert f.value(u).dtype == f.derivative(u).dtype == dtype


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 40), (torch.float64, 300)])
def test_f_is_finite_far_from_1_and_goes_to_its_limits(name, dtype, far):
    f, (slope, start) = generator(name), LIMITS[name]
    u = torch.tensor([-far, -far / 2, -30.0, 30.0, far], dtype=dtype)
    assert f.value(u).isfinite().all()
    assert f.derivative(u).isfinite().all()
    assert f.limit == pytest.approx(slope)
    if math.isfinite(slope):
        assert float(f.derivative(u)[-1]) == pytest.approx(slope, rel=1e-4)
    else:
        assert f.derivative(u)[-1] >= far
    if math.isfinite(start):
        assert float(f.value(u)[0]) == pytest.approx(start, rel=1e-4)
    else:
        assert f.value(u)[0] >= far - 1


def test_only_f_derivatives_that_are_no_worse_than_a_logarithm_are_used_without_a_bound():
    u = torch.tensor([-50.0, 50.0], dtype=torch.float64)
    for name in TABLE:
        assert generator(name).exponential == bool(generator(name).derivative(u).abs().max() > 51)


@pytest.mark.parametrize(("a", "limit"), [(1e-7, "reverse_kl"), (1 - 1e-7, "forward_kl")])
def test_alpha_goes_from_the_reverse_to_the_forward_kl(a, limit, one):
    p, q = (one_token(t).detach()[:, 0] for t in one)
    u = torch.linspace(-2, 2, 9, dtype=torch.float64)
    near = {"rtol": 0, "atol": 1e-5}
    found, expected = f_divergence("alpha", a), f_divergence(limit)
    torch.testing.assert_close(found.value(u), expected.value(u), **near)
    torch.testing.assert_close(found.derivative(u), expected.derivative(u), **near)
    torch.testing.assert_close(found.exact(p, q), expected.exact(p, q), **near)
    other = f_divergence("reverse_kl" if limit == "forward_kl" else "forward_kl")
    assert (found.exact(p, q) - other.exact(p, q)).abs() > 1e-2


@pytest.mark.parametrize("a", [0.2, 0.49999, 0.5, 0.50001, 0.8])
def test_both_ways_to_compute_alpha_are_the_same_function(a):
    u = torch.linspace(-3, 3, 13, dtype=torch.float64)
    t = u.exp()
    expected = (t ** (1 - a) - (1 - a) * t - a) / (a * (a - 1))
    torch.testing.assert_close(f_divergence("alpha", a).value(u), expected, **EXACT)


@pytest.mark.parametrize("a", [1e-5, 1 - 1e-5])
def test_alpha_near_its_limits_keeps_its_digits_in_float32(a):
    u = torch.linspace(-3, 3, 13)
    expected = f_divergence("alpha", a).value(u.double())
    torch.testing.assert_close(f_divergence("alpha", a).value(u).double(), expected, rtol=0, atol=1e-5)


def test_neyman_grows_as_the_ratio_alone_and_overflows_no_sooner():
    u = torch.tensor([-80.0, 80.0])
    torch.testing.assert_close(f_divergence("neyman").value(u), torch.full((2,), 80.0).exp())


# ------------------------------------------------------------------------------------------ over the whole vocabulary


@pytest.mark.parametrize("name", TABLE)
def test_the_exact_divergence_and_its_gradient_are_those_of_the_definition(name, one):
    theta, anchor = one
    logp, logq = theta.log_softmax(-1), anchor.log_softmax(-1)
    expected = by_table(name, one_token(theta), one_token(anchor))
    found = generator(name).exact(logp, logq)
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(gradient(found, theta), gradient(expected, theta), **EXACT)


@pytest.mark.parametrize("name", TABLE)
def test_the_exact_divergence_keeps_leading_dimensions(name):
    logp, logq = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(
        -1
    )
    whole = generator(name).exact(logp, logq)
    assert whole.shape == (3, 5)
    torch.testing.assert_close(whole[2, 4], generator(name).exact(logp[2, 4], logq[2, 4]), **EXACT)


def test_js_is_twice_the_jensen_shannon_divergence_and_standard_is_that_itself(one):
    p, q = (one_token(t).detach() for t in one)
    middle = (p.exp() + q.exp()).log() - math.log(2)
    jensen_shannon = (sequence_kl(p, middle) + sequence_kl(q, middle)) / 2
    half = f_divergence("js", standard=True)
    torch.testing.assert_close(f_divergence("js").exact(p[:, 0], q[:, 0]), 2 * jensen_shannon, **EXACT)
    torch.testing.assert_close(half.exact(p[:, 0], q[:, 0]), jensen_shannon, **EXACT)
    torch.testing.assert_close(half.value((p - q)[:, 0]), f_divergence("js").value((p - q)[:, 0]) / 2, **EXACT)
    torch.testing.assert_close(half.derivative(p - q), f_divergence("js").derivative(p - q) / 2, **EXACT)
    assert half.limit == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_that_neither_policy_has_add_nothing_to_value_or_gradient(name, dtype, one):
    p, q = (one_token(t).detach()[:, 0].to(dtype) for t in one)
    nothing = torch.full((2,), -math.inf, dtype=dtype)
    wide = torch.cat([p, nothing]).requires_grad_()
    narrow = p.clone().requires_grad_()
    found, expected = generator(name).exact(wide, torch.cat([q, nothing])), generator(name).exact(narrow, q)
    torch.testing.assert_close(found, expected)
    slope = gradient(found, wide)
    torch.testing.assert_close(slope[:4], gradient(expected, narrow))
    assert slope[4:].tolist() == [0, 0]


@pytest.mark.parametrize("name", TABLE)
def test_policies_without_a_common_token_are_at_f_of_0_plus_its_slope_at_infinity(name):
    p = torch.tensor([math.log(0.4), math.log(0.6), -math.inf, -math.inf], dtype=torch.float64)
    slope, start = LIMITS[name]
    found = float(generator(name).exact(p, p.flip(0)))
    assert found == (math.inf if math.inf in (slope, start) else pytest.approx(slope + start))


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("gap", [-50.0, 50.0])
def test_the_exact_divergence_is_finite_at_log_ratios_of_50(name, gap):
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([0.0, 0.5, -60.0], dtype=dtype).requires_grad_()
        anchor = torch.tensor([0.3, 0.0, -60.0 - gap], dtype=dtype).log_softmax(-1)
        found = generator(name).exact(logits.log_softmax(-1), anchor)
        assert found.isfinite()
        assert gradient(found, logits).isfinite().all()


@pytest.mark.parametrize("name", TABLE)
def test_small_divergences_survive_float32(name):
    logits = torch.linspace(-4, 4, 1000, dtype=torch.float64)
    p, q = logits.log_softmax(-1), (logits + 0.03 * torch.cos(7 * logits)).log_softmax(-1)
    found = generator(name).exact(p.float(), q.float())
    torch.testing.assert_close(found.double(), generator(name).exact(p, q), rtol=0, atol=2e-6)


def test_the_chi_squared_of_tokens_that_nearly_vanished_does_not_overflow_before_it_has_to():
    p = torch.tensor([0.0, -46.0])
    found = f_divergence("pearson").exact(p, torch.tensor([0.0, -136.0]))
    assert float(found) == pytest.approx(math.exp(2 * -46 + 136), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("alpha", {"alpha": 1.0}, "parameter 'alpha', value 1.0"),
        ("alpha", {"alpha": 0.0}, "parameter 'alpha', value 0.0"),
        ("tv", {"alpha": 0.5}, "unknown parameter 'alpha'"),
        ("js", {"level": "token"}, r"unknown parameter 'level', value 'token' .*\(known: standard\)"),
        ("jss", {}, r"unknown f-divergence 'jss'.*\(known: alpha, forward_kl"),
    ],
)
def test_what_an_exact_divergence_does_not_have_is_refused(name, given, message):
    with pytest.raises(ConfigError, match=message):
        exact_divergence(name, given)


def test_an_exact_divergence_has_the_parameters_of_its_configuration(one):
    p, q = (one_token(t).detach()[:, 0] for t in one)
    for name, given in (("alpha", {"alpha": 0.7}), ("js", {"standard": True}), ("tv", {})):
        assert torch.equal(exact_divergence(name, given)(p, q), f_divergence(name, **given).exact(p, q))


# ------------------------------------------------------------------------------------------------ on sampled tokens


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", TABLE)
def test_pseudo_reward_generator_and_exact_divergence_have_one_value_and_one_gradient(name, level, one):
    theta, anchor = one
    logp, logq = one_token(theta), one_token(anchor).detach()
    expected = by_table(name, logp, logq)
    sampled = entry(name, level=level)(inputs(logp), logq)
    generated = entry(name, form="generator", level=level)(inputs(logp), logq)
    for samples, outputs in ((logp, sampled), (logq, generated)):
        torch.testing.assert_close(under(samples, outputs.loss), expected, **EXACT)
        torch.testing.assert_close(under(samples, outputs.means["divergence"]), expected, **EXACT)
        torch.testing.assert_close(gradient(under(samples, outputs.loss), theta), gradient(expected, theta), **EXACT)


@pytest.mark.parametrize("name", TABLE)
def test_each_form_is_biased_on_the_samples_of_the_other(name, one):
    theta, anchor = one
    logp, logq = one_token(theta), one_token(anchor).detach()
    expected = gradient(by_table(name, logp, logq), theta)
    for samples, form in ((logq, "sampled"), (logp, "generator")):
        found = gradient(under(samples, entry(name, form=form)(inputs(logp), logq).loss), theta)
        assert (found - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", TABLE)
def test_at_sequence_level_the_divergence_is_that_of_whole_sequences(name, two):
    theta, anchor = two
    logp, logq = two_tokens(theta), two_tokens(anchor).detach()
    expected = by_table(name, logp, logq)
    for samples, form in ((logp, "sampled"), (logq, "generator")):
        outputs = entry(name, form=form, level="sequence")(inputs(logp), logq)
        assert outputs.loss.shape == (16,)
        assert torch.equal(outputs.means["divergence"], outputs.loss.detach()[:, None].expand(16, 2))
        torch.testing.assert_close(under(samples, outputs.loss), expected, **EXACT)
        torch.testing.assert_close(gradient(under(samples, outputs.loss), theta), gradient(expected, theta), **EXACT)


def of_tokens(name, theta, anchor, prefixes):
    """sum_t E_prefix[D_f(pi_t || anchor_t)] of `two_tokens` parameters, first tokens distributed as `prefixes` (V,)."""
    p, q = theta.softmax(-1), anchor.softmax(-1)
    each = (q * TABLE[name](p / q)).sum(-1)
    return each[0] + (prefixes.detach() * each[1:]).sum()


@pytest.mark.parametrize("name", TABLE)
def test_at_token_level_it_is_that_of_each_token_with_the_prefixes_that_were_sampled_held(name, two):
    theta, anchor = two
    logp, logq = two_tokens(theta), two_tokens(anchor).detach()
    for samples, form, first in ((logp, "sampled", theta[0]), (logq, "generator", anchor[0])):
        expected = of_tokens(name, theta, anchor, first.softmax(-1))
        loss = under(samples, entry(name, form=form)(inputs(logp), logq).loss)
        torch.testing.assert_close(loss, expected, **EXACT)
        torch.testing.assert_close(gradient(loss, theta), gradient(expected, theta), **EXACT)


def test_only_of_kl_the_sum_over_tokens_is_the_divergence_of_sequences(two):
    logp, logq = (two_tokens(t).detach() for t in two)
    same = {
        (name, form)
        for name in TABLE
        for samples, form in ((logp, "sampled"), (logq, "generator"))
        if (under(samples, entry(name, form=form)(inputs(logp), logq).loss) - by_table(name, logp, logq)).abs() < 1e-10
    }
    assert same == {("reverse_kl", "sampled"), ("forward_kl", "generator")}


@pytest.mark.parametrize("name", TABLE)
def test_even_of_kl_the_gradient_at_sampled_tokens_leaves_out_how_prefixes_move(name, two):
    theta, anchor = two
    logp, logq = two_tokens(theta), two_tokens(anchor).detach()
    found = gradient(under(logp, entry(name)(inputs(logp), logq).loss), theta)
    assert (found - gradient(by_table(name, logp, logq), theta)).abs().max() > 1e-3


def test_the_forward_kl_of_stored_samples_is_their_likelihood_with_a_control_variate(two):
    theta, anchor = two
    logp, logq = two_tokens(theta), two_tokens(anchor).detach()
    loss = entry("forward_kl", form="generator")(inputs(logp), logq).loss
    u = (logp - logq).exp()
    torch.testing.assert_close(loss, u - 1 - u.log(), **EXACT)
    nll = gradient(under(logq, -logp), theta)
    torch.testing.assert_close(gradient(under(logq, loss), theta), nll, **EXACT)


@pytest.mark.parametrize("form", ["sampled", "generator"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", TABLE)
def test_where_policy_and_anchor_agree_no_sample_has_a_divergence_or_a_gradient(name, level, form, two):
    logp = two_tokens(two[0]).detach().requires_grad_()
    outputs = entry(name, form=form, level=level)(inputs(logp), logp.detach())
    assert outputs.loss.abs().max() < 1e-14
    assert gradient(outputs.loss.sum(), logp).abs().max() < 1e-14
    assert not outputs.means["clamp"].any()


# --------------------------------------------------------------------------------------- samples of an older policy


@pytest.mark.parametrize("is_weight", ["none", "detached", "differentiable"])
@pytest.mark.parametrize("name", TABLE)
def test_samples_of_an_older_policy_need_a_weight_and_then_all_is_exact(name, is_weight, one, two):
    for policy, level, (theta, anchor) in ((one_token, "token", one), (two_tokens, "sequence", two)):
        logp, logq = policy(theta), policy(anchor).detach()
        old = policy(parameters(policy, seed=5)).detach()
        expected = by_table(name, logp, logq)
        outputs = entry(name, level=level, is_weight=is_weight)(inputs(logp, old_logp=old), logq)
        loss = under(old, outputs.loss)
        if is_weight == "none":
            assert (loss - expected).abs() > 1e-3
            assert (gradient(loss, theta) - gradient(expected, theta)).abs().max() > 1e-3
        else:
            torch.testing.assert_close(loss, expected, **EXACT)
            torch.testing.assert_close(gradient(loss, theta), gradient(expected, theta), **EXACT)


@pytest.mark.parametrize("name", TABLE)
def test_the_weight_of_a_token_leaves_the_prefixes_to_the_policy_that_sampled(name, two):
    theta, anchor = two
    logp, logq = two_tokens(theta), two_tokens(anchor).detach()
    first = parameters(two_tokens, seed=5).detach()
    old = two_tokens(first)
    expected = of_tokens(name, theta, anchor, first[0].softmax(-1))
    loss = under(old, entry(name, is_weight="detached")(inputs(logp, old_logp=old), logq).loss)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(gradient(loss, theta), gradient(expected, theta), **EXACT)


def test_a_weight_has_no_place_on_samples_of_the_anchor():
    logp = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"js: is_weight: detached .* form: generator .*leave is_weight out"):
        entry("js", form="generator", is_weight="detached")(inputs(logp), logp)


# ----------------------------------------------------------------------------------------------------- in the reward


def reinforce(logp, penalty):
    """Expected loss of REINFORCE for which each sequence is credited with minus the sum of its penalties."""
    return expected_loss(logp, penalty.sum(-1, keepdim=True) * logp)


@pytest.mark.parametrize("name", TABLE)
def test_minus_the_penalty_as_reward_has_the_gradient_of_the_divergence(name, one, two):
    for policy, level, (theta, anchor) in ((one_token, "token", one), (two_tokens, "sequence", two)):
        logp, logq = policy(theta), policy(anchor).detach()
        penalty = entry(name, level=level)(inputs(logp), logq).penalty
        assert penalty.shape == logp.shape
        assert not penalty.requires_grad
        expected = gradient(by_table(name, logp, logq), theta)
        torch.testing.assert_close(gradient(reinforce(logp, penalty), theta), expected, **EXACT)


@pytest.mark.parametrize("name", TABLE)
def test_of_whole_responses_only_reverse_kl_has_it_from_the_penalties_of_tokens(name, two):
    theta, anchor = two
    logp, logq = two_tokens(theta), two_tokens(anchor).detach()
    found = gradient(reinforce(logp, entry(name)(inputs(logp), logq).penalty), theta)
    off = (found - gradient(by_table(name, logp, logq), theta)).abs().max()
    assert off < 1e-10 if name == "reverse_kl" else off > 1e-3


@pytest.mark.parametrize("name", TABLE)
def test_a_token_credited_with_its_own_penalty_has_the_gradient_of_the_loss(name, two):
    theta, anchor = two
    logp, logq = two_tokens(theta), two_tokens(anchor).detach()
    outputs = entry(name)(inputs(logp), logq)
    found = gradient(expected_loss(logp, outputs.penalty * logp), theta)
    torch.testing.assert_close(found, gradient(expected_loss(logp, outputs.loss), theta), **EXACT)


def test_samples_of_the_anchor_have_no_form_for_the_reward():
    logp = torch.zeros(1, 1, dtype=torch.float64)
    assert entry("js", form="generator")(inputs(logp), logp).penalty is None


# ------------------------------------------------------------------------------------------------- masks and bounds


def test_a_row_is_its_unmasked_tokens_and_its_penalty_stands_at_the_last_of_them():
    mask = torch.tensor([[True, True, False], [True, False, True], [False, False, False], [True, True, True]])
    d = torch.tensor([[0.2, 0.3, 9.0], [0.2, 9.0, -0.5], [9.0, 9.0, 9.0], [0.1, 0.1, 0.1]], dtype=torch.float64)
    batch = inputs(d, mask=mask, anchors={"frozen": torch.zeros_like(d)}).masked()
    outputs = entry("pearson", level="sequence")(batch, batch.anchors["frozen"])
    ratio = torch.tensor([0.5, -0.3, 0.0, 0.3], dtype=torch.float64).exp()
    torch.testing.assert_close(outputs.loss, (ratio - 1) ** 2 / ratio, **EXACT)
    expected = torch.zeros_like(d)
    expected[0, 1], expected[1, 2], expected[3, 2] = 2 * (ratio - 1)[[0, 1, 3]]
    torch.testing.assert_close(outputs.penalty, expected, **EXACT)
    assert outputs.penalty.dtype == torch.float64


FAR = [-50.0, -20.0, -1.0, 0.0, 20.0, 50.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("form", "is_weight"), [("sampled", "none"), ("sampled", "detached"), ("generator", "none")])
@pytest.mark.parametrize("name", TABLE)
def test_log_ratios_of_50_are_finite_held_at_20_and_counted_and_keep_a_gradient(name, form, is_weight, level, dtype):
    d = torch.tensor(FAR, dtype=dtype)[:, None]
    logp = (d - 60).requires_grad_()
    given = inputs(logp, old_logp=(0.9 * d - 60))
    outputs = entry(name, form=form, level=level, is_weight=is_weight)(given, torch.full_like(d, -60.0))
    slope = gradient(outputs.loss.sum(), logp)[:, 0]
    assert outputs.means["clamp"][:, 0].tolist() == [True, False, False, False, False, True]
    assert outputs.loss.dtype == dtype
    for found in (outputs.loss, slope, outputs.means["divergence"], outputs.penalty):
        assert found is None or found.isfinite().all()
    f = generator(name)
    held = d[:, 0].clamp(-20, 20)
    w = (0.1 * d[:, 0]).exp() if is_weight == "detached" else torch.ones_like(held)
    if form == "generator":
        expected = f.derivative(held) * held.exp()
    else:
        expected = w * f.derivative(held if f.exponential else d[:, 0])
    torch.testing.assert_close(slope, expected)
    assert slope[0] < 0 < slope[-1]


def test_weights_beyond_the_bound_are_held_and_counted():
    d = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64)
    old = d - torch.tensor([[-50.0, 1.0, 50.0]])
    outputs = entry("js", is_weight="detached")(inputs(d, old_logp=old), torch.zeros_like(d))
    assert outputs.means["clamp"].tolist() == [[True, False, True]]
    plain = entry("js")(inputs(d), torch.zeros_like(d)).loss
    torch.testing.assert_close(outputs.loss, plain * torch.tensor([[-20.0, 1.0, 20.0]], dtype=torch.float64).exp())


@pytest.mark.parametrize("name", TABLE)
def test_forms_levels_and_weights_that_do_not_exist_are_refused(name):
    for key in ("form", "level", "is_weight"):
        with pytest.raises(ConfigError, match=f"divergence '{name}': parameter '{key}', value 'both'"):
            entry(name, **{key: "both"})


def test_parameters_belong_to_their_divergence(one):
    logp, logq = one_token(one[0]).detach(), one_token(one[1])
    for name, given in (("alpha", {"alpha": 0.8}), ("js", {"standard": True})):
        loss = DIVERGENCES.create(Component(name=name, **given))(inputs(logp), logq).loss
        expected = f_divergence(name, **given).exact(logp[:, 0], logq[:, 0])
        torch.testing.assert_close(under(logp, loss), expected, **EXACT)
    with pytest.raises(ConfigError, match=r"parameter 'alpha', value 1\.5"):
        DIVERGENCES.create(Component(name="alpha", alpha=1.5))
    with pytest.raises(ConfigError, match="divergence 'tv': unknown parameter 'alpha'"):
        DIVERGENCES.create(Component(name="tv", alpha=0.5))

"""Losses beside the policy loss: likelihoods, limited confidence (T7), likelihood rewards (T6), preferences."""

import math

import pytest
import torch
from objective_cases import V, gradient, inputs, one_token, parameters, two_tokens
from torch.nn.functional import logsigmoid

from rlpost.config import Component, ConfigError
from rlpost.objective.terms import TERMS

EXACT = {"rtol": 0, "atol": 1e-10}


def term(name, batch, anchor=None, **params):
    return TERMS.create(Component(name=name, **params))(batch, anchor)


def batch_of(logp, **given):
    """Masked inputs, one group for each row unless given."""
    return inputs(logp, **{"group": torch.arange(len(logp)), **given}).masked()


# ------------------------------------------------------------------------------------------------------- likelihoods


def test_sft_is_the_negative_log_likelihood_and_reads_no_advantages():
    logp = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], dtype=torch.float64, requires_grad=True)
    found = term("sft", batch_of(logp, advantages=torch.full((2, 2), -7.0, dtype=torch.float64)))
    assert torch.equal(found.loss, -logp)
    assert (gradient(found.loss.sum(), logp) == -1).all()


def latent(seed=5):
    """A policy of a reasoning token z and an answer token a, as `two_tokens`: (V,) log pi(z), (V,) log pi(a* | z)."""
    theta = parameters(two_tokens, seed)
    return theta, theta[0].log_softmax(-1), theta[1:].log_softmax(-1)[:, 2]


def answer_loss(answer, weight):
    """(n,) losses of the reference answer after n reasonings; two tokens wide, the second one padding."""
    wide = torch.stack([answer, torch.full_like(answer, torch.nan)], 1)
    advantages = torch.stack([weight, torch.full_like(weight, torch.nan)], 1)
    mask = torch.tensor([True, False]).expand(len(answer), 2)
    return term("reference_nll", batch_of(wide, advantages=advantages, mask=mask)).loss.sum(1)


@pytest.mark.parametrize("kind", ["verifree", "log-prob"])
def test_reinforce_on_z_and_the_reference_term_are_together_the_gradient_of_the_expected_likelihood_reward(kind):
    theta, z, answer = latent()
    likelihood = answer.exp() if kind == "verifree" else answer
    reward = likelihood.detach()
    weight = reward if kind == "verifree" else torch.ones_like(reward)

    sampled = z.detach().exp()
    reinforce = (sampled * -reward * z).sum()
    found = gradient(reinforce + (sampled * answer_loss(answer, weight)).sum(), theta)
    exact = -gradient((z.exp() * likelihood).sum(), theta)
    torch.testing.assert_close(found, exact, **EXACT)
    assert (gradient(reinforce, theta) - exact).abs().max() > 1e-2  # without the term half of it is missing


def test_with_group_softmax_weights_the_reference_term_completes_the_gradient_of_the_log_of_the_mean_likelihood():
    theta, z, answer = latent()
    first, second = (index.flatten() for index in torch.meshgrid(torch.arange(V), torch.arange(V), indexing="ij"))
    both = torch.stack([answer[first], answer[second]], 1)  # all V^2 draws of two reasonings
    value = both.logsumexp(1) - math.log(2)
    share = both.detach().softmax(1)
    chosen = z[first] + z[second]

    sampled = chosen.detach().exp()
    nll = answer_loss(both.flatten(), share.flatten()).reshape(-1, 2).sum(1)
    found = gradient((sampled * (-value.detach() * chosen + nll)).sum(), theta)
    torch.testing.assert_close(found, -gradient((chosen.exp() * value).sum(), theta), **EXACT)


# ------------------------------------------------------------------------------------------------ limited confidence


def dco_at(logp, n, dtype=torch.float64):
    """(loss, F, slope) with the sequence's log-prob spread over two tokens and a masked third."""
    total = torch.as_tensor(logp, dtype=dtype).reshape(-1, 1)
    tokens = torch.cat([0.25 * total, 0.75 * total, torch.full_like(total, torch.nan)], 1).requires_grad_()
    mask = torch.tensor([True, True, False]).expand(len(total), 3)
    batch = batch_of(tokens, mask=mask)
    found = term("dco", batch, n=n)
    assert found.loss.shape == (len(total),)
    slope = gradient(found.loss.sum(), tokens)
    assert (slope[:, 2] == 0).all()
    torch.testing.assert_close(slope[:, 0], slope[:, 1], rtol=0, atol=0)
    assert (found.means["factor"][:, 2] == 0).all()
    return found.loss.detach(), found.means["factor"][:, 0], slope[:, 0]


@pytest.mark.parametrize("n", [1, 2, 16, 256])
def test_dco_is_minus_log_of_the_chance_among_n_and_its_gradient_is_the_factor_times_that_of_the_likelihood(n):
    p = torch.linspace(0.01, 0.95, 200, dtype=torch.float64)
    logp = p.log().requires_grad_()
    written = -torch.log(1 - (1 - logp.exp()) ** n)
    factor = n * p * (1 - p) ** (n - 1) / (1 - (1 - p) ** n)
    loss, reported, slope = dco_at(p.log(), n)
    torch.testing.assert_close(loss, written.detach(), **EXACT)
    torch.testing.assert_close(slope, gradient(written.sum(), logp), **EXACT)
    torch.testing.assert_close(reported, factor, **EXACT)
    torch.testing.assert_close(slope, -factor, **EXACT)


def test_dco_with_one_sample_is_the_likelihood_of_the_sequence():
    logp = torch.tensor([-900.0, -40.0, -18.0, -3.0, -1e-6, -1e-12], dtype=torch.float64)
    loss, _, slope = dco_at(logp, 1)
    torch.testing.assert_close(loss, -logp, rtol=1e-12, atol=0)
    torch.testing.assert_close(slope, -torch.ones_like(logp), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [4, 64, 10**6])
def test_dco_passes_from_its_series_to_its_exact_form_without_a_step(dtype, n):
    cut = math.log(torch.finfo(dtype).eps) / 2 - math.log(n)
    logp = torch.tensor([cut - 1e-4, cut + 1e-4], dtype=dtype)
    loss, factor, slope = dco_at(logp, n, dtype)
    p = logp.double().exp()
    series = -logp.double() - math.log(n) + (n - 1) / 2 * p + (n - 1) ** 2 / 8 * p**2 - (n - 1) * (n - 2) / 6 * p**2
    tolerance = {"rtol": 0, "atol": 50 * torch.finfo(dtype).eps}
    torch.testing.assert_close(loss.double(), series, **tolerance)
    torch.testing.assert_close(factor.double(), 1 - (n - 1) / 2 * p, **tolerance)
    torch.testing.assert_close(slope, -factor, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dco_of_an_answer_too_unlikely_for_its_probability_to_be_a_number_is_the_likelihood(dtype):
    loss, factor, slope = dco_at([-5000.0], 64, dtype)
    assert loss.item() == pytest.approx(5000 - math.log(64), rel=1e-6)
    assert factor.item() == pytest.approx(1, abs=1e-6)
    assert slope.item() == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dco_of_a_certain_answer_has_no_gradient_left_and_no_nan(dtype):
    loss, factor, slope = dco_at([0.0, 0.0], 64, dtype)
    assert (loss.abs() < 1e-6).all()
    assert (factor.abs() < 1e-6).all()
    assert (slope.abs() < 1e-6).all()
    assert dco_at([0.0], 1, dtype)[2].item() == pytest.approx(-1, abs=1e-5)


def test_dco_needs_a_number_of_samples_of_at_least_one():
    with pytest.raises(ConfigError, match="loss term 'dco': missing n"):
        TERMS.create(Component(name="dco"))
    with pytest.raises(ConfigError, match="loss term 'dco': parameter 'n', value 0"):
        TERMS.create(Component(name="dco", n=0))


# ------------------------------------------------------------------------------------------------------- preferences

PREFERENCES = {
    "dpo": {},
    "f_dpo": {"divergence": "js"},
    "h_dpo": {"alpha": 0.5},
}


def pair_batch(logp, winner, loser, **given):
    """Pairs of rows of `logp` (rows, T): winners first, then losers in another order of pairs."""
    winner, loser = torch.as_tensor(winner), torch.as_tensor(loser)
    rows = torch.cat([winner, loser.flip(0)])
    group = torch.cat([torch.arange(len(winner)), torch.arange(len(winner)).flip(0)]) * 7 - 3
    sign = torch.cat([torch.ones(len(winner)), -torch.ones(len(loser))]).double()
    batch = inputs(logp[rows], group=group, advantages=sign[:, None].expand(len(rows), logp.shape[1]), **given)
    return batch.masked(), rows


def pair_losses(name, theta, theta_ref, winner, loser, policy=one_token, **params):
    """(P,) the loss of each pair, after checking that it stands at both of its rows."""
    batch, rows = pair_batch(policy(theta), winner, loser)
    loss = term(name, batch, policy(theta_ref).detach()[rows], **params).loss
    assert loss.shape == (2 * len(winner),)
    at_winners, at_losers = loss[: len(winner)], loss[len(winner) :].flip(0)
    assert torch.equal(at_winners, at_losers)
    return at_winners


@pytest.fixture
def two():
    return parameters(two_tokens, seed=3), parameters(two_tokens, seed=4).detach()


WINNER, LOSER = [0, 5, 9, 15], [3, 1, 12, 2]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_has_the_loss_and_the_gradient_of_its_closed_form(two, smoothing):
    theta, ref = two
    logp, ref_logp = two_tokens(theta).sum(1), two_tokens(ref).sum(1)
    margin = 0.3 * ((logp - ref_logp)[WINNER] - (logp - ref_logp)[LOSER]).detach()
    found = pair_losses("dpo", theta, ref, WINNER, LOSER, two_tokens, beta=0.3, label_smoothing=smoothing)
    value = -(1 - smoothing) * margin.sigmoid().log() - smoothing * (-margin).sigmoid().log()
    torch.testing.assert_close(found.detach(), value, **EXACT)
    pull = (1 - smoothing) * (-margin).sigmoid() - smoothing * margin.sigmoid()
    exact = -gradient((0.3 * pull * (logp[WINNER] - logp[LOSER])).sum(), theta)
    torch.testing.assert_close(gradient(found.sum(), theta), exact, **EXACT)


def test_the_mean_over_sequences_is_the_mean_over_pairs_and_muted_rows_are_no_pair(two):
    theta, ref = two
    expected = pair_losses("dpo", theta, ref, WINNER, LOSER, two_tokens).mean()
    batch, rows = pair_batch(two_tokens(theta), [*WINNER, 5, 5], [*LOSER, 1, 1])
    mask = batch.mask.clone()
    mask[[4, 5, 6, 7]] = False  # the last two pairs, and one of them is a repetition
    outputs = term("dpo", batch.masked(mask), two_tokens(ref)[rows].masked_fill(~mask, 0.0))
    torch.testing.assert_close(outputs.loss.sum() / mask.any(1).sum(), expected, **EXACT)
    assert (outputs.loss[[4, 5, 6, 7]] == 0).all()


def test_preferences_report_accuracy_and_margin_of_their_pairs(two):
    theta, ref = two
    batch, rows = pair_batch(two_tokens(theta), WINNER, LOSER)
    outputs = term("dpo", batch, two_tokens(ref)[rows], beta=0.3)
    ratio = (two_tokens(theta) - two_tokens(ref)).sum(1).detach()
    margin = 0.3 * (ratio[WINNER] - ratio[LOSER])
    assert 0 < (margin > 0).sum() < 4
    torch.testing.assert_close(outputs.means["preference/margin"].mean(), margin.mean(), **EXACT)
    assert outputs.means["preference/accuracy"].mean().item() == (margin > 0).double().mean().item()
    assert outputs.means["preference/margin"].shape == batch.mask.shape
    assert not outputs.means["preference/margin"].requires_grad


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_micro_batch_without_a_pair_has_loss_0_that_still_runs_backward(name):
    logp = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    batch = batch_of(logp, mask=torch.zeros(2, 3, dtype=torch.bool))
    loss = term(name, batch, torch.zeros_like(logp.detach()), **PREFERENCES[name]).loss
    assert loss.tolist() == [0, 0]
    assert not gradient(loss.sum(), logp).any()


@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize(
    ("group", "sign", "message"),
    [
        ([4, 5], [1, -1], "pair 4 has 1 winners, 0 losers and 0 rows that are neither"),
        ([4, 4], [1, 1], "pair 4 has 2 winners, 0 losers"),
        ([4, 4], [-1, -1], "pair 4 has 0 winners, 2 losers"),
        ([4, 4], [1, 0], "pair 4 has 1 winners, 0 losers and 1 rows that are neither"),
        ([4, 4, 4], [1, -1, -1], "pair 4 has 1 winners, 2 losers"),
        ([4, 4, 4], [1, -1, 0], "pair 4 has 1 winners, 1 losers and 1 rows that are neither"),
        ([9, 9, 2], [1, -1, -1], "pair 2 has 0 winners, 1 losers"),
    ],
)
def test_a_pair_that_is_not_one_winner_and_one_loser_is_refused(name, group, sign, message):
    logp = torch.full((len(group), 2), -1.0, dtype=torch.float64)
    advantages = torch.tensor(sign, dtype=torch.float64)[:, None].expand_as(logp)
    batch = batch_of(logp, group=torch.tensor(group), advantages=advantages)
    with pytest.raises(ValueError, match=message):
        term(name, batch, logp, **PREFERENCES[name])


def test_a_pair_of_which_the_mask_takes_one_half_is_refused():
    batch, _ = pair_batch(torch.full((2, 2), -1.0, dtype=torch.float64), [0], [1])
    mask = batch.mask.clone()
    mask[1] = False
    with pytest.raises(ValueError, match=r"1 winners, 0 losers .* no selector takes the tokens of just one"):
        term("dpo", batch.masked(mask), torch.zeros(2, 2, dtype=torch.float64))


def test_a_preference_without_log_probs_of_its_anchor_is_refused():
    batch, _ = pair_batch(torch.full((2, 2), -1.0, dtype=torch.float64), [0], [1])
    with pytest.raises(ValueError, match="log-probs are not there"):
        term("dpo", batch)


def test_f_dpo_with_reverse_kl_and_h_dpo_with_alpha_1_are_dpo(two):
    theta, ref = two
    expected = pair_losses("dpo", theta, ref, WINNER, LOSER, two_tokens, beta=0.3)
    slope = gradient(expected.sum(), theta)
    for name, params in (("f_dpo", {"divergence": "reverse_kl"}), ("h_dpo", {"alpha": 1.0})):
        found = pair_losses(name, theta, ref, WINNER, LOSER, two_tokens, beta=0.3, **params)
        torch.testing.assert_close(found, expected, **EXACT)
        torch.testing.assert_close(gradient(found.sum(), theta), slope, **EXACT)


def test_f_dpo_goes_from_dpo_to_forward_kl_as_alpha_goes_from_0_to_1(two):
    theta, ref = two

    def losses(**params):
        return pair_losses("f_dpo", theta, ref, WINNER, LOSER, two_tokens, **params)

    near = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(losses(divergence="alpha", alpha=1e-7), losses(divergence="reverse_kl"), **near)
    torch.testing.assert_close(losses(divergence="alpha", alpha=1 - 1e-7), losses(divergence="forward_kl"), **near)
    assert (losses(divergence="alpha", alpha=0.5) - losses(divergence="reverse_kl")).abs().max() > 1e-3


GENERATORS = {
    "reverse_kl": lambda t: t * t.log(),
    "forward_kl": lambda t: -t.log(),
    "js": lambda t: t * t.log() - (t + 1) * ((t + 1) / 2).log(),
    "alpha": lambda t: (t**0.3 - 0.3 * t - 0.7) / (0.7 * -0.3),
}


def every_pair():
    """Both orders of each of the V (V - 1) / 2 pairs of arms: winners, losers."""
    first, second = torch.triu_indices(V, V, 1)
    return torch.cat([first, second]), torch.cat([second, first])


def slope_of_bradley_terry(name, theta, theta_ref, reward, **params):
    """For each pair of arms, the gradient of the loss in expectation over who wins: (pairs, V)."""
    winner, loser = every_pair()
    chance = (reward[winner] - reward[loser]).sigmoid()
    weighted = chance * pair_losses(name, theta, theta_ref, winner, loser, **params)
    return torch.stack([gradient(loss, theta) for loss in weighted.reshape(2, -1).sum(0)])


@pytest.mark.parametrize("divergence", GENERATORS)
def test_f_dpo_is_at_rest_exactly_where_the_reward_is_beta_times_the_derivative_of_the_generator(divergence):
    theta, ref = parameters(one_token, seed=1), parameters(one_token, seed=2).detach()
    ratio = (one_token(theta) - one_token(ref)).detach().exp()[:, 0].requires_grad_()
    reward = 0.4 * gradient(GENERATORS[divergence](ratio).sum(), ratio)
    params = {"divergence": divergence, "beta": 0.4, **({"alpha": 0.7} if divergence == "alpha" else {})}
    assert slope_of_bradley_terry("f_dpo", theta, ref, reward, **params).abs().max() < 1e-12
    elsewhere = slope_of_bradley_terry("f_dpo", theta, ref, reward.flip(0), **params)
    assert elsewhere.abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_h_dpo_is_at_rest_at_its_optimum_for_every_pair_and_only_there(alpha):
    beta, ref = 0.4, parameters(one_token, seed=2).detach()
    reward = torch.tensor([0.3, -0.6, 1.1, 0.2], dtype=torch.float64)
    optimum = ((ref.log_softmax(-1) / alpha) + reward / (alpha * beta)).requires_grad_()
    assert slope_of_bradley_terry("h_dpo", optimum, ref, reward, alpha=alpha, beta=beta).abs().max() < 1e-12
    of_dpo = (ref.log_softmax(-1) + reward / beta).requires_grad_()
    found = slope_of_bradley_terry("h_dpo", of_dpo, ref, reward, alpha=alpha, beta=beta).abs().max()
    assert (found < 1e-12) == (alpha == 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", GENERATORS)
def test_f_dpo_is_finite_at_log_ratios_of_50_and_says_where_it_is_bounded(divergence, dtype):
    u = torch.tensor([[-50.0], [2.0], [50.0], [-2.0]], dtype=dtype)  # winners of pairs 0 and 1, then their losers
    logp = (u - 60).requires_grad_()
    batch = batch_of(
        logp,
        group=torch.tensor([0, 1, 0, 1]),
        advantages=torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=dtype),
    )
    outputs = term("f_dpo", batch, torch.full_like(u, -60.0), divergence=divergence)
    assert outputs.loss.isfinite().all()
    slope = gradient(outputs.loss.sum(), logp).flatten()
    assert slope.isfinite().all()
    assert (slope[[1, 3]] != 0).all()
    if divergence in ("forward_kl", "alpha"):
        assert outputs.means["clamp"].tolist() == [[True], [False], [True], [False]]
        assert slope[[0, 2]].tolist() == [0, 0]
    else:
        assert "clamp" not in outputs.means
        assert slope[0] < 0


@pytest.mark.parametrize("divergence", ["tv", "pearson", "neyman", "hellinger", "wasserstein"])
def test_f_dpo_refuses_a_divergence_that_gives_no_preference_loss_and_says_why(divergence):
    reason = "must be one of reverse_kl" if divergence == "wasserstein" else f"{divergence} gives no preference loss"
    with pytest.raises(ConfigError, match=rf"'f_dpo': parameter 'divergence', value '{divergence}': .*{reason}"):
        TERMS.create(Component(name="f_dpo", divergence=divergence))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("dpo", {"beta": 0.0}, "parameter 'beta', value 0.0"),
        ("dpo", {"label_smoothing": 0.5}, "parameter 'label_smoothing', value 0.5"),
        ("f_dpo", {"divergence": "alpha", "alpha": 1.0}, "parameter 'alpha', value 1.0"),
        ("h_dpo", {}, "missing alpha"),
        ("h_dpo", {"alpha": -1.0}, "parameter 'alpha', value -1.0"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(name, params, message):
    with pytest.raises(ConfigError, match=rf"loss term '{name}': {message}"):
        TERMS.create(Component(name=name, **params))


@pytest.mark.parametrize("name", PREFERENCES)
def test_the_loss_keeps_the_dtype_and_is_that_of_float64(name):
    logp = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    batch, rows = pair_batch(logp, [0], [1])
    batch = inputs(logp[rows], group=batch.group, advantages=batch.advantages.float())
    anchor = torch.tensor([[-1.5, -1.0], [-2.0, -0.5]])
    found = term(name, batch, anchor, **PREFERENCES[name]).loss
    assert found.dtype == torch.float32
    double, _ = pair_batch(logp.detach().double(), [0], [1])
    expected = term(name, double, anchor.double(), **PREFERENCES[name]).loss
    torch.testing.assert_close(found.detach().double(), expected, rtol=1e-6, atol=0)


def test_dpo_and_the_likelihood_of_the_winner_are_iterative_rpo(two):
    theta, ref = two
    batch, rows = pair_batch(two_tokens(theta), WINNER, LOSER)
    preference = term("dpo", batch, two_tokens(ref)[rows]).loss.sum() / 8
    winners = batch.masked(batch.advantages > 0)
    likelihood = (term("sft", winners).loss.sum(1) / 2).sum() / 4
    logp = two_tokens(theta)
    margin = 0.1 * ((logp - two_tokens(ref)).sum(1)[WINNER] - (logp - two_tokens(ref)).sum(1)[LOSER])
    written = (-logsigmoid(margin) - logp[WINNER].mean(1)).mean()
    torch.testing.assert_close(preference + likelihood, written, **EXACT)


def test_each_term_says_what_it_makes_sense_on():
    assert TERMS.names() == ["dco", "dpo", "f_dpo", "h_dpo", "reference_nll", "sft"]
    for name in ("dpo", "f_dpo", "h_dpo"):
        assert TERMS.trait(name, "sources", None) == ("pair",)
        assert TERMS.trait(name, "anchored", None) is True
    assert TERMS.trait("reference_nll", "sources", None) == ("reference",)
    assert TERMS.trait("dco", "sources", None) == ("sft", "rehearsal", "success_memory")
    assert "success_memory" in TERMS.trait("sft", "sources", None)
    assert not any(TERMS.trait(name, "anchored", None) for name in ("sft", "reference_nll", "dco"))

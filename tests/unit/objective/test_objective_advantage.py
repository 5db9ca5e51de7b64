"""Credit: values by hand, groups without a signal, and expected gradients over every batch there can be (T5, T6)."""

import functools
import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from objective_cases import V, gradient, one_token, parameters, two_tokens

from rlpost import config
from rlpost.config import Component, ConfigError
from rlpost.objective.advantage import ADVANTAGES, group_statistics
from rlpost.objective.types import CreditInputs

EXACT = {"rtol": 0, "atol": 1e-10}
# Entries that compare within groups: credit depends on differences alone, so equal rewards say nothing.
GROUP_WISE = {
    "grpo": {},
    "dr_grpo": {},
    "rloo": {},
    "reinforce_pp_baseline": {},
    "gpg": {},
    "normalized": {"std": "batch"},
    "pass_at_k": {"k": 2},
    "jepo_loo": {},
}
ALL = {**GROUP_WISE, "reinforce_pp": {"gamma": 0.5}, "f_dpg": {}, "trice": {}}


def tensor(values):
    return torch.as_tensor(values, dtype=torch.float64)


def samples(rewards, group=None, mask=None, **given):
    """One group and one token for each sample, unless given otherwise."""
    rewards = tensor(rewards)
    group = torch.zeros(len(rewards), dtype=torch.int64) if group is None else torch.as_tensor(group)
    mask = torch.ones(len(rewards), 1, dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
    defaults = {
        "correct": rewards > 0.5,
        "truncated": torch.zeros(len(rewards), dtype=torch.bool),
        "tokens": torch.zeros(mask.shape, dtype=torch.int64),
        "max_tokens": mask.shape[1],
    }
    return CreditInputs(rewards=rewards, group=group, mask=mask, **{**defaults, **given})


def estimate(name, batch, **params):
    found = ADVANTAGES.create(Component(name=name, **params))(batch)
    assert found.dtype == torch.float64
    assert found.shape in (batch.rewards.shape, batch.mask.shape)
    return found


def credit(name, rewards, group=None, **params):
    return estimate(name, samples(rewards, group), **params).tolist()


def near(values):
    return pytest.approx(values, abs=1e-10)


def test_the_registry_holds_what_the_configuration_knows():
    assert ADVANTAGES.names() == sorted(config.ADVANTAGES) == sorted(ALL)


# ------------------------------------------------------------------------------------------------------ by hand


def test_each_group_is_centred_and_scaled_by_its_own_sample_deviation():
    # Group 7: mean 0.25, squared deviations 0.5625 + 3 * 0.0625 = 0.75, / 3 = 0.25, root 0.5.
    # Group 3: mean 3, squared deviations 1 + 1 = 2, / 1 = 2.
    half = 2**-0.5
    found = credit("grpo", [1, 2, 0, 0, 4, 0], [7, 3, 7, 7, 3, 7], eps=1e-12)
    assert found == near([1.5, -half, -0.5, -0.5, half, -0.5])


def test_eps_is_added_to_the_deviation():
    assert credit("grpo", [1, 0, 0, 0], eps=0.5) == near([0.75, -0.25, -0.25, -0.25])


def test_ddof_0_is_the_population_deviation():
    assert credit("grpo", [1, 0], ddof=0, eps=1e-12) == near([1, -1])  # mean 0.5, variance 0.25


def test_without_the_deviation_only_a_mean_is_taken_off():
    rewards, group = [3, 1, 5, 5, 9], [0, 0, 1, 1, 2]
    for name, params in [("grpo", {"normalize_std": False}), ("dr_grpo", {})]:
        assert credit(name, rewards, group, **params) == [1, -1, 0, 0, 0]
    # 3 - 1 and 1 - 3; the sample alone in group 2 has nothing to be compared with
    assert credit("rloo", rewards, group) == [2, -2, 0, 0, 0]


def test_token_rewards_are_part_of_what_is_compared():
    batch = samples([1, 1], mask=[[1, 1, 0], [1, 0, 0]], token_rewards=tensor([[-0.5, -1, 99], [0, 99, 99]]))
    assert estimate("dr_grpo", batch).tolist() == near([-0.75, 0.75])


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        ("none", [3, 1, 6, 2]),
        ("group", [1, -1, 2, -2]),
        ("group_loo", [2, -2, 4, -4]),
        ("batch", [0, -2, 3, -1]),
    ],
)
def test_the_means_of_the_one_normalisation(mean, expected):
    assert credit("normalized", [3, 1, 6, 2], [0, 0, 1, 1], mean=mean, std="none") == near(expected)


def test_the_deviation_of_the_batch_is_that_of_the_centred_rewards():
    # Group means 101 and 4 leave 1, -1, 2, -2: variance 10 / 3. The rewards themselves differ by a hundred.
    scale = math.sqrt(10 / 3)
    found = credit("normalized", [102, 100, 6, 2], [0, 0, 1, 1], mean="group", std="batch", eps=1e-12)
    assert found == near([1 / scale, -1 / scale, 2 / scale, -2 / scale])


def test_the_deviation_over_tokens_counts_a_sample_as_often_as_it_has_tokens():
    # Centred -1 and 1, on one and on three tokens: mean 0.5, variance (2.25 + 3 * 0.25) / 4 = 0.75.
    batch = samples([1, 3], mask=[[1, 0, 0], [1, 1, 1]])
    found = estimate("normalized", batch, mean="group", std="batch_tokens", ddof=0, eps=1e-12)
    low, high = -1.5 / math.sqrt(0.75), 0.5 / math.sqrt(0.75)
    torch.testing.assert_close(found, tensor([[low, 0, 0], [high, high, high]]), **EXACT)
    assert torch.equal(found, estimate("reinforce_pp_baseline", batch, ddof=0, eps=1e-12))


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("grpo", {"mean": "group", "std": "group"}),
        ("dr_grpo", {"mean": "group", "std": "none"}),
        ("rloo", {"mean": "group_loo", "std": "none"}),
        ("reinforce_pp_baseline", {"mean": "group", "std": "batch_tokens"}),
        ("gpg", {"mean": "group", "std": "none", "scale": "age"}),
        ("reinforce_pp", {"mean": "none", "std": "batch_tokens"}),
    ],
)
def test_the_named_estimators_are_choices_of_the_one_normalisation(name, spec):
    generator = torch.Generator().manual_seed(3)
    batch = samples(
        [0.0, 1.0, 2.0, 1.5, 1.5, 4.0, 0.5],
        [0, 0, 0, 1, 1, 2, 2],
        torch.rand(7, 5, generator=generator).cummin(1).values > 0.1,
    )
    torch.testing.assert_close(
        batch.per_token(estimate(name, batch)), batch.per_token(estimate("normalized", batch, **spec)), **EXACT
    )


# ------------------------------------------------------------------------------------------------- degenerate groups


@pytest.mark.parametrize("name", GROUP_WISE)
def test_groups_of_equal_rewards_get_exactly_0_even_when_their_mean_rounds(name):
    params = GROUP_WISE[name]
    equal = [1.0] * 7 + [0.0] * 3 if name == "pass_at_k" else [0.1] * 7 + [0.3] * 3
    assert (estimate(name, samples(equal, [0] * 7 + [1] * 3), **params) == 0).all()


@pytest.mark.parametrize("name", [n for n in GROUP_WISE if n not in ("pass_at_k", "reinforce_pp_baseline")])
def test_a_sample_alone_in_its_group_gets_exactly_0(name):
    found = credit(name, [5, 1, 2], [0, 1, 1], **GROUP_WISE[name])
    assert found[0] == 0
    assert found[1] < 0 < found[2]


@pytest.mark.parametrize("name", [n for n in GROUP_WISE if n not in ("pass_at_k", "jepo_loo")])
@pytest.mark.parametrize("rewards", [[1e30, -1e30, 0.0], [5e-324, 0.0, 0.0], [1e30, 1e30, 5e-324]], ids=str)
def test_enormous_and_tiny_rewards_give_finite_advantages(name, rewards):
    assert torch.isfinite(estimate(name, samples(rewards), **GROUP_WISE[name])).all()


def test_group_statistics_of_equal_values_are_exactly_0():
    found = group_statistics(tensor([0.1] * 3 + [7.0]), torch.tensor([5, 5, 5, -2]), ddof=1)
    assert found.count.tolist() == [3, 3, 3, 1]
    assert found.deviation.tolist() == found.std.tolist() == [0] * 4


# ------------------------------------------------------------------------- expected gradients over all V^G samples


def all_groups(sequences, size):
    """(sequences^size, size) indices: every group of samples there can be."""
    return torch.cartesian_prod(*[torch.arange(sequences)] * size).reshape(-1, size)


def each_group(name, rewards, picked, mask=None, **params):
    """(groups, size) credit where every group is a prompt of one batch; right for what does not mix groups."""
    group = torch.arange(len(picked))[:, None].expand(picked.shape)
    given = {key: params.pop(key)[picked.flatten()] for key in ("old_logp", "behavior_logp") if key in params}
    anchors = {key: value[picked.flatten()] for key, value in params.pop("anchors", {}).items()}
    mask = None if not anchors else torch.ones_like(given["old_logp"]).bool()
    batch = samples(rewards[picked].flatten(), group.flatten(), mask, anchors=anchors, **given)
    return estimate(name, batch, **params).reshape(picked.shape)


def expected_gradient(theta, logp, credits, picked, sampled=None):
    """E over groups of the mean over samples of A_i grad log pi(y_i); logp and `sampled` (sequences,)."""
    sampled = logp.detach() if sampled is None else sampled
    chance = sampled[picked].sum(1).exp()
    return gradient((chance * (credits * logp[picked]).mean(1)).sum(), theta)


def one_token_case(seed=0):
    theta = parameters(one_token, seed)
    return theta, one_token(theta).squeeze(1), tensor([1.0, 0.0, 2.5, -1.0])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_rloo_is_the_policy_gradient_and_dr_grpo_is_short_of_it_by_one_sample(size):
    theta, logp, rewards = one_token_case()
    picked = all_groups(V, size)
    exact = gradient((logp.exp() * rewards).sum(), theta)
    for name, factor in [("rloo", 1.0), ("dr_grpo", (size - 1) / size)]:
        found = expected_gradient(theta, logp, each_group(name, rewards, picked), picked)
        torch.testing.assert_close(found, factor * exact, **EXACT)


def test_rloo_is_the_policy_gradient_of_whole_sequences():
    theta = parameters(two_tokens, 1)
    logp = two_tokens(theta).sum(1)
    rewards = torch.randn(V * V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    picked = all_groups(V * V, 2)
    found = expected_gradient(theta, logp, each_group("rloo", rewards, picked), picked)
    torch.testing.assert_close(found, gradient((logp.exp() * rewards).sum(), theta), **EXACT)


def test_without_a_baseline_the_gradient_is_exact_and_without_the_others_mean_alone_it_is_not():
    theta, logp, rewards = one_token_case()
    picked = all_groups(V, 3)
    exact = gradient((logp.exp() * rewards).sum(), theta)
    plain = expected_gradient(theta, logp, each_group("normalized", rewards, picked, mean="none", std="none"), picked)
    torch.testing.assert_close(plain, exact, **EXACT)
    group = expected_gradient(theta, logp, each_group("normalized", rewards, picked, mean="group", std="none"), picked)
    assert (group - exact).norm() > 0.1 * exact.norm()


def test_the_deviation_keeps_the_direction_of_each_prompt_but_not_that_of_several():
    right = tensor([1.0, 0.0, 0.0, 0.0])
    picked = all_groups(V, 7)
    found, exact, scales = {"grpo": [], "dr_grpo": []}, [], []
    for start in (-2.0, 1.0):  # a hard prompt, an easy one
        theta = tensor([start, 0.0, 0.3, -0.4]).requires_grad_()
        logp = one_token(theta).squeeze(1)
        exact.append(gradient((logp.exp() * right).sum(), theta))
        for name, gradients in found.items():
            gradients.append(expected_gradient(theta, logp, each_group(name, right, picked), picked))
        scales.append((found["grpo"][-1] @ exact[-1] / exact[-1].norm() ** 2).item())
        torch.testing.assert_close(found["grpo"][-1], scales[-1] * exact[-1], **EXACT)
    assert abs(scales[0] / scales[1] - 1) > 0.1

    def cosine(gradients):
        return torch.cosine_similarity(torch.cat(gradients), torch.cat(exact), dim=0).item()

    assert cosine(found["dr_grpo"]) == near(1)
    assert 1 - cosine(found["grpo"]) > 1e-4


# ------------------------------------------------------------------------------------------------------------------ GPG


def test_alpha_counts_groups_with_a_signal_and_verl_counts_rewards():
    rewards, group = [1, 1, 1, 1, 1, 0, 0, 0], [0] * 4 + [1] * 4
    unit = tensor([0, 0, 0, 0, 0.75, -0.25, -0.25, -0.25])
    assert credit("gpg", rewards, group) == near((2.0 * unit).tolist())
    assert credit("gpg", rewards, group, compat="verl") == near((1.6 * unit).tolist())
    # The floor holds 1 / alpha = 1 / 2 up; below it, it does nothing.
    assert credit("gpg", rewards, group, min_inverse_alpha=0.8) == near((1.25 * unit).tolist())
    assert credit("gpg", rewards, group, min_inverse_alpha=0.4) == near((2.0 * unit).tolist())
    scaled = credit("gpg", rewards, group, normalize_std=True, eps=1e-12)
    assert scaled == near((2.0 * unit / 0.5).tolist())


@pytest.mark.parametrize("degenerate", [0, 1, 2, 3])
def test_alpha_restores_the_batch_of_groups_that_have_a_signal(degenerate):
    rewards = [[1, 0]] * (4 - degenerate) + [[0.3, 0.3]] * degenerate
    found = credit("gpg", list(itertools.chain(*rewards)), [g for g in range(4) for _ in range(2)])
    alpha = 4 / (4 - degenerate)
    assert found == near([alpha / 2, -alpha / 2] * (4 - degenerate) + [0, 0] * degenerate)


def test_a_batch_without_a_signal_gets_zeros():
    assert credit("gpg", [1, 1, 0, 0], [0, 0, 1, 1]) == [0] * 4
    assert credit("gpg", [0, 0, 0, 0], [0, 0, 1, 1], compat="verl") == [0] * 4
    assert credit("normalized", [1, 1, 0, 0], [0, 0, 1, 1], scale="age") == [0] * 4


def test_gpg_of_one_prompt_is_the_policy_gradient_short_of_it_by_one_sample():
    theta, logp, rewards = one_token_case()
    picked = all_groups(V, 3)
    each = torch.stack([estimate("gpg", samples(rewards[row])) for row in picked])
    exact = gradient((logp.exp() * rewards).sum(), theta)
    torch.testing.assert_close(expected_gradient(theta, logp, each, picked), 2 / 3 * exact, **EXACT)


def test_verls_count_of_one_prompt_points_elsewhere():
    theta, logp, _ = one_token_case()
    rewards = tensor([1.0, 0.0, 0.0, 2.0])
    picked = all_groups(V, 3)
    each = torch.stack([estimate("gpg", samples(rewards[row]), compat="verl") for row in picked])
    exact = gradient((logp.exp() * rewards).sum(), theta)
    assert torch.cosine_similarity(expected_gradient(theta, logp, each, picked), exact, dim=0) < 0.999


# --------------------------------------------------------------------------------------------------------------- pass@k


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "marginal"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("right", [[1, 0, 0, 0], [1, 0, 1, 0]])
def test_the_expected_gradient_is_that_of_pass_at_k(baseline, k, right):
    size = 5 if baseline == "leave_one_out" else 4
    theta, logp, _ = one_token_case()
    right = tensor(right)
    picked = all_groups(V, size)
    found = expected_gradient(theta, logp, each_group("pass_at_k", right, picked, k=k, baseline=baseline), picked)
    exact = gradient(1 - (1 - (logp.exp() * right).sum()) ** k, theta)
    torch.testing.assert_close(found, exact, **EXACT)


def test_grpo_on_the_same_groups_is_not_the_gradient_of_pass_at_k_whatever_its_scale():
    easy, hard = tensor([2.0, 0, 0.3, -0.4]), tensor([-2.0, 0, 0.3, -0.4])
    right, picked, ratios = tensor([1.0, 0, 0, 0]), all_groups(V, 4), []
    for theta in (easy.requires_grad_(), hard.requires_grad_()):
        logp = one_token(theta).squeeze(1)
        exact = gradient(1 - (1 - logp.exp()[0]) ** 4, theta)
        found = expected_gradient(theta, logp, each_group("grpo", right, picked), picked)
        ratios.append((found.norm() / exact.norm()).item())
    assert ratios[0] / ratios[1] > 5


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("right", range(7))
def test_the_weights_are_the_published_ones_times_the_samples_of_the_group(k, right):
    n = 6
    found = credit("pass_at_k", [1] * right + [0] * (n - right), k=k, baseline="none")
    share = 1 - math.comb(n - 1 - right, k - 1) / math.comb(n - 1, k - 1) if right < n else math.nan
    assert found == near([n * k / n] * right + [n * k / n * share] * (n - right))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_marginal_baseline_credits_a_sample_for_what_it_alone_finds(k):
    rewards = [1, 1, 0, 0, 0]
    expected = []
    for i, reward in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != i]
        alone = [reward > max(s, default=0) for s in itertools.combinations(others, k - 1)]
        expected.append(k * sum(alone) / len(alone))
    assert credit("pass_at_k", rewards, k=k) == near(expected)


def test_pass_at_1_with_the_others_as_baseline_is_rloo():
    rewards, group = [1, 0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 2, 2]
    assert credit("pass_at_k", rewards, group, k=1, baseline="leave_one_out") == near(credit("rloo", rewards, group))


def test_groups_with_too_few_samples_for_pass_at_k_get_0_and_a_batch_of_them_is_refused():
    assert credit("pass_at_k", [1, 1, 0, 0], [0, 1, 1, 1], k=3, baseline="none") == near([0, 3, 3, 3])
    with pytest.raises(ValueError, match=r"k = 4 .* groups of 4 samples, the largest has 3: raise rollout"):
        credit("pass_at_k", [1, 1, 0, 0], [0, 1, 1, 1], k=4)
    with pytest.raises(ValueError, match="needs groups of 4 samples"):
        credit("pass_at_k", [1, 1, 0, 0], [0, 1, 1, 1], k=3, baseline="leave_one_out")


@pytest.mark.parametrize("reward", [0.5, -1.0, 2.0])
def test_pass_at_k_refuses_rewards_that_are_neither_right_nor_wrong(reward):
    with pytest.raises(ValueError, match=f"return {reward}, but pass@k is about right and wrong"):
        credit("pass_at_k", [1, 0, reward], k=2)


# ----------------------------------------------------------------------------------------------------------------- JEPO


def log_mean_exp(values):
    return values.logsumexp(-1) - math.log(values.shape[-1])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_jepo_with_its_baseline_is_the_gradient_of_the_expected_bound(size):
    """z is the first token of `two_tokens`, a* a fixed second one; log pi(a* | z) moves with the policy, too."""
    theta = parameters(two_tokens, 5)
    z, answer = theta[0].log_softmax(-1), theta[1:].log_softmax(-1)[:, 2]
    picked = all_groups(V, size)
    bound = log_mean_exp(answer[picked])
    exact = gradient((z[picked].sum(1).exp() * bound).sum(), theta)
    credits = each_group("jepo_loo", answer.detach(), picked)
    chance = z.detach()[picked].sum(1).exp()
    # What is learned of a*: the mean over samples with weights G softmax(r), as the term `reference_nll` has it.
    weights = size * answer.detach()[picked].softmax(1)
    found = expected_gradient(theta, z, credits, picked)
    found = found + gradient((chance * (weights * answer[picked]).mean(1)).sum(), theta)
    torch.testing.assert_close(found, exact, **EXACT)


def test_jepo_by_hand_and_for_small_differences_as_rloo():
    rewards = [math.log(0.5), math.log(0.1), math.log(0.3)]
    mean = 0.3
    expected = [3 * math.log(mean / others) for others in (0.2, 0.4, 0.3)]
    assert credit("jepo_loo", rewards) == near(expected)
    small = [-3 + 1e-6, -3.0, -3 - 2e-6]
    assert credit("jepo_loo", small) == pytest.approx(credit("rloo", small), rel=1e-5)


def test_jepo_is_finite_where_likelihoods_underflow():
    found = credit("jepo_loo", [-5000, -1000, -1050, -2000, -2000.5], [0, 0, 0, 1, 1])
    assert all(map(math.isfinite, found))
    # The best by far is worth its distance to the next, the others what their number costs the mean.
    assert found[1] == near(3 * (50 + math.log(2 / 3) + math.log1p(math.exp(-50))))
    assert found[0] == found[2] == near(3 * math.log(2 / 3))


# ---------------------------------------------------------------------------------------------------------------- f-DPG

BETA = 0.7
F_DIVERGENCES = {
    "reverse_kl": lambda t: t * t.log(),
    "forward_kl": lambda t: -t.log(),
    "js": lambda t: t * t.log() - (t + 1) * ((t + 1) / 2).log(),
    "alpha": lambda t: (t**0.7 - 0.7 * t - 0.3) / (0.3 * (0.3 - 1)),
    "tv": lambda t: 0.5 * (t - 1).abs(),
    "pearson": lambda t: (t - 1) ** 2,
    "neyman": lambda t: (1 - t) ** 2 / t,
    "hellinger": lambda t: (t.sqrt() - 1) ** 2,
}


def tilted_case(policy):
    """Parameters, the policy's log-probs (sequences, T), an anchor's, rewards, and the log of the target."""
    theta = parameters(policy, 3)
    logp, anchor = policy(theta), policy(parameters(policy, 4)).detach()
    rewards = torch.randn(len(logp), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return theta, logp, anchor, rewards, (anchor.sum(1) + rewards / BETA).log_softmax(0)


def f_dpg_gradient(divergence, size, policy=one_token, behavior=None, **params):
    """The expected gradient of f-DPG and that of -D_f(pi || target)."""
    theta, logp, anchor, rewards, target = tilted_case(policy)
    behavior = logp.detach() if behavior is None else behavior(logp.detach(), target)
    picked = all_groups(len(logp), size)
    given = {"old_logp": logp.detach(), "behavior_logp": behavior, "anchors": {"frozen": anchor}}
    credits = each_group("f_dpg", rewards, picked, divergence=divergence, beta=BETA, alpha=0.3, **given, **params)
    found = expected_gradient(theta, logp.sum(1), credits, picked, behavior.sum(1))
    of_target = (target.exp() * F_DIVERGENCES[divergence]((logp.sum(1) - target).exp())).sum()
    return found, -gradient(of_target, theta)


def from_target(logp, target):
    """mu is the target itself: every sample tells the same Z, the true one."""
    share = torch.linspace(0.2, 1.0, logp.shape[1], dtype=torch.float64)
    return target[:, None] * share / share.sum()


def uniform(logp, target):
    return torch.full_like(logp, -math.log(V))


def test_the_divergences_of_f_dpg_are_those_of_the_configuration():
    assert set(F_DIVERGENCES) == set(config.F_DIVERGENCES)
    with pytest.raises(ConfigError, match="parameter 'divergence', value 'kl'"):
        ADVANTAGES.create(Component(name="f_dpg", divergence="kl"))


@pytest.mark.parametrize("baseline", ["none", "group_loo"])
@pytest.mark.parametrize("divergence", F_DIVERGENCES)
def test_with_z_known_f_dpg_is_the_gradient_of_the_divergence_to_the_target(divergence, baseline):
    found, exact = f_dpg_gradient(divergence, 3, behavior=from_target, baseline=baseline)
    torch.testing.assert_close(found, exact, **EXACT)


@pytest.mark.parametrize("divergence", ["js", "forward_kl"])
def test_the_sequences_of_f_dpg_are_whole_responses(divergence):
    found, exact = f_dpg_gradient(divergence, 2, policy=two_tokens, behavior=from_target)
    torch.testing.assert_close(found, exact, **EXACT)


@pytest.mark.parametrize("behavior", [None, uniform])
def test_reverse_kl_needs_no_z_so_f_dpg_is_exact_from_whatever_sampled(behavior):
    found, exact = f_dpg_gradient("reverse_kl", 3, behavior=behavior)
    torch.testing.assert_close(found, exact, **EXACT)


def test_reverse_kl_is_reward_maximisation_with_a_kl_penalty_over_beta():
    theta, logp, anchor, rewards, _ = tilted_case(one_token)
    found, _ = f_dpg_gradient("reverse_kl", 2)
    kl = (logp.exp() * (logp - anchor)).sum()
    exact = gradient((logp.exp().squeeze(1) * rewards).sum() / BETA - kl, theta)
    torch.testing.assert_close(found, exact, **EXACT)


def test_the_bias_of_an_estimated_z_falls_with_the_size_of_the_group():
    bias = []
    for size in (2, 4, 6):
        found, exact = f_dpg_gradient("js", size)
        bias.append(((found - exact).norm() / exact.norm()).item())
    assert 0.5 > bias[0] > bias[1] > bias[2] > 1e-6
    assert bias[2] < 0.6 * bias[0]


def test_the_mean_of_the_group_as_baseline_is_short_by_one_sample():
    found, exact = f_dpg_gradient("reverse_kl", 3, baseline="group")
    torch.testing.assert_close(found, 2 / 3 * exact, **EXACT)


@pytest.mark.parametrize("divergence", F_DIVERGENCES)
@pytest.mark.parametrize("gap", [-500.0, 500.0])
def test_f_dpg_is_finite_however_far_the_policies_are_apart(divergence, gap):
    far, zeros = tensor([[gap], [0.0], [-1.0]]), torch.zeros(3, 1, dtype=torch.float64)
    for policies in ((far, zeros, zeros), (zeros, far, zeros), (zeros, zeros, far)):
        old, behavior, anchor = (p - 600 for p in policies)
        batch = samples([0, 1, 1], old_logp=old, behavior_logp=behavior, anchors={"frozen": anchor})
        assert estimate("f_dpg", batch, divergence=divergence).isfinite().all()


def test_f_dpg_reads_no_padding():
    old, behavior, anchor = (
        tensor([[-1, -2], [-3, -1]]),
        tensor([[-1.1, -2.2], [-2.9, -1]]),
        tensor([[-2, -2], [-1, 0]]),
    )

    def found(padding):
        padded = [torch.where(tensor([[0, 0], [0, 1]]) > 0, padding, x) for x in (old, behavior, anchor)]
        mask = [[1, 1], [1, 0]]
        anchors = {"frozen": padded[2]}
        return estimate(
            "f_dpg", samples([0, 1], None, mask, old_logp=padded[0], behavior_logp=padded[1], anchors=anchors)
        )

    assert torch.equal(found(torch.tensor(math.nan, dtype=torch.float64)), found(tensor(7.0)))


def test_f_dpg_says_which_policies_it_reads():
    needs = ADVANTAGES.trait("f_dpg", "needs", ())
    assert set(needs({})) == {"old_logp", "behavior_logp", "anchors.frozen"}
    assert set(needs({"anchor": "early"})) == {"old_logp", "behavior_logp", "anchors.early"}
    zeros = torch.zeros(2, 1, dtype=torch.float64)
    batch = samples([0, 1], old_logp=zeros, behavior_logp=zeros)
    with pytest.raises(ValueError, match=r"anchors\.early was not computed"):
        estimate("f_dpg", batch, anchor="early")


def test_f_dpg_tilts_the_policy_that_sampled_when_it_is_the_anchor():
    old = tensor([[-1.0], [-2.0], [-0.5]])
    given = {"old_logp": old, "behavior_logp": old + 0.1}
    direct = estimate("f_dpg", samples([0, 1, 1], **given), anchor="old_policy")
    named = estimate("f_dpg", samples([0, 1, 1], **given, anchors={"frozen": old}))
    assert torch.equal(direct, named)
    assert direct[0] < 0 < direct[1]


# ---------------------------------------------------------------------------------------------------------------- TRICE


def test_trice_takes_off_the_share_of_the_others_that_are_right_at_the_last_proposal_of_each_prompt():
    batch = samples([9.0] * 4, [0, 0, 1, 2], correct=torch.tensor([True, True, False, False]))
    assert estimate("trice", batch).tolist() == near([0, -2 / 3, -2 / 3, -2 / 3])
    assert estimate("trice", samples([1.0])).tolist() == [0]


@functools.cache
def trice_proposals(right, size):
    """(proposals, 2, size) indices: every two prompts' proposals there can be; and the credit of each."""
    proposals, right = all_groups(V, 2 * size), tensor(right)
    credit = [estimate("trice", samples(right[proposal], [0] * size + [1] * size)) for proposal in proposals]
    return proposals.view(-1, 2, size), torch.stack(credit).view(-1, 2, size)


def trice_moments(theta, right, control=True, size=1):
    """Mean and total variance of TRICE's gradient with two prompts, over all memories and all proposals.

    Each memory is distributed as pi given that it is right; `size` proposals replace it one after the other, if right.
    """
    chance, right_at = theta.softmax(-1), tensor(right) > 0
    posterior = chance * right_at / (chance * right_at).sum()
    score = torch.eye(V, dtype=torch.float64) - chance  # row y: grad log pi(y)
    proposals, credit = trice_proposals(right, size)
    memories = all_groups(V, 2)
    weight = posterior[memories].prod(-1)[:, None] * chance[proposals].prod(-1).prod(-1)  # (memories, proposals)
    remembered = memories[:, None].expand(-1, len(proposals), -1)
    for z in proposals.unbind(-1):
        remembered = torch.where(right_at[z], z, remembered)
    taken = (credit[..., None] * score[proposals]).mean((1, 2))
    sampled = score[remembered].mean(2) + control * taken
    mean = (weight[..., None] * sampled).sum((0, 1))
    return mean, ((weight * sampled.square().sum(-1)).sum() - mean @ mean).item()


def test_trice_is_the_gradient_of_the_log_chance_of_being_right_with_or_without_its_control_variate():
    right = (1.0, 0, 1, 0)
    theta = parameters(one_token, 2)
    exact = gradient((theta.softmax(-1) * tensor(right)).sum().log(), theta)
    for control, size in ((True, 1), (False, 1), (True, 2)):
        mean, _ = trice_moments(theta.detach(), right, control, size)
        torch.testing.assert_close(mean, exact, **EXACT)


@pytest.mark.parametrize("size", [1, 2])
def test_the_variance_of_trice_vanishes_as_the_policy_gets_all_right(size):
    right, variances = (1.0, 0, 1, 0), []
    for ahead in (2.0, 5.0, 8.0):
        theta = tensor([ahead, 0, ahead + 0.5, 0.3])
        variances.append(trice_moments(theta, right, size=size)[1])
        plain = trice_moments(theta, right, control=False, size=size)[1]
        assert variances[-1] < plain
    assert variances[0] > 10 * variances[1] > 100 * variances[2]
    assert variances[2] < 0.01 * plain


# ---------------------------------------------------------------------------------------------------------- REINFORCE++


def test_reinforce_pp_is_the_discounted_sum_of_what_follows_whitened():
    batch = samples(
        [1, 2],
        mask=[[1, 1, 1], [1, 1, 0]],
        token_rewards=tensor([[-0.1, -0.2, -0.3], [0.4, 0, math.nan]]),
    )
    # To go with gamma 0.5: 0.7; 0.5 * 0.7 - 0.2 = 0.15; 0.075 - 0.1 = -0.025; and 2; 1 + 0.4.
    to_go = tensor([-0.025, 0.15, 0.7, 1.4, 2.0])
    expected = (to_go - to_go.mean()) / to_go.std()
    found = estimate("reinforce_pp", batch, gamma=0.5, eps=1e-12)
    torch.testing.assert_close(found[batch.mask], expected, **EXACT)
    assert found[1, 2] == 0


def test_tokens_that_are_not_learned_from_are_no_steps():
    whole = samples([1, 2], mask=[[1, 1, 0], [1, 0, 0]], token_rewards=tensor([[0.5, 0.25, 0], [0, 0, 0]]))
    gap = samples([1, 2], mask=[[1, 0, 1], [1, 0, 0]], token_rewards=tensor([[0.5, 9, 0.25], [0, 0, 0]]))
    found, expected = (estimate("reinforce_pp", b, gamma=0.5) for b in (gap, whole))
    assert torch.equal(found[gap.mask], expected[whole.mask])
    assert (found[~gap.mask] == 0).all()


@pytest.mark.parametrize("name", ["reinforce_pp", "reinforce_pp_baseline"])
@pytest.mark.parametrize("ddof", [0, 1])
def test_whitened_credit_has_mean_0_and_deviation_1_over_the_tokens_of_the_batch(name, ddof):
    generator = torch.Generator().manual_seed(11)
    rewards = torch.randn(8, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.randint(1, 7, (8, 1), generator=generator)
    token_rewards = 0.1 * torch.randn(8, 6, generator=generator, dtype=torch.float64)
    batch = samples(rewards, [0, 0, 1, 1, 1, 2, 2, 2], mask, token_rewards=token_rewards)
    inside = estimate(name, batch, eps=1e-12, ddof=ddof)[mask]
    assert inside.mean().item() == near(0)
    assert inside.std(correction=ddof).item() == near(1)


@pytest.mark.parametrize("name", ["reinforce_pp", "reinforce_pp_baseline"])
def test_equal_rewards_and_a_batch_without_tokens_whiten_to_exactly_0(name):
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    assert (estimate(name, samples([0.1] * 3, mask=mask)) == 0).all()
    assert (estimate(name, samples([0.1, 0.7, 3.0], mask=torch.zeros_like(mask))) == 0).all()


# ------------------------------------------------------------------------------------------------------ for any batch

many = settings(max_examples=25, deadline=None, derandomize=True)
eighths = st.integers(-8, 8).map(lambda n: n / 8)
batches = st.lists(
    st.tuples(eighths, st.integers(-3, 3), st.integers(0, 4), st.booleans(), eighths), min_size=1, max_size=16
)


def drawn(name, rows, rename=lambda g: g):
    rewards, group, lengths, correct, shifts = zip(*rows, strict=True)
    if name == "pass_at_k":
        rewards, shifts = [float(c) for c in correct], [0.0] * len(rows)
        assume(max(group.count(g) for g in group) >= 2)
    base = tensor(shifts)[:, None] * tensor([0.1, -0.2, 0.3, 0.4])
    return samples(
        rewards,
        [rename(g) for g in group],
        torch.arange(4) < torch.tensor(lengths)[:, None],
        correct=torch.tensor(correct),
        token_rewards=base,
        old_logp=base - 1,
        behavior_logp=base.flip(1) - 1,
        anchors={"frozen": base.abs() - 1},
    )


@pytest.mark.parametrize("name", ALL)
@many
@given(rows=batches, random=st.randoms(use_true_random=False))
def test_the_order_of_the_samples_and_the_names_of_the_groups_do_not_matter(name, rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    if name == "trice":  # the last sample of a group has its credit
        own = {g: iter([i for i, row in enumerate(rows) if row[1] == g]) for _, g, *_ in rows}
        order = [next(own[rows[i][1]]) for i in order]
    direct = estimate(name, drawn(name, rows), **ALL[name])
    assert direct.isfinite().all()
    shuffled = estimate(name, drawn(name, [rows[i] for i in order], lambda g: 10**12 - 7 * g), **ALL[name])
    torch.testing.assert_close(shuffled, direct[order], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "gpg"])
@many
@given(rows=batches)
def test_credit_sums_to_zero_in_every_group_and_keeps_the_order_of_the_rewards(name, rows):
    batch = drawn(name, rows)
    found = estimate(name, batch)
    for g in batch.group.unique():
        members = batch.group == g
        assert abs(found[members].sum()) < 1e-9
        ranked = found[members][batch.returns[members].argsort()]
        assert (ranked.diff() >= -1e-12).all()


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("grpo", {"eps": 0.0}),
        ("grpo", {"eps": "small"}),
        ("grpo", {"ddof": 2}),
        ("normalized", {"mean": "loo"}),
        ("normalized", {"std": "tokens"}),
        ("reinforce_pp", {"gamma": 1.5}),
        ("gpg", {"min_inverse_alpha": 2.0}),
        ("gpg", {"compat": "trl"}),
        ("pass_at_k", {"k": 0}),
        ("f_dpg", {"beta": 0.0}),
        ("f_dpg", {"baseline": "batch"}),
        ("trice", {"beta": 0.5}),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(name, params):
    with pytest.raises(ConfigError, match=rf"advantage '{name}': .*parameter '{next(iter(params))}'"):
        ADVANTAGES.create(Component(name=name, **params))

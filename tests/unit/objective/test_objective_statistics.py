"""Estimators on real samples: the mean of 200,000 against the exact value and gradient, by z-test (methods.md, T18).

A z-test says how far a mean is from what it should be in units of its own standard error, so that a bias shows that a
loose tolerance would hide. What must not agree is held to be far away on the same samples.
"""

import pytest
import torch
from objective_cases import V, gradient, inputs, one_token, parameters, two_tokens

from rlpost.config import F_DIVERGENCES, Component
from rlpost.objective import ADVANTAGES, DIVERGENCES, POLICY_LOSSES, CreditInputs
from rlpost.objective.f_divergence import f_divergence

N = 200_000
NEAR, FAR = 4.0, 8.0
REWARD = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)


def drawn(probabilities, seed, n=N):
    """n samples of each row of (..., V) probabilities: (n,) or (rows, n)."""
    return torch.multinomial(probabilities.detach(), n, replacement=True, generator=torch.Generator().manual_seed(seed))


class OneToken:
    """n one-token responses of softmax(sampler), as the policy softmax(theta) sees them."""

    def __init__(self, theta, sampler, seed):
        self.pi = theta.detach().softmax(-1)
        self.token = drawn(sampler.softmax(-1), seed)
        self.logp = one_token(theta.detach())[self.token].requires_grad_()

    def of(self, other):
        """(n, 1) log-probs of the sampled tokens under other parameters."""
        return one_token(other.detach())[self.token]

    def gradients(self, loss):
        """(n, V): of each sample's loss with respect to theta."""
        (slope,) = torch.autograd.grad(loss.sum(), self.logp)
        return slope * (torch.nn.functional.one_hot(self.token, V) - self.pi)


class TwoTokens:
    """n two-token responses of `two_tokens` parameters `sampler`, as the policy of parameters theta sees them."""

    def __init__(self, theta, sampler, seed):
        self.pi = theta.detach().softmax(-1)
        self.first = drawn(sampler[0].softmax(-1), seed)
        self.second = drawn(sampler[1:].softmax(-1), seed + 1).gather(0, self.first[None])[0]
        self.logp = self.of(theta).requires_grad_()

    def of(self, other):
        return two_tokens(other.detach())[V * self.first + self.second]

    def gradients(self, loss):
        """(n, V + V): with respect to the first token's row of theta, and, of what is left, its sum over the rest."""
        (slope,) = torch.autograd.grad(loss.sum(), self.logp)
        one_hot = torch.nn.functional.one_hot
        first = slope[:, :1] * (one_hot(self.first, V) - self.pi[0])
        second = slope[:, 1:] * (one_hot(self.second, V) - self.pi[1:][self.first])
        return torch.cat([first, second], dim=1)


def folded(of_theta):
    """A gradient with respect to `two_tokens` parameters, as `TwoTokens.gradients` gives it."""
    return torch.cat([of_theta[0], of_theta[1:].sum(0)])


def z(samples, expected):
    """The largest |z| among the components of the mean of (n, ...) samples."""
    error = samples.std(0) / len(samples) ** 0.5
    return float(((samples.mean(0) - expected).abs() / error).max())


def entry(name, **params):
    return DIVERGENCES.create(Component(name=name, **params))


@pytest.fixture(scope="module")
def policies():
    """theta, ref, old: three policies over one token."""
    return parameters(one_token, seed=1), *(parameters(one_token, seed=s).detach() for s in (2, 5))


@pytest.fixture(scope="module")
def on_policy(policies):
    return OneToken(policies[0], policies[0], seed=11)


@pytest.fixture(scope="module")
def off_policy(policies):
    return OneToken(policies[0], policies[2], seed=12)


@pytest.fixture(scope="module")
def of_anchor(policies):
    return OneToken(policies[0], policies[1], seed=13)


@pytest.fixture(scope="module")
def exact(policies):
    """By name, value and gradient of the divergence of theta from ref; of `zero`, zeros."""
    theta, ref, _ = policies
    found = {"zero": (0.0, torch.zeros_like(theta.detach()))}
    for name in F_DIVERGENCES:
        value = f_divergence(name).exact(theta.log_softmax(-1), ref.log_softmax(-1))
        found[name] = (value.detach(), gradient(value, theta))
    return found


def test_the_test_itself_sees_a_bias_of_two_hundredths_of_a_deviation():
    samples = torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert z(samples, 0.0) < NEAR
    assert z(samples + 0.02, 0.0) > FAR


IN_LOSS = {
    "k1": ("zero", "reverse_kl"),
    "k2": ("reverse_kl", "forward_kl"),
    "k3": ("forward_kl", "reverse_kl"),
    "k1_st": ("reverse_kl", "forward_kl"),
    "k3_st": ("reverse_kl", "forward_kl"),
}


@pytest.mark.parametrize("name", IN_LOSS)
def test_kl_estimators_in_the_loss(name, policies, on_policy, exact):
    right, wrong = IN_LOSS[name]
    outputs = entry(name)(inputs(on_policy.logp), on_policy.of(policies[1]))
    found = on_policy.gradients(outputs.loss)
    assert z(found, exact[right][1]) < NEAR
    assert z(found, exact[wrong][1]) > FAR
    value = z(outputs.means["kl"], exact["reverse_kl"][0])
    assert value > FAR if name == "k2" else value < NEAR


@pytest.mark.parametrize(
    ("name", "is_weight", "right"),
    [
        ("k1", "detached", "zero"),
        ("k1", "differentiable", "reverse_kl"),
        ("k2", "detached", "reverse_kl"),
        ("k3", "detached", "forward_kl"),
        ("k3", "differentiable", "reverse_kl"),
        ("k1_st", "detached", "reverse_kl"),
        ("k3_st", "detached", "reverse_kl"),
    ],
)
def test_kl_estimators_on_samples_of_an_older_policy(name, is_weight, right, policies, off_policy, exact):
    batch, ref = inputs(off_policy.logp, old_logp=off_policy.of(policies[2])), off_policy.of(policies[1])
    assert z(off_policy.gradients(entry(name, is_weight=is_weight)(batch, ref).loss), exact[right][1]) < NEAR
    assert z(off_policy.gradients(entry(name)(batch, ref).loss), exact[right][1]) > FAR


@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_f_divergences_in_each_form(name, policies, on_policy, off_policy, of_anchor, exact):
    value, slope = exact[name]
    for samples, params in (
        (on_policy, {}),
        (off_policy, {"is_weight": "detached"}),
        (of_anchor, {"form": "generator"}),
    ):
        batch = inputs(samples.logp, old_logp=samples.of(policies[2]))
        outputs = entry(name, **params)(batch, samples.of(policies[1]))
        assert z(outputs.means["divergence"], value) < NEAR
        assert z(samples.gradients(outputs.loss), slope) < NEAR
    biased = entry(name)(inputs(off_policy.logp), off_policy.of(policies[1]))
    assert z(off_policy.gradients(biased.loss), slope) > FAR


@pytest.mark.parametrize("name", ["k1", *F_DIVERGENCES])
def test_divergences_in_the_reward(name, policies, on_policy, exact):
    penalty = entry(name)(inputs(on_policy.logp), on_policy.of(policies[1])).penalty
    reinforce = POLICY_LOSSES.create(Component(name="reinforce"))
    found = on_policy.gradients(reinforce(inputs(on_policy.logp, advantages=-penalty)).loss)
    assert z(found, exact["reverse_kl" if name == "k1" else name][1]) < NEAR
    assert z(-found, exact["reverse_kl" if name == "k1" else name][1]) > FAR


@pytest.mark.parametrize("form", ["sampled", "generator"])
@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "js", "alpha", "tv", "hellinger"])
def test_f_divergences_of_whole_sequences(name, form):
    theta, ref = parameters(two_tokens, seed=3), parameters(two_tokens, seed=4).detach()
    samples = TwoTokens(theta, theta if form == "sampled" else ref, seed=21)
    outputs = entry(name, form=form, level="sequence")(inputs(samples.logp), samples.of(ref))
    exact = f_divergence(name).exact(two_tokens(theta).sum(-1), two_tokens(ref).sum(-1))
    slope = folded(gradient(exact, theta))
    assert z(outputs.loss.detach(), exact.detach()) < NEAR
    assert z(samples.gradients(outputs.loss), slope) < NEAR
    off = z(samples.gradients(entry(name, form=form)(inputs(samples.logp), samples.of(ref)).loss), slope)
    # Token by token it is something else, but for the likelihood of the anchor's samples.
    assert off < NEAR if (name, form) == ("forward_kl", "generator") else off > FAR


@pytest.mark.parametrize("weights", [{}, {"entropy_coef": 0.5, "cross_entropy_coef": 2.0}])
def test_split_kl(weights, policies, on_policy):
    theta, ref, _ = policies
    a, c = weights.get("entropy_coef", 1.0), weights.get("cross_entropy_coef", 1.0)
    negative = (theta.softmax(-1) * theta.log_softmax(-1)).sum()
    crossed = -(theta.softmax(-1) * ref.log_softmax(-1)).sum()
    outputs = entry("split_kl", **weights)(inputs(on_policy.logp), on_policy.of(ref))
    assert z(outputs.means["divergence"], (a * negative + c * crossed).detach()) < NEAR
    # The entropy is exact and is not sampled: here it is zero, and only the cross-entropy's gradient is estimated.
    found = on_policy.gradients(outputs.loss)
    assert z(found, gradient(c * crossed, theta)) < NEAR
    assert z(found, gradient(a * negative + c * crossed, theta)) > FAR


@pytest.mark.parametrize(("advantage", "share"), [("rloo", 1.0), ("dr_grpo", 3 / 4)])
def test_the_policy_gradient_of_group_baselines(advantage, share, policies, on_policy):
    """Of groups of 4: rloo is unbiased, the group's own mean takes 1 / 4 of the gradient away."""
    credit = CreditInputs(
        rewards=REWARD[on_policy.token],
        group=torch.arange(N) // 4,
        correct=REWARD[on_policy.token] > 0,
        truncated=torch.zeros(N, dtype=torch.bool),
        tokens=on_policy.token[:, None],
        mask=torch.ones(N, 1, dtype=torch.bool),
        max_tokens=1,
    )
    advantages = credit.per_token(ADVANTAGES.create(Component(name=advantage))(credit))
    reinforce = POLICY_LOSSES.create(Component(name="reinforce"))
    # The samples of a group share its baseline: the groups are what is independent.
    groups = on_policy.gradients(reinforce(inputs(on_policy.logp, advantages=advantages)).loss).view(-1, 4, V).mean(1)
    slope = gradient(-(policies[0].softmax(-1) * REWARD).sum(), policies[0])
    assert z(groups, share * slope) < NEAR
    assert z(groups, (share - 1 / 4) * slope) > FAR


@pytest.mark.parametrize("name", ["reinforce", "ppo_clip"])
def test_the_policy_gradient_on_samples_of_an_older_policy(name, policies, off_policy):
    """A ratio makes it exact; REINFORCE has none, and is not."""
    params = {"low": 1.0, "high": 1e9} if name == "ppo_clip" else {}
    batch = inputs(off_policy.logp, old_logp=off_policy.of(policies[2]), advantages=REWARD[off_policy.token][:, None])
    found = off_policy.gradients(POLICY_LOSSES.create(Component(name=name, **params))(batch).loss)
    off = z(found, gradient(-(policies[0].softmax(-1) * REWARD).sum(), policies[0]))
    assert off < NEAR if name == "ppo_clip" else off > FAR

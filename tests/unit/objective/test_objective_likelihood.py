"""Likelihood rewards: values by hand, and the gradients that a reward and an answer's weight make together."""

import math

import pytest
import torch

from rlpost.config import LIKELIHOODS as NAMES
from rlpost.config import Component, ConfigError
from rlpost.objective.advantage import ADVANTAGES
from rlpost.objective.likelihood import LIKELIHOODS, LikelihoodInputs, StdFilter, group_weights
from rlpost.objective.types import CreditInputs

V = 4
FLOOR = -40.0


def batch(logp, group=None, **given):
    """Rows of log-probs, of any lengths; an empty row is an answer that was not found."""
    wide = max(1, *map(len, logp))
    mask = torch.tensor([[t < len(row) for t in range(wide)] for row in logp])
    # What stands outside the mask must not matter.
    values = torch.tensor([[*row, *[float("nan")] * (wide - len(row))] for row in logp], dtype=torch.float64)
    defaults = {
        "group": torch.tensor(group or [0] * len(logp)),
        "found": mask.any(1),
        "reasoning_lengths": torch.ones(len(logp), dtype=torch.int64),
        "formatted": torch.ones(len(logp), dtype=torch.bool),
    }
    return LikelihoodInputs(logp=values, mask=mask, **{**defaults, **given})


def entry(name, **params):
    return LIKELIHOODS.create(Component(name=name, **params))


def logs(*probabilities):
    return [math.log(p) for p in probabilities]


def test_the_registry_holds_the_names_of_the_configuration():
    assert LIKELIHOODS.names() == sorted(NAMES)


# ------------------------------------------------------------------------------------------------ values by hand


@pytest.mark.parametrize(
    ("name", "rewards", "weights"),
    [
        ("prob", [0.1, 0.25, 0], [0.1, 0.25, 0]),
        ("logprob", [math.log(0.1), math.log(0.25), FLOOR], [1, 1, 0]),
        ("avg_logprob", [math.log(0.1) / 2, math.log(0.25), FLOOR], [0.5, 1, 0]),
        ("avg_prob", [0.35, 0.25, 0], [0, 0, 0]),
        ("jepo", [math.log(0.1), math.log(0.25), FLOOR], [3 * 0.1 / 0.35, 3 * 0.25 / 0.35, 0]),
    ],
)
def test_rewards_and_weights_of_an_answer_of_two_tokens_one_of_one_and_one_that_is_missing(name, rewards, weights):
    found = entry(name)(batch([logs(0.5, 0.2), logs(0.25), []], floor=FLOOR))
    assert found.rewards.tolist() == pytest.approx(rewards, abs=1e-12)
    assert found.answer_weights.tolist() == pytest.approx(weights, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_finite_for_answers_of_probability_nearly_0_and_for_none(name, dtype):
    rows = batch([[-50.0] * 40, [0.0], [-1e-9], []], [0, 0, 1, 2], floor=FLOOR)
    found = entry(name)(
        LikelihoodInputs(
            **{**vars(rows), "logp": rows.logp.to(dtype)},
        )
    )
    for values in (found.rewards, found.answer_weights):
        assert values.dtype == torch.float64
        assert values.isfinite().all()


@pytest.mark.parametrize("name", ["logprob", "avg_logprob", "jepo"])
def test_a_logarithm_without_a_bound_is_refused_where_an_answer_is_missing(name):
    with pytest.raises(ValueError, match="clip"):
        entry(name)(batch([[-1.0], []]))
    assert entry(name)(batch([[-1.0], [-2.0]])).rewards.tolist() == [-1, -2]


def test_avg_prob_over_base_is_what_the_reasoning_adds_and_never_negative():
    base = torch.tensor([logs(0.4, 0.4)] * 3, dtype=torch.float64)
    rows = batch([logs(0.9, 0.5), logs(0.1), []], base_logp=base, base_mask=torch.ones(3, 2, dtype=torch.bool))
    assert entry("avg_prob", over_base=True)(rows).rewards.tolist() == pytest.approx([0.3, 0, 0], abs=1e-12)
    with pytest.raises(ValueError, match="base_logp"):
        entry("avg_prob", over_base=True)(batch([[-1.0]]))
    needs = LIKELIHOODS.trait("avg_prob", "needs_base", False)
    assert [needs({"over_base": True}), needs({"over_base": False}), needs({})] == [True, False, False]


def test_nover_ranks_by_perplexity_within_the_group_and_pays_for_form_and_brevity():
    rows = batch(
        [[-1.0, -1.0], [-3.0], [-2.0, -2.0, -2.0], [], [-9.0], []],
        [0, 0, 0, 0, 5, 5],  # -log PPL: -1, -3, -2, missing; and another group
        reasoning_lengths=torch.tensor([5, 2, 9, 3, 1, 1]),
        formatted=torch.tensor([True, True, False, False, True, False]),
    )
    # Ranks 1, 3, 2, 4 of 4; 1 and 2 of 2. The first is better and shorter than the third alone, the second than the
    # missing one alone, the third than nobody. In the other group the lengths are equal.
    assert entry("nover", format_weight=10, efficiency_weight=100)(rows).rewards.tolist() == pytest.approx(
        [0.75 + 10 + 25, 0.25 + 10 + 25, 0.5, 0, 0.5 + 10, 0], abs=1e-12
    )
    assert entry("nover")(rows).rewards.tolist() == pytest.approx([2, 1.5, 0.5, 0, 1.5, 0], abs=1e-12)


def test_nover_gives_equals_the_worse_rank():
    ranked = entry("nover", format_weight=0, efficiency_weight=0)(batch([[-1.0], [-1.0], [-2.0], [-2.0]]))
    assert ranked.rewards.tolist() == [0.5, 0.5, 0, 0]


def test_group_weights_have_mean_1_in_each_group_wherever_log_probs_stand():
    rows = batch([[-800.0], [-801.0], [], [0.0], [-3.0], [], []], [7, 7, 7, 2, 2, 9, 9])
    weights = group_weights(rows)
    e = math.exp(-1)
    assert weights[:3].tolist() == pytest.approx([3 / (1 + e), 3 * e / (1 + e), 0], abs=1e-12)
    assert float(weights[3:5].mean()) == pytest.approx(1, abs=1e-12)
    assert weights[5:].tolist() == [0, 0]


def test_inputs_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="found"):
        batch([[-1.0], []], found=torch.tensor([True, True]))
    with pytest.raises(ValueError, match="group"):
        batch([[-1.0], [-1.0]], group=[0])
    with pytest.raises(ValueError, match="base_mask"):
        batch([[-1.0]], base_logp=torch.zeros(1, 1))
    with pytest.raises(ConfigError, match="format_weight"):
        entry("nover", format_weight=-1)


# ---------------------------------------------------------------------------------------------- exact gradients


class Tiny:
    """V reasonings of one token, after each the log-probs of a two-token answer; the last has no marker.

    All gradients are with respect to `theta`, which holds the logits of z and of both answer tokens after each z.
    """

    def __init__(self, seed, missing=True):
        generator = torch.Generator().manual_seed(seed)
        self.theta = torch.randn((1 + 2 * V, V), generator=generator, dtype=torch.float64).requires_grad_()
        table = self.theta.log_softmax(-1)
        self.z = table[0]
        self.answer = torch.stack([table[1 : 1 + V, 2], table[1 + V :, 1]], dim=1)  # (V, 2)
        self.found = torch.ones(V, dtype=torch.bool)
        self.found[-1] = not missing

    def inputs(self, index, group):
        found = self.found[index]
        return LikelihoodInputs(
            logp=self.answer.detach()[index],
            mask=found[:, None].expand(-1, 2),
            group=group,
            found=found,
            reasoning_lengths=torch.ones(len(index), dtype=torch.int64),
            formatted=found,
            floor=FLOOR,
        )

    def gradient(self, value):
        return torch.autograd.grad(value, self.theta, retain_graph=True)[0]

    def estimate(self, name, weights=None, **params):
        """The expected gradient of policy loss and `reference_nll`, over all z that may be sampled."""
        made = entry(name, **params)(self.inputs(torch.arange(V), torch.zeros(V, dtype=torch.int64)))
        weights = made.answer_weights if weights is None else weights
        per_sample = made.rewards * self.z + weights * self.answer.sum(1)
        return self.gradient((self.z.detach().exp() * per_sample).sum())


def objective(tiny, value):
    """grad E_z[value(z)], with `FLOOR` or 0 given by the caller where there is no marker."""
    return tiny.gradient((tiny.z.exp() * value).sum())


SEEDS = [0, 1, 2]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("missing", [False, True])
def test_prob_is_the_gradient_of_the_expected_probability(seed, missing):
    tiny = Tiny(seed, missing)
    exact = objective(tiny, torch.where(tiny.found, tiny.answer.sum(1).exp(), 0.0))
    assert torch.allclose(tiny.estimate("prob"), exact, rtol=0, atol=1e-12)
    assert not torch.allclose(tiny.estimate("prob", weights=torch.zeros(V)), exact, atol=1e-3)
    assert not torch.allclose(tiny.estimate("prob", weights=tiny.found.double()), exact, atol=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(("name", "scale"), [("logprob", 1.0), ("avg_logprob", 0.5)])
def test_log_rewards_are_the_gradient_of_the_expected_log_probability(seed, missing, name, scale):
    tiny = Tiny(seed, missing)
    exact = objective(tiny, torch.where(tiny.found, scale * tiny.answer.sum(1), FLOOR))
    assert torch.allclose(tiny.estimate(name), exact, rtol=0, atol=1e-12)
    assert not torch.allclose(tiny.estimate(name, weights=torch.zeros(V)), exact, atol=1e-3)


def test_prob_is_the_gradient_of_the_chance_that_a_sampled_answer_is_the_reference():
    # Listing all answers, the reward of a verifier that compares, and its policy gradient: the same.
    tiny = Tiny(5, missing=False)
    first, second = tiny.theta.log_softmax(-1)[1 : 1 + V], tiny.theta.log_softmax(-1)[1 + V :]
    logp = tiny.z[:, None, None] + first[:, :, None] + second[:, None, :]
    right = torch.zeros(V, V, dtype=torch.float64)
    right[2, 1] = 1
    verifier = tiny.gradient((logp.detach().exp() * right * logp).sum())
    assert torch.allclose(tiny.estimate("prob"), verifier, rtol=0, atol=1e-12)


def test_avg_prob_is_not_the_gradient_of_the_expected_average_probability():
    tiny = Tiny(0)
    exact = objective(tiny, torch.where(tiny.found, tiny.answer.exp().mean(1), 0.0))
    found = tiny.estimate("avg_prob")
    assert not torch.allclose(found, exact, atol=1e-3)
    assert torch.allclose(found[0], exact[0], rtol=0, atol=1e-12)  # with respect to z it is
    assert torch.equal(found[1:], torch.zeros_like(found[1:]))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("missing", [False, True])
def test_jepo_with_its_advantage_is_the_gradient_of_the_expected_log_mean_probability(size, missing):
    tiny = Tiny(3, missing)
    tuples = torch.cartesian_prod(*[torch.arange(V)] * size)  # (V^G, G), every group there can be
    index, group = tuples.reshape(-1), torch.arange(len(tuples)).repeat_interleave(size)
    made = entry("jepo")(tiny.inputs(index, group))
    ones = torch.ones(len(index), 1, dtype=torch.bool)
    credit = ADVANTAGES.create(Component(name="jepo_loo"))(
        CreditInputs(
            rewards=made.rewards,
            group=group,
            correct=ones[:, 0],
            truncated=~ones[:, 0],
            tokens=ones.long(),
            mask=ones,
            max_tokens=1,
        )
    ).reshape(-1)
    chance = tiny.z[tuples].sum(1)
    value = torch.where(tiny.found, tiny.answer.sum(1), FLOOR)[tuples].logsumexp(1) - math.log(size)
    exact = tiny.gradient((chance.exp() * value).sum())

    def estimate(weights):
        per_sample = credit * tiny.z[index] + weights * tiny.answer.sum(1)[index]
        return tiny.gradient((chance.detach().exp() * per_sample.reshape(-1, size).mean(1)).sum())

    assert torch.allclose(estimate(made.answer_weights), exact, rtol=0, atol=1e-10)
    for wrong in (made.answer_weights / size, tiny.found[index].double()):
        assert not torch.allclose(estimate(wrong), exact, atol=1e-3)


# -------------------------------------------------------------------------------------------------- the filter


def test_the_filter_waits_then_leaves_out_groups_below_a_share_of_the_average():
    sieve = StdFilter(decay=0.5, share=0.5, average_from=2, filter_from=4)

    def step(*stds):
        return sieve.keep(torch.tensor(stds)).tolist()

    assert step(9.0, 0.0) == [True, True]
    assert sieve.average is None
    assert step(1.0, 3.0) == [True, True]
    assert sieve.average == pytest.approx(2)
    assert step(0.0, 0.0) == [True, True]
    assert sieve.average == pytest.approx(1)
    assert step(0.49, 0.5, 3.01) == [False, True, True]  # against the steps before this one
    assert sieve.average == pytest.approx(0.5 + 0.5 * 4 / 3)


def test_the_filter_continues_where_it_was_saved():
    one, other = StdFilter(average_from=1, filter_from=2), StdFilter(average_from=1, filter_from=2)
    one.keep(torch.tensor([1.0, 2.0]))
    other.load_state_dict(one.state_dict())
    assert one.keep(torch.tensor([0.5, 1.0])).tolist() == other.keep(torch.tensor([0.5, 1.0])).tolist() == [False, True]
    assert one.state_dict() == other.state_dict()


def test_a_step_without_groups_leaves_the_average_as_it_is():
    sieve = StdFilter(average_from=1, filter_from=2)
    sieve.keep(torch.tensor([1.0]))
    assert sieve.keep(torch.zeros(0)).tolist() == []
    assert sieve.average == 1


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"share": -0.1}, {"average_from": 0}, {"filter_from": 6}])
def test_settings_of_the_filter_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="decay"):
        StdFilter(**wrong)

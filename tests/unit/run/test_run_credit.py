"""From samples to the batch the learner gets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlpost.config import ConfigError, Objective
from rlpost.learner.batch import Batch
from rlpost.objective import Credit
from rlpost.run.credit import credited
from rlpost.types import Sample


def sample(group: int, number: int, reward: float, length: int = 3, source: str = "on_policy", **more) -> Sample:
    return Sample(
        np.ones(2, np.int32),
        np.arange(5, 5 + length, dtype=np.int32),
        source=source,
        group=group,
        number=number,
        logprobs=np.full(length, -1.0, np.float32),
        versions=np.zeros(length, np.int32),
        reward=reward,
        correct=reward > 0,
        **more,
    )


def lesson(samples: list[Sample], scores: dict | None = None, step: int = 1, **settings):
    credit = Credit(Objective.model_validate(settings), steps=10)
    batch = Batch.from_samples(samples).carrying(scores)
    return credited(batch, samples, credit, step=step, seed=7, max_tokens=8), credit


def test_each_token_gets_its_samples_advantage_and_other_sources_keep_their_weight():
    samples = [sample(0, 0, 1.0, 2), sample(9, 0, 0.0, 2, "sft", weight=0.5), sample(0, 1, 0.0, 4)]
    found, _ = lesson(samples, advantage="dr_grpo")
    assert found.batch.advantages.tolist() == [0.5] * 2 + [0.5] * 2 + [-0.5] * 4
    assert found.credited == {(0, 0): 0.5, (0, 1): -0.5}


def test_coefficients_of_a_schedule_and_per_sample_ones_reach_the_batch():
    samples = [sample(0, 0, 1.0), sample(0, 1, 0.0), sample(1, 0, 1.0), sample(1, 1, 1.0), sample(9, 0, 0, 2, "sft")]
    k3 = {"divergence": "k3", "coef": {"name": "dads", "base": 0.1}}
    k2 = {"divergence": "k2", "coef": {"name": "linear", "start": 1.0, "end": 0.0}}
    found, _ = lesson(samples, {"anchors.frozen": np.zeros(14, np.float32)}, step=10, regularizers=[k3, k2])
    assert found.coefs == {"k2": 0.0}
    assert found.metrics["coef/k2"] == 0.0
    hard = 0.1 * (1 - math.exp(-math.e * 0.5))
    np.testing.assert_allclose(found.batch.per_sequence["coef.k3"], [hard, 0.1, 0.1, 0.1, 1.0], rtol=1e-6)


def test_selections_are_made_for_every_source_and_are_false_elsewhere():
    samples = [sample(0, 0, 1.0, 1), sample(0, 1, 0.0, 2), sample(9, 0, 0.0, 2, "sft")]
    found, _ = lesson(
        samples,
        {"anchors.frozen": np.zeros(5, np.float32)},
        regularizers=[{"divergence": "k2", "coef": 0.1, "where": "incorrect"}],
    )
    assert found.batch.per_token["where.k2"].tolist() == [False, True, True, False, False]
    assert found.metrics["where/k2"] == pytest.approx(2 / 3)


def test_corrections_weigh_on_policy_tokens_and_leave_others_at_one():
    samples = [sample(0, 0, 1.0, 2), sample(0, 1, 0.0, 1), sample(9, 0, 0.0, 1, "sft")]
    old = np.log([math.exp(-1) * 4, math.exp(-1) / 2, math.exp(-1), 1.0]).astype(np.float32)
    found, credit = lesson(
        samples, {"old_logp": old}, corrections=[{"name": "importance", "level": "token", "high": 2.0}]
    )
    assert credit.needs == {"old_logp"}
    np.testing.assert_allclose(found.batch.per_token["weights"], [2.0, 0.5, 1.0, 1.0], rtol=1e-5)


def test_a_divergence_in_the_reward_moves_the_advantages_and_not_the_loss():
    samples = [sample(0, 0, 1.0, 2), sample(0, 1, 1.0, 2)]
    scores = {
        "old_logp": np.array([-1, -1, -1, -1], np.float32),
        "anchors.frozen": np.array([-2, -2, -1, -1], np.float32),
    }
    found, credit = lesson(
        samples,
        scores,
        advantage="dr_grpo",
        regularizers=[{"divergence": "k1", "coef": 0.5, "placement": "reward"}],
    )
    assert credit.needs == {"old_logp", "anchors.frozen"}
    np.testing.assert_allclose(found.batch.advantages, [-0.5] * 2 + [0.5] * 2, rtol=1e-6)
    assert found.metrics["kl/k1"] == pytest.approx(0.5)


def test_masked_tokens_are_outside_every_statistic():
    half = np.array([True, False])
    samples = [sample(0, 0, 1.0, 2, mask=half), sample(0, 1, 0.0, 2)]
    found, _ = lesson(samples, advantage="dr_grpo")
    assert found.batch.advantages.tolist() == [0.5, 0.0, -0.5, -0.5]


def test_the_state_of_coefficients_survives_saving():
    settings = {"regularizers": [{"divergence": "k2", "coef": {"name": "adaptive_kl", "initial": 0.1, "target": 0.01}}]}
    credit, again = (Credit(Objective.model_validate(settings), 10) for _ in range(2))
    for _ in range(3):
        credit.observe({"kl/k2": 1.0})
    again.load_state_dict(credit.state_dict(), step=1)
    assert (
        again.coefficients(4)
        == credit.coefficients(4)
        != Credit(Objective.model_validate(settings), 10).coefficients(4)
    )
    with pytest.raises(ValueError, match="resume with the objective of the run that saved it"):
        Credit(Objective(), 10).load_state_dict(credit.state_dict(), step=1)


def test_reweighted_objectives_get_coefficients_that_sum_to_their_number():
    settings = {"terms": [{"loss": "sft", "source": "sft"}], "reweight": {"name": "recap", "window": 2}}
    credit = Credit(Objective.model_validate(settings), 10)
    for step in range(8):
        credit.observe({"policy_loss": 0.5, "loss/sft": 1.0 / (step + 1)})
    coefs = credit.coefficients(9)
    assert coefs["policy_loss"] + coefs["sft"] == pytest.approx(2.0)
    assert coefs["policy_loss"] > coefs["sft"], "what converges fast gets less"


def test_a_correction_beside_a_loss_that_carries_the_ratio_is_refused():
    with pytest.raises(ConfigError, match="minirl carries the ratio"):
        Credit(Objective.model_validate({"policy_loss": "minirl", "corrections": ["importance"]}), 10)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"corrections": ["importance"]}, "objective.corrections: advantage f_dpg carries the ratio"),
        ({"policy_loss": "minirl"}, "objective.policy_loss: minirl: advantage f_dpg carries the ratio"),
        ({"proximal": "behavior"}, "objective.proximal: behavior with policy_loss: ppo_clip: advantage f_dpg carries"),
    ],
)
def test_what_counts_the_ratio_to_the_engine_again_is_refused_beside_an_advantage_that_carries_it(settings, why):
    with pytest.raises(ConfigError, match=why):
        Credit(Objective.model_validate({"advantage": "f_dpg", **settings}), 10)


def test_an_advantage_that_carries_the_ratio_goes_with_a_loss_that_has_none_to_the_engine():
    for settings in ({}, {"policy_loss": "reinforce"}, {"policy_loss": "reinforce", "proximal": "behavior"}):
        Credit(Objective.model_validate({"advantage": "f_dpg", **settings}), 10)


def test_a_step_without_on_policy_samples_has_no_coefficient_of_single_samples():
    k3 = {"divergence": "k3", "coef": {"name": "dads", "base": 0.1}}
    found, _ = lesson([sample(9, 0, 0.0, 2, "sft")], regularizers=[k3, {"divergence": "k2", "coef": 0.5}])
    assert found.coefs == {"k2": 0.5}
    assert found.metrics == {"coef/k2": 0.5}


def test_a_divergence_in_the_reward_has_no_value_in_a_step_whose_samples_are_all_masked():
    masked = [sample(0, n, 1.0, 2, mask=np.zeros(2, bool)) for n in range(2)]
    scores = {"old_logp": np.full(4, -1, np.float32), "anchors.frozen": np.full(4, -2, np.float32)}
    k1 = {"divergence": "k1", "coef": 0.5, "placement": "reward"}
    found, _ = lesson(masked, scores, advantage="dr_grpo", regularizers=[k1])
    assert "kl/k1" not in found.metrics

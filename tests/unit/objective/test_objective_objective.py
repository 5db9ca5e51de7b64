"""The objective as a whole: its sum, its refusals, a user's own entries, and the mismatch metrics."""

import math
from dataclasses import replace

import pytest
import torch
from objective_cases import gradient, inputs, one_token, parameters, sequence_kl

from rlpost import config
from rlpost.config import ConfigError
from rlpost.objective import Denominators, Objective, mismatch_metrics

STEP = Denominators(sequences=2, tokens=4, max_tokens=3)


def make(**settings):
    return Objective.from_config(config.Objective.model_validate(settings))


def batch(**given):
    """Two sequences of two and one tokens, padded to three, one more token masked in the middle."""
    logp = torch.tensor([[-1.0, -2.0, -0.5], [-0.7, -3.0, -0.1]], dtype=torch.float64, requires_grad=True)
    values = {
        "old_logp": logp.detach() - 0.1,
        "anchors": {"frozen": logp.detach() + torch.tensor([[0.3, -0.4, 0.0], [0.1, 0.0, 0.2]], dtype=torch.float64)},
        "advantages": torch.tensor([[1.0] * 3, [-0.5] * 3], dtype=torch.float64),
        "mask": torch.tensor([[True, True, False], [True, False, True]]),
        "entropy": torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 6.0]], dtype=torch.float64),
    }
    return inputs(logp, **{**values, **given})


def test_the_loss_is_the_policy_term_plus_each_divergence_times_its_coefficient():
    terms = batch()
    both = [{"divergence": "k3", "coef": 0.5}, {"divergence": "k2", "coef": 2.0}]
    loss, meter = make(regularizers=both).loss(terms, STEP)
    d = (terms.logp - terms.anchors["frozen"]).detach()[terms.mask]
    k2, k3 = (d**2 / 2).mean().item(), ((-d).exp() - 1 + d).mean().item()
    policy = -math.exp(0.1) * terms.advantages[terms.mask].mean().item()

    values = meter.values()
    assert loss.item() == pytest.approx(policy + 0.5 * k3 + 2 * k2, abs=1e-12)
    assert values["loss"] == pytest.approx(loss.item(), abs=1e-12)
    assert values["policy_loss"] == pytest.approx(policy, abs=1e-12)
    assert values["kl/k2"] == pytest.approx(k2, abs=1e-12)
    assert values["kl/k3"] == pytest.approx(k3, abs=1e-12)
    assert values["entropy"] == 3.0
    assert values["ratio/max"] == pytest.approx(math.exp(0.1), abs=1e-12)
    assert values["clip/low"] == values["clip/high"] == values["clamp/k3"] == 0


def test_metrics_are_means_over_tokens_whatever_the_aggregation():
    regularizers = [{"divergence": "k3", "coef": 0.5}]
    by_mode = [
        make(regularizers=regularizers, aggregation=mode).loss(batch(), STEP)[1].values()["kl/k3"]
        for mode in ("token_mean", "seq_mean_token_sum")
    ]
    assert by_mode[0] == by_mode[1]


def test_what_stands_outside_the_mask_reaches_neither_loss_nor_gradient_nor_metrics():
    clean = batch()
    hole = ~clean.mask
    nan = {
        name: getattr(clean, name).detach().masked_fill(hole, torch.nan)
        for name in ("logp", "old_logp", "behavior_logp", "advantages", "weights", "entropy")
    }
    nan["logp"].requires_grad_()
    dirty = replace(clean, **nan, anchors={"frozen": clean.anchors["frozen"].masked_fill(hole, torch.nan)})
    objective = make(regularizers=[{"divergence": "k3", "coef": 0.5}])
    (loss, meter), (dirty_loss, dirty_meter) = objective.loss(clean, STEP), objective.loss(dirty, STEP)
    assert torch.equal(loss, dirty_loss)
    assert meter.values() == dirty_meter.values()
    slope = gradient(dirty_loss, dirty.logp)
    assert torch.equal(slope, gradient(loss, clean.logp))
    assert (slope[hole] == 0).all()
    assert (slope[~hole] != 0).all()


def test_a_micro_batch_without_tokens_has_loss_0_that_still_runs_backward():
    empty = batch(mask=torch.zeros(2, 3, dtype=torch.bool))
    loss, meter = make(regularizers=[{"divergence": "k3", "coef": 0.5}]).loss(empty, STEP)
    assert loss.item() == 0
    assert not gradient(loss, empty.logp).any()
    assert meter.values() == {"loss": 0, "policy_loss": 0}


def test_the_loss_keeps_the_dtype_of_the_log_probs():
    logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    assert make().loss(inputs(logp), STEP)[0].dtype == torch.float32


def test_rollout_correction_weights_scale_the_policy_term_and_not_the_divergence():
    objective = make(regularizers=[{"divergence": "k3", "coef": 0.5}])
    plain = objective.loss(batch(), STEP)[1].values()
    doubled = objective.loss(batch(weights=torch.full((2, 3), 2.0, dtype=torch.float64)), STEP)[1].values()
    assert doubled["policy_loss"] == pytest.approx(2 * plain["policy_loss"], abs=1e-12)
    assert doubled["loss"] - doubled["policy_loss"] == pytest.approx(plain["loss"] - plain["policy_loss"], abs=1e-12)


@pytest.mark.parametrize("name", ["old_logp", "behavior_logp", "advantages", "weights"])
def test_gradient_flows_through_nothing_but_logp_and_entropy(name):
    carrying = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=f"{name} requires grad"):
        batch(**{name: carrying})
    with pytest.raises(ValueError, match="anchors\\['frozen'\\] requires grad"):
        batch(anchors={"frozen": carrying})
    assert batch(entropy=carrying).entropy.requires_grad


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"advantages": torch.zeros(2)}, r"advantages has shape \(2,\), but mask has \(2, 3\)"),
        ({"old_logp": torch.zeros(2, 3, dtype=torch.bfloat16)}, "old_logp is torch.bfloat16: .* float32"),
        ({"mask": torch.ones(2, 3)}, "mask must be bool"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        batch(**given)


def test_an_objective_says_which_anchors_it_needs_and_refuses_to_do_without():
    assert make().anchors == set()
    objective = make(regularizers=[{"divergence": "k3", "coef": 0.5}])
    assert objective.anchors == {"frozen"}
    with pytest.raises(ValueError, match=r"needs log-probs of anchors \['frozen'\], got \[\]"):
        objective.loss(batch(anchors={}), STEP)


def test_a_loss_that_is_not_finite_stops_with_the_name_of_the_term():
    broken = batch(anchors={"frozen": torch.full((2, 3), torch.nan, dtype=torch.float64)})
    with pytest.raises(FloatingPointError, match=r"\{'k3': nan\}, over 4 tokens"):
        make(regularizers=[{"divergence": "k3", "coef": 0.5}]).loss(broken, STEP)


def test_the_same_regularizer_twice_is_refused():
    with pytest.raises(ConfigError, match="k3@frozen is there twice"):
        make(regularizers=[{"divergence": "k3", "coef": 0.5}, {"divergence": "k3", "coef": 0.1}])


def test_a_wrong_parameter_in_the_objective_is_refused_when_it_is_built():
    with pytest.raises(ConfigError, match=r"policy loss 'ppo_clip': unknown parameter 'hihg'.*did you mean 'high'"):
        make(policy_loss={"name": "ppo_clip", "hihg": 0.28})
    with pytest.raises(ConfigError, match="divergence 'k3': unknown parameter 'level'"):
        make(regularizers=[{"divergence": "k3", "coef": 0.5, "level": "token"}])


# ------------------------------------------------------------------------------------------------ advantages


def test_advantages_come_from_the_configured_estimator():
    found = make(advantage={"name": "grpo", "normalize_std": False}).advantages(
        torch.tensor([3.0, 1.0, torch.nan]), torch.tensor([0, 0, 0]), torch.tensor([True, True, False])
    )
    assert found.tolist() == [1, -1, 0]


def test_a_usable_reward_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="usable sample's reward is not finite"):
        make().advantages(torch.tensor([1.0, torch.nan]), torch.tensor([0, 0]), torch.tensor([True, True]))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"must all be \(B,\)"):
        make().advantages(torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.ones(3, dtype=torch.bool))


# ------------------------------------------------------------------------------------------------ a user's own entries

MINE = """
import torch
from rlpost.objective import TermOutputs

def fancy(batch, *, sharpness: float = 1.0):
    return TermOutputs(-sharpness * batch.advantages * batch.logp, means={"fancy/credit": batch.advantages})

def absolute(batch, anchor):
    d = batch.logp - anchor
    return TermOutputs(d.abs(), means={"divergence": d.abs()})

def credit(rewards, group, usable):
    return rewards + 1

def scalar(batch):
    return TermOutputs(-batch.logp.mean())

def detached(batch):
    return TermOutputs(-batch.logp.detach())

def bare(batch):
    return -batch.logp
"""


@pytest.fixture
def my_file(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("my_file")
def test_a_users_own_entries_from_a_file_work_end_to_end():
    objective = make(
        advantage="my_losses.py:credit",
        policy_loss={"name": "my_losses.py:fancy", "sharpness": 3.0},
        regularizers=[{"divergence": "my_losses.py:absolute", "coef": 0.5}],
    )
    terms = batch()
    loss, meter = objective.loss(terms, STEP)
    credit, mask = terms.advantages, terms.mask
    d = (terms.logp - terms.anchors["frozen"]).detach()
    values = meter.values()
    assert values["policy_loss"] == pytest.approx((-3 * credit * terms.logp)[mask].mean().item(), abs=1e-12)
    assert values["divergence/absolute"] == pytest.approx(d.abs()[mask].mean().item(), abs=1e-12)
    assert values["fancy/credit"] == pytest.approx(credit[mask].mean().item(), abs=1e-12)
    expected = torch.where(mask, (-3 * credit + 0.5 * d.sign()) / STEP.tokens, 0.0)
    torch.testing.assert_close(gradient(loss, terms.logp), expected, rtol=0, atol=1e-12)

    usable = torch.tensor([True, False])
    assert objective.advantages(torch.tensor([1.0, 5.0]), torch.tensor([0, 0]), usable).tolist() == [2, 0]


@pytest.mark.usefixtures("my_file")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scalar", r"must return one loss per token, \(2, 3\), got \(\)"),
        ("detached", "does not depend on logp"),
        ("bare", "must return TermOutputs, got Tensor"),
    ],
)
def test_a_users_loss_that_breaks_the_contract_is_told_so(name, message):
    with pytest.raises(ValueError, match=message):
        make(policy_loss=f"my_losses.py:{name}").loss(batch(), STEP)


# ------------------------------------------------------------------------------------------------ mismatch


def test_mismatch_metrics_have_the_values_worked_out_by_hand():
    engine = torch.tensor([[0.5, 0.2, 0.9]], dtype=torch.float64).log()
    learner = torch.tensor([[0.25, 0.5, 0.1]], dtype=torch.float64).log()
    values = mismatch_metrics(learner, engine, torch.tensor([[True, True, False]])).values()
    assert values == pytest.approx(
        {
            "mismatch/logp_abs_max": math.log(2.5),
            "mismatch/logp_abs_mean": (math.log(2) + math.log(2.5)) / 2,
            "mismatch/kl": ((0.5 - 1 + math.log(2)) + (2.5 - 1 - math.log(2.5))) / 2,
            "mismatch/prob_abs_mean": (0.25 + 0.3) / 2,
            "mismatch/f2": 0.5,
        },
        abs=1e-12,
    )


def test_mismatch_kl_estimates_the_kl_from_the_engine_to_the_learner():
    engine, learner = (one_token(parameters(one_token, seed)).detach() for seed in (1, 2))
    each = [
        mismatch_metrics(learner[i : i + 1], engine[i : i + 1], torch.tensor([[True]])).values()["mismatch/kl"]
        for i in range(len(engine))
    ]
    expected = (engine.exp()[:, 0] * torch.tensor(each, dtype=torch.float64)).sum()
    torch.testing.assert_close(expected, sequence_kl(engine, learner), rtol=0, atol=1e-10)
    assert (expected - sequence_kl(learner, engine)).abs() > 1e-2


def test_equal_log_probs_have_no_mismatch():
    logp = torch.tensor([[-1.0, -2.0]])
    assert set(mismatch_metrics(logp, logp, torch.tensor([[True, True]]), "m").values().values()) == {0.0}


def test_no_token_is_no_metric_and_a_broken_log_prob_is_an_error_not_a_quiet_alarm():
    logp = torch.tensor([[-1.0, torch.nan]])
    assert mismatch_metrics(logp, logp, torch.zeros(1, 2, dtype=torch.bool)).values() == {}
    with pytest.raises(FloatingPointError, match="1 of 2 log-probs of the learner are not finite"):
        mismatch_metrics(logp, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))

"""The objective as a whole: its sum, its refusals, a user's own entries, and the mismatch metrics."""

import math
from dataclasses import replace

import pytest
import torch
from objective_cases import gradient, inputs

from rlpost import config
from rlpost.config import ConfigError
from rlpost.objective import Credit, Denominators, LossInputs, Objective

STEP = Denominators(sequences=2, tokens=4, max_tokens=3)


class Made:
    """An objective with its coefficients at the first step, and one micro-batch that is the whole step."""

    def __init__(self, **settings):
        self.settings = config.Objective.model_validate(settings)
        self.objective = Objective(self.settings)

    def loss(self, terms, source=None, **more):
        source = torch.zeros(len(terms.mask), dtype=torch.int64) if source is None else source
        pools = dict.fromkeys(("policy_loss", *config.SOURCES), STEP)
        coefs = {**Credit(self.settings, 10).coefficients(1), **more.pop("coefs", {})}
        return self.objective.loss(LossInputs(terms, source, coefs=coefs, **more), pools)


make = Made


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
    loss, meter = make(regularizers=both).loss(terms)
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
        make(regularizers=regularizers, aggregation=mode).loss(batch())[1].values()["kl/k3"]
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
    (loss, meter), (dirty_loss, dirty_meter) = objective.loss(clean), objective.loss(dirty)
    assert torch.equal(loss, dirty_loss)
    assert meter.values() == dirty_meter.values()
    slope = gradient(dirty_loss, dirty.logp)
    assert torch.equal(slope, gradient(loss, clean.logp))
    assert (slope[hole] == 0).all()
    assert (slope[~hole] != 0).all()


def test_a_micro_batch_without_tokens_has_loss_0_that_still_runs_backward():
    empty = batch(mask=torch.zeros(2, 3, dtype=torch.bool))
    loss, meter = make(regularizers=[{"divergence": "k3", "coef": 0.5}]).loss(empty)
    assert loss.item() == 0
    assert not gradient(loss, empty.logp).any()
    assert meter.values() == {"loss": 0}


def test_the_loss_keeps_the_dtype_of_the_log_probs():
    logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    assert make().loss(inputs(logp))[0].dtype == torch.float32


def test_rollout_correction_weights_scale_the_policy_term_and_not_the_divergence():
    objective = make(regularizers=[{"divergence": "k3", "coef": 0.5}])
    plain = objective.loss(batch())[1].values()
    doubled = objective.loss(batch(weights=torch.full((2, 3), 2.0, dtype=torch.float64)))[1].values()
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
    assert make().objective.anchors == set()
    objective = make(regularizers=[{"divergence": "k3", "coef": 0.5}])
    assert objective.objective.anchors == {"frozen"}
    with pytest.raises(ValueError, match=r"needs log-probs of anchors \['frozen'\], got \[\]"):
        objective.loss(batch(anchors={}))


def test_a_loss_that_is_not_finite_stops_with_the_name_of_the_term():
    broken = batch(anchors={"frozen": torch.full((2, 3), torch.nan, dtype=torch.float64)})
    with pytest.raises(FloatingPointError, match="'loss/k3': nan"):
        make(regularizers=[{"divergence": "k3", "coef": 0.5}]).loss(broken)


def test_the_same_regularizer_twice_is_refused():
    with pytest.raises(ConfigError, match="k3@frozen#on_policy is there twice"):
        make(regularizers=[{"divergence": "k3", "coef": 0.5}, {"divergence": "k3", "coef": 0.1}])


def test_a_wrong_parameter_in_the_objective_is_refused_when_it_is_built():
    with pytest.raises(ConfigError, match=r"policy loss 'ppo_clip': unknown parameter 'hihg'.*did you mean 'high'"):
        make(policy_loss={"name": "ppo_clip", "hihg": 0.28})
    with pytest.raises(ConfigError, match="divergence 'k3': unknown parameter 'level'"):
        make(regularizers=[{"divergence": "k3", "coef": 0.5, "level": "token"}])


# ------------------------------------------------------------------------------------------------ a user's own entries

MINE = """
import torch
from rlpost.objective import TermOutputs

def fancy(batch, *, sharpness: float = 1.0):
    return TermOutputs(-sharpness * batch.advantages * batch.logp, means={"fancy/credit": batch.advantages})

def absolute(batch, anchor):
    d = batch.logp - anchor
    return TermOutputs(d.abs(), means={"divergence": d.abs()})

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
        policy_loss={"name": "my_losses.py:fancy", "sharpness": 3.0},
        regularizers=[{"divergence": "my_losses.py:absolute", "coef": 0.5}],
    )
    terms = batch()
    loss, meter = objective.loss(terms)
    credit, mask = terms.advantages, terms.mask
    d = (terms.logp - terms.anchors["frozen"]).detach()
    values = meter.values()
    assert values["policy_loss"] == pytest.approx((-3 * credit * terms.logp)[mask].mean().item(), abs=1e-12)
    assert values["divergence/absolute"] == pytest.approx(d.abs()[mask].mean().item(), abs=1e-12)
    assert values["fancy/credit"] == pytest.approx(credit[mask].mean().item(), abs=1e-12)
    expected = torch.where(mask, (-3 * credit + 0.5 * d.sign()) / STEP.tokens, 0.0)
    torch.testing.assert_close(gradient(loss, terms.logp), expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("my_file")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scalar", r"must return one loss per token, \(2, 3\), or per sequence, \(2,\), got \(\)"),
        ("detached", "does not depend on logp"),
        ("bare", "must return TermOutputs, got Tensor"),
    ],
)
def test_a_users_loss_that_breaks_the_contract_is_told_so(name, message):
    with pytest.raises(ValueError, match=message):
        make(policy_loss=f"my_losses.py:{name}").loss(batch())


# ------------------------------------------------------------------------------------------------ sources and selections

SFT = config.SOURCES.index("sft")


def test_a_term_sees_the_tokens_of_its_source_alone():
    terms, source = batch(), torch.tensor([0, SFT])
    _, meter = make(terms=[{"loss": "sft", "source": "sft", "coef": 0.25}]).loss(terms, source)
    logp, mask = terms.logp.detach(), terms.mask
    values = meter.values()
    assert values["loss/sft"] == pytest.approx(-logp[1][mask[1]].sum().item() / STEP.tokens, abs=1e-12)
    policy = -(math.exp(0.1) * terms.advantages[0][mask[0]]).sum().item() / STEP.tokens
    assert values["policy_loss"] == pytest.approx(policy, abs=1e-12)
    assert values["loss"] == pytest.approx(policy + 0.25 * values["loss/sft"], abs=1e-12)
    assert values["entropy"] == 1.5, "of on-policy tokens"


def test_each_pool_has_denominators_of_its_own():
    terms, source = batch(), torch.tensor([0, SFT])
    objective = Objective(config.Objective.model_validate({"terms": [{"loss": "sft", "source": "sft"}]}))
    pools = {"policy_loss": Denominators(1, 2, 3), "on_policy": Denominators(1, 2, 3), "sft": Denominators(1, 8, 3)}
    values = objective.loss(LossInputs(terms, source), pools)[1].values()
    assert values["loss/sft"] == pytest.approx(-terms.logp[1][terms.mask[1]].sum().item() / 8, abs=1e-12)


def test_a_selection_leaves_tokens_out_of_the_sum_and_not_out_of_the_denominators():
    terms = batch()
    chosen = torch.tensor([[True, False, True], [False, False, False]])
    objective = make(regularizers=[{"divergence": "k2", "coef": 1.0, "where": "positive"}])
    values = objective.loss(terms, where={"k2": chosen})[1].values()
    d = (terms.logp - terms.anchors["frozen"]).detach()[0, 0].item()
    assert values["loss/k2"] == pytest.approx(d**2 / 2 / STEP.tokens, abs=1e-12)
    assert values["kl/k2"] == pytest.approx(d**2 / 2, abs=1e-12), "a metric is the mean over what was selected"


def test_keep_takes_tokens_out_of_the_policy_loss_alone():
    terms = batch()
    keep = torch.tensor([[True, True, True], [False, False, False]])
    objective = make(regularizers=[{"divergence": "k2", "coef": 1.0}])
    values, whole = (objective.loss(terms, **k)[1].values() for k in ({"keep": keep}, {}))
    assert values["loss/k2"] == whole["loss/k2"]
    assert values["policy_loss"] == pytest.approx(-math.exp(0.1) * 2 / STEP.tokens, abs=1e-12)


def test_a_coefficient_may_differ_from_sequence_to_sequence():
    terms = batch()
    objective = make(regularizers=[{"divergence": "k2", "coef": 1.0}])
    loss, meter = objective.loss(terms, coefs={"k2": torch.tensor([3.0, 0.0], dtype=torch.float64)})
    d = (terms.logp - terms.anchors["frozen"]).detach()
    expected = 3 * (d[0][terms.mask[0]] ** 2 / 2).sum().item() / STEP.tokens
    assert loss.item() - meter.values()["policy_loss"] == pytest.approx(expected, abs=1e-12)


def test_a_loss_per_sequence_is_averaged_over_sequences_whatever_the_aggregation():
    values = [
        make(policy_loss="gspo", aggregation=mode).loss(batch())[1].values()["policy_loss"]
        for mode in ("token_mean", "seq_mean_token_sum")
    ]
    assert values[0] == values[1]


def test_a_term_on_samples_of_a_source_it_is_not_for_is_refused():
    with pytest.raises(ConfigError, match="dpo is for samples of source pair, not on_policy"):
        make(terms=[{"loss": "dpo", "source": "on_policy"}])


@pytest.mark.parametrize("source", ["sft", "reference", "success_memory", "pair", "rehearsal"])
def test_a_divergence_is_estimated_on_the_samples_it_is_an_expectation_over(source):
    given = {"coef": 0.1, "source": source}
    for name in ("k1", "k2", "k3", "k1_st", "k3_st", "split_kl"):
        with pytest.raises(ConfigError, match=f"{name} is for samples of source on_policy, not {source}: set source"):
            make(regularizers=[{"divergence": name, **given}])
    for name in config.F_DIVERGENCES:
        make(regularizers=[{"divergence": name, "form": "full", **given}])
        if source == "rehearsal":
            make(regularizers=[{"divergence": name, "anchor": "cached", **given}])
            continue
        with pytest.raises(ConfigError, match=f"{name} is for samples of source on_policy or rehearsal, not {source}"):
            make(regularizers=[{"divergence": name, **given}])
    make(regularizers=[{"divergence": "entropy", **given}])


def test_a_policy_loss_with_a_divergence_of_its_own_refuses_another():
    with pytest.raises(ConfigError, match="policy loss rpg has a divergence of its own"):
        make(policy_loss="rpg", regularizers=[{"divergence": "k2", "coef": 0.1}])


def test_a_divergence_over_the_whole_vocabulary_is_asked_of_the_learner():
    made = make(regularizers=[{"divergence": "js", "form": "full", "coef": 0.5}])
    anchor, divergence = made.objective.exact["js"]
    assert anchor == "frozen"
    assert made.objective.anchors == set()
    p, q = (torch.randn(2, 5, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    assert (divergence(p, q) > 0).all()
    full = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    values = made.loss(batch(full={"js": full}))[1].values()
    assert values["loss/js"] == values["divergence/js"] == 1.0

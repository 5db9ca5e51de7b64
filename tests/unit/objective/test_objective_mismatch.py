"""Engine against learner on the same tokens."""

import math

import pytest
import torch
from objective_cases import one_token, parameters, sequence_kl

from rlpost.objective import mismatch_metrics


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

"""The command on a mixture of experts: routes are captured, moved, replayed and measured, or the run does not go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_train import metrics, rlpost

pytestmark = pytest.mark.integration

MOE = {
    "model": {
        "create": {
            "config": {
                "model_type": "qwen3_moe",
                "moe_intermediate_size": 32,
                "num_hidden_layers": 3,
                "mlp_only_layers": [0],
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
                "head_dim": 32,
                "initializer_range": 0.1,
            }
        }
    },
    "routing": {"replay": "r3"},
    "warmup": None,
    "evaluation": {"before": False, "after": False},
    "checkpoint": {"every": 0},
}


@pytest.fixture
def config(tmp_path, write_config):
    def write(name: str, **changes: object) -> tuple[Path, Path]:
        return write_config(f"{name}.yaml", name=name, runs_dir=str(tmp_path), **{**MOE, **changes}), tmp_path / name

    return write


def test_routes_of_the_engine_are_replayed_while_weights_change_under_it(config):
    path, run = config(
        "replayed",
        steps=3,
        rollout={
            "dtype": "bfloat16",
            "max_staleness": 1,
            "updates": "within",
            "samples_per_prompt": 4,
            "max_tokens": 12,
        },
        learner={"optimizer_steps_per_batch": 2, "prompts_per_step": 8, "lr": 1e-3, "tokens_per_micro_batch": 512},
    )
    rlpost("train", path)
    rows = metrics(run)
    assert len(rows) == 3
    for row in rows:
        assert row["routing/coverage"] == 1.0
        assert row["routing/damaged"] == 0
        assert 0.8 < row["routing/replayed"] < 1, "all but the last token of each sequence"
        assert row["routing/agreement"] <= 1
        assert 0 < row["routing/bytes_per_token"] < 2 * 2, "a prompt's rows are shared"
        assert row["router/load_max"] >= 1
        for name in (
            "router/entropy",
            "router/load_entropy",
            "router/dead",
            "mismatch/f2",
            "mismatch_live/kl",
            "mismatch_replay/kl",
        ):
            assert name in row


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("routes.drop", "routing/coverage is 0, below alarms.route_coverage 0.95, though routing.replay is r3"),
        ("routes.shift", "below alarms.route_agreement 0.5"),
    ],
)
def test_a_run_whose_routes_are_lost_or_of_other_tokens_stops_with_an_alarm(config, fault: str, says: str):
    path, run = config(fault.partition(".")[2], alarms={"mismatch_kl": 9.0, "mismatch_logp_abs_max": 99.0})
    done = rlpost("train", path, faults=fault, expect=4)
    assert says in done.stderr
    assert len(metrics(run)) == 1


def test_replay_of_a_dense_model_is_refused_before_anything_starts(config):
    path, run = config("dense", model={})
    done = rlpost("train", path, expect=2, timeout=60)
    assert "routing.replay: r3, but the model (qwen2) is dense" in done.stderr
    assert not run.exists()

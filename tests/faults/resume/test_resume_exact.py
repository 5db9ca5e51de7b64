"""A run that was killed and resumed is the run that was not: real Ray, vLLM, DeepSpeed, real signals."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import COUNTDOWN
from tests.faults.resume.runs import Runs, differences, rollouts
from tests.integration.routing.test_train_moe import MOE as ROUTED
from tests.integration.test_train import STATEFUL, metrics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

# Spread over a step and a save, each met by the process that resumed from the one before.
PLACES = [
    ("driver.sampled", 3),
    ("save.begin", 4),
    ("rank.backward", 5),
    ("save.shard", 6),
    ("driver.learned", 7),
    ("save.model", 8),
    ("driver.synced", 9),
    ("save.before_manifest", 10),
    ("rank.optimizer", 11),
    ("save.before_rename", 12),
    ("driver.reported", 13),
    ("save.retain", 14),
]
FEW = [("driver.learned", 3), ("save.before_manifest", 4)]
ONE = [("driver.synced", 5)]

REFILLED: dict[str, Any] = {
    "verifiers": ["short"],
    "data": {
        "groups": {"no_signal": "refill", "max_rounds": 2},
        "strategy": {"name": "replay_mixture", "source": {**COUNTDOWN, "size": 40, "seed": 4}, "per_step": 4},
    },
    "objective": STATEFUL,
}
MOE: dict[str, Any] = {key: ROUTED[key] for key in ("model", "routing")}
MASTERED: dict[str, Any] = {
    "verifiers": ["short"],
    "data": {"strategy": {"name": "mastery_partition", "samples": 2, "threshold": 1, "prompts": 24, "per_step": 4}},
    "objective": {
        "references": {"fresh": {"name": "hard_reset", "every": 3}},
        "regularizers": [
            {"divergence": "js", "source": "rehearsal", "anchor": "cached", "form": "generator", "coef": 0.2},
            {"divergence": "k3", "anchor": "fresh", "coef": 0.05},
        ],
    },
}
MIXED: dict[str, Any] = {
    "steps": None,
    "epochs": 2,
    "data": {
        "train": {
            "a": {**COUNTDOWN, "size": 20, "seed": 1, "weight": 3},
            "b": {**COUNTDOWN, "size": 6, "seed": 5, "verifiers": ["short"]},
        }
    },
}
LIKELY: dict[str, Any] = {
    "objective": {
        "advantage": "rloo",
        "policy_loss": "reinforce",
        "terms": [{"loss": "reference_nll", "source": "reference", "aggregation": "seq_mean_token_sum"}],
        "likelihood": {"name": "prob", "marker": "[", "close": "]", "weight": 10.0},
    },
    "learner": {"optimizer_steps_per_batch": 1},
}


def staleness(most: int, changes: dict[str, Any]) -> dict[str, Any]:
    return {**changes, "rollout": {**changes.get("rollout", {}), "max_staleness": most}}


def check_versions(run, most: int) -> None:
    """One version a sequence, and that one which the schedule says; a refill's is the newest."""
    for row in rollouts(run).to_pylist():
        if row["version_min"] is not None:
            assert row["version_min"] == row["version_max"]
            assert row["version_min"] in (max(0, row["step"] - 1 - most), row["step"] - 1), row


def test_a_run_with_overlap_refills_a_moving_anchor_and_a_strategy_is_resumed_to_the_bit(tmp_path):
    runs = Runs(tmp_path, staleness(1, {"steps": 5, **REFILLED}))
    straight, killed = runs.straight(), runs.killed(FEW)
    assert differences(straight, killed) == []
    check_versions(killed, 1)
    assert "sampled again" not in runs.said


@pytest.mark.long
def test_a_run_is_resumed_to_the_bit_from_twelve_places(tmp_path):
    runs = Runs(tmp_path, staleness(1, {"steps": 15}))
    straight, killed = runs.straight(), runs.killed(PLACES)
    assert differences(straight, killed) == []
    check_versions(killed, 1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("most", "changes", "places"),
    [
        pytest.param(0, REFILLED, FEW, id="refilled-0"),
        pytest.param(2, REFILLED, FEW, id="refilled-2"),
        pytest.param(2, MASTERED, ONE, id="mastered-2"),
        pytest.param(0, MOE, ONE, id="moe-0"),
        pytest.param(1, MOE, FEW, id="moe-1"),
        pytest.param(1, MIXED, ONE, id="mixed-1"),
        pytest.param(1, LIKELY, ONE, id="likely-1"),
    ],
)
def test_every_kind_of_run_is_resumed_to_the_bit(tmp_path, most, changes, places):
    runs = Runs(tmp_path, staleness(most, changes))
    straight, killed = runs.straight(), runs.killed(places)
    assert differences(straight, killed) == []
    check_versions(killed, most)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_of_zero_is_resumed_to_the_bit(tmp_path, stage, ranks):
    runs = Runs(tmp_path, staleness(1, {"learner": {"ranks": ranks, "zero_stage": stage}}))
    straight, killed = runs.straight(), runs.killed(ONE)
    assert differences(straight, killed) == []


@pytest.mark.long
def test_two_runs_whose_updates_wait_for_sequences_are_equal_though_their_engines_are_not_as_many(tmp_path):
    changes: dict[str, Any] = {"rollout": {"max_staleness": 2, "max_tokens": 120}}
    one = Runs(tmp_path, changes).straight("one")
    changes["rollout"]["engines"] = 2
    two = Runs(tmp_path, changes).straight("two")
    assert differences(one, two) == []
    check_versions(two, 2)


@pytest.mark.long
def test_a_run_whose_updates_fall_into_sequences_loses_none_learns_none_twice_and_keeps_prompts_and_seeds(tmp_path):
    runs = Runs(tmp_path, {"rollout": {"max_staleness": 1, "updates": "within", "max_tokens": 120}})
    straight, killed = runs.straight(), runs.killed(ONE)
    for run in (straight, killed):
        table = rollouts(run)
        assert any(a != b for a, b in zip(table["version_min"], table["version_max"], strict=True)), "none was met"
    keys = ("step", "group", "sample", "prompt_id", "seed", "prompt_ids")
    before, after = (rollouts(run).select(keys) for run in (straight, killed))
    assert before.equals(after), "as many samples, of the same prompts under the same seeds in the same order"
    identities = list(zip(after["group"].to_pylist(), after["sample"].to_pylist(), strict=True))
    assert len(set(identities)) == len(identities), "none twice"
    last = metrics(killed)[-1]
    assert (last["samples/consumed"] + last["samples/dropped"], last["samples/running"]) == (len(identities), 0)

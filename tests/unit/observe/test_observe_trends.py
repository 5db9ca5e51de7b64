"""What left the run's own past is told, on made-up traces; a run as runs are is left alone."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from rlpost.config import Alarms
from rlpost.observe import Alarm
from rlpost.observe.trends import Trends
from tests.unit.observe.test_observe_alarms import GOOD, watch


def told(trace: list[dict[str, float]], **alarms: Any) -> list[tuple[int, str]]:
    """At which steps, from 1, which keys go off."""
    trends = Trends(Alarms(**alarms))
    return [(step, f.key) for step, metrics in enumerate(trace, 1) for f in trends.check(metrics)]


def as_runs_are(steps: int, seed: int = 0) -> list[dict[str, float]]:
    """Reward rises with noise, entropy falls to a tenth, gradients and times spread, memory grows at first."""
    dice = random.Random(seed)
    return [
        {
            "reward/mean": min(1.0, 0.05 + 0.9 * k / steps) + dice.gauss(0, 0.08),
            "entropy": 1.2 * math.exp(-2.3 * k / steps) * dice.uniform(0.8, 1.2),
            "kl": 0.3 * k / steps,
            "grad_norm": 0.0 if dice.random() < 0.1 else dice.lognormvariate(0, 0.8),
            "time/total": dice.uniform(2, 6) + (45 if k % 40 == 39 else 0),
            "memory/driver_mb": 800 + 300 * (1 - math.exp(-k / 10)) + dice.uniform(0, 50),
        }
        for k in range(steps)
    ]


@pytest.mark.parametrize("seed", range(10))
def test_a_run_as_runs_are_sets_nothing_off(seed):
    assert told(as_runs_are(200, seed)) == []


def test_entropy_that_collapses_is_told_against_the_runs_start():
    trace = [{"entropy": 1.0}] * 5 + [{"entropy": 0.5}] * 5 + [{"entropy": 0.01}] * 4
    assert told(trace) == [(13, "entropy_fall"), (14, "entropy_fall")]
    assert told(trace, entropy_fall=0.4)[0] == (8, "entropy_fall")
    assert told(trace, entropy_fall=None) == []
    assert told([{"entropy": 1.0}] * 5 + [{"entropy": 0.01}, {"entropy": 0.01}, {"entropy": 0.9}] * 5) == []


def test_entropy_that_explodes_is_told():
    trace = [{"entropy": 0.2}] * 8 + [{"entropy": 3.0}] * 3
    assert told(trace) == [(11, "entropy_rise")]
    assert told(trace, entropy_rise=None) == []


def test_divergence_above_its_bound_is_told_at_once():
    assert told([{"kl": 0.1}, {"kl": 2.5}]) == [(2, "kl")]
    assert told([{"kl": 0.1}, {"kl": 0.3}], kl=0.2) == [(2, "kl")]
    assert told([{"kl": 99.0}], kl=None) == []


def test_a_spike_of_the_gradient_norm_is_told_against_its_median_and_steps_without_one_do_not_count():
    usual = [{"grad_norm": 0.1}, {"grad_norm": 0.0}] * 12
    assert told([*usual, {"grad_norm": 6.0}, {"grad_norm": 0.1}]) == [(25, "grad_norm_spike")]
    assert told([*usual, {"grad_norm": 4.0}]) == []
    assert told([{"grad_norm": 0.1}] * 5 + [{"grad_norm": 600.0}]) == []  # too early to tell


def test_a_step_that_stalls_is_told_where_it_is_long_too():
    usual = [{"time/total": 5.0}] * 12
    assert told([*usual, {"time/total": 101.0}]) == [(13, "stall")]
    assert told([{"time/total": 0.2}] * 12 + [{"time/total": 50.0}]) == []  # of short steps a pause is nothing
    assert told([*usual, {"time/total": 300.0}], stall=None) == []


@pytest.mark.parametrize(("best", "fell"), [(0.8, 0.3), (0.2, -0.5)])
def test_a_reward_that_collapses_is_told(best, fell):
    dice = random.Random(0)
    trace = [{"reward/mean": value + dice.gauss(0, 0.03)} for value in [best] * 20 + [fell] * 12]
    found = told(trace)
    assert found[0][1] == "reward_fall"
    assert 24 <= found[0][0] <= 30
    assert told(trace, reward_fall=None) == []


def test_a_reward_that_is_noise_does_not_fall():
    dice = random.Random(1)
    assert told([{"reward/mean": 0.02 + dice.gauss(0, 0.02)} for _ in range(300)]) == []


def test_memory_that_grows_steadily_is_told_and_a_jump_is_not():
    assert told([{"memory/engine_mb": 1000 + 40.0 * k} for k in range(60)])[0] == (50, "memory_slope_mb")
    assert told([{"memory/engine_mb": 1000 + 20.0 * k} for k in range(60)]) == []
    assert told([{"memory/engine_mb": 1000.0 + (700 if k > 20 else 0)} for k in range(80)]) == []


def test_the_state_is_plain_and_goes_on_where_it_was_but_for_what_is_of_a_process():
    trace = [{"entropy": 1.0, "time/total": 5.0, "memory/driver_mb": 1.0, "reward/mean": 0.9}] * 12
    before, after = Trends(Alarms()), Trends(Alarms())
    for metrics in trace:
        assert [*before.check(metrics)] == []
    state = json.loads(json.dumps(before.state_dict()))
    assert sorted(state["past"]) == ["reward/mean"]
    after.load_state_dict(state)
    worse = {"entropy": 0.001, "reward/mean": 0.0}
    assert [[f.key for f in after.check(worse)] for _ in range(10)] == [
        [f.key for f in before.check(worse)] for _ in range(10)
    ]
    assert after.state_dict() == before.state_dict()


WRONG = GOOD | {"kl": 9.0}


def test_an_alarm_that_warns_is_said_once_until_it_is_over():
    made = watch()
    assert [[a.metric for a in made.check(step, WRONG)] for step in (1, 2)] == [["kl"], []]
    assert made.check(3, GOOD) == []
    assert [a.key for a in made.check(4, WRONG)] == ["kl"]


def test_an_action_is_taken_by_the_key_of_the_alarm():
    with pytest.raises(Alarm, match=r"kl is 9, above alarms\.kl 2"):
        watch(actions={"kl": "checkpoint+stop"}).check(1, WRONG)
    mismatched = GOOD | {"mismatch/kl_fresh": 0.06}
    (alarm,) = watch(actions={"mismatch_kl": "warn"}).check(1, mismatched)
    assert (alarm.key, alarm.metric) == ("mismatch_kl", "mismatch/kl_fresh")


def test_what_cannot_be_checked_and_what_is_no_number_stop_whatever_is_asked():
    everything = {key: "warn" for key in Alarms.model_fields if key != "actions"}
    with pytest.raises(Alarm, match="is nan"):
        watch(actions=everything).check(1, GOOD | {"loss": math.nan})
    with pytest.raises(Alarm, match="missing"):
        watch(actions=everything).check(1, {k: v for k, v in GOOD.items() if k != "groups/with_signal"})


@pytest.mark.parametrize("actions", [{"entropie": "warn"}, {"actions": "warn"}, {"kl": "explode"}])
def test_an_action_of_no_alarm_or_that_is_none_is_refused(actions):
    with pytest.raises(ValueError, match=r"no such alarm; there are .*kl|warn"):
        Alarms(actions=actions)

"""A run that is wrong stops, and says what, how much, against what, and where to look."""

import json
import pickle
import re

import pytest

from rlpost.config import Alarms
from rlpost.observe import Alarm, Watch

GOOD = {
    "loss": -0.1,
    "grad_norm": 0.4,
    "samples/learned": 64,
    "groups/with_signal": 5,
    "mismatch/logp_abs_max": 0.01,
    "mismatch/kl": 0.001,
    "mismatch/logp_abs_max_fresh": 1e-5,
    "mismatch/kl_fresh": 1e-6,
    "verifier/math/correct": 30,
    "verifier/math/wrong": 34,
    "verifier/math/unverified": 0,
}


def watch(fp32: bool = True, **alarms) -> Watch:
    return Watch(Alarms(**alarms), dtype_is_fp32=fp32)


def without(*names: str) -> dict[str, float]:
    return {name: value for name, value in GOOD.items() if name not in names}


def test_a_good_step_passes() -> None:
    for step in range(100):
        watch().check(step, GOOD)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mismatch/logp_abs_max_fresh": 0.002}, "logp_abs_max_fresh is 0.002, above .*mismatch_logp_abs_max 0.001"),
        ({"mismatch/kl_fresh": 0.06}, "mismatch/kl_fresh is 0.06, above alarms.mismatch_kl 0.05"),
        ({"verifier/math/unverified": 13}, r"of math is 0.168.*unverified_share 0.05 \(13 of its last 77\)"),
        ({"loss": float("nan")}, "loss is nan"),
        ({"loss/kl": float("inf")}, "loss/kl is inf"),
        ({"grad_norm": float("inf")}, "grad_norm is inf"),
        ({"mismatch/kl": float("nan")}, "mismatch/kl is nan"),
    ],
)
def test_a_wrong_metric_stops_the_run_with_exit_code_4(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(Alarm, match=says) as caught:
        watch().check(12, GOOD | wrong)
    assert str(caught.value).startswith("alarm at step 12: ")
    assert re.search(r"look at", str(caught.value), re.IGNORECASE)
    assert caught.value.exit_code == 4
    assert (caught.value.step, caught.value.metric) == (12, caught.value.args[1])


@pytest.mark.parametrize("name", ["mismatch/logp_abs_max", "mismatch/kl", "samples/learned", "groups/with_signal"])
def test_a_check_that_cannot_run_is_a_failure(name: str) -> None:
    with pytest.raises(Alarm, match=f"{name} is missing"):
        watch().check(1, without(name))


def hung(rows: int) -> dict[str, float]:
    """A step of 16 rows of math and 16 of others, 4 samples each; on so many of math's every sample timed out."""
    found = {"groups/total": 32, "verifier/math/rows": 16, "verifier/math/rows_hung": rows}
    found |= {"verifier/math/hangs_on_row": 4 * rows - 1, "verifier/math/crashes_on_row": rows > 0}
    return GOOD | found | {"verifier/math/correct": 0, "verifier/math/unverified": 4 * rows}


def test_rows_on_which_a_verifier_hangs_have_a_budget_of_their_own() -> None:
    patient = watch()
    for step in range(40):
        patient.check(step, hung(4))  # a quarter: far above unverified_share, and not above hung_rows_share
    with pytest.raises(Alarm, match=r"math hangs or crashes is 0.253906, above .*_share 0.25 \(65 of its last 256"):
        patient.check(40, hung(5))
    with pytest.raises(Alarm, match=r"hung_rows_share 0 \(1 of its last 16"):
        watch(hung_rows_share=0.0).check(1, hung(1))
    watch(hung_rows_share=1.0).check(1, hung(16))


def test_hung_rows_at_the_start_are_a_share_of_thirty_two() -> None:
    new = watch()
    new.check(1, hung(8))
    with pytest.raises(Alarm, match=r"\(16 of its last 32"):
        new.check(2, hung(8))


def test_a_step_that_consumed_nothing_needs_no_mismatch() -> None:
    nothing = without("mismatch/logp_abs_max", "mismatch/kl", "mismatch/logp_abs_max_fresh", "mismatch/kl_fresh")
    watch().check(1, nothing | {"samples/learned": 0})


def test_stale_samples_may_differ_from_the_learner_as_they_like() -> None:
    stale = without("mismatch/logp_abs_max_fresh", "mismatch/kl_fresh")
    watch().check(1, stale | {"mismatch/logp_abs_max": 3.0, "mismatch/kl": 1.0})


def test_outside_float32_log_probs_are_held_to_a_limit_only_when_one_is_set() -> None:
    far = GOOD | {"mismatch/logp_abs_max_fresh": 0.5}
    watch(fp32=False).check(1, far)
    with pytest.raises(Alarm, match=r"mismatch_logp_abs_max 0\.1"):
        watch(fp32=False, mismatch_logp_abs_max=0.1).check(1, far)
    watch(fp32=True, mismatch_logp_abs_max=1.0).check(1, far)


def verdicts(name: str, good: int, unverified: int) -> dict[str, float]:
    return {f"verifier/{name}/correct": good, f"verifier/{name}/unverified": unverified}


def test_a_verifier_that_is_often_unverified_is_not_hidden_by_the_others() -> None:
    others = {key: n for name in "abcd" for key, n in verdicts(name, 64, 0).items()}
    with pytest.raises(
        Alarm, match=r"share of unverified verdicts of my/own.py:score is 0.234375.*\(15 of its last 64"
    ):
        watch().check(1, GOOD | others | verdicts("my/own.py:score", 49, 15))


def test_a_verifier_of_few_rows_that_always_fails_is_found_over_several_steps() -> None:
    w, rare, none = watch(), verdicts("rare", 0, 3), verdicts("rare", 0, 0)
    for step in range(8):
        w.check(step, GOOD | (rare if step % 2 else none))
    with pytest.raises(Alarm, match=r"of rare is 1, above .* \(15 of its last 15\)"):
        w.check(9, GOOD | rare)


def test_one_bad_row_is_no_alarm_in_steps_of_whatever_size() -> None:
    for size in (8, 64, 512):
        w = watch()
        w.check(1, GOOD | verdicts("math", size - 8, 8))
        for step in range(2, 100):
            w.check(step, GOOD | verdicts("math", size, 0))


def test_verdicts_long_past_do_not_hide_what_begins_to_fail() -> None:
    w = watch()
    for step in range(1000):
        w.check(step, GOOD)
    with pytest.raises(Alarm, match=r"\(16 of its last 272\)"):
        w.check(1000, without("verifier/math/wrong") | verdicts("math", 0, 16))


def test_what_recent_steps_counted_survives_a_resume() -> None:
    before, after = watch(), watch()
    for step in range(2):
        before.check(step, GOOD | verdicts("rare", 0, 6))
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    with pytest.raises(Alarm, match="18 of its last 18"):
        after.check(2, GOOD | verdicts("rare", 0, 6))
    watch().load_state_dict({"without_signal": 0})  # of a run before these were counted


def test_steps_without_signal_alarm_only_in_a_row() -> None:
    w, none = watch(no_signal_steps=3), GOOD | {"groups/with_signal": 0}
    for metrics in (none, none, GOOD, none, none):
        w.check(1, metrics)
    with pytest.raises(Alarm, match=r"3 steps in a row"):
        w.check(6, none)


def test_the_row_of_steps_without_signal_survives_a_resume() -> None:
    none = GOOD | {"groups/with_signal": 0}
    before, after = watch(no_signal_steps=2), watch(no_signal_steps=2)
    before.check(1, none)
    after.load_state_dict(before.state_dict())
    with pytest.raises(Alarm):
        after.check(2, none)


def test_an_alarm_crosses_a_process_boundary_whole() -> None:
    alarm = Alarm(3, "loss", float("inf"), "which is not finite", "Look there")
    copy = pickle.loads(pickle.dumps(alarm))
    assert (str(copy), copy.step) == (str(alarm), 3)


def test_an_update_of_adapters_must_reach_the_engines() -> None:
    lost = {**GOOD, "sync/survived": 0.11}
    adapters = Watch(Alarms(), dtype_is_fp32=False, adapters=True)
    with pytest.raises(Alarm, match=r"sync/survived is 0.11, below alarms.sync_survived 0.9.*rollout.dtype: float32"):
        adapters.check(1, lost)
    adapters.check(1, {**GOOD, "sync/survived": 0.99})
    adapters.check(1, GOOD)  # nothing was trained yet
    Watch(Alarms(sync_survived=0.1), dtype_is_fp32=False, adapters=True).check(1, lost)


def test_small_steps_of_a_full_training_may_wait_in_the_optimizer() -> None:
    waiting = {**GOOD, "sync/survived": 0.0}
    watch(fp32=False).check(1, waiting)
    with pytest.raises(Alarm, match=r"below alarms.sync_survived 0.5"):
        watch(fp32=False, sync_survived=0.5).check(1, waiting)

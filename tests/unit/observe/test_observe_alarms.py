"""A run that is wrong stops, and says what, how much, against what, and where to look."""

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
        ({"verifier/math/unverified": 5}, r"unverified verdicts is 0.072.*unverified_share 0.05 \(69 verdicts\)"),
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
    """A step of 16 groups of 4, in so many of which every sample timed out."""
    found = {"groups/total": 16, "verifier/math/rows_hung": rows, "verifier/math/hangs_on_row": 4 * rows}
    return GOOD | found | {"verifier/math/correct": 0, "verifier/math/unverified": 4 * rows}


def test_rows_on_which_a_verifier_hangs_have_a_budget_of_their_own() -> None:
    patient = watch()
    for step in range(40):
        patient.check(step, hung(4))  # a quarter: far above unverified_share, and not above hung_rows_share
    with pytest.raises(Alarm, match=r"hangs is 0.253906, above alarms.hung_rows_share 0.25 \(the last 256 rows"):
        patient.check(40, hung(5))
    strict = watch(hung_rows_share=0.0)
    strict.check(1, hung(1))  # fewer than 32 rows have been seen
    with pytest.raises(Alarm, match=r"hung_rows_share 0 \(the last 32 rows"):
        strict.check(2, hung(0))
    watch(hung_rows_share=1.0).check(1, hung(16) | {"groups/total": 64})


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


def test_unverified_is_a_share_over_all_verifiers_and_needs_eight_verdicts() -> None:
    counts = {"verifier/math/correct": 0, "verifier/math/wrong": 0}
    watch().check(1, GOOD | counts | {"verifier/math/unverified": 7})
    with pytest.raises(Alarm, match="is 1, above"):
        watch().check(1, GOOD | counts | {"verifier/math/unverified": 8})
    watch().check(1, GOOD | {"verifier/math/unverified": 4, "verifier/format/correct": 64})


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

"""A time-out or a crash is laid to the answer when another one to the same prompt was scored, and else to the row."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rlpost import config
from rlpost.config import Alarms
from rlpost.observe import Alarm, Watch
from rlpost.rollout.request import Sampling
from rlpost.run.evaluation import evaluate
from rlpost.run.metrics import verdict_metrics
from rlpost.types import Group, Prompt, Rollout, Verdict
from rlpost.verify import VerifierPool

WAIT = 120.0
IDS = np.arange(2, dtype=np.int32)

OURS = """
import os, signal, time


def obeys(response, reference):
    if response.startswith("loop") or reference == "loop":
        time.sleep(600)
    if response == "raise":
        raise KeyError(response)
    if response.startswith("exit"):
        os._exit(3)
    if reference == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if response == "says so":
        return {"score": 0.0, "reason": "timeout"}
    return response == "yes"


def verify_batch(samples):
    return [obeys(s["response"], s["reference"]) for s in samples]


def after(response, verdicts):
    return {"score": 1.0, "details": verdicts}


def service(response, reference):
    return obeys(response, reference)


service.service = True
"""


@pytest.fixture
def ours(tmp_path):
    (tmp_path / "ours.py").write_text(OURS)
    return f"{tmp_path}/ours.py"


def group(texts, number=0, reference="plain"):
    prompt = Prompt(f"p{number}", "", IDS, reference=reference)
    zeros = np.zeros(2, np.float32)
    return [Rollout(prompt.id, number, i, IDS, IDS, zeros, IDS, "stop", t, i) for i, t in enumerate(texts)], prompt


def pool_of(*names, timeout=1.0, **settings):
    specs = [config.VerifierSpec(name=name, timeout=timeout) for name in names]
    return VerifierPool(specs, config.VerifierPool(workers=2, retries=0, **settings))


def said(rollouts, name):
    return [(r.verdicts[name].status, r.verdicts[name].reason) for r in rollouts]


def results(futures):
    return [future.result(WAIT) for future in futures]


HUNG, LATE = ("unverified", "hangs_on_row"), ("wrong", "timeout")
DIED, CRASHED = ("unverified", "crashes_on_row"), ("wrong", "crash")


@pytest.mark.parametrize(("reference", "verdict"), [("loop", HUNG), ("segfault", DIED)])
@pytest.mark.parametrize("attribute", ["obeys", "verify_batch"])
@pytest.mark.parametrize("cache_mb", [0, 64])
def test_a_row_on_which_every_answer_is_stopped_is_masked_and_only_that_row(
    ours, reference, verdict, attribute, cache_mb
):
    name = f"{ours}:{attribute}"
    with pool_of(name, cache_mb=cache_mb) as pool:
        # The same answer twice shares its verdict where verdicts are kept.
        bad = pool.submit_group(*group(["yes", "no", "no"], 0, reference))
        good = pool.submit_group(*group(["yes", "no"], 1))
        bad, good = results(bad), results(good)
    assert said(bad, name) == [verdict] * 3
    assert [r.reward for r in bad] == [None] * 3
    assert said(good, name) == [("correct", ""), ("wrong", "")]
    assert all(r.verdicts[name].details["prompt_id"] == "p0" for r in bad)


@pytest.mark.parametrize(("text", "verdict"), [("loop", LATE), ("exit", CRASHED)])
@pytest.mark.parametrize("others", [["yes"], ["no", "loop too", "exit too"]])
def test_an_answer_that_is_stopped_where_another_was_scored_is_wrong(ours, text, verdict, others):
    name = f"{ours}:obeys"
    with pool_of(name) as pool:
        rollouts = results(pool.submit_group(*group([text, *others])))
    assert said(rollouts, name)[0] == verdict
    assert rollouts[0].reward == 0.0


def test_a_row_may_hang_on_some_answers_and_crash_on_the_others(ours):
    name = f"{ours}:obeys"
    with pool_of(name) as pool:
        rollouts = results(pool.submit_group(*group(["loop", "exit", "loop"])))
    assert said(rollouts, name) == [HUNG, DIED, HUNG]
    found = verdict_metrics([Group(0, 1, group([])[1], tuple(rollouts))], [name])
    assert {key.rpartition("/")[2]: count for key, count in found.items() if count} == {
        "unverified": 3,
        "hangs_on_row": 2,
        "crashes_on_row": 1,
        "rows": 1,
        "rows_hung": 1,
    }


def test_what_a_verifier_calls_a_time_out_itself_is_its_own_verdict(ours):
    name = f"{ours}:obeys"
    with pool_of(name) as pool:
        rollouts = results(pool.submit_group(*group(["says so", "says so", "loop"])))
    assert said(rollouts, name) == [LATE] * 3


def test_a_verdict_that_is_known_from_before_counts_as_scored(ours):
    name = f"{ours}:obeys"
    with pool_of(name) as pool:
        assert said(results(pool.submit_group(*group(["yes", "no"]))), name) == [("correct", ""), ("wrong", "")]
        again = results(pool.submit_group(*group(["yes", "loop"])))
    assert again[0].verdicts[name].cached
    assert said(again, name) == [("correct", ""), LATE]


def test_two_groups_that_wait_for_the_same_answer_are_told_apart(ours):
    name = f"{ours}:obeys"
    with pool_of(name) as pool:
        one = pool.submit_group(*group(["loop", "yes"]))
        two = pool.submit_group(*group(["loop", "loop"]))
        one, two = results(one), results(two)
    assert said(one, name) == [LATE, ("correct", "")]
    assert said(two, name) == [HUNG, HUNG]


@pytest.mark.parametrize(("text", "verdict"), [("loop", LATE), ("exit", CRASHED)])
def test_an_answer_alone_is_to_blame(ours, text, verdict):
    name = f"{ours}:obeys"
    with pool_of(name) as pool:
        (rollout,), prompt = group([text])
        alone = pool.submit(rollout, prompt).result(WAIT)
        of_one = results(pool.submit_group(*group([text], 1)))
    assert said([alone, *of_one], name) == [verdict, verdict]


def test_a_verifier_that_raises_on_the_others_has_not_shown_that_it_can_score_the_row(ours):
    name = f"{ours}:obeys"
    with pool_of(name) as pool:
        rollouts = results(pool.submit_group(*group(["loop", "raise"])))
    assert said(rollouts, name) == [HUNG, ("unverified", "exception")]


def test_a_service_is_never_the_answers_doing(ours):
    name = f"{ours}:service"
    with pool_of(name) as pool:
        rollouts = results(pool.submit_group(*group(["loop", "yes", "exit"])))
    assert said(rollouts, name) == [("unverified", "timeout"), ("correct", ""), ("unverified", "crash")]


def test_a_verifier_that_waits_for_the_verdict_still_gets_it(ours):
    names = f"{ours}:obeys", f"{ours}:after"
    with pool_of(*names) as pool:
        rollouts = results(pool.submit_group(*group(["yes", "no"], 0, "loop")))
        mixed = results(pool.submit_group(*group(["yes", "loop"], 1)))
    assert [r.verdicts[names[1]].details for r in rollouts] == [{names[0]: None}] * 2
    assert [r.verdicts[names[1]].details[names[0]] for r in mixed] == [1.0, 0.0]


def test_closing_fails_what_waits_to_know_whose_doing_its_time_out_was(ours):
    with pool_of(f"{ours}:obeys", timeout=30.0) as pool:
        futures = pool.submit_group(*group(["loop", "loop too"]))
    assert all("closed" in str(future.exception(WAIT)) for future in futures)


@pytest.mark.parametrize("reason", ["hangs_on_row", "crashes_on_row"])
def test_an_evaluation_leaves_out_a_row_that_no_answer_gets_through(reason):
    def scored(number, verdict):
        rollouts, prompt = group(["a", "b"], number)
        return Group(number, 0, prompt, tuple(r.scored({"v": verdict}, {"v": 1.0}) for r in rollouts))

    def run(*groups):
        sampler = SimpleNamespace(sample_all=lambda *_: list(groups))
        return evaluate(sampler, [g.prompt for g in groups], 2, [1], Sampling(0.0, 8), 0, "v", Alarms())

    good, lost = scored(0, Verdict("correct", 1.0)), scored(1, Verdict("unverified", None, reason))
    found = run(good, lost)
    assert (found.correct, found.left_out, found.unverified) == ([[True, True], []], 1, 2)
    run(good, *[lost] * 200)  # has no part in the share of unverified verdicts
    with pytest.raises(Alarm, match=f"of 1 in the evaluation.*{reason} 2"):
        run(lost)


# -- the alarm


def step(rows, hung, samples=4, unverified=0):
    return {
        "samples/learned": 0,
        "groups/with_signal": 1,
        "verifier/v/correct": (rows - hung) * samples - unverified,
        "verifier/v/unverified": hung * samples + unverified,
        "verifier/v/hangs_on_row": hung * samples,
        "verifier/v/rows": rows,
        "verifier/v/rows_hung": hung,
    }


def test_rows_that_hang_now_and_then_stop_no_run():
    watch = Watch(Alarms(), dtype_is_fp32=True)
    draw = np.random.default_rng(0)
    for number in range(500):
        watch.check(number, step(4, int(draw.binomial(4, 0.05))))


def test_one_step_of_hung_rows_is_no_alarm_and_many_are():
    watch = Watch(Alarms(), dtype_is_fp32=True)
    for number in range(2):
        watch.check(number, step(4, 4))
    with pytest.raises(Alarm, match=r"v hangs or crashes is 1, above alarms.hung_rows_share 0.25 \(12 of its last 12"):
        watch.check(2, step(4, 4))


def test_other_unverified_verdicts_keep_their_own_budget():
    watch = Watch(Alarms(), dtype_is_fp32=True)
    watch.check(0, step(16, 4))
    with pytest.raises(Alarm, match=r"unverified verdicts of v is 0\.135417, above .* \(13 of its last 96\)"):
        watch.check(1, step(16, 4, unverified=13))


def test_rows_long_past_are_forgotten_and_the_count_survives_a_resume():
    watch = Watch(Alarms(), dtype_is_fp32=True)
    for number in range(10):
        watch.check(number, step(3, 0))
    resumed = Watch(Alarms(), dtype_is_fp32=True)
    resumed.load_state_dict(watch.state_dict())
    assert resumed.state_dict() == watch.state_dict()
    for number in range(200):
        resumed.check(number, step(8, 0))
    for steps in resumed.state_dict()["recent"].values():
        assert sum(count for _, count in steps) < 256 + 8 * 4

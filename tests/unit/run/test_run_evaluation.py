"""An evaluation measures what has verdicts, says what it left out, and stops a run only when that is much."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rlpost.config import Alarms, parse
from rlpost.observe import Alarm
from rlpost.rollout.request import Sampling
from rlpost.run.evaluation import Results, evaluate, pass_at
from rlpost.run.training import Run
from rlpost.types import Group, Prompt, Rollout, Verdict
from tests.conftest import tiny

IDS = np.ones(2, np.int32)
RIGHT, WRONG = Verdict("correct", 1.0), Verdict("wrong", 0.0)
BROKEN, ABORTED = Verdict("unverified", None, "exception"), Verdict("unverified", None, "aborted")


def group(number: int, verdicts: list[Verdict]) -> Group:
    def rollout(i: int, verdict: Verdict) -> Rollout:
        finish = "abort" if verdict is ABORTED else "stop"
        made = Rollout(f"p{number}", number, i, IDS, IDS, IDS.astype(np.float32), IDS, finish, str(i), 0)
        return made.scored({"v": verdict}, {"v": 1.0})

    return Group(number, 0, Prompt(f"p{number}", "", IDS), tuple(rollout(i, v) for i, v in enumerate(verdicts)))


def evaluated(rows: list[list[Verdict]], k: list[int], **alarms: float) -> Results:
    sampler = SimpleNamespace(sample_all=lambda *_: [group(i, row) for i, row in enumerate(rows)])
    return evaluate(sampler, [], len(rows[0]), k, Sampling(1.0, 8), 0, "v", Alarms(**alarms), step=7)


def test_where_every_sample_has_a_verdict_nothing_is_left_out():
    found = evaluated([[RIGHT, WRONG]] * 4, [1, 2])
    assert found.intervals["pass@1"] == (0.5, 0.5, 0.5)
    assert found.intervals["pass@2"] == (1.0, 1.0, 1.0)
    assert (found.counts, found.caveat) == ({"unverified": 0, "prompts_left_out": 0}, "")


@pytest.mark.parametrize("lost", [BROKEN, ABORTED])
def test_a_prompt_that_lacks_a_verdict_is_left_out_of_the_ks_it_has_too_few_for(lost: Verdict):
    found = evaluated([[WRONG] * 4] * 7 + [[RIGHT, RIGHT, RIGHT, lost]], [1, 3, 4])
    assert found.intervals["pass@1"][0] == found.intervals["pass@3"][0] == 1 / 8
    assert found.intervals["pass@4"][0] == 0
    assert found.counts == {"unverified": 1, "prompts_left_out": 1}
    assert found.caveat == f"pass@4 leaves out 1 of 8 prompts, with too few verdicts of v: {lost.reason} 1"
    assert found.correct[7] == [True] * 3


def test_more_unverified_samples_than_the_alarm_allows_stop_the_run_and_no_fewer():
    rows = [[RIGHT, WRONG] for _ in range(200)]
    for i in range(20):
        rows[i] = [RIGHT, BROKEN]
    assert evaluated(rows, [1, 2]).left_out == 20
    rows[20] = [ABORTED, RIGHT]
    with pytest.raises(
        Alarm, match=r"without a verdict of v is 0\.0525, above alarms\.unverified_share 0\.05"
    ) as alarm:
        evaluated(rows, [1, 2])
    assert "(21 of 400)" in str(alarm.value)
    assert "exception 20, aborted 1" in str(alarm.value)
    assert (alarm.value.step, alarm.value.exit_code) == (7, 4)
    assert evaluated(rows, [1, 2], unverified_share=0.06).left_out == 21


def test_few_samples_make_no_share_but_what_cannot_be_measured_is_never_passed_over():
    assert evaluated([[RIGHT, RIGHT], [RIGHT, BROKEN]], [1, 2]).left_out == 1
    with pytest.raises(Alarm, match="prompts with 2 verdicts of v is 0, of 2 in the evaluation: there is no pass@2"):
        evaluated([[RIGHT, BROKEN], [BROKEN, BROKEN]], [1, 2])


def test_a_run_warns_of_what_an_evaluation_left_out_and_records_how_much():
    warned, recorded, moved, scored = [], [], [], []
    rows = [[RIGHT, WRONG], [RIGHT, BROKEN]]
    run = SimpleNamespace(
        config=parse(tiny(evaluation={"samples_per_prompt": 2, "k": [1, 2]})),
        sampler=SimpleNamespace(sample_all=lambda *_: [group(i, row) for i, row in enumerate(rows)]),
        prompts=SimpleNamespace(tests={"": []}),
        sampling=Sampling(1.0, 8),
        step=3,
        store=SimpleNamespace(score=lambda step, values: scored.append((step, values["pass@1"]))),
        say=lambda _: None,
        recorder=SimpleNamespace(
            console=SimpleNamespace(warn=warned.append), evaluation=lambda *said: recorded.append(said)
        ),
        references={"old": SimpleNamespace(after_evaluation=lambda step, values: (step, values["pass@1"]))},
        _move=moved.append,
        _retain=lambda: None,
    )
    run._ask = lambda *test: Run._ask(run, *test)
    found = Run.evaluate(run, "step 3")[""]
    assert warned == [found.caveat]
    assert recorded == [("step 3", 3, found.intervals, {"unverified": 1, "prompts_left_out": 1})]
    assert moved == [{"old": (3, 0.75)}]
    assert scored == [(3, 0.75)], "the checkpoint of the step knows how good it was"

    rows[:] = [[RIGHT, BROKEN]] * 2
    with pytest.raises(Alarm, match=r"alarm at step 3: .* there is no pass@2"):
        Run.evaluate(run, "step 3")
    assert (len(recorded), len(moved)) == (1, 1)


def test_each_test_set_is_asked_in_its_own_way_and_recorded_by_its_name():
    asked: dict[str, tuple] = {}

    def sample_all(prompts, samples, sampling, seed):
        asked[prompts[0].source] = len(prompts), samples, sampling.max_tokens
        return [group(i, [RIGHT, WRONG][:samples]) for i in range(len(prompts))]

    values = tiny(evaluation={"samples_per_prompt": 1, "k": [1]}, verifiers=["countdown", "exact"])
    one = values["data"]["test"]
    values["data"]["test"] = {
        "sums": {**one, "verifiers": ["exact"], "k": [1, 2], "samples_per_prompt": 2, "max_tokens": 99, "prompts": 1},
        "rest": one,
    }
    config, recorded, moved, scored = parse(values), [], [], {}
    tests = {name: [Prompt(f"{name}/{i}", "", IDS, source=name) for i in range(3)] for name in ("sums", "rest")}
    run = SimpleNamespace(
        config=config,
        sampler=SimpleNamespace(sample_all=sample_all),
        prompts=SimpleNamespace(tests=tests),
        sampling=Sampling(1.0, 12),
        step=1,
        store=SimpleNamespace(score=lambda step, values: scored.update(values)),
        say=lambda _: None,
        recorder=SimpleNamespace(evaluation=lambda *said: recorded.append(said)),
        references={"old": SimpleNamespace(after_evaluation=lambda step, values: values["sums/pass@2"])},
        _move=moved.append,
        _retain=lambda: None,
    )
    run._ask = lambda *test: Run._ask(run, *test)
    Run.evaluate(run, "after")
    assert asked == {"sums": (1, 2, 99), "rest": (3, 1, 12)}
    (_, _, intervals, counts) = recorded[0]
    assert (intervals["sums/pass@1"][0], intervals["sums/pass@2"][0], intervals["rest/pass@1"][0]) == (0.5, 1.0, 1.0)
    assert set(counts) == {f"{n}/{what}" for n in tests for what in ("unverified", "prompts_left_out")}
    assert moved == [{"old": 1.0}]
    assert scored.keys() >= set(config.evaluated)
    assert config.evaluated == ["sums/pass@1", "sums/pass@2", "rest/pass@1"]
    assert config.max_served_tokens == config.data.max_prompt_tokens + 99


def test_verdicts_of_many_seeds_are_pooled_by_prompt():
    pooled = pass_at([[True, False], [True], []], [1, 2])
    assert (pooled["pass@1"][0], pooled["pass@2"][0]) == (0.75, 1.0)

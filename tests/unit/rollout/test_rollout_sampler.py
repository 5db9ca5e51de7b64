"""Groups are collected whole and in order, and every sample is accounted for. Stand-ins play engine and verifiers."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future

import numpy as np
import pytest

from rlpost.faults import DeadlineError
from rlpost.rollout.request import SampleRequest, Sampling, sample_seed
from rlpost.rollout.sampler import Account, GroupSampler
from rlpost.types import Prompt, Rollout, Verdict


class StandInFleet:
    """Answers from a thread, the last group first."""

    dtype = "float32"

    def __init__(self, fail: bool = False, silent: bool = False) -> None:
        self.fail, self.silent = fail, silent
        self.requests: list[tuple[SampleRequest, Future]] = []

    def submit(self, request: SampleRequest) -> Future:
        future: Future = Future()
        self.requests.append((request, future))
        return future

    def attend(self) -> bool:
        return False

    def answer(self) -> None:
        pending, self.requests = self.requests, []
        for request, future in reversed(pending):
            if self.fail:
                future.set_exception(RuntimeError("engine failed while sampling"))
            elif not self.silent:
                future.set_result([rollout(request, i) for i in range(len(request.seeds))])


class StandInPool:
    """Scores from several threads at once."""

    def submit_group(self, rollouts: list[Rollout], prompt: Prompt) -> list[Future]:
        return [self.submit(rollout, prompt) for rollout in rollouts]

    def submit(self, rollout: Rollout, prompt: Prompt) -> Future:
        future: Future = Future()
        verdict = Verdict("correct", 1.0)
        threading.Thread(target=lambda: future.set_result(rollout.scored({"v": verdict}, {"v": 1.0}))).start()
        return future


def rollout(request: SampleRequest, sample: int) -> Rollout:
    return Rollout(
        request.prompt_id,
        request.group,
        sample,
        request.prompt_ids,
        np.ones(2, np.int32),
        np.zeros(2, np.float32),
        np.zeros(2, np.int32),
        "stop",
        "x",
        request.seeds[sample],
    )


def prompt(name: str) -> Prompt:
    return Prompt(name, name, np.array([1, 2], np.int32))


SAMPLING = Sampling(1.0, 4)


def test_groups_come_back_scored_in_the_order_of_submission():
    fleet = StandInFleet()
    sampler = GroupSampler(fleet, StandInPool(), seed=5, deadline=30)
    for name in "abc":
        sampler.submit(prompt(name), step=1, samples=3, sampling=SAMPLING)
    fleet.answer()
    groups = sampler.collect(1, 3)
    assert [g.prompt.id for g in groups] == ["a", "b", "c"]
    assert all(r.reward == 1.0 for g in groups for r in g.rollouts)
    assert [r.seed for r in groups[1].rollouts] == [sample_seed(5, 1, "b", i) for i in range(3)]


def test_steps_submitted_ahead_do_not_mix():
    fleet = StandInFleet()
    sampler = GroupSampler(fleet, StandInPool(), seed=0, deadline=30)
    sampler.submit(prompt("now"), 1, 1, SAMPLING)
    sampler.submit(prompt("later"), 2, 1, SAMPLING)
    fleet.answer()
    assert [g.prompt.id for g in sampler.collect(1, 1)] == ["now"]
    assert [g.prompt.id for g in sampler.collect(2, 1)] == ["later"]


def test_the_account_balances_from_submission_to_consumption():
    fleet = StandInFleet()
    sampler = GroupSampler(fleet, StandInPool(), seed=0, deadline=30)
    sampler.submit(prompt("a"), 1, 4, SAMPLING)
    sampler.submit(prompt("b"), 2, 4, SAMPLING)
    sampler.account.check()
    assert (sampler.account.submitted, sampler.account.running) == (8, 8)
    fleet.answer()
    sampler.collect(1, 1)
    sampler.account.consumed += 3
    sampler.account.dropped += 1
    sampler.account.check()
    assert sampler.account.running == 4


def test_a_lost_sample_is_an_error():
    with pytest.raises(RuntimeError, match=r"submitted 5 != consumed 2 \+ dropped 1 \+ running 1"):
        Account(submitted=5, consumed=2, dropped=1, running=1).check()


def test_an_engines_failure_reaches_who_collects():
    fleet = StandInFleet(fail=True)
    sampler = GroupSampler(fleet, StandInPool(), seed=0, deadline=30)
    sampler.submit(prompt("a"), 1, 2, SAMPLING)
    fleet.answer()
    with pytest.raises(RuntimeError, match="engine failed"):
        sampler.collect(1, 1)


def test_groups_that_never_come_run_into_a_deadline_that_says_what_was_waited_for():
    sampler = GroupSampler(StandInFleet(silent=True), StandInPool(), seed=0, deadline=-59.9)
    sampler.submit(prompt("a"), 3, 2, SAMPLING)
    with pytest.raises(DeadlineError, match="the groups of step 3: 0 of 1 came"):
        sampler.collect(3, 1)


def test_an_evaluation_stays_out_of_the_account():
    fleet = StandInFleet()
    sampler = GroupSampler(fleet, StandInPool(), seed=0, deadline=30)
    threading.Timer(0.05, fleet.answer).start()
    groups = sampler.sample_all([prompt("a"), prompt("b")], 2, SAMPLING, seed=9)
    assert [g.prompt.id for g in groups] == ["a", "b"]
    assert sampler.account == Account()


def test_only_what_may_be_learned_from_is_asked_for_with_routes():
    fleet = StandInFleet()
    asked = []
    fleet.submit = lambda request: asked.append(request.routes) or StandInFleet.submit(fleet, request)
    sampler = GroupSampler(fleet, StandInPool(), seed=0, deadline=30)
    sampler.submit(prompt("a"), 1, 2, SAMPLING)
    threading.Timer(0.05, fleet.answer).start()
    sampler.sample_all([prompt("b")], 2, SAMPLING, seed=9)
    assert asked == [True, False]


def test_a_seed_depends_on_run_step_prompt_and_sample_alone():
    assert sample_seed(0, 1, "a", 2) == sample_seed(0, 1, "a", 2)
    others = {sample_seed(*x) for x in ((1, 1, "a", 2), (0, 2, "a", 2), (0, 1, "b", 2), (0, 1, "a", 3))}
    assert len(others | {sample_seed(0, 1, "a", 2)}) == 5
    assert all(0 <= s < 2**31 for s in others)


def test_a_prompt_drawn_again_within_a_step_gets_other_samples_and_a_lone_draw_those_it_always_had():
    fleet = StandInFleet()
    sampler = GroupSampler(fleet, StandInPool(), seed=5, deadline=30)
    for step in (1, 2):
        for name in ("a", "b", "a", "a"):
            sampler.submit(prompt(name), step, 2, SAMPLING)
    fleet.answer()
    seeds = [[r.seed for r in g.rollouts] for g in sampler.collect(1, 4)]
    assert seeds[1] == [sample_seed(5, 1, "b", i) for i in (0, 1)]
    assert [s for i in (0, 2, 3) for s in seeds[i]] == [sample_seed(5, 1, "a", i) for i in range(6)]
    assert len({s for row in seeds for s in row}) == 8
    sampler.submit(prompt("a"), 1, 2, SAMPLING)  # a refill
    fleet.answer()
    assert [r.seed for r in sampler.collect(1, 1)[0].rollouts] == [sample_seed(5, 1, "a", i) for i in (6, 7)]
    sampler.forget(1)
    assert [r.seed for r in sampler.collect(2, 4)[0].rollouts] == [sample_seed(5, 2, "a", i) for i in (0, 1)]


def test_an_evaluation_of_a_prompt_twice_has_other_samples_and_those_of_the_evaluation_before():
    fleet = StandInFleet()

    def at_once(request: SampleRequest) -> Future:
        future = StandInFleet.submit(fleet, request)
        fleet.answer()
        return future

    fleet.submit = at_once
    sampler = GroupSampler(fleet, StandInPool(), seed=0, deadline=30)

    def seeds(drawn: Counter | None = None) -> list[int]:
        groups = sampler.sample_all([prompt("a"), prompt("a")], 2, SAMPLING, 9, drawn)
        return [r.seed for g in groups for r in g.rollouts]

    assert seeds() == seeds() == [sample_seed(9, -1, "a", i) for i in range(4)]
    taken: Counter[str] = Counter()
    assert seeds(taken) + seeds(taken) == [sample_seed(9, -1, "a", i) for i in range(8)]


def test_a_resumed_account_balances_and_group_numbers_go_on():
    fleet = StandInFleet()
    sampler = GroupSampler(fleet, StandInPool(), seed=0, deadline=30)
    for step in (1, 2):
        sampler.submit(prompt("a"), step, 4, SAMPLING)
    fleet.answer()
    sampler.collect(1, 1)
    sampler.account.consumed += 4
    again = GroupSampler(fleet, StandInPool(), seed=0, deadline=30)
    again.load_state_dict(sampler.state_dict())
    again.account.check()
    assert again.account == Account(submitted=4, consumed=4)
    again.submit(prompt("b"), 2, 4, SAMPLING)
    fleet.answer()
    assert again.collect(2, 1)[0].id == 2


def test_what_is_in_flight_goes_on_in_another_sampler_under_the_same_identity():
    fleet = StandInFleet()
    sampler = GroupSampler(fleet, StandInPool(), seed=5, deadline=30)
    for name in ("a", "b", "a"):
        sampler.submit(prompt(name), 2, 2, SAMPLING)
    late = fleet.requests.pop()  # the second of a is not sampled yet
    fleet.answer()
    flights = sampler.in_flight()
    sampler.settle(flights)
    found = [flight.pending() for flight in flights]
    assert [p.group is None for p in found] == [False, False, True]
    assert (found[2].id, found[2].step, found[2].seeds) == (2, 2, late[0].seeds)

    again = GroupSampler(other := StandInFleet(), StandInPool(), seed=5, deadline=30)
    again.load_state_dict(sampler.state_dict())
    for pending in found:
        again.resume(pending, SAMPLING)
    assert [(r.group, r.seeds) for r, _ in other.requests] == [(2, late[0].seeds)], "the rest is not sampled twice"
    again.submit(prompt("a"), 2, 2, SAMPLING)
    other.answer()
    again.account.check()
    groups = again.collect(2, 4)
    assert [(g.id, g.prompt.id) for g in groups] == [(0, "a"), (1, "b"), (2, "a"), (3, "a")]
    seeds = [r.seed for g in groups if g.prompt.id == "a" for r in g.rollouts]
    assert seeds == [sample_seed(5, 2, "a", i) for i in range(6)], "a draw that was resumed counts as one"
    assert again.account == Account(submitted=8, running=0, consumed=0, dropped=0)


def test_a_drain_ends_with_the_last_sequence_and_not_with_its_verdict():
    class Slow(StandInPool):
        def submit_group(self, rollouts, prompt):
            return [Future() for _ in rollouts]

    sampler = GroupSampler(fleet := StandInFleet(), Slow(), seed=0, deadline=30)
    sampler.submit(prompt("a"), 1, 2, SAMPLING)
    sampler.submit(prompt("b"), 2, 2, SAMPLING)
    held = fleet.requests.pop(0)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (sampler.drain(), done.set()))
    thread.start()
    fleet.answer()
    assert not done.wait(0.2)
    fleet.requests.append(held)
    fleet.answer()
    assert done.wait(20)
    assert [p.pending().group for p in sampler.in_flight()] == [None, None]


def test_a_failure_in_flight_ends_a_drain_and_is_left_out_of_what_is_saved():
    sampler = GroupSampler(fleet := StandInFleet(fail=True), StandInPool(), seed=0, deadline=30)
    sampler.submit(prompt("a"), 1, 2, SAMPLING)
    fleet.answer()
    sampler.settle(sampler.in_flight())
    assert [f.pending().group for f in sampler.in_flight()] == [None]
    with pytest.raises(RuntimeError, match="engine failed"):
        sampler.drain()

"""What the loop promises, with stand-ins for engines, learner and verifiers."""

from __future__ import annotations

import signal
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from rlpost import loop
from rlpost.config import parse
from rlpost.data import STRATEGIES, MixedOrder, PromptOrder, judge_group
from rlpost.learner.batch import Batch
from rlpost.objective import Credit
from rlpost.objective.reference import HardReset
from rlpost.rollout.request import Sampling
from rlpost.rollout.sampler import Account
from rlpost.run.training import Run
from rlpost.stop import STOP
from rlpost.types import Group, Pending, Prompt, Rollout, Sample, Verdict
from tests.conftest import tiny


def rollout(group: int, sample: int, reward: float | None, version: int = 0, finish: str = "stop") -> Rollout:
    verdict = Verdict("unverified", None) if reward is None else Verdict("correct" if reward else "wrong", reward)
    made = Rollout(
        f"p{group}",
        group,
        sample,
        np.ones(2, np.int32),
        np.ones(3, np.int32),
        np.zeros(3, np.float32),
        np.full(3, version, np.int32),
        finish,
        "",
        0,
    )
    return made.scored({"v": verdict}, {"v": 1.0})


class StandInSampler:
    """Groups whose rewards are given by the prompt: `script[prompt id]`."""

    def __init__(self, script: dict[str, list[float | None]], version: int = 0) -> None:
        self.script, self.version = script, version
        self.account = Account()
        self.submitted: list[tuple[int, str]] = []
        self._waiting: dict[int, list[Group]] = {}

    def submit(self, prompt: Prompt, step: int, samples: int, sampling: Sampling) -> None:
        number = len(self.submitted)
        self.submitted.append((step, prompt.id))
        rewards = self.script.get(prompt.id, [0.0, 1.0])
        group = Group(number, step, prompt, tuple(rollout(number, i, r, self.version) for i, r in enumerate(rewards)))
        self._waiting.setdefault(step, []).append(group)
        self.account.submitted += len(rewards)
        self.account.running += len(rewards)

    def collect(self, step: int, count: int) -> list[Group]:
        taken, self._waiting[step] = self._waiting[step][:count], self._waiting[step][count:]
        self.account.running -= sum(len(g.rollouts) for g in taken)
        return taken

    def resume(self, pending: Pending, sampling: Sampling) -> None:
        self.submitted.append((pending.step, f"{pending.prompt.id} again"))
        self._waiting.setdefault(pending.step, []).append(pending.group)
        self.account.submitted += len(pending.seeds)
        self.account.running += len(pending.seeds)

    def forget(self, step: int) -> None:
        assert self._waiting.pop(step) == []


def stand_in_run(script: dict[str, list[float | None]], prompts: int = 20, **changes: object) -> SimpleNamespace:
    config = parse(tiny(learner={"prompts_per_step": 4}, rollout={"samples_per_prompt": 2}, **changes))
    pool = [Prompt(f"p{i}", f"p{i}", np.ones(2, np.int32)) for i in range(prompts)]
    order = PromptOrder(pool, seed=0, shuffle=False)
    strategy = STRATEGIES.create(config.data.strategy)
    strategy.begin(order)
    return SimpleNamespace(
        config=config,
        recorder=None,
        order=order,
        strategy=strategy,
        rewarded=list,
        samples=lambda groups, step: strategy.samples(groups, "v", step),
        scored=lambda batch: batch,
        wanted=set(),
        credit=Credit(config.objective, config.steps),
        drawn={},
        pending={},
        sampler=StandInSampler(script),
        sampling=Sampling(1.0, 4),
        submitted=0,
        step=0,
        last=config.last_step,
        version=0,
        judge=lambda g: judge_group(g.rewards, config.data.groups),
    )


def test_a_step_is_submitted_once_and_its_place_in_the_data_is_remembered():
    run = stand_in_run({})
    loop.submit(run, 1)
    loop.submit(run, 1)
    loop.submit(run, 2)
    assert run.sampler.submitted == [(1, f"p{i}") for i in range(4)] + [(2, f"p{i}") for i in range(4, 8)]
    assert {step: [p.id for p in drawn] for step, drawn in run.drawn.items()} == {
        1: [f"p{i}" for i in range(4)],
        2: [f"p{i}" for i in range(4, 8)],
    }


def test_what_was_drawn_for_a_step_in_flight_is_sampled_after_a_resume_and_no_refill_again():
    script = {"p0": [1.0, 1.0], "p1": [0.0, 0.0]}
    refill = {"steps": 4, "data": {"groups": {"no_signal": "refill", "max_rounds": 4}}}

    def next_steps(run) -> list[list[str]]:
        for step in (2, 3, 4):
            loop.submit(run, step)
        return [[p for s, p in run.sampler.submitted if s == step][:4] for step in (2, 3, 4)]

    run = stand_in_run(script, **refill)
    loop.submit(run, 1)
    loop.submit(run, 2)  # ahead, as with rollout.max_staleness: 1
    loop.collect(run, 1)  # refilled by p8 and p9
    again = stand_in_run(script, **refill)
    again.order.load_state_dict(run.order.state_dict())
    again.drawn = {step: list(prompts) for step, prompts in run.drawn.items()}
    assert (
        next_steps(again)
        == next_steps(run)
        == [[f"p{i}" for i in r] for r in (range(4, 8), range(10, 14), range(14, 18))]
    )


def test_what_a_checkpoint_had_in_flight_is_taken_in_order_and_only_the_rest_of_its_step_is_submitted():
    run = stand_in_run({})
    pool = {p.id: p for p in run.order.prompts}
    run.drawn = {1: [pool["p9"], pool["p8"]]}
    group = Group(40, 1, pool["p9"], (rollout(40, 0, 1.0),))
    run.pending = {1: [Pending(40, 1, pool["p9"], (1,), group)]}
    loop.submit(run, 1)
    assert run.sampler.submitted == [(1, "p9 again"), (1, "p8"), (1, "p0"), (1, "p1")]
    assert run.pending == {}
    assert [p.id for p in run.drawn[1]] == ["p9", "p8", "p0", "p1"]


@pytest.mark.parametrize(("updates", "drained"), [("between", [1]), ("within", [])])
def test_an_update_comes_after_what_is_in_flight_or_into_it(monkeypatch, updates, drained):
    run, order = stand_in_run({}), []
    run.config = parse(tiny(learner={"prompts_per_step": 4}, rollout={"max_staleness": 1, "updates": updates}))
    run.sampler.drain = lambda: order.append("drained")
    run.fleet = SimpleNamespace(sync=lambda *_: order.append("updated") or {}, dtype="float32")
    run.say = run.adapt = lambda _: None
    run.chosen, run.referee, run.report = list, "v", lambda *_: None
    run.strategy.observe = lambda *_: order.append("learning")
    run.learner = None
    monkeypatch.setattr(loop, "credit", lambda *_: None)
    monkeypatch.setattr(loop, "learn", lambda *_: {})
    loop.advance(run, 1)
    assert order == ["learning", *["drained" for _ in drained], "updated"]
    assert {step for step, _ in run.sampler.submitted} == {1, 2}, "the next step was in flight"


def test_groups_without_signal_are_refilled_by_other_prompts_round_by_round():
    script = {"p1": [1.0, 1.0], "p4": [0.0, 0.0]}
    run = stand_in_run(script, data={"groups": {"no_signal": "refill", "max_rounds": 4}})
    loop.submit(run, 1)
    groups = loop.collect(run, 1)
    assert [g.prompt.id for g in groups] == ["p0", "p1", "p2", "p3", "p4", "p5"]
    kept = [g for g in groups if run.judge(g) == "keep"]
    assert [g.prompt.id for g in kept] == ["p0", "p2", "p3", "p5"]
    loop.settle(run, groups, kept)
    assert (run.sampler.account.consumed, run.sampler.account.dropped) == (8, 4)


def test_refilling_ends_after_the_rounds_it_was_given():
    script = {f"p{i}": [0.0, 0.0] for i in range(20)}
    run = stand_in_run(script, data={"groups": {"no_signal": "refill", "max_rounds": 2}})
    loop.submit(run, 1)
    groups = loop.collect(run, 1)
    assert len(groups) == 4 * 3
    loop.settle(run, groups, [])
    assert run.sampler.account.dropped == run.sampler.account.submitted == 24


def test_groups_without_signal_are_learned_from_with_no_advantage_unless_the_policy_says_otherwise():
    run = stand_in_run({"p0": [1.0, 1.0]})
    loop.submit(run, 1)
    groups = loop.collect(run, 1)
    assert all(run.judge(g) == "keep" for g in groups)
    credited = loop.credit(run, groups, 1).credited
    assert [credited[0, 0], credited[0, 1]] == [0.0, 0.0]
    assert [credited[1, 0], credited[1, 1]] == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=1e-5)
    assert len(credited) == 8


def test_unverified_samples_are_left_out_of_the_batch_and_of_their_groups_statistics():
    run = stand_in_run({"p0": [0.0, 1.0, None], "p1": [None, None, 1.0]})
    loop.submit(run, 1)
    groups = loop.collect(run, 1)
    assert [run.judge(g) for g in groups[:2]] == ["keep", "incomplete"]
    kept = [g for g in groups if run.judge(g) == "keep"]
    credited = loop.credit(run, kept, 1).credited
    assert list(credited)[:2] == [(0, 0), (0, 1)]
    assert credited[0, 0] == pytest.approx(-credited[0, 1])
    loop.settle(run, groups, kept)
    assert (run.sampler.account.consumed, run.sampler.account.dropped) == (6, 4)


def test_aborted_samples_are_never_learned_from():
    run = stand_in_run({})
    group = Group(
        0, 1, Prompt("p0", "", np.ones(2, np.int32)), (rollout(0, 0, 1.0), rollout(0, 1, 0.0, finish="abort"))
    )
    assert run.judge(group) == "incomplete"
    assert list(loop.credit(run, [group], 1).credited) == [(0, 0)]
    assert loop.credit(run, [], 1) is None


def test_a_token_older_than_the_bound_is_an_error():
    def lesson(version: int) -> SimpleNamespace:
        given = Sample.given(np.ones(1, np.int32), np.ones(1, np.int32), "sft", 9)
        return SimpleNamespace(batch=Batch.from_samples([Sample.on_policy(rollout(0, 0, 1.0, version)), given]))

    loop.check_staleness(lesson(3), version=4, bound=1)
    loop.check_staleness(None, version=4, bound=1)
    with pytest.raises(RuntimeError, match="staleness 2 is more than"):
        loop.check_staleness(lesson(2), version=4, bound=1)


def test_what_a_step_sampled_and_learned_from_is_gone_when_the_next_is_sampled():
    run = stand_in_run({})
    seen: dict[int, list[weakref.ref]] = {}
    left: list[int] = []

    def submit(prompt: Prompt, step: int, *more: object) -> None:
        left.append(sum(ref() is not None for ref in seen.get(step - 1, [])))
        run.sampler.version = run.version
        StandInSampler.submit(run.sampler, prompt, step, *more)

    def update(batch: Batch, *_: object) -> SimpleNamespace:
        seen[run.step + 1].append(weakref.ref(batch))
        return SimpleNamespace(values=dict)

    def chosen(groups: list[Group]) -> list[Group]:
        seen[run.step + 1] = [weakref.ref(x) for g in groups for x in (g, *g.rollouts)]
        return groups

    run.sampler.submit, run.chosen, run.learner = submit, chosen, SimpleNamespace(update=update)
    run.fleet, run.referee, run.stop_requested = SimpleNamespace(dtype="float32", sync=lambda *_: {}), "v", False
    for name in ("say", "adapt", "report", "saves", "save", "evaluate"):
        setattr(run, name, lambda *_: None)
    loop.train(run)
    assert run.step == 3
    assert len(seen) == 3
    assert left == [0] * 12


class Killed(Exception):
    pass


class AnchoredRun:
    """Evaluations that get worse move an anchor; what a checkpoint holds is all that outlives the process."""

    def __init__(self, saved: tuple[int, dict] | None = None, kill_at: str = "") -> None:
        self.config = parse(tiny(steps=8, evaluation={"every": 2}, checkpoint={"every": 2}))
        self.anchor = HardReset(patience=2, metric="pass@1")
        self.step, self.stop_requested, self.kill_at, self.last = 0, False, kill_at, self.config.last_step
        self.log: list[str] = []
        self.saved = saved
        if saved is not None:
            self.step, state = saved
            self.anchor.load_state_dict(state)

    def _did(self, what: str) -> None:
        self.log.append(what)
        if what == self.kill_at:
            raise Killed

    def advance(self, step: int) -> None:
        self.step = step
        self._did(f"step {step}")

    def saves(self, step: int) -> bool:
        return self.config.saves(step)

    def save(self) -> None:
        self.saved = self.step, self.anchor.state_dict()
        self._did(f"save {self.step}")

    def evaluate(self, when: str) -> None:
        move = self.anchor.after_evaluation(self.step, {"pass@1": 1 / self.step})
        self._did(f"evaluate {when}" + (", reset" if move else ""))


def test_a_step_is_saved_before_it_is_evaluated(monkeypatch):
    monkeypatch.setattr(loop, "advance", AnchoredRun.advance)
    run = AnchoredRun()
    loop.train(run)
    assert run.log == [
        *("step 1", "step 2", "save 2", "evaluate step 2"),
        *("step 3", "step 4", "save 4", "evaluate step 4"),
        *("step 5", "step 6", "save 6", "evaluate step 6, reset"),
        *("step 7", "step 8", "save 8"),
    ]  # the last step's evaluation is the one after the run


@pytest.mark.parametrize(
    "kill_at", ["save 2", "evaluate step 2", "step 3", "save 4", "evaluate step 4", "step 5", "evaluate step 6, reset"]
)
def test_a_run_killed_before_or_after_an_evaluation_resumes_with_its_effect_once(monkeypatch, kill_at: str):
    monkeypatch.setattr(loop, "advance", AnchoredRun.advance)
    straight, killed = AnchoredRun(), AnchoredRun(kill_at=kill_at)
    loop.train(straight)
    with pytest.raises(Killed):
        loop.train(killed)
    resumed = AnchoredRun(saved=killed.saved)
    loop.train(resumed)
    assert resumed.log == straight.log[straight.log.index(f"save {killed.saved[0]}") + 1 :]
    assert resumed.saved == straight.saved


def test_a_run_asked_to_stop_leaves_the_evaluation_to_who_resumes_it(monkeypatch):
    monkeypatch.setattr(loop, "advance", AnchoredRun.advance)
    run = AnchoredRun()
    run.save = lambda: (AnchoredRun.save(run), setattr(run, "stop_requested", True))
    loop.train(run)
    resumed = AnchoredRun(saved=run.saved)
    loop.train(resumed)
    assert (run.log[-1], resumed.log[0]) == ("save 2", "evaluate step 2")


def test_the_clock_divides_a_step_into_phases_without_a_gap():
    clock = loop.Clock()
    clock.lap("generate", until=0.0)  # the last sample came before the lap began: no time is owed to it
    clock.lap("verify")
    clock.lap("learn")
    seconds = clock.seconds()
    assert seconds["time/generate"] == 0.0
    assert sum(v for k, v in seconds.items() if k != "time/total") <= seconds["time/total"]


def ending(until: str, steps: int) -> tuple[SimpleNamespace, list[int]]:
    """A run of the sources a, of 12 prompts, and b, of 2, one of b in each step of 4; the steps it took."""
    values = tiny(steps=steps, learner={"prompts_per_step": 4})
    one = values["data"]["train"]
    values["data"] |= {"train": {"a": {**one, "weight": 3}, "b": one}, "mix": {"until": until}}
    values["rollout"] |= {"max_staleness": 2}
    run = stand_in_run({})
    run.config = parse(values)
    pools = {
        n: [Prompt(f"{n}/{i}", "", np.ones(2, np.int32), source=n) for i in range(k)] for n, k in (("a", 12), ("b", 2))
    }
    run.order = MixedOrder(pools, {"a": 3, "b": 1}, 4, seed=0, shuffle=False)
    run.strategy.begin(run.order)

    class Ends(SimpleNamespace):
        last = Run.last

    del run.last
    run = Ends(**vars(run))
    taken = []
    while run.step < run.last:
        for ahead in range(run.step + 1, min(run.step + 1 + run.config.rollout.max_staleness, run.last) + 1):
            loop.submit(run, ahead)
        loop.collect(run, run.step + 1)
        run.step += 1
        taken.append(run.step)
    return run, taken


@pytest.mark.parametrize(
    ("until", "steps", "ends"),
    [("first_ends", 50, 2), ("all_end", 50, 4), ("forever", 6, 6), ("first_ends", 1, 1), ("all_end", 3, 3)],
)
def test_a_mixture_ends_with_its_source_and_nothing_is_submitted_beyond(until: str, steps: int, ends: int):
    run, taken = ending(until, steps)
    assert taken == list(range(1, ends + 1))
    assert {step for step, _ in run.sampler.submitted} == set(taken)
    assert run.drawn == {}


def test_a_stop_does_not_wait_for_samples(hang_ups_heard):
    """What they are is decided by their seeds, so who resumes has the same; and the learner is between two steps."""
    run = stand_in_run({})
    loop.submit(run, 1)

    def waits(step: int, count: int) -> list[Group]:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it waits")

    run.sampler.collect = waits
    with STOP.listening(), STOP.deferred(), pytest.raises(KeyboardInterrupt):
        loop.collect(run, 1)
    assert [p.id for p in run.drawn[1]] == ["p0", "p1", "p2", "p3"]

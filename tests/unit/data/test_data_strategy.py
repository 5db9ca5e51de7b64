"""What each strategy draws and adds, and that a resumed one goes on as if it had never stopped."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlpost import config
from rlpost.config import Component, ConfigError, Data, Source
from rlpost.data import STRATEGIES, DataError, PromptOrder, Strategy, encode_completion, make_tokenizer
from rlpost.data.strategies.pairs import matched
from rlpost.data.strategies.ragged import pack, unpack
from rlpost.types import Group, Prompt, Rollout, Sample, Verdict

JUDGE = "v"
few = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", f"{i}", np.array([i, i], np.int32)) for i in range(count)]


def rollout(prompt: Prompt, group: int, sample: int, status: str, tokens: Sequence[int] | None = None) -> Rollout:
    """A response that is `status`, or "abort"; tells apart by its tokens unless some are given."""
    ids = np.array([group, sample] if tokens is None else tokens, np.int32)
    made = Rollout(
        prompt_id=prompt.id,
        group=group,
        sample=sample,
        prompt_ids=prompt.token_ids,
        response_ids=ids,
        logprobs=-0.5 - np.arange(len(ids), dtype=np.float32),
        versions=np.full(len(ids), 3, np.int32),
        finish_reason="abort" if status == "abort" else "stop",
        text=" ".join(map(str, ids)),
        seed=0,
    )
    score = {"correct": 1.0, "wrong": 0.0, "partial": 0.5, "abort": 1.0, "unverified": None}[status]
    verdict = Verdict("correct" if status == "abort" else status, score)  # type: ignore[arg-type]
    return made.scored({JUDGE: verdict}, {JUDGE: 1.0})


def group(prompt: Prompt, number: int, statuses: str, tokens: Sequence[Sequence[int]] | None = None) -> Group:
    """`statuses` by their first letters: "cw" is one correct and one wrong response."""
    names = {"c": "correct", "w": "wrong", "p": "partial", "a": "abort", "u": "unverified"}
    each = tokens or [None] * len(statuses)  # type: ignore[list-item]
    made = [rollout(prompt, number, i, names[s], t) for i, (s, t) in enumerate(zip(statuses, each, strict=True))]
    return Group(number, 1, prompt, tuple(made))


class FakeLab:
    """Responses by a script: `script(prompt id)` are the statuses of as many samples as are asked for."""

    judge = JUDGE

    def __init__(self, script: Callable[[str, int], str] | None = None, **given: Any) -> None:
        self.script = script
        self.asked: list[list[str]] = []
        self.said: list[str] = []
        self.tokenizer = given.get("tokenizer")
        self.data = given.get("data")
        self.held_out = given.get("held_out", ())
        self.longest = given.get("longest", 10**6)

    def sample(self, prompts: Sequence[Prompt], samples: int) -> list[Group]:
        assert self.script is not None
        self.asked.append([p.id for p in prompts])
        return [group(p, 900 + int(p.id[1:]), self.script(p.id, samples)) for p in prompts]

    def log_probs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        return [-(s.response_ids + s.prompt_ids[0]).astype(np.float32) / 7 for s in samples]

    def say(self, line: str) -> None:
        self.said.append(line)


def create(name: str, **params: Any) -> Any:
    return STRATEGIES.create(Component(name=name, **params))


def begun(name: str, count: int = 10, seed: int = 0, shuffle: bool = False, lab: Any = None, **params: Any) -> Any:
    strategy = create(name, **params)
    strategy.begin(PromptOrder(prompts(count), seed, shuffle))
    strategy.attach(lab or FakeLab())
    return strategy


def take(strategy: Strategy, count: int) -> list[str]:
    return [strategy.next().id for _ in range(count)]


def contents(samples: Sequence[Sample]) -> list[tuple]:
    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return str(value.dtype), value.tolist()
        return {k: plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    return [tuple(plain(getattr(s, f.name)) for f in fields(s)) for s in samples]


# ----------------------------------------------------------------------------------------------------- all of them


def test_the_schema_knows_the_strategies_and_the_sources_they_give():
    assert {name: STRATEGIES.trait(name, "provides", None) for name in STRATEGIES.names()} == config.STRATEGIES


def test_a_users_own_strategy_is_a_class_in_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rlpost.data import Strategy\n"
        "class EverySecond(Strategy):\n"
        "    def __init__(self, *, step: int = 2): self.step = step\n"
        "    def next(self): return [self.order.next() for _ in range(self.step)][-1]\n"
    )
    assert take(begun(f"{file}:EverySecond", step=3), 3) == ["p2", "p5", "p8"]


def examples_file(folder: Path, count: int = 5) -> Source:
    file = folder / "general.jsonl"
    file.write_text("".join(json.dumps({"q": f"{i}+{i}", "a": f"={2 * i}"}) + "\n" for i in range(count)))
    return Source(source="jsonl", path=str(file), prompt="q", completion="a")


@pytest.fixture(scope="module")
def general(tmp_path_factory) -> tuple[Source, FakeLab]:
    """Worked examples, and a lab that can read them."""
    source = examples_file(tmp_path_factory.mktemp("general"))
    return source, FakeLab(tokenizer=make_tokenizer("0123456789+="), data=Data(train=source))


ALL = {
    "uniform": {},
    "curriculum": {"mastered": 0.7, "target": 0.4, "smoothing": 0.5},
    "mastery_partition": {"samples": 2, "per_step": 3},
    "replay_mixture": {"per_step": 3},
    "success_memory": {"per_prompt": 2},
    "pairs": {"per_prompt": 3},
}


def test_all_strategies_are_resumed_below():
    assert sorted(ALL) == STRATEGIES.names()


class World:
    """A run's steps: some prompts are easy, and what is sampled for a prompt depends on the step alone."""

    def __init__(self, name: str, general: tuple[Source, FakeLab], count: int, seed: int) -> None:
        params = dict(ALL[name])
        self.lab = FakeLab(lambda name, n: "c" * n if int(name[1:]) % 3 == 0 else "w" * n)
        if name == "replay_mixture":
            params["source"] = general[0].model_dump(exclude_defaults=True)
            self.lab = general[1]
        self.order = PromptOrder(prompts(count), seed, shuffle=True)
        self.strategy = create(name, **params)
        self.strategy.begin(self.order)
        self.strategy.attach(self.lab)

    def step(self, number: int) -> tuple:
        groups = []
        for i in range(4):
            prompt = self.strategy.next()
            random = np.random.default_rng([number, i, int(prompt.id[1:])])
            statuses = random.choice(list("cwpau"), p=[0.4, 0.3, 0.1, 0.1, 0.1], size=4)
            tokens = [random.integers(0, 3, size=random.integers(1, 4)) for _ in statuses]
            groups.append(group(prompt, 4 * number + i, "".join(statuses), tokens))
        self.strategy.observe(groups, JUDGE)
        samples = self.strategy.samples(groups[:3], JUDGE, number)  # the fourth is dropped
        return [g.prompt.id for g in groups], contents(samples), self.strategy.metrics()

    def saved(self) -> bytes:
        return pickle.dumps((self.order.state_dict(), self.strategy.state_dict()))


@pytest.mark.parametrize("name", sorted(ALL))
@given(count=st.integers(2, 12), seed=st.integers(-(2**40), 2**40), before=st.integers(0, 6))
@settings(few, max_examples=10)
def test_a_resumed_strategy_goes_on_as_if_never_interrupted(name, general, count, seed, before):
    whole = World(name, general, count, seed)
    whole.strategy.prepare(whole.lab)
    for number in range(1, before + 1):
        whole.step(number)
    saved = whole.saved()
    resumed = World(name, general, count, seed)
    order, state = pickle.loads(saved)
    resumed.order.load_state_dict(order)
    resumed.strategy.load_state_dict(state)
    assert resumed.saved() == saved
    for number in range(before + 1, before + 6):
        assert resumed.step(number) == whole.step(number)
    np.testing.assert_equal(pickle.loads(resumed.saved()), pickle.loads(whole.saved()))


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_state_is_plain_data_of_a_size_in_objects_that_does_not_grow_with_what_is_stored(name, general):
    def objects(value: Any) -> int:
        assert value is None or type(value) in (dict, list, str, int, float, bool, np.ndarray), type(value)
        if isinstance(value, dict):
            return 1 + sum(map(objects, value.values()))
        if isinstance(value, list):  # ids, whose number is that of the prompts
            assert all(type(item) is str for item in value)
        return 1

    sizes = []
    for count in (12, 48):
        world = World(name, general, count, 0)
        world.strategy.prepare(world.lab)
        for number in range(1, 12):
            world.step(number)
        sizes.append(objects(world.strategy.state_dict()))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", sorted(ALL))
def test_no_group_is_split_and_no_added_sample_takes_anothers_group(name, general):
    world = World(name, general, 12, 3)
    world.strategy.prepare(world.lab)
    numbers: list[int] = []
    for step in (1, 2, 3):
        groups = [group(world.strategy.next(), 10 * step + i, s) for i, s in enumerate(("cwau", "wwcc", "cccw"))]
        world.strategy.observe(groups, JUDGE)
        found = world.strategy.samples(groups, JUDGE, step)
        assert {s.source for s in found} <= set(world.strategy.provides)
        on_policy = [(s.group, s.number) for s in found if s.source == "on_policy"]
        if "on_policy" in world.strategy.provides:
            assert on_policy == [(g.id, r.sample) for g in groups for r in g.rollouts if r.usable]
        added = Counter(s.group for s in found if s.source != "on_policy")
        assert set(added.values()) <= ({2} if name == "pairs" else {1})
        assert not set(added) & {g.id for g in groups}
        numbers += added
    assert len(set(numbers)) == len(numbers)  # nor one of an earlier step


@given(st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=5))
def test_stores_come_back_from_their_two_arrays(sequences):
    arrays = [np.array(s, np.int32) for s in sequences]
    back = unpack(pack(arrays, np.int32))
    assert [a.tolist() for a in back] == sequences
    assert all(a.dtype == np.int32 for a in back)


# ------------------------------------------------------------------------------------------------------ curriculum


def test_a_prompt_that_is_mastered_does_not_come_again():
    strategy = begun("curriculum", 4)
    take(strategy, 4)
    names = ["cccccccccc", "cccccccccw", "ccccccccww", "ccccccccca"]  # the aborted one does not count: 9 of 9
    strategy.observe([group(p, i, s) for i, (p, s) in enumerate(zip(prompts(4), names, strict=True))], JUDGE)
    assert take(strategy, 3) == ["p2"] * 3
    assert strategy.metrics()["strategy/mastered"] == 3
    assert strategy.metrics()["strategy/pass_rate"] == pytest.approx((1 + 0.9 + 0.8 + 1) / 4)
    strategy.observe([], JUDGE)
    assert strategy.metrics()["strategy/passed_over"] == 8  # 0 1 [2] 3 0 1 [2] 3 0 1 [2]
    strategy.observe([], JUDGE)
    assert strategy.metrics()["strategy/passed_over"] == 0


def test_a_group_without_a_usable_sample_says_nothing_of_its_prompt():
    strategy = begun("curriculum", 2)
    strategy.observe([group(prompts(1)[0], 0, "au")], JUDGE)
    assert strategy.metrics()["strategy/seen"] == 0


def test_the_pass_rate_is_smoothed_and_a_prompt_may_be_unlearned():
    strategy = begun("curriculum", 2, smoothing=0.75, mastered=0.6)
    p = prompts(1)[0]
    rates = []
    for statuses in ("cc", "cw", "ww"):
        strategy.observe([group(p, 0, statuses)], JUDGE)
        rates.append((strategy.metrics()["strategy/pass_rate"], strategy.metrics()["strategy/mastered"]))
    # 1; 0.75 + 0.25 * 0.5; 0.75 * 0.875
    assert rates == [(1.0, 1), (0.875, 1), (0.65625, 1)]
    strategy.observe([group(p, 0, "ww")], JUDGE)
    assert strategy.metrics()["strategy/pass_rate"] == pytest.approx(0.4921875, abs=1e-12)
    assert take(strategy, 2) == ["p0", "p1"]


def test_when_all_is_mastered_prompts_come_as_the_order_has_them():
    strategy = begun("curriculum", 5, shuffle=True)
    strategy.observe([group(p, i, "cc") for i, p in enumerate(prompts(5))], JUDGE)
    plain = PromptOrder(prompts(5), 0, True)
    assert take(strategy, 12) == [plain.next().id for _ in range(12)]
    strategy.observe([], JUDGE)
    assert strategy.metrics()["strategy/fallbacks"] == 12


@given(st.integers(2, 30), st.integers(0, 2**32), st.integers(0, 60), st.data())
@settings(few, max_examples=60)
def test_the_one_prompt_that_is_not_mastered_is_always_found(count, seed, ahead, data):
    strategy = begun("curriculum", count, seed, shuffle=True)
    take(strategy, ahead)
    left = data.draw(st.integers(0, count - 1))
    strategy.observe([group(p, i, "cc") for i, p in enumerate(prompts(count)) if i != left], JUDGE)
    assert take(strategy, 5) == [f"p{left}"] * 5


def test_a_search_for_a_difficulty_that_no_prompt_has_ends():
    strategy = begun("curriculum", 7, target=1.0, width=0.01, mastered=None)
    strategy.observe([group(p, i, "ww") for i, p in enumerate(prompts(7))], JUDGE)
    strategy.next()
    assert strategy.order.consumed == 2 * 7 + 1
    strategy.observe([], JUDGE)
    assert (strategy.metrics()["strategy/fallbacks"], strategy.metrics()["strategy/passed_over"]) == (1, 14)


def test_prompts_are_taken_by_how_near_their_difficulty_is_to_the_target():
    strategy = begun("curriculum", 3, target=0.5, width=0.25, mastered=None)
    for i, statuses in enumerate(("cw", "wwww", "cccw")):  # 0, 2 and 1 widths away
        strategy.observe([group(prompts(3)[i], i, statuses)], JUDGE)
    taken = Counter(take(strategy, 6000))
    epochs = strategy.order.consumed / 3
    assert taken["p0"] == pytest.approx(epochs, abs=1)
    for name, chance in (("p1", math.exp(-2)), ("p2", math.exp(-0.5))):
        z = (taken[name] - epochs * chance) / math.sqrt(epochs * chance * (1 - chance))
        assert abs(z) < 4


def test_a_curriculum_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="needs a target"):
        create("curriculum", mastered=None)
    with pytest.raises(ConfigError, match=r"curriculum.*mastered"):
        create("curriculum", mastered=1.5)


# ------------------------------------------------------------------------------------------------------- partition

# statuses of eight responses and the extra one
TRIED = {
    "p0": "cccccccc" + "c",
    "p1": "cccccccc" + "w",  # the extra one decides
    "p2": "cccccccw" + "c",
    "p3": "ccccccww" + "c",
    "p4": "ccccccca" + "c",  # an aborted response is not a correct one
    "p5": "cccccccc" + "u",
    "p6": "cccccccc" + "c",
    "p7": "wwwwwwww" + "c",
}


def partition(count: int = 10, script: Mapping[str, str] | None = None, **params: Any) -> tuple[Any, FakeLab]:
    lab = FakeLab(lambda name, n: (TRIED if script is None else script).get(name, "w" * n))
    strategy = begun("mastery_partition", count, lab=lab, **params)
    strategy.prepare(lab)
    return strategy, lab


@pytest.mark.parametrize(
    ("params", "mastered"),
    [
        ({}, {"p0", "p6"}),
        ({"threshold": 7}, {"p0", "p2", "p4", "p6"}),
        ({"threshold": 6}, {"p0", "p2", "p3", "p4", "p6"}),
        ({"prompts": 6}, {"p0"}),
    ],
)
def test_mastered_is_what_reaches_the_threshold_and_once_more(params, mastered):
    strategy, _ = partition(**params)
    everything = {f"p{i}" for i in range(10)}
    assert set(take(strategy, 3 * (10 - len(mastered)))) == everything - mastered
    assert strategy.metrics()["strategy/mastered"] == len(mastered)


def test_prompts_are_tried_some_at_a_time_with_one_response_more():
    counts = []
    lab = FakeLab(lambda name, n: counts.append(n) or TRIED.get(name, "w" * n))
    strategy = begun("mastery_partition", lab=lab, prompts=7, batch=3)
    strategy.prepare(lab)
    assert lab.asked == [["p0", "p1", "p2"], ["p3", "p4", "p5"], ["p6"]]
    assert set(counts) == {9}
    assert "2 of 7 prompts" in lab.said[0]


def test_the_extra_response_is_what_is_rehearsed_with_its_log_probs_by_the_learner():
    strategy, _ = partition(per_step=2)
    found = sorted(strategy.samples([], JUDGE, 1), key=lambda s: s.prompt_ids[0])
    for sample, number in zip(found, (0, 6), strict=True):
        assert sample.source == "rehearsal"
        assert sample.correct
        assert sample.prompt_ids.tolist() == [number, number]
        assert sample.response_ids.tolist() == [900 + number, 8]  # sample 8 of its group
        expected = -(np.array([900 + number, 8]) + number) / 7
        np.testing.assert_allclose(sample.anchors["cached"], expected, rtol=1e-6)
        assert sample.anchors["cached"].dtype == np.float32
        assert sample.versions.tolist() == [-1, -1]


def test_two_partitions_of_the_same_responses_are_the_same():
    first, second = (partition(threshold=6, per_step=7)[0] for _ in range(2))
    assert take(first, 20) == take(second, 20)
    assert contents(first.samples([], JUDGE, 1)) == contents(second.samples([], JUDGE, 1))
    np.testing.assert_equal(first.state_dict(), second.state_dict())


@given(st.sets(st.integers(0, 11), min_size=1, max_size=11), st.integers(0, 2**32), st.integers(1, 5))
@settings(few, max_examples=40)
def test_nothing_is_both_rehearsed_and_explored_and_each_of_either_comes_once_an_epoch(mastered, seed, per_step):
    lab = FakeLab(lambda name, n: ("c" if int(name[1:]) in mastered else "w") * n)
    strategy = begun("mastery_partition", 12, seed, shuffle=True, lab=lab, samples=2, per_step=per_step)
    strategy.prepare(lab)
    left = 12 - len(mastered)
    explored = [int(name[1:]) for name in take(strategy, 3 * left)]
    rehearsed = [int(s.prompt_ids[0]) for step in range(1, 13) for s in strategy.samples([], JUDGE, step)]
    assert not set(explored) & set(rehearsed)
    for whole, epoch in ((explored, set(range(12)) - mastered), (rehearsed, mastered)):
        size = len(epoch)
        for start in range(0, len(whole) - size + 1, size):
            assert set(whole[start : start + size]) == epoch


@pytest.mark.parametrize(
    ("params", "on_policy", "count"),
    [
        ({}, 16, 2),
        ({}, 3, 1),
        ({}, 0, 0),
        ({"rehearsal_ratio": 0.5}, 7, 4),
        ({"rehearsal_ratio": 2.0}, 3, 6),
        ({"per_step": 5}, 16, 5),
        ({"per_step": 5}, 0, 5),
    ],
)
def test_a_step_rehearses_as_many_as_it_is_told(params, on_policy, count):
    strategy, _ = partition(**params)
    groups = [group(prompts(2)[1], 0, "c" * on_policy + "a")]
    assert Counter(s.source for s in strategy.samples(groups, JUDGE, 1)) == Counter(
        {"on_policy": on_policy, "rehearsal": count}
    )
    assert strategy.metrics()["strategy/rehearsed"] == count


def test_a_partition_with_an_empty_side_is_an_error_that_says_what_to_change():
    with pytest.raises(DataError, match=r"none of 10 prompts has 8 of 8.*threshold \(now 8\).*prompts \(now None\)"):
        partition(script={})
    with pytest.raises(DataError, match=r"all 3 prompts are mastered.*threshold 8"):
        partition(3, {f"p{i}": "c" * 9 for i in range(3)})
    partition(3, {f"p{i}": "c" * 9 for i in range(2)})


def test_a_partition_that_contradicts_itself_is_refused():
    with pytest.raises(ConfigError, match="threshold 9 of samples 8"):
        create("mastery_partition", threshold=9)
    with pytest.raises(ConfigError, match=r"per_step 32 and rehearsal_ratio 0\.5"):
        create("mastery_partition", per_step=32, rehearsal_ratio=0.5)


def test_log_probs_of_another_length_than_the_response_are_an_error():
    class Short(FakeLab):
        def log_probs(self, samples):
            return [x[:-1] for x in super().log_probs(samples)]

    lab = Short(lambda name, n: TRIED.get(name, "w" * n))
    strategy = begun("mastery_partition", lab=lab)
    with pytest.raises(ValueError, match="log-probs of prompt 'p0'"):
        strategy.prepare(lab)


# ---------------------------------------------------------------------------------------------------------- memory


def recalled(strategy: Any, groups: list[Group], step: int = 1) -> list[tuple[int, list[int]]]:
    strategy.observe(groups, JUDGE)
    found = [s for s in strategy.samples(groups, JUDGE, step) if s.source == "success_memory"]
    return [(int(s.prompt_ids[0]), s.response_ids.tolist()) for s in found]


def test_a_correct_proposal_takes_the_place_of_the_memory_and_a_wrong_one_does_not():
    strategy, (a, b) = begun("success_memory"), prompts(2)
    assert recalled(strategy, [group(a, 0, "ww", [[1], [2]])]) == []
    assert recalled(strategy, [group(a, 1, "cw", [[3], [4]])]) == [(0, [3])]  # also that of this very step
    assert recalled(strategy, [group(a, 2, "wwpa", [[5], [6], [7], [8]]), group(b, 3, "w", [[9]])]) == [(0, [3])]
    assert recalled(strategy, [group(a, 4, "ccw", [[10], [11], [12]])]) == [(0, [11])]  # one proposal after the other
    assert recalled(strategy, [group(b, 5, "w", [[9]])]) == []
    assert strategy.metrics() == {"strategy/remembered": 1, "strategy/accepted": 0, "strategy/recalled": 0}


def test_what_is_remembered_is_correct_and_its_weight_is_the_coefficient_of_its_term():
    strategy = begun("success_memory")
    groups = [group(prompts(1)[0], 0, "cw")]
    strategy.observe(groups, JUDGE)
    sample = strategy.samples(groups, JUDGE, 1)[-1]
    assert (sample.source, sample.weight, sample.correct) == ("success_memory", 1.0, True)
    with pytest.raises(ConfigError, match="unknown parameter 'weight'"):
        begun("success_memory", weight=-0.5)


def test_several_are_remembered_all_different_the_newest_last():
    strategy, p = begun("success_memory", per_prompt=2), prompts(1)[0]
    assert recalled(strategy, [group(p, 0, "cc", [[1], [2]])]) == [(0, [1]), (0, [2])]
    assert recalled(strategy, [group(p, 1, "c", [[1]])]) == [(0, [2]), (0, [1])]
    assert recalled(strategy, [group(p, 2, "c", [[3]])]) == [(0, [1]), (0, [3])]


def test_dropped_groups_are_remembered_but_add_nothing_and_a_prompt_adds_once():
    strategy, (a, b) = begun("success_memory"), prompts(2)
    groups = [group(a, 0, "cc", [[1], [2]]), group(b, 1, "cw", [[3], [4]]), group(b, 2, "cw", [[5], [6]])]
    strategy.observe(groups, JUDGE)
    found = [s.response_ids.tolist() for s in strategy.samples(groups[1:], JUDGE, 1) if s.source == "success_memory"]
    assert found == [[5]]
    assert recalled(strategy, [group(a, 3, "w", [[7]])]) == [(0, [2])]


def test_the_memory_is_a_draw_from_the_policy_given_success():
    # Responses 0 (wrong), 1, 2 with probabilities .5, .3, .2: given success 1 has probability .6.
    random, many = np.random.default_rng(0), prompts(4000)
    strategy = begun("success_memory", 4000)
    for step in range(3):
        drawn = random.choice(3, p=[0.5, 0.3, 0.2], size=len(many))
        groups = [group(p, i, "c" if x else "w", [[x]]) for i, (p, x) in enumerate(zip(many, drawn, strict=True))]
        found = [tokens[0] for _, tokens in recalled(strategy, groups, step)]
    n = len(found)
    assert abs(n - 4000 * 7 / 8) < 4 * math.sqrt(4000 * 7 / 64)
    assert abs(found.count(1) - 0.6 * n) < 4 * math.sqrt(0.24 * n)


# ----------------------------------------------------------------------------------------------------------- pairs


@given(st.lists(st.tuples(st.text("cwpau", max_size=8), st.integers(0, 5)), max_size=5), st.integers(1, 12))
@settings(few, max_examples=100)
def test_pairs_are_a_correct_and_another_wrong_text_of_one_prompt(drawn, per_prompt):
    strategy = begun("pairs", per_prompt=per_prompt)
    groups = []
    for i, (statuses, kinds) in enumerate(drawn):
        tokens = [[i, j % (kinds + 1)] for j in range(len(statuses))]
        groups.append(group(prompts(10)[i], i, statuses, tokens))
    found = strategy.samples(groups, JUDGE, 1)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    for winner, loser in pairs:
        assert winner.source == loser.source == "pair"
        assert (winner.weight, winner.correct, loser.weight, loser.correct) == (1, True, -1, False)
        assert winner.group == loser.group
        assert winner.prompt_ids.tolist() == loser.prompt_ids.tolist()
        assert winner.response_ids.tolist() != loser.response_ids.tolist()
        assert winner.logprobs.tolist() == [-0.5, -1.5]
    assert len({w.group for w, _ in pairs}) == len(pairs)
    texts = Counter((tuple(w.response_ids), tuple(x.response_ids)) for w, x in pairs)
    assert set(texts.values()) <= {1}
    for g in groups:
        first = {r.text: r.verdicts[JUDGE].status for r in reversed(g.rollouts) if r.usable}
        winners = list(first.values()).count("correct")
        expected = min(per_prompt, winners * (len(first) - winners))
        assert sum(w.prompt_ids[0] == g.prompt.token_ids[0] for w, _ in pairs) == expected
    assert strategy.metrics()["strategy/pairs"] == len(pairs)


def test_a_text_that_was_called_both_correct_and_wrong_is_not_preferred_to_itself():
    strategy, p = begun("pairs", per_prompt=9), prompts(1)[0]
    assert strategy.samples([group(p, 0, "cw", [[1], [1]])], JUDGE, 1) == []
    assert strategy.metrics() == {"strategy/pairs": 0, "strategy/groups_without_pair": 1}


def test_which_responses_are_paired_depends_on_seed_and_step_alone():
    def chosen(seed: int, step: int) -> list[int]:
        strategy = begun("pairs", seed=seed)
        found = [strategy.samples([group(prompts(1)[0], 0, "cccccwwwww")], JUDGE, s) for s in (1, step)][-1]
        return [int(s.response_ids[1]) for s in found]

    assert chosen(0, 2) == chosen(0, 2)
    assert len({tuple(chosen(seed, step)) for seed in range(4) for step in (2, 3, 4)}) > 6


@given(st.integers(0, 7), st.integers(0, 7), st.integers(1, 60))
def test_both_sides_of_pairs_take_turns(winners, losers, most):
    pairs = matched(winners, losers, most)
    assert len(pairs) == len(set(pairs)) == min(most, winners * losers)
    for side, count in ((0, winners), (1, losers)):
        uses = Counter(pair[side] for pair in pairs)
        if pairs:
            assert max(uses[i] for i in range(count)) - min(uses[i] for i in range(count)) <= 1


# ---------------------------------------------------------------------------------------------------------- replay


def replay(general: tuple[Source, FakeLab], per_step: int = 2, **changes: Any) -> Any:
    source, lab = general
    given = {"tokenizer": lab.tokenizer, "data": lab.data, **changes}
    return begun("replay_mixture", lab=FakeLab(**given), source=source.model_dump(), per_step=per_step)


def test_each_step_has_its_own_samples_and_worked_examples_each_once_an_epoch(general):
    strategy, tokenizer = replay(general), general[1].tokenizer
    groups = [group(prompts(1)[0], 0, "cwa")]
    seen = []
    for step in range(1, 6):
        found = strategy.samples(groups, JUDGE, step)
        assert [s.source for s in found] == ["on_policy", "on_policy", "sft", "sft"]
        seen += found[2:]
    written = {tuple(s.prompt_ids): tuple(s.response_ids) for s in seen}
    expected = {
        tuple(tokenizer(f"{i}+{i}")["input_ids"]): tuple(encode_completion(f"={2 * i}", tokenizer)) for i in range(5)
    }
    assert written == expected
    assert set(Counter(tuple(s.prompt_ids) for s in seen).values()) == {2}
    assert all(s.weight == 1 and set(s.versions) == {-1} for s in seen)
    assert strategy.metrics() == {"strategy/replayed": 2, "strategy/replay_epochs": 2.0}


def test_held_out_problems_are_not_taught(general):
    held_out = [Prompt(f"t{i}", f"{i}+{i}", np.zeros(1, np.int32)) for i in range(4)]
    found = replay(general, per_step=3, held_out=held_out).samples([], JUDGE, 1)
    assert {tuple(s.prompt_ids) for s in found} == {tuple(general[1].tokenizer("4+4")["input_ids"])}
    with pytest.raises(DataError, match="every example of source is a held-out problem"):
        replay(general, held_out=[Prompt(f"t{i}", f"{i}+{i}", np.zeros(1, np.int32)) for i in range(5)])


def test_an_example_that_the_learner_cannot_take_is_an_error_before_the_first_step(general):
    # <bos> 4 + 4, then = 8 <eos>
    replay(general, longest=7)
    with pytest.raises(
        DataError, match=r"has 7 tokens, and the learner takes 6: raise learner\.tokens_per_micro_batch"
    ):
        replay(general, longest=6)


def test_examples_that_cannot_be_used_are_named(general, tmp_path):
    with pytest.raises(ConfigError, match=r"source\.completion is missing"):
        create("replay_mixture", source=general[0].model_dump() | {"completion": None}, per_step=1)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"q": "1+1", "b": "=2"}\n')
    with pytest.raises(DataError, match=r"data\.strategy: replay_mixture.*"):
        replay((general[0].model_copy(update={"path": str(bad)}), general[1]))


def test_a_resumed_run_with_other_examples_is_refused(general, tmp_path):
    saved = replay(general).state_dict()
    other = replay((examples_file(tmp_path, 6), general[1]))
    with pytest.raises(DataError, match="fingerprint"):
        other.load_state_dict(saved)

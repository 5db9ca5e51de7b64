"""Rollouts in flight come back from a checkpoint as they were, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlpost.checkpoint import flight
from rlpost.routing import Routes
from rlpost.types import Group, Pending, Prompt, Rollout, Verdict

WITH = {"rollout.temperature": 0.7, "rollout.stop": ["x"]}


def prompt(name: str, tokens: int = 3) -> Prompt:
    return Prompt(name, name, np.arange(tokens, dtype=np.int32), reference="4", metadata={"n": [1, 2]})


def rollout(p: Prompt, group: int, sample: int, length: int, shared: np.ndarray | None = None) -> Rollout:
    random = np.random.default_rng(group * 10 + sample)
    routes = None
    if shared is not None:
        fed = len(p.token_ids) + length - 1
        own = random.integers(0, 300, (fed - len(shared), 2, 2)).astype(np.uint16)
        routes = Routes(shared, own, random.random(fed) < 0.5)
    verdict = Verdict(
        "correct", 1 / 3, "ünïcode \ud800", "4", {"a": float("inf"), "b": 1}, {"k": [None, {"z": 0.1}]}, 0.1
    )
    return Rollout(
        p.id,
        group,
        sample,
        p.token_ids,
        random.integers(0, 99, length).astype(np.int32),
        random.standard_normal(length).astype(np.float32),
        np.full(length, 7, np.int32),
        "abort" if length == 0 else "stop",
        "text",
        group * 100 + sample,
        raw="text<eos>",
        routes=routes,
    ).scored({"v": verdict, "w": Verdict("unverified", None, "lost")}, {"v": 0.1})


def in_flight(routed: bool) -> list[Pending]:
    found = []
    for number, name in enumerate("abc"):
        p = prompt(name)
        shared = np.full((2, 2, 2), number, np.uint16) if routed else None
        lengths = (5, 0, 2) if routed else (5, 0)
        rollouts = tuple(rollout(p, number, i, length, shared if length else None) for i, length in enumerate(lengths))
        found.append(
            Pending(number, 4 + number // 2, p, tuple(r.seed for r in rollouts), Group(number, 4, p, rollouts))
        )
    return [*found, Pending(9, 5, prompt("d"), (1, 2), None)]


def prompts() -> dict[str, Prompt]:
    return {name: prompt(name) for name in "abcd"}


def same(one: Rollout, other: Rollout) -> bool:
    arrays = ("prompt_ids", "response_ids", "logprobs", "versions")
    for name in arrays:
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    if one.routes is not None:
        for name in ("shared", "own", "valid"):
            a, b = getattr(one.routes, name), getattr(other.routes, name)
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)
    empty = dict.fromkeys(arrays, np.zeros(0, np.int32)) | {"routes": None}
    return repr(replace(one, **empty)) == repr(replace(other, **empty))


@pytest.mark.parametrize("routed", [False, True])
def test_what_was_in_flight_comes_back_to_the_bit(tmp_path, routed):
    saved = in_flight(routed)
    flight.save(tmp_path, "run", 3, WITH, saved)
    read = flight.load(tmp_path, "run", 3)
    assert read.made_with == WITH
    assert read.drawn() == {4: ["a", "b"], 5: ["c", "d"]}
    found = read.pending(prompts())
    assert [(p.id, p.step, p.prompt.id, p.seeds) for p in found] == [
        (p.id, p.step, p.prompt.id, p.seeds) for p in saved
    ]
    assert found[3].group is None
    for before, after in zip(saved[:3], found[:3], strict=True):
        assert len(before.group.rollouts) == len(after.group.rollouts)
        assert all(map(same, before.group.rollouts, after.group.rollouts))
        if routed:
            assert after.group.rollouts[0].routes.shared is after.group.rollouts[2].routes.shared, "counted once"


@pytest.mark.parametrize(
    "changed", [{"reference": "5"}, {"token_ids": np.arange(4, dtype=np.int32)}, {"metadata": {"n": [1, 3]}}]
)
def test_a_group_whose_prompt_is_another_now_is_sampled_again_and_the_others_are_not(tmp_path, changed):
    flight.save(tmp_path, "run", 3, WITH, in_flight(routed=True))
    now = prompts() | {"a": replace(prompt("a"), **changed)}
    found = flight.load(tmp_path, "run", 3).pending(now)
    assert [p.group is None for p in found] == [True, False, False, True]
    assert found[0].seeds == in_flight(routed=True)[0].seeds
    assert same(found[1].group.rollouts[2], in_flight(routed=True)[1].group.rollouts[2])


def damaged(folder, change) -> None:
    arrays = load_file(folder / flight.FILE)
    document = json.loads(arrays["document"].tobytes())
    change(arrays, document)
    arrays["document"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    save_file(arrays, folder / flight.FILE)


def lone_routes(arrays, document) -> None:
    document["groups"][0]["shared"] = 0
    arrays["routes.shared"] = arrays["routes.shared"][2:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a, d: d.update(run="other"), "is of run other after step 3"),
        (lambda a, d: d.update(step=2), "after step 2, not of run after step 3"),
        (lambda a, d: d.update(format=2), "format"),
        (lambda a, d: d.update(groups=None), "groups"),
        (lambda a, d: d["groups"][0].update(seeds=[1]), "group 0 has 1 seeds"),
        (lambda a, d: d["groups"][0].update(shared=-1), "shared"),
        (lambda a, d: d["groups"][0]["rollouts"][0].update(tokens=10**12), "has 21 rows where 1000000000016"),
        (lambda a, d: d["groups"][0]["rollouts"][0]["verdicts"]["w"].update(score=1.0), "score None exactly when"),
        (lambda a, d: a.update(tokens=a["tokens"][1:]), "tokens has 20 rows"),
        (lambda a, d: a.update(tokens=a["tokens"].astype(np.int64)), "tokens is int64"),
        (lambda a, d: a.pop("routes.valid"), "routes.valid"),
        (lambda a, d: a.pop("logprobs"), "logprobs"),
        (lone_routes, "group 0 has routes and none of its prompt"),
    ],
)
def test_a_file_that_contradicts_itself_or_is_anothers_is_refused_by_name(tmp_path, change, said):
    flight.save(tmp_path, "run", 3, WITH, in_flight(routed=True))
    damaged(tmp_path, change)
    with pytest.raises(flight.FlightError, match=said) as refused:
        flight.load(tmp_path, "run", 3)
    assert flight.FILE in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x04cos\nsystem\n", b"\xff" * 64, b"PK\x03\x04" + b"\0" * 64])
def test_what_is_no_file_of_arrays_is_refused_by_name(tmp_path, content):
    (tmp_path / flight.FILE).write_bytes(content)
    with pytest.raises(flight.FlightError, match=flight.FILE):
        flight.load(tmp_path, "run", 3)


def test_a_checkpoint_is_believed_with_what_it_promises_in_flight_and_nothing_else(tmp_path):
    flight.save(tmp_path, "run", 3, WITH, in_flight(routed=False))
    state = {"step": 3, "flight": 4, "drawn": {"4": ["a", "b"], "5": ["c", "d", "e"]}}
    files = [flight.FILE]
    assert flight.problems(tmp_path, files, state, "run") == []
    assert flight.problems(tmp_path, [], {"step": 3, "drawn": {}}, "run") == [], "written before they were kept"
    assert flight.problems(tmp_path, [], state, "run") == ["no flight.safetensors"]
    assert flight.problems(tmp_path, files, state | {"flight": 3}, "run") == [
        "flight.safetensors has 4 groups in flight, state.json 3"
    ]
    other = state | {"drawn": {"4": ["b", "a"], "5": ["c", "d"]}}
    assert flight.problems(tmp_path, files, other, "run") == [
        "flight.safetensors and state.json differ in the prompts of step 4"
    ]
    (problem,) = flight.problems(tmp_path, files, state, "another")
    assert "is of run run after step 3, not of another" in problem


def test_groups_of_which_none_is_sampled_yet_keep_their_identity(tmp_path):
    flight.save(tmp_path, "run", 3, WITH, in_flight(routed=False)[3:])
    (found,) = flight.load(tmp_path, "run", 3).pending(prompts())
    assert (found.id, found.step, found.prompt.id, found.seeds, found.group) == (9, 5, "d", (1, 2), None)

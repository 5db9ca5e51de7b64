"""Where anchors begin, and when they move."""

from __future__ import annotations

import json

import pytest
import torch

from rlpost.config import REFERENCES as NAMES
from rlpost.config import Component, ConfigError
from rlpost.objective.reference import REFERENCES, HardReset, Move


def create(name: str, **params):
    return REFERENCES.create(Component(name=name, **params))


def test_the_schema_knows_exactly_the_names_that_are_registered():
    assert REFERENCES.names() == sorted(NAMES)


# ------------------------------------------------------------------------------------------------------- origins


@pytest.mark.parametrize(
    ("name", "params", "origin", "moves"),
    [
        ("frozen", {}, [(None, 1.0)], False),
        ("frozen", {"path": "sft"}, [("sft", 1.0)], False),
        ("teacher", {"path": "big"}, [("big", 1.0)], False),
        ("teacher", {"path": None}, [(None, 1.0)], False),
        ("soup", {"members": ["a", None]}, [("a", 0.5), (None, 0.5)], False),
        ("soup", {"members": ["a", "b"], "weights": [3, 1]}, [("a", 0.75), ("b", 0.25)], False),
        ("ema", {"decay": 0.9}, [(None, 1.0)], True),
        ("ema", {"decay": 1.0}, [(None, 1.0)], False),
        ("hard_reset", {"every": 1}, [(None, 1.0)], True),
        ("old_policy", {}, [], False),
        ("cached", {}, [], False),
    ],
)
def test_where_an_anchor_begins_and_whether_it_moves(name, params, origin, moves):
    reference = create(name, **params)
    assert reference.origin() == origin
    assert reference.moves is moves


@pytest.mark.parametrize("name", ["frozen", "old_policy", "cached"])
def test_an_anchor_that_stays_never_moves(name):
    reference = create(name)
    assert all(reference.after_step(s, {"kl/k3": 1e9}) is None for s in range(1, 20))
    assert reference.after_evaluation(1, {"pass@1": 0.0}) is None
    assert reference.state_dict() == {}


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("teacher", {}, "missing path"),
        ("soup", {}, "missing members"),
        ("soup", {"members": []}, "'members'"),
        ("soup", {"members": ["a", "b"], "weights": [1]}, "weights has 1 numbers for 2 members"),
        ("soup", {"members": ["a", "b"], "weights": [1, 0]}, "greater than 0"),
        ("ema", {}, "missing decay"),
        ("ema", {"decay": 0.0}, "greater than 0"),
        ("ema", {"decay": 1.1}, "less than or equal to 1"),
        ("ema", {"decay": 0.5, "every": 0}, "greater than or equal to 1"),
        ("hard_reset", {}, "nothing triggers a reset"),
        ("hard_reset", {"optimizer": "keep", "min_interval": 5}, "nothing triggers a reset"),
        ("hard_reset", {"every": 0}, "greater than or equal to 1"),
        ("hard_reset", {"every": 10, "min_interval": 20}, "min_interval 20"),
        ("hard_reset", {"every": 10, "min_delta": 0.1}, "min_delta 0.1 has no effect"),
        ("hard_reset", {"every": 10, "cooldown": 1}, "cooldown 1 has no effect"),
        ("hard_reset", {"every": 10, "optimizer": "reset"}, "'keep' or 'clear'"),
        ("hard_reset", {"kl_spike": 0.0}, "greater than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(name, params, message):
    with pytest.raises(ConfigError, match=f"reference policy '{name}'") as error:
        create(name, **params)
    assert message in str(error.value)


# ----------------------------------------------------------------------------------------------------------- ema


def test_an_average_moves_every_so_many_steps_by_what_it_does_not_keep():
    ema = create("ema", decay=0.4, every=3)
    assert {s: ema.after_step(s, {}) for s in range(1, 8)} == {
        3: Move(0.6), 6: Move(0.6), 1: None, 2: None, 4: None, 5: None, 7: None
    }  # fmt: skip
    assert create("ema", decay=1.0).after_step(1, {}) is None


# ---------------------------------------------------------------------------------------------------- hard resets


def at(reference: HardReset, scores: dict[int, float]) -> list[int]:
    """Evaluations of these scores at these steps: steps of a reset."""
    return [step for step, score in scores.items() if reference.after_evaluation(step, {"pass@1": score})]


def steps(reference: HardReset, kl: dict[int, float]) -> list[int]:
    return [step for step, value in kl.items() if reference.after_step(step, {"kl/k3": value})]


def test_a_reset_every_so_many_steps_counts_from_the_last_one():
    reference = create("hard_reset", every=4, kl_spike=1.0)
    calm = {s: 0.1 for s in range(1, 15)}
    assert steps(reference, {**calm, 6: 2.0}) == [4, 6, 10, 14]


def test_patience_counts_evaluations_without_a_gain_and_begins_anew_after_a_reset():
    scores = {10: 0.3, 20: 0.4, 30: 0.4, 40: 0.39, 50: 0.2, 60: 0.2, 70: 0.1}
    assert at(create("hard_reset", patience=2), scores) == [40, 70]  # 50 is the new standard
    assert at(create("hard_reset", patience=3), scores) == [50]


def test_a_gain_within_min_delta_is_none():
    scores = {1: 0.30, 2: 0.34, 3: 0.38}
    assert at(create("hard_reset", patience=2), scores) == []
    assert at(create("hard_reset", patience=1, min_delta=0.05), scores) == [2]
    assert at(create("hard_reset", patience=2, min_delta=0.05), scores) == []  # 0.38 is 0.08 above the best


def test_a_drop_resets_at_once():
    scores = {1: 0.5, 2: 0.45, 3: 0.39, 4: 0.3, 5: 0.19}
    assert at(create("hard_reset", max_drop=0.1), scores) == [3, 5]


def test_no_reset_sooner_than_min_interval_and_then_at_the_next_evaluation():
    scores = {10: 0.5, 20: 0.5, 30: 0.5, 40: 0.5, 50: 0.5, 60: 0.5, 70: 0.5}
    assert at(create("hard_reset", patience=1), scores) == [20, 40, 60]
    assert at(create("hard_reset", patience=1, min_interval=25), scores) == [30, 60]


def test_spikes_within_min_interval_are_passed_over():
    kl = {1: 0.1, 2: 9.0, 3: 9.0, 4: 0.1, 5: 0.1, 6: 0.1, 7: 9.0}
    assert steps(create("hard_reset", kl_spike=1.0), kl) == [2, 3, 7]
    assert steps(create("hard_reset", kl_spike=1.0, min_interval=3), kl) == [3, 7]


def test_evaluations_in_the_cooldown_are_not_looked_at():
    scores = {1: 0.5, 2: 0.4, 3: 0.9, 4: 0.9, 5: 0.6, 6: 0.5, 7: 0.5}
    assert at(create("hard_reset", patience=1), scores) == [2, 4, 6]
    # 3 and 4 are passed over, so that 5 is the new standard.
    assert at(create("hard_reset", patience=1, cooldown=2), scores) == [2, 6]


@pytest.mark.parametrize(("optimizer", "clear"), [("keep", False), ("clear", True)])
def test_a_reset_copies_the_policy_and_keeps_or_clears_the_optimizer(optimizer, clear):
    move = create("hard_reset", every=1, optimizer=optimizer).after_step(1, {})
    assert (move.amount, move.clear_optimizer) == (1.0, clear)
    assert "1 steps" in move.why


def test_a_metric_that_is_not_there_is_an_error_and_not_a_reset_that_never_comes():
    with pytest.raises(ValueError, match=r"kl_metric 'kl/k3' \(those like it: kl/k2\)"):
        create("hard_reset", kl_spike=1.0).after_step(1, {"kl/k2": 0.0, "entropy": 0.0})
    with pytest.raises(ValueError, match=r"no metric 'pass@1' \(they have pass@8\)"):
        create("hard_reset", patience=1).after_evaluation(1, {"pass@8": 0.0})
    seen = create("hard_reset", kl_spike=1.0)
    assert seen.after_step(1, {"kl/k3": 0.5}) is None
    assert seen.after_step(2, {"entropy": 0.0}) is None  # no token of the term in that step


def test_a_step_without_on_policy_tokens_does_not_say_that_a_metric_is_never_there():
    waits = create("hard_reset", kl_spike=1.0)
    assert waits.after_step(1, {}) is None
    assert waits.after_step(2, {"loss": 0.1, "loss/sft": 0.1}) is None
    assert waits.after_step(3, {"entropy": 0.5, "kl/k3": 2.0}) is not None


@pytest.mark.parametrize("cut", range(8))
def test_resets_are_the_same_after_a_resume_anywhere(cut):
    params = {"patience": 2, "cooldown": 1, "min_interval": 15, "kl_spike": 1.0, "every": 60}
    kl = [0.1, 0.1, 5.0, 0.1, 0.2, 0.1, 0.1, 0.3, 0.1, 0.1]
    scores = [0.2, 0.3, 0.3, 0.3, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2]

    def play(reference: HardReset, first: int, last: int) -> list[tuple[str, int]]:
        moved = []
        for i in range(first, last):
            moved += [("step", i)] if reference.after_step(10 * i, {"kl/k3": kl[i]}) else []
            moved += [("evaluation", i)] if reference.after_evaluation(10 * i, {"pass@1": scores[i]}) else []
        return moved

    whole = play(create("hard_reset", **params), 0, 10)
    assert {kind for kind, _ in whole} == {"step", "evaluation"}
    before = create("hard_reset", **params)
    found = play(before, 0, cut)
    after = create("hard_reset", **params)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert found + play(after, cut, 10) == whole


def test_resets_take_the_policy_beyond_the_optimum_that_the_kl_allows():
    """max E_pi[R] - beta KL(pi||ref) is at pi ~ ref e^(R/beta); with ref := pi there, at ref e^(2R/beta), and so on."""
    beta, rewards = 0.5, torch.tensor([1.0, 1.0, 0.3, 0.0, -0.2], dtype=torch.float64)
    base = torch.log_softmax(torch.tensor([0.0, -1.0, 1.0, 2.0, 0.5], dtype=torch.float64), 0)
    reset = create("hard_reset", patience=2, min_delta=1e-9)
    reference, theta = base, base.clone()
    settled = []
    for step in range(1, 6001):
        logp = torch.log_softmax(theta, 0)
        pi = logp.exp()
        advantage = rewards - beta * (logp - reference)
        theta = theta + pi * (advantage - (pi * advantage).sum())  # the exact gradient, rate 1
        if step % 10 == 0 and reset.after_evaluation(step, {"pass@1": float((pi * rewards).sum())}):
            settled.append(logp)
            reference = logp
            if len(settled) == 2:
                break
    assert len(settled) == 2
    for k, logp in enumerate(settled, start=1):
        expected = torch.softmax(base + k * rewards / beta, 0)
        torch.testing.assert_close(logp.exp(), expected, atol=1e-5, rtol=0)
    assert (settled[1].exp() * rewards).sum() > (settled[0].exp() * rewards).sum() + 0.05

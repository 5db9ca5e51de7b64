"""RECAP's weights (methods.md, M10 and T14): closed form, sum, response, order, state."""

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost import config
from rlpost.config import Component, ConfigError
from rlpost.objective.reweight import REWEIGHTERS


def recap(losses=(), **params):
    """After `losses`, by label a list with a loss for each step."""
    found = REWEIGHTERS.create(Component(name="recap", **params))
    for step in zip(*dict(losses).values(), strict=True):
        found.observe(dict(zip(losses, step, strict=True)))
    return found


def around(rate, noise):
    """Four losses, windows of two, that have exactly the convergence rate c and the inverse signal-to-noise i."""
    spread = noise * (1 + rate)
    return [1.0, 1.0, rate - spread, rate + spread]


def test_the_schema_knows_exactly_the_reweighters_that_are_registered():
    assert REWEIGHTERS.names() == sorted(config.REWEIGHTERS)


def test_the_weights_are_the_closed_form():
    # a: c = 3 / 2, sigma = 1, i = 1 / 5; b: c = 1 / 4, sigma = 0, i = 0; only the last 2 W losses count.
    found = recap({"a": [99, 2, 2, 2, 4], "b": [99, 6, 2, 1, 1]}, window=2, temperature=0.5, mix=0.25)
    a, b = math.exp((0.25 * 1.5 + 0.75 * 0.2) / 0.5), math.exp(0.25 * 0.25 / 0.5)
    assert found.weights(["a", "b"]) == pytest.approx({"a": 2 * a / (a + b), "b": 2 * b / (a + b)}, abs=1e-12)


def test_the_published_example_needs_a_loss_that_grew_fivefold():
    # [.74, .71, 1.55] of s = c + i at T = 5, which is a mix of one half at T = 2.5.
    losses = {"x": around(1.3, 0.5), "y": around(1.1, 0.5), "z": around(5.0, 0.5)}
    found = recap(losses, window=2, temperature=2.5).weights(["x", "y", "z"])
    assert [found[label] for label in "xyz"] == pytest.approx([0.74, 0.71, 1.55], abs=0.005)
    usual = {"x": around(1.0, 0.1), "y": around(0.9, 0.1), "z": around(1.05, 0.12)}
    assert list(recap(usual, window=2).weights(["x", "y", "z"]).values()) == pytest.approx([1, 1, 1], abs=0.02)


def test_weights_are_1_until_every_term_has_both_windows():
    found = recap(window=3)
    for step in range(6):
        assert found.weights(["a", "b"]) == {"a": 1.0, "b": 1.0}
        found.observe({"a": 1.0 + step, "b": 1.0})
    assert found.weights(["a", "b"])["a"] > 1
    assert found.weights(["a", "b", "new"]) == {"a": 1.0, "b": 1.0, "new": 1.0}
    assert found.weights([]) == {}


def test_a_step_without_samples_of_a_term_leaves_its_history_as_it_is():
    found = recap(window=2)
    for _ in range(9):
        found.observe({"a": 1.0})
    for _ in range(3):
        found.observe({"b": 2.0})
    assert found.weights(["a", "b"]) == {"a": 1.0, "b": 1.0}
    before = found.state_dict()["history"]["a"]
    found.observe({"b": 4.0})
    assert found.weights(["a", "b"])["b"] > 1
    assert found.state_dict()["history"]["a"] == before


def test_a_term_that_saturates_loses_its_weight_step_by_step_to_one_that_goes_on_getting_worse():
    found, weights = recap(window=5), []
    for step in range(30):
        found.observe({"saturates": 1.05 ** min(step, 10), "worse": 1.05**step})
        weights.append(found.weights(["saturates", "worse"])["saturates"])
    assert weights[9:11] == pytest.approx([1, 1], abs=1e-12)  # as long as they keep pace
    assert all(after < before for before, after in pairwise(weights[10:20]))
    assert weights[-1] < 0.99


def test_a_term_that_calms_down_loses_weight_to_one_that_stays_noisy():
    found = recap(window=4)
    for step in range(16):
        noise = 0.5 if step % 2 else -0.5
        found.observe({"calms": 1 + (noise if step < 8 else 0), "noisy": 1 + noise})
        if step == 7:
            assert found.weights(["calms", "noisy"]) == {"calms": 1.0, "noisy": 1.0}
    assert found.weights(["calms", "noisy"])["calms"] < 0.99


def test_by_the_formula_a_term_that_falls_has_less_weight_than_one_that_is_saturated():
    found = recap({"falls": [2 - t / 20 for t in range(20)], "saturated": [1.0] * 20})
    assert found.weights(["falls", "saturated"])["falls"] < 0.99


def test_a_noisy_term_weighs_more_than_a_calm_one_of_the_same_rate():
    found = recap({"calm": around(1.0, 0.0), "noisy": around(1.0, 0.4)}, window=2).weights(["calm", "noisy"])
    assert found["noisy"] > 1 > found["calm"]


def test_the_sign_of_a_surrogate_does_not_count():
    signed = recap({"a": [1, -2, 3, -4], "b": [1, 1, 1, 1]}, window=2).weights(["a", "b"])
    assert signed == recap({"a": [1, 2, 3, 4], "b": [1, 1, 1, 1]}, window=2).weights(["a", "b"])


@pytest.mark.parametrize("older", [0.0, 5e-324, 1e-20])
def test_a_term_that_was_as_good_as_0_before_has_no_rate_instead_of_all_the_weight(older):
    woken = recap({"a": [older, older, 3, 3], "b": around(1.0, 0.0)}, window=2)
    assert woken.weights(["a", "b"]) == {"a": 1.0, "b": 1.0}


def test_a_term_without_any_loss_counts_as_saturated():
    zero = {"a": [0, 0, 0, 0], "b": around(1.0, 0.0)}
    assert recap(zero, window=2).weights(["a", "b"]) == {"a": 1.0, "b": 1.0}


histories = st.lists(st.lists(st.floats(0, 1e200), min_size=6, max_size=6), min_size=1, max_size=5)
many = settings(max_examples=100, deadline=None, derandomize=True)


@many
@given(histories, st.randoms(use_true_random=False))
def test_weights_sum_to_the_number_of_terms_and_do_not_depend_on_their_order(losses, random):
    labels = [f"t{i}" for i in range(len(losses))]
    found = recap(dict(zip(labels, losses, strict=True)), window=3).weights(labels)
    assert sum(found.values()) == pytest.approx(len(labels), abs=1e-9)
    assert all(weight >= 0 for weight in found.values())
    order = list(zip(labels, losses, strict=True))
    random.shuffle(order)
    shuffled = recap(dict(order), window=3).weights([label for label, _ in order])
    assert list(shuffled) == [label for label, _ in order]
    assert shuffled == found


@many
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 5)), max_size=12), st.integers(0, 12))
def test_a_resumed_reweighter_goes_on_as_if_it_had_never_stopped(losses, cut):
    whole, resumed = recap(window=2), recap(window=2)
    for step, (a, b) in enumerate(losses):
        if step == cut:
            saved = json.loads(json.dumps(resumed.state_dict()))
            resumed = recap(window=2)
            resumed.load_state_dict(saved)
        whole.observe({"a": a, "b": b})
        resumed.observe({"a": a, "b": b})
        assert resumed.weights(["a", "b"]) == whole.weights(["a", "b"])
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"not finite: \{'sft': (nan|inf)\}"):
        recap().observe({"dpo": 1.0, "sft": value})


def test_the_same_label_twice_is_refused():
    with pytest.raises(ValueError, match="labels of their own"):
        recap().weights(["sft", "sft"])


@pytest.mark.parametrize("params", [{"window": 1}, {"temperature": 0.0}, {"mix": 1.5}])
def test_values_that_make_no_sense_are_refused_by_name(params):
    with pytest.raises(ConfigError, match=rf"objective reweighter 'recap': parameter '{next(iter(params))}'"):
        recap(**params)

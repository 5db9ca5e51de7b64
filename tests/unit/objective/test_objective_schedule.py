"""Coefficients over a run (methods.md, T14) and over samples (T13, DADS)."""

import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost import config
from rlpost.config import Component, ConfigError
from rlpost.course import Course
from rlpost.objective.credit import Credit
from rlpost.objective.schedule import SCHEDULES, Moment
from rlpost.objective.types import CreditInputs


def make(name, **params):
    return SCHEDULES.create(Component(name=name, **params))


def at(schedule, step, steps=100):
    return schedule(Moment(step, steps, "k3", Course(1, 0.0, steps)(step)))


def test_the_schema_knows_exactly_the_schedules_that_are_registered():
    assert SCHEDULES.names() == sorted(config.SCHEDULES)


def test_constant_is_its_value_at_every_step():
    assert [at(make("constant", value=0.3), step) for step in (1, 50, 100)] == [0.3] * 3


# ------------------------------------------------------------------------------------------------------------- ramps


def test_linear_is_the_annealing_of_kdrl():
    found = make("linear", start=5e-3, end=1e-3, steps=81)
    for step in range(1, 281):
        assert at(found, step, 280) == pytest.approx(max(5e-3 - 5e-5 * (step - 1), 1e-3), abs=1e-15)
    assert at(found, 1, 280) == 5e-3
    assert at(found, 80, 280) > 1e-3
    assert at(found, 81, 280) == at(found, 280, 280) == 1e-3


@pytest.mark.parametrize("name", ["linear", "cosine", "exponential"])
@pytest.mark.parametrize(("start", "end"), [(5e-3, 1e-3), (0.001, 0.04)])
@pytest.mark.parametrize("steps", [None, 17])
def test_a_ramp_starts_and_ends_exactly_goes_one_way_and_then_stays(name, start, end, steps):
    found = make(name, start=start, end=end, steps=steps)
    last = steps or 40
    values = [at(found, step, 40) for step in range(1, 41)]
    assert values[0] == start
    assert values[last - 1 :] == [end] * (41 - last)
    moves = [b - a for a, b in pairwise(values[:last])]
    assert all(move * (end - start) > 0 for move in moves)


def test_halfway_the_ramps_are_at_their_different_means():
    middle = {name: at(make(name, start=4.0, end=1.0, steps=5), 3) for name in ("linear", "cosine", "exponential")}
    assert middle == pytest.approx({"linear": 2.5, "cosine": 2.5, "exponential": 2.0}, abs=1e-12)
    quarter = {name: at(make(name, start=4.0, end=1.0, steps=5), 2) for name in middle}
    expected = {"linear": 3.25, "cosine": 1 + 1.5 * (1 + math.sqrt(0.5)), "exponential": 4 / math.sqrt(2)}
    assert quarter == pytest.approx(expected, abs=1e-12)


def test_a_ramp_of_one_step_is_its_end():
    assert at(make("linear", start=1.0, end=2.0), 1, steps=1) == 2.0


def test_step_changes_at_its_steps_and_nowhere_else():
    found = make("step", values=[0.2, 0.1, 0.0], at=[61, 100])
    values = [at(found, step, 200) for step in range(1, 201)]
    assert values == [0.2] * 60 + [0.1] * 39 + [0.0] * 101
    assert at(make("step", values=[0.5], at=[]), 7) == 0.5


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("step", {"values": [1, 2], "at": [5, 9]}, "values has 2 and at has 2 entries; give one value more"),
        ("step", {"values": [1, 2, 3], "at": [9, 9]}, r"at must rise, got \[9, 9\]"),
        ("step", {"values": [1, 2], "at": [1]}, r"parameter 'at', value \[1\]: .*greater than or equal to 2"),
        ("linear", {"start": 1.0}, "missing end"),
        ("linear", {"start": math.nan, "end": 1.0}, "parameter 'start', value nan"),
        ("cosine", {"start": 1.0, "end": 0.0, "steps": 0}, "parameter 'steps', value 0"),
        ("exponential", {"start": 1.0, "end": 0.0}, "parameter 'end', value 0.0: .*greater than 0"),
        ("adaptive_kl", {"initial": 0.1}, "missing target"),
        ("adaptive_kl", {"initial": 0.1, "target": 0.0}, "parameter 'target', value 0.0"),
        ("adaptive_kl", {"initial": 0.1, "target": 1.0, "maximum": 0.05}, "initial 0.1 must lie within"),
        ("adaptive_kl", {"initial": 0.1, "target": 1.0, "gain": 10}, "gain 10.0 times clip 0.2 is 1 or more"),
        ("adaptive_entropy", {"target": 0.2, "minimum": 0.02}, "initial 0.01 must lie within"),
        ("dads", {"base": -1.0}, "parameter 'base', value -1.0"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(name, params, message):
    with pytest.raises(ConfigError, match=rf"schedule '{name}': {message}"):
        make(name, **params)


# ---------------------------------------------------------------------------------------------------------- adaptive


@pytest.mark.parametrize(
    ("measured", "factor"),
    [(0.02, 1.0), (0.022, 1.01), (0.018, 0.99), (0.2, 1.02), (0.0, 0.98)],  # 1 + 0.1 clip(measured / 0.02 - 1, 0.2)
)
@pytest.mark.parametrize("family", ["kl", "divergence"])
def test_adaptive_kl_moves_in_proportion_to_the_error_and_by_2_percent_at_most(family, measured, factor):
    found = make("adaptive_kl", initial=0.1, target=0.02)
    assert at(found, 1) == 0.1
    found.observe({f"{family}/k3": measured, f"{family}/other": 5.0}, "k3")
    assert at(found, 2) == pytest.approx(0.1 * factor, abs=1e-15)
    assert at(found, 2) == at(found, 2)


def test_adaptive_kl_stays_within_its_bounds_and_comes_back():
    found = make("adaptive_kl", initial=0.1, target=0.02, gain=2.0, minimum=0.05, maximum=0.2)
    for value, measured in ((0.2, 1.0), (0.05, 0.0)):
        for _ in range(20):
            found.observe({"kl/k3": measured}, "k3")
        assert at(found, 2) == value
    found.observe({"kl/k3": 1.0}, "k3")
    assert at(found, 2) == pytest.approx(0.05 * 1.4)


def test_adaptive_kl_holds_a_divergence_that_answers_to_it_at_the_target():
    found = make("adaptive_kl", initial=1e-3, target=0.02)
    for step in range(1, 1001):
        found.observe({"kl/k3": 1e-3 / at(found, step)}, "k3")
    assert 1e-3 / at(found, 1001) == pytest.approx(0.02, rel=1e-6)


def test_adaptive_schedules_change_nothing_after_a_step_without_their_metric():
    kl, entropy = make("adaptive_kl", initial=0.1, target=0.02), make("adaptive_entropy", target=0.2)
    for found in (kl, entropy):
        before = found.state_dict()
        found.observe({"kl/js": 7.0, "loss": 1.0}, "k3")
        assert found.state_dict() == before


@pytest.mark.parametrize(("name", "metric"), [("adaptive_kl", "kl/k3"), ("adaptive_entropy", "entropy")])
def test_adaptive_schedules_refuse_a_metric_that_is_not_finite(name, metric):
    found = make(name, target=0.2, initial=0.1)
    with pytest.raises(ValueError, match=rf"schedule '{name}' of k3: .*not finite: nan"):
        found.observe({metric: math.nan}, "k3")


def test_adaptive_entropy_rises_and_acts_below_the_target_and_falls_and_rests_above_it():
    found = make("adaptive_entropy", target=0.2, maximum=0.022)
    values = []
    for step, entropy in enumerate((0.1, 0.1, 0.1, 0.3, 0.2, 0.1, 0.3, 0.3, 0.3, 0.3, 0.1), start=1):
        values.append(at(found, step))
        found.observe({"entropy": entropy}, "entropy")
    values.append(at(found, 12))
    assert values == pytest.approx([0.01, 0.015, 0.02, 0.022, 0, 0, 0.017, 0, 0, 0, 0, 0.005], abs=1e-15)


@pytest.mark.parametrize(("name", "metric"), [("adaptive_kl", "kl/k3"), ("adaptive_entropy", "entropy")])
@settings(max_examples=50, deadline=None, derandomize=True)
@given(measured=st.lists(st.floats(0, 1), max_size=12), cut=st.integers(0, 12))
def test_a_resumed_schedule_goes_on_as_if_it_had_never_stopped(name, metric, measured, cut):
    params = {"target": 0.2, "initial": 0.1, "maximum": 0.15}
    whole, resumed = make(name, **params), make(name, **params)
    expected, found = [], []
    for step, value in enumerate(measured, start=1):
        if step == cut:
            saved = json.loads(json.dumps(resumed.state_dict()))
            resumed = make(name, **params)
            resumed.load_state_dict(saved)
        for schedule, values in ((whole, expected), (resumed, found)):
            values.append(at(schedule, step))
            schedule.observe({metric: value}, "k3")
    assert found == expected
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("name", "params"),
    [("linear", {"start": 1.0, "end": 0.0}), ("step", {"values": [1.0, 0.0], "at": [4]}), ("dads", {"base": 1.0})],
)
def test_schedules_of_the_step_alone_have_no_state(name, params):
    found = make(name, **params)
    found.observe({"kl/k3": 9.0, "entropy": 9.0}, "k3")
    assert found.state_dict() == {}
    found.load_state_dict({})


# -------------------------------------------------------------------------------------------------------------- DADS


def moment(correct, group, advantages, order=None):
    """Samples of two tokens, the second of them masked and full of nonsense."""
    order = torch.arange(len(group)) if order is None else order
    n = len(group)
    mask = torch.tensor([True, False]).expand(n, 2)
    credit = torch.stack([torch.tensor(advantages, dtype=torch.float64), torch.full((n,), 99.0).double()], 1)
    batch = CreditInputs(
        rewards=torch.zeros(n, dtype=torch.float64),
        group=torch.tensor(group)[order],
        correct=torch.tensor(correct)[order],
        truncated=torch.zeros(n, dtype=torch.bool),
        tokens=torch.zeros(n, 2, dtype=torch.int64),
        mask=mask,
        max_tokens=2,
    )
    return Moment(1, 10, "k3", 0.0, batch, credit[order])


# d = 0.5 (group 7), 0 (group 3), 1 (group 5: a positive advantage without a correct answer), 0.75 (group 1)
CORRECT = [True, False, True, True, False, False, False, True, False, False]
GROUP = [7, 7, 3, 3, 5, 5, 1, 1, 1, 1]
CREDIT = [1.0, -1.0, 0.5, 0.0, 0.3, -0.3, -1.0, 1.5, -1.0, -1.0]
HALF, QUARTER = 1 - math.exp(-math.e / 2), 1 - math.exp(-math.e / 4)
DADS = [HALF, 1, 1, 1, 1, 1, 1, QUARTER, 1, 1]


def test_dads_has_the_closed_form_values_for_positive_advantages_and_the_base_for_the_others():
    found = make("dads", base=0.2)(moment(CORRECT, GROUP, CREDIT))
    assert found.shape == (10,)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([0.2 * f for f in DADS], abs=1e-15)
    assert QUARTER < HALF < 1  # the harder the prompt, the weaker the tie


def test_dads_does_not_depend_on_the_order_of_the_samples():
    order = torch.tensor([9, 3, 0, 7, 1, 5, 8, 2, 6, 4])
    found = make("dads", base=0.2)(moment(CORRECT, GROUP, CREDIT, order))
    assert found.tolist() == pytest.approx([0.2 * DADS[i] for i in order], abs=1e-15)


def test_dads_without_on_policy_samples_is_refused():
    with pytest.raises(ValueError, match=r"schedule 'dads' of k3: needs on-policy samples .* source: on_policy"):
        at(make("dads", base=0.2), 1)


def test_a_ramp_of_a_run_that_was_given_other_steps_goes_on_from_where_it_was():
    settings = config.Objective(
        regularizers=[{"divergence": "k3", "coef": {"name": "linear", "start": 1.0, "end": 0.0}}]
    )
    before = Credit(settings, steps=5)
    values = [before.coefficients(step)["k3"] for step in (1, 2, 3)]
    after = Credit(settings, steps=7)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())), step=3)
    values += [after.coefficients(step)["k3"] for step in (4, 5, 6, 7)]
    assert values == pytest.approx([1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0])
    same = Credit(settings, steps=5)
    same.load_state_dict(before.state_dict(), step=3)
    assert [same.coefficients(step)["k3"] for step in (4, 5)] == [before.coefficients(step)["k3"] for step in (4, 5)]

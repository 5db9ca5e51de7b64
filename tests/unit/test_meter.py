"""Metrics come out the same however the work was split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.meter import Meter


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.integers(1, 7))
def test_split_in_any_way_the_numbers_are_those_of_the_whole(values, pieces):
    def measured(chunk: list[float]) -> Meter:
        meter = Meter()
        meter.mean("mean", sum(chunk), len(chunk))
        meter.sum("sum", sum(chunk))
        meter.max("max", max(chunk))
        meter.min("min", min(chunk))
        return meter

    whole = measured(values).values()
    parts = Meter.merge(measured(values[i::pieces]) for i in range(pieces) if values[i::pieces]).values()
    assert parts == pytest.approx(whole, abs=1e-9)


def test_a_mean_over_nothing_is_not_there():
    meter = Meter()
    meter.mean("empty", 0.0, 0)
    assert meter.values() == {}


def test_a_name_keeps_its_kind():
    meter = Meter()
    meter.sum("x", 1)
    with pytest.raises(ValueError, match="'x' was a sum and is now added as a max"):
        meter.max("x", 2)


def test_renaming_takes_only_what_is_named():
    meter = Meter()
    meter.sum("a", 1)
    meter.max("b", 2)
    assert meter.renamed({"a": "c", "missing": "d"}).values() == {"c": 1}


def test_dividing_leaves_the_other_metrics_alone():
    meter = Meter()
    meter.sum("loss", 6)
    meter.mean("entropy", 6, 2)
    assert meter.divided(["loss", "missing"], by=3).values() == {"loss": 2, "entropy": 3}

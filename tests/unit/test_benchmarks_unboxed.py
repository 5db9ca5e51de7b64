"""Responses without a box: made the same each time, in two halves that share no template, and judged as labelled."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rewards.math_equivalence import verify

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import verifiers_unboxed as bench  # noqa: E402

FAMILIES = (bench.STATEMENTS, bench.COUNTED, bench.HEDGED, bench.CORRECTED)


@pytest.fixture(scope="module")
def rows():
    return bench.rows()


def test_the_rows_are_the_same_for_a_seed_and_others_for_another(rows):
    assert rows == bench.rows()
    assert rows != bench.rows(1)


@pytest.mark.parametrize("half", bench.HALVES)
def test_each_half_has_hundreds_of_rows_of_all_families_and_of_both_labels(rows, half):
    kept = [row for row in rows if row["half"] == half]
    assert len(kept) >= 400
    assert {row["klass"].split("/")[0] for row in kept} == {"stated", "counted", "hedged", "corrected", "real"}
    assert 0.4 < sum(row["label"] for row in kept) / len(kept) < 0.6


def test_no_row_has_a_box_and_no_template_is_in_both_halves(rows):
    assert not any("\\boxed" in row["response"] for row in rows)
    assert not any(set(family["dev"]) & set(family["held_out"]) for family in FAMILIES)


@pytest.mark.parametrize("half", bench.HALVES)
@pytest.mark.parametrize("seed", [0, 1])
def test_math_is_right_on_97_in_100_and_pays_at_most_one_wrong_one(half, seed):
    kept = [row for row in bench.rows(seed) if row["half"] == half]
    scores = [verify(row["response"], row["gold"])["score"] for row in kept]
    right = [score == row["label"] for score, row in zip(scores, kept, strict=True)]
    wrong = [score for score, row in zip(scores, kept, strict=True) if not row["label"]]
    assert sum(right) / len(right) >= 0.97
    assert sum(wrong) / len(wrong) <= 0.01

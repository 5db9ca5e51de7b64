"""How many groups a step still needs, and which of those it has are learned from."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.config import Groups
from rlpost.data import fill, still_missing


def gpg(fraction: float = 0.6, incomplete: str = "refill") -> Groups:
    return Groups(no_signal="refill", incomplete=incomplete, valid_fraction=fraction)


def verdicts(letters: str) -> list[str]:
    return [{"k": "keep", "n": "no_signal", "i": "incomplete"}[letter] for letter in letters]


@pytest.mark.parametrize(
    ("judged", "missing", "learned"),
    [
        ("kkkkkknnnn", 0, range(10)),  # 6 of 10 have a signal, the 4 without fill the step
        ("nnnnkkkkkk", 0, range(10)),
        ("kkkkkkkkkk", 0, range(10)),
        ("kkkkknnnnn", 1, [0, 1, 2, 3, 4, 5, 6, 7, 8]),  # a place is kept free for the sixth
        ("nknknknknkk", 0, [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]),  # it came: the last one without signal is left out
        ("nnnnnnnnnn", 6, [0, 1, 2, 3]),
        ("kkkkkknnni", 1, range(9)),  # enough signal, but a place is empty
        ("kkkkknnnni", 1, range(9)),  # one more group with signal completes both
    ],
)
def test_gpg_samples_until_the_share_has_a_signal_and_fills_the_rest(judged, missing, learned):
    assert still_missing(verdicts(judged), 10, gpg()) == missing
    assert fill(verdicts(judged), 10, gpg()) == list(learned)


def test_an_incomplete_group_that_is_not_refilled_takes_its_place_with_it():
    assert still_missing(verdicts("kkkkkknnii"), 10, gpg(incomplete="drop")) == 0
    assert fill(verdicts("kkkkkknnii"), 10, gpg(incomplete="drop")) == list(range(8))
    assert still_missing(verdicts("kkkkknniii"), 10, gpg(incomplete="drop")) == 1


@pytest.mark.parametrize("wanted", [1, 3, 7, 50, 100, 128])
@pytest.mark.parametrize("percent", [1, 7, 14, 28, 29, 55, 57, 60, 99, 100])
def test_the_share_is_rounded_up_exactly_whatever_its_product_comes_out_as(wanted, percent):
    assert still_missing([], wanted, gpg(percent / 100)) == wanted
    needed = math.ceil(Fraction(percent, 100) * wanted)
    assert still_missing(["no_signal"] * wanted, wanted, gpg(percent / 100)) == needed
    enough = ["keep"] * needed + ["no_signal"] * (wanted - needed)
    assert still_missing(enough, wanted, gpg(percent / 100)) == 0
    assert still_missing(["no_signal", *enough[1:]], wanted, gpg(percent / 100)) == 1


@given(st.integers(1, 12), st.data())
def test_without_a_fraction_each_round_asks_for_the_groups_of_the_last_that_are_to_be_refilled(wanted, data):
    policy = Groups(
        no_signal=data.draw(st.sampled_from(["keep", "drop", "refill"])),
        incomplete=data.draw(st.sampled_from(["drop", "refill"])),
    )
    possible = ["keep", "incomplete"] + (["no_signal"] if policy.no_signal != "keep" else [])
    refilled = {v for v in ("no_signal", "incomplete") if getattr(policy, v) == "refill"}
    judged: list[str] = []
    missing = wanted
    for _ in range(5):
        new = data.draw(st.lists(st.sampled_from(possible), min_size=missing, max_size=missing))
        judged += new
        missing = still_missing(judged, wanted, policy)
        assert missing == sum(v in refilled for v in new)
    assert fill(judged, wanted, policy) == [i for i, v in enumerate(judged) if v == "keep"]


@given(st.integers(1, 12), st.integers(1, 100), st.sampled_from(["drop", "refill"]), st.data())
def test_rounds_end_and_a_step_never_has_more_than_its_places_nor_less_than_its_share(
    wanted, percent, incomplete, data
):
    policy = gpg(percent / 100, incomplete)
    needed = math.ceil(Fraction(percent, 100) * wanted)
    judged: list[str] = []
    missing, rounds = wanted, 0
    while missing and rounds < 6:
        rounds += 1
        judged += data.draw(
            st.lists(st.sampled_from(["keep", "no_signal", "incomplete"]), min_size=missing, max_size=missing)
        )
        missing = still_missing(judged, wanted, policy)
    learned = fill(judged, wanted, policy)
    signal, places = judged.count("keep"), wanted - (judged.count("incomplete") if incomplete == "drop" else 0)
    assert learned == sorted(set(learned))
    assert len(learned) <= max(places, 0)
    assert {i for i, v in enumerate(judged) if v == "keep"} <= set(learned)
    assert all(judged[i] != "incomplete" for i in learned)
    without = len(learned) - signal
    assert without <= wanted - min(needed, places) if places > 0 else without == 0
    if not missing:
        assert len(learned) == places
        assert signal >= min(needed, places)

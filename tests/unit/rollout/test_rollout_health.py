"""What an engine may become: every edge there is, and every one that there is not."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.rollout.health import ForbiddenMoveError, Health, State

H, S, D, R, T = State.HEALTHY, State.SUSPECT, State.DEAD, State.RESTARTING, State.STALE
EDGES = {(H, S), (S, H), (S, D), (D, R), (R, T), (R, D), (T, H), (T, D)}


@pytest.mark.parametrize(("before", "after"), product(State, State))
def test_only_these_edges_are_there(before, after):
    health = Health(before)
    if (before, after) in EDGES:
        health.to(after)
        assert health.state is after
    else:
        with pytest.raises(ForbiddenMoveError, match=f"that is {before} cannot become {after}"):
            health.to(after)
        assert health.state is before


@given(st.lists(st.sampled_from(["doubt", "trust", "die", "restart", "load", "fit"])))
def test_nobody_dead_serves_before_it_was_started_anew_and_refitted(events):
    health, since_death = Health(State.HEALTHY), None
    moves = {"restart": State.RESTARTING, "load": State.STALE, "fit": State.HEALTHY}
    for event in events:
        try:
            health.to(moves[event]) if event in moves else getattr(health, event)()
        except ForbiddenMoveError:
            continue
        if event == "die":
            since_death = []
        elif since_death is not None:
            since_death += [event] if event in moves else []
        if health.state in (State.HEALTHY, State.SUSPECT) and since_death is not None:
            assert since_death[:3] == ["restart", "load", "fit"]


@pytest.mark.parametrize("state", [H, S, R, T])
def test_it_may_be_lost_from_any_state(state):
    health = Health(state)
    health.die()
    assert health.state is State.DEAD


def test_what_does_not_serve_yet_is_not_suspected_nor_trusted():
    health = Health(State.STALE)
    health.doubt()
    health.trust()
    assert health.state is State.STALE

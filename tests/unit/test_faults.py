"""Failpoints do nothing unless asked for, and waits say what they waited for."""

from __future__ import annotations

import pytest

from rlpost.faults import amount, failpoint


@pytest.mark.parametrize(
    ("asked", "steps"),
    [("", []), ("sync.skip", [1, 2, 3]), ("sync.skip@step=2", [2]), ("driver.kill,sync.skip@step>=2", [2, 3])],
)
def test_a_failpoint_fires_where_it_is_asked_for(monkeypatch, asked, steps):
    monkeypatch.setenv("RLPOST_FAULTS", asked)
    assert [s for s in (1, 2, 3) if failpoint("sync.skip", s)] == steps


def test_an_unreadable_request_is_an_error_and_not_ignored(monkeypatch):
    monkeypatch.setenv("RLPOST_FAULTS", "sync.skpi")
    with pytest.raises(ValueError, match=r"sync\.skpi"):
        failpoint("sync.skip", 1)


def test_a_failpoint_may_say_how_much(monkeypatch):
    monkeypatch.setenv("RLPOST_FAULTS", "router.noise:0.25@step>=2")
    assert [amount("router.noise", s) for s in (1, 2, 3)] == [None, 0.25, 0.25]
    monkeypatch.setenv("RLPOST_FAULTS", "router.noise")
    assert amount("router.noise", 1) == 0.1
    assert amount("sync.skip", 1) is None

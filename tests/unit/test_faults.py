"""Failpoints do nothing unless asked for, and waits say what they waited for."""

from __future__ import annotations

import pytest

from rlpost.faults import failpoint


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

"""Saves and stops by the clock."""

from __future__ import annotations

import signal
import time

import pytest

from rlpost.config import ConfigError, parse
from rlpost.run.timetable import LEAVING, LONGER, Timetable
from rlpost.stop import STOP
from tests.conftest import tiny


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("3h50m", 13_800), ("90m", 5400), ("1d12h", 129_600), ("45s", 45), (5400, 5400), ("1d1h1m1s", 90_061)],
)
def test_a_length_of_time_is_read_as_it_is_written(said, seconds):
    config = parse(tiny(time_limit=said))
    assert config.time_limit == seconds
    assert parse(config.model_dump(mode="json")).time_limit == seconds


@pytest.mark.parametrize(
    "said", ["3:50:00", "soon", "", "h", "m3", "3h 50m", "-1h", "1.5h", 0, "0s", -1, float("inf"), "1m1h"]
)
def test_what_is_no_length_of_time_is_refused(said):
    with pytest.raises(ConfigError, match="time_limit"):
        parse(tiny(time_limit=said))


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), "5m"])
def test_minutes_between_saves_are_a_positive_number(minutes):
    with pytest.raises(ConfigError, match=r"checkpoint\.minutes"):
        parse(tiny(checkpoint={"minutes": minutes}))


@pytest.fixture
def asked(monkeypatch) -> list[float]:
    """When a stop was asked for, from the start of the command."""
    found: list[float] = []
    monkeypatch.setattr(STOP, "began", 1000.0)
    monkeypatch.setattr(STOP, "at", lambda when: found.append(when - STOP.began))
    return found


def test_a_stop_leaves_room_for_the_longest_recent_step_and_a_save(asked):
    timetable = Timetable(parse(tiny(time_limit="1h")))
    assert asked == [3600 - LEAVING]
    timetable.stepped(100)
    assert asked[-1] == pytest.approx(3600 - LEAVING - LONGER * 200), "before the first save it is taken for a step"
    timetable.saved(10)
    assert asked[-1] == pytest.approx(3600 - LEAVING - LONGER * 110)
    for _ in range(5):
        timetable.stepped(20)
    assert asked[-1] == pytest.approx(3600 - LEAVING - LONGER * 30), "what was long ago does not count"


def test_without_a_limit_no_stop_is_asked_for(asked):
    Timetable(parse(tiny())).stepped(100)
    assert not asked


def test_a_save_is_due_so_many_minutes_after_the_last(monkeypatch):
    timetable = Timetable(parse(tiny(checkpoint={"minutes": 5})))
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 299)
    assert not timetable.due
    monkeypatch.setattr(time, "monotonic", lambda: now + 301)
    assert timetable.due
    timetable.saved(1)
    assert not timetable.due


def test_the_clock_asks_once_and_a_signal_that_follows_says_the_same(capfd):
    before = signal.getsignal(signal.SIGALRM)
    with STOP.listening(), STOP.deferred():
        STOP.at(time.monotonic() - 1)
        while not STOP.requested:
            time.sleep(0.001)
        signal.raise_signal(signal.SIGTERM)
        assert not STOP.insisted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert STOP.insisted
    assert signal.getsignal(signal.SIGALRM) == before
    assert capfd.readouterr().err.count("time_limit: stopping after this step") == 1


def test_the_command_began_before_it_listens():
    with STOP.listening():
        assert 0 < time.monotonic() - STOP.began < 10 * 3600

"""Failpoints do nothing unless asked for, and waits say what they waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from rlpost import faults
from rlpost.config import Config
from rlpost.faults import PLACES, FailpointError, FaultsError, amount, failpoint, strike
from rlpost.run.check import checked
from tests.conftest import tiny


@pytest.mark.parametrize(
    ("asked", "steps"),
    [("", []), ("sync.skip", [1, 2, 3]), ("sync.skip@step=2", [2]), ("driver.kill,sync.skip@step>=2", [2, 3])],
)
def test_a_failpoint_fires_where_it_is_asked_for(monkeypatch, asked, steps):
    monkeypatch.setenv("RLPOST_FAULTS", asked)
    assert [s for s in (1, 2, 3) if failpoint("sync.skip", s)] == steps


def test_a_failpoint_may_say_how_much(monkeypatch):
    monkeypatch.setenv("RLPOST_FAULTS", "router.noise:0.25@step>=2")
    assert [amount("router.noise", s) for s in (1, 2, 3)] == [None, 0.25, 0.25]
    monkeypatch.setenv("RLPOST_FAULTS", "router.noise")
    assert amount("router.noise", 1) == 0.1
    assert amount("sync.skip", 1) is None


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("sync.skpi", r"no failpoint 'sync\.skpi'.*sync\.skip.*rank\.backward"),
        ("rank.backwards:kill", r"no failpoint 'rank\.backwards'"),
        ("rank.backward", r"rank\.backward takes one of rank\.backward:kill, rank\.backward:stop"),
        ("rank.backward:", r"takes one of"),
        ("rank.backward:explode", r"takes one of"),
        ("rank.backward:0.1", r"takes one of"),
        ("sync.skip:kill", r"sync\.skip takes no 'kill'"),
        ("sync.skip:0.3", r"sync\.skip takes no '0\.3'"),
        ("router.noise:much", r"router\.noise takes no 'much', but an amount"),
        ("rank.backward:kill@step", r"'step' is no condition; there are @step=N"),
        ("rank.backward:kill@step=-1", r"is no condition"),
        ("rank.backward:kill@step>3", r"is no condition"),
        ("rank.backward:kill@index>=1", r"is no condition"),
        ("rank.backward:kill@@step=1", r"'' is no condition"),
        ("rank.backward:kill@step=1@step=2", r"second condition"),
        ("verifier.score:kill@step=1", r"knows of no step"),
        ("driver.start:kill@index=0", r"has no number"),
        ("rank.backward:kill@once", r"RLPOST_FAULTS_ONCE"),
        ("sync.skip@once", r"@once needs a place"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts_with_what_there_is(monkeypatch, item, says):
    monkeypatch.setenv("RLPOST_FAULTS", f"driver.kill@step=900,{item}")
    with pytest.raises(FaultsError, match=says) as raised:
        checked(Config.model_validate(tiny()))
    assert raised.value.exit_code == 2
    with pytest.raises(FaultsError, match=says):
        strike("driver.start", 0)


def test_a_place_that_is_not_in_the_table_is_a_defect():
    for ask in (strike, failpoint):
        with pytest.raises(KeyError, match="known: "):
            ask("rank.sideways", 1)


def test_unset_it_is_nothing_but_a_look_at_the_environment(monkeypatch):
    monkeypatch.delenv("RLPOST_FAULTS", raising=False)
    monkeypatch.setattr(faults, "read", None)
    for name in PLACES:
        strike(name, 1, 0)


def test_asked_for_it_is_read_once(monkeypatch):
    monkeypatch.setenv("RLPOST_FAULTS", "rank.backward:raise@step=7777")
    faults.read.cache_clear()
    for step in range(100):
        strike("rank.backward", step, 0)
    assert faults.read.cache_info().misses == 1


def test_a_place_raises_with_its_name_where_all_conditions_hold(monkeypatch):
    monkeypatch.setenv("RLPOST_FAULTS", "rank.backward:raise@index=1@step>=3")
    for step, index in ((2, 1), (3, 0), (3, None)):
        strike("rank.backward", step, index)
    strike("rank.forward", 3, 1)
    for step in (3, 4):
        with pytest.raises(FailpointError, match=rf"rank\.backward at step {step}$"):
            strike("rank.backward", step, 1)


def _passes(action: str, name: str = "driver.learned", **more: str) -> subprocess.Popen:
    code = f"from rlpost.faults import strike; print('at it', flush=True); strike({name!r}, 2); print('past it')"
    environment = {**os.environ, "RLPOST_FAULTS": f"{name}:{action}", **more}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout.readline() == "at it\n"
    return child


def test_a_process_kills_itself():
    child = _passes("kill")
    assert child.communicate()[0] == ""
    assert child.returncode == -signal.SIGKILL


def test_a_process_stops_itself_and_goes_on_when_told():
    child = _passes("stop")
    assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
    child.send_signal(signal.SIGCONT)
    assert child.communicate()[0] == "past it\n"


def test_a_process_that_hangs_hears_signals():
    child = _passes("hang")
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.send_signal(signal.SIGINT)
    assert child.communicate()[0] == ""
    assert child.returncode != 0


def test_what_was_once_is_not_again_in_another_process(tmp_path):
    first = _passes("raise@once", RLPOST_FAULTS_ONCE=str(tmp_path))
    assert first.communicate()[0] == ""
    assert _passes("raise@once", RLPOST_FAULTS_ONCE=str(tmp_path)).communicate()[0] == "past it\n"
    assert _passes("kill@once", RLPOST_FAULTS_ONCE=str(tmp_path)).communicate()[0] == ""

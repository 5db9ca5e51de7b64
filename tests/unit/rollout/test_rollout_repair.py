"""How often an engine is replaced, by what it is known to be lost, and that nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from types import SimpleNamespace

import pytest

from rlpost.config import Repair
from rlpost.processes import SHARED
from rlpost.rollout import watch
from rlpost.rollout.engine import Beat
from rlpost.rollout.health import Health, State
from rlpost.rollout.remains import Process, end, processes, stopped
from rlpost.rollout.repair import Budget
from rlpost.rollout.seat import Loss

GONE = Loss("is gone: killed")


def test_each_engine_may_be_replaced_so_many_times_within_an_hour():
    budget = Budget(2)
    assert [budget.spend(1, GONE, now) for now in (0.0, 10.0)] == [None, None]
    assert budget.spend(0, GONE, 20.0) is None, "another engine has its own"
    assert "2 times in the last hour (rollout.repair.restarts)" in budget.spend(1, GONE, 30.0)


def test_what_is_an_hour_ago_is_not_counted():
    budget = Budget(1)
    assert budget.spend(0, GONE, 0.0) is None
    assert budget.spend(0, GONE, 3601.0) is None
    assert budget.spend(0, GONE, 3700.0) is not None


def test_the_same_error_twice_is_no_accident_and_another_one_is():
    budget = Budget(3)
    error = Loss("failed: ValueError('no such kernel')", error=True)
    assert budget.spend(0, error, 0.0) is None
    assert budget.spend(0, Loss("failed: another", error=True), 1.0) is None
    assert "the same as before" in budget.spend(0, error, 2.0)


def test_without_a_budget_the_first_loss_is_the_last():
    assert Budget(0).spend(0, GONE, 0.0) is not None


class Engine:
    """A seat whose engine answers as it is told to, under a clock that is turned by hand."""

    def __init__(self, monkeypatch, **settings: float) -> None:
        self.now, self.says, self.stopped, self.asked = 100.0, Beat("waiting", 0.0, None), False, 0
        self.seat = Seat(self)
        monkeypatch.setattr(watch.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(watch, "answer", lambda _: self.says)
        monkeypatch.setattr(watch, "is_stopped", lambda _: self.stopped)
        self.watch = watch.Watch(Repair(heartbeat=3, silence=60, stall=30, **settings), job=100)

    def remote(self) -> object:
        self.asked += 1
        return object()

    def over(self, seconds: int) -> str | None:
        """What is found, looking every second."""
        for _ in range(seconds):
            self.now += 1
            for loss in self.watch.look([self.seat]).values():
                return loss.why
        return None


class Seat:
    def __init__(self, engine: Engine) -> None:
        self.health, self.loss = Health(State.HEALTHY), None
        self.handle = SimpleNamespace(beat=engine)


def test_it_is_asked_once_a_heartbeat_and_one_that_answers_is_never_lost(monkeypatch):
    engine = Engine(monkeypatch)
    assert engine.over(300) is None
    assert 60 <= engine.asked <= 100


def test_one_that_is_stopped_is_known_within_ten_seconds(monkeypatch):
    engine = Engine(monkeypatch)
    engine.over(20)
    engine.says, engine.stopped = None, True
    assert engine.over(5) is None
    assert engine.seat.health.state is State.SUSPECT
    assert "is stopped (SIGSTOP)" in engine.over(5)


def test_one_that_is_slow_to_answer_is_suspected_and_trusted_again(monkeypatch):
    engine = Engine(monkeypatch)
    engine.says = None
    assert engine.over(40) is None
    assert engine.seat.health.state is State.SUSPECT
    engine.says = Beat("sampling", 1.0, None)
    assert engine.over(5) is None
    assert engine.seat.health.state is State.HEALTHY


def test_one_that_never_answers_is_given_up(monkeypatch):
    engine = Engine(monkeypatch)
    engine.says = None
    assert "has not answered for" in engine.over(80)


def test_silence_while_nobody_looked_does_not_count(monkeypatch):
    engine = Engine(monkeypatch)
    engine.over(5)
    engine.says, engine.stopped = None, True
    engine.over(2)
    engine.now += 3600
    assert engine.over(1) is None


@pytest.mark.parametrize(
    ("doing", "since", "said"),
    [
        ("sampling", 29.0, None),
        ("sampling", 31.0, "rollout.repair.stall"),
        ("working", 99.0, None),
        ("working", 101.0, "rollout.sync_deadline"),
        ("waiting", 1e6, None),
    ],
)
def test_a_turn_of_the_thread_may_take_its_time(monkeypatch, doing, since, said):
    engine = Engine(monkeypatch)
    engine.says = Beat(doing, since, None)
    found = engine.over(20)
    assert found is None if said is None else said in found


def test_a_thread_that_ended_is_lost_by_its_error(monkeypatch):
    engine = Engine(monkeypatch)
    engine.says = Beat("sampling", 0.1, "ValueError('no')")
    assert engine.over(5) == "failed: ValueError('no')"


def test_what_starts_is_not_watched(monkeypatch):
    engine = Engine(monkeypatch)
    engine.seat.health, engine.says, engine.stopped = Health(), None, True
    assert engine.over(100) is None
    assert engine.asked == 0


@pytest.fixture
def family():
    """A process and one below it, as the actor of an engine and a worker of vLLM's are."""
    code = (
        "import subprocess, sys; from rlpost.rollout.remains import processes\n"
        "child = subprocess.Popen(['sleep', '60']); print([(p.pid, p.began) for p in processes()], flush=True)\n"
        "child.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    yield parent, [Process(*pair) for pair in eval(parent.stdout.readline())]
    parent.kill()
    parent.wait()
    parent.stdout.close()


def test_a_stopped_process_is_seen_and_all_of_them_are_ended(family):
    parent, found = family
    assert [found[0].pid, len(found)] == [parent.pid, 2]
    assert not stopped(found)
    os.kill(parent.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, parent.pid, os.WSTOPPED | os.WNOWAIT)
    assert stopped(found)
    assert end(found) == []
    assert parent.wait(10) == -signal.SIGKILL


def test_a_later_process_of_the_same_number_is_left_alone():
    (me, *_) = processes()
    assert end([Process(me.pid, me.began - 1)]) == []
    assert not stopped([Process(me.pid, me.began - 1)])


def test_memory_that_one_shared_goes_with_it_and_what_another_has_stays():
    """Ended by force it cannot remove that itself, as vLLM's queues between an engine and its workers."""
    code = (
        "import sys; from multiprocessing import resource_tracker, shared_memory as s\n"
        "from rlpost.rollout.remains import processes\n"
        "ours = s.SharedMemory(sys.argv[1]); own = s.SharedMemory(create=True, size=4096)\n"
        "for memory in (ours, own): resource_tracker.unregister(memory._name, 'shared_memory')\n"
        "print(own.name, [(p.pid, p.began) for p in processes()][0], sep='|', flush=True)\n"
        "sys.stdin.read()"
    )
    held = SharedMemory(create=True, size=4096)
    child = subprocess.Popen(
        [sys.executable, "-c", code, held.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        name, _, number = child.stdout.readline().partition("|")
        assert (SHARED / name).exists()
        assert end([Process(*eval(number))]) == []
        assert not (SHARED / name).exists()
        assert (SHARED / held.name).exists(), "it is mapped here too"
    finally:
        child.kill()
        child.communicate()
        held.close()
        held.unlink()

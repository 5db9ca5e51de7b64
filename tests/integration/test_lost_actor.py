"""What is said of an actor that dies, raises or does not answer: by real Ray, with actors that do nothing else."""

from __future__ import annotations

import os
import re
import signal
import sys

import pytest
import ray

from rlpost.actors import Reachable, crew
from rlpost.faults import DeadlineError, wait
from rlpost.run.lost import LostActorError, accounted

pytestmark = pytest.mark.integration


def _letters(number: int) -> str:
    return chr(ord("a") + number // 26) + chr(ord("a") + number % 26)


class Worker(Reachable):
    def say(self, count: int) -> None:
        for i in range(count):
            print(f"step {i}: line {_letters(i)} of the log", file=sys.stderr, flush=True)
            print(f"step {i}: the same at every step", file=sys.stderr, flush=True)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fault(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def refuse(self) -> None:
        raise ValueError("no such thing")

    def hang(self) -> None:
        wait([self._never.remote()], 60, "what never comes")

    @ray.remote
    def _never() -> None:
        import time

        time.sleep(60)


@pytest.fixture
def workers(ray_cluster):
    handles = [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(2)]
    members = crew("engine", handles)
    ray.get([handle.say.remote(60) for handle in handles], timeout=60)
    yield members
    for handle in handles:
        ray.kill(handle)


def test_of_one_that_died_the_name_the_place_the_end_of_its_log_and_what_others_did_are_said(workers):
    busy = workers[0].handle.hang.remote()
    with pytest.raises(LostActorError) as raised, accounted(workers, doing=lambda: "sampling, step 3"):
        wait([workers[1].handle.die.remote()], 60, "the engines")
    said = str(raised.value)
    first = said.splitlines()[0]
    assert first.startswith("engine 1 (process ")
    assert "is gone in sampling, step 3: its process ended without a word, as by SIGKILL" in first
    assert raised.value.who == "engine 1"
    assert "It was engine 1, process " in said
    assert [f"line {_letters(i)} of the log" in said for i in (10, 11, 59)] == [False, True, True]
    assert said.count("the same at every step") == 1
    assert "step 59: the same at every step" in said
    assert ".err" in said
    assert "engine 0, process " in said
    assert "wait (rlpost/faults.py:" in said
    assert raised.value.exit_code == 5
    assert not ray.wait([busy], timeout=0)[0]


def test_what_one_raises_passes_with_a_note(workers):
    with pytest.raises(ValueError, match="no such thing") as raised, accounted(workers):
        wait([worker.handle.refuse.remote() for worker in workers[1:]], 60, "the ranks")
    (note,) = raised.value.__notes__
    assert raised.value.who == "engine 1"
    assert "It was engine 1, process " in note
    assert f"line {_letters(59)} of the log" in note
    assert "engine 0, process " in note


def test_of_a_fatal_signal_the_log_is_the_witness(workers):
    says = r"engine 0 .* is gone: a fatal signal \((SIGSEGV|Segmentation fault)\)"
    with pytest.raises(LostActorError, match=says), accounted(workers):
        wait([workers[0].handle.fault.remote()], 60, "the engines")


def test_a_deadline_says_where_each_is_and_leaves_the_stacks_of_all(workers, tmp_path):
    with pytest.raises(DeadlineError, match="what is late") as raised, accounted(workers, tmp_path):
        wait([workers[0].handle.hang.remote()], 1, "what is late")
    (note,) = raised.value.__notes__
    assert "wait (rlpost/faults.py:" in note.partition("engine 1")[0]
    (stacks,) = tmp_path.iterdir()
    assert note.endswith(f": idle\nWhere all of them were: {stacks}")
    driver, first, second = stacks.read_text().split("\nengine ")
    assert "test_lost_actor.py" in driver
    assert "in hang" in first.replace("\n", " ")
    assert second.startswith("1, process ")
    assert "in hang" not in second


def test_one_that_is_stopped_is_named_and_not_those_that_wait_for_it(workers, tmp_path):
    busy = workers[0].handle.hang.remote()
    workers[1].handle.stop.remote()
    says = r"^engine 1 \(process \d+ on .*\) is stopped"
    with pytest.raises(LostActorError, match=says) as raised, accounted(workers, tmp_path):
        wait([busy, workers[1].handle.say.remote(1)], 2, "the ranks to update")
    pid = re.search(r"kill -CONT (\d+)", str(raised.value))[1]
    os.kill(int(pid), signal.SIGCONT)
    assert raised.value.who == "engine 1"
    assert "2 of 2 did not answer" in str(raised.value)
    assert "engine 1" not in str(raised.value).partition("The others:")[2].partition("Where all")[0]
    assert "stopped by a signal" in next(tmp_path.iterdir()).read_text()

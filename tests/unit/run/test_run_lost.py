"""Of what an actor died, by what Ray says and what its machine shows."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
import ray

from rlpost import actors
from rlpost.actors import Sight, killed_in, own_cgroup
from rlpost.faults import DeadlineError
from rlpost.processes import state as state_of
from rlpost.run.lost import LostActorError, accounted, cause_of

ENDED = (
    "The actor died unexpectedly before finishing this task. The actor is dead because its worker process has died. Worker "
    "exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some "
    "common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop --force is "
    "called, (3) the worker is crashed unexpectedly due to SIGSEGV or another unexpected error."
)
NODE = "The actor died because its node has died. Node Id: 5ba1. the actor's node was terminated unexpectedly: health check"
MONITOR = "Task was killed due to the node running low on memory. Memory on the node was 23.1GB / 24.0GB (0.96)"
CUT = (
    "The actor 01d4ab is unavailable: The actor is temporarily unavailable: RpcError: RPC Error message: failed to connect to "
    "all addresses. The task may or may not have been executed on the actor."
)


def sight(*lines: str, killed: int = 0) -> Sight:
    return Sight([*lines], None, [], None, killed)


@pytest.mark.parametrize(
    ("said", "seen", "cause"),
    [
        (ENDED, sight("step 3 is done"), "without a word, as by SIGKILL"),
        (ENDED, sight("step 3 is done", killed=1), "out of memory, it seems: the kernel killed 1 of its cgroup"),
        (ENDED, sight("*** SIGSEGV received at time=17 on cpu 1 ***"), "a fatal signal (SIGSEGV)"),
        (ENDED, sight("Fatal Python error: Bus error", "Current thread"), "a fatal signal (Bus error)"),
        (ENDED, None, "its machine shows nothing"),
        (MONITOR, sight(), "out of memory (Ray's monitor"),
        (NODE, None, "its node is gone"),
        (CUT, sight("step 3 is done"), "it cannot be reached"),
        ("Worker exit type: USER_ERROR exit code: 3", sight(), "exit code 3"),
    ],
)
def test_the_cause_is_what_there_is_a_witness_for(said, seen, cause):
    found, remedy = cause_of(said, seen)
    assert cause in found
    assert remedy


def test_the_kernels_count_is_read_where_there_is_one(tmp_path):
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 4\noom_kill 3\noom_group_kill 9\n")
    assert killed_in(str(tmp_path)) == 3
    assert killed_in(str(tmp_path / "gone")) == 0
    assert killed_in("") == 0
    assert killed_in(own_cgroup()) >= 0


def test_what_was_killed_before_an_actor_began_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(actors.device, "memory_in_use", list)
    (tmp_path / "memory.events").write_text("oom_kill 3\n")
    at = actors.Whereabouts("n", "h", 2**22 + 1, (), "", str(tmp_path), killed=3)
    assert actors.look(at).killed == 0
    (tmp_path / "memory.events").write_text("oom_kill 5\n")
    seen = actors.look(at)
    assert (seen.killed, seen.state, seen.doing) == (2, None, None)


def test_a_stopped_process_is_told_from_one_that_sleeps_and_one_that_is_dead():
    child = subprocess.Popen(["sleep", "60"])
    child.send_signal(signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    assert state_of(child.pid) == "T"
    child.send_signal(signal.SIGCONT)
    while state_of(child.pid) == "T":
        time.sleep(0.01)
    assert state_of(child.pid) in "SR"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert state_of(child.pid) is None  # a zombie
    child.wait()
    assert state_of(child.pid) is None


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.RaySystemError("the raylet is gone"),
        ray.exceptions.NodeDiedError("node 5ba1 was marked dead"),
        ray.exceptions.LocalRayletDiedError(),
        ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory"),
    ],
)
def test_what_carries_the_actors_is_told_from_them(error):
    says = rf"^Ray itself broke in learning, step 3 \({type(error).__name__}\)"
    with pytest.raises(LostActorError, match=says) as raised, accounted([], doing=lambda: "learning, step 3"):
        raise error
    assert (raised.value.who, raised.value.exit_code) == ("ray", 5)


def test_what_was_accounted_for_within_is_not_looked_at_again(tmp_path):
    with pytest.raises(DeadlineError) as raised, accounted([], tmp_path), accounted([], tmp_path):
        raise DeadlineError("waited for the engines")
    assert len(raised.value.__notes__) == 1
    (stacks,) = tmp_path.iterdir()
    assert "test_what_was_accounted_for_within_is_not_looked_at_again" in stacks.read_text()

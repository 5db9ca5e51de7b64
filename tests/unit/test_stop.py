"""A stop that is asked for comes at once where nothing is to be saved, and after the step where something is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rlpost import cli, stop
from rlpost.exit_codes import PREEMPTED, STOPPED_AT_ONCE
from rlpost.stop import STOP

pytestmark = pytest.mark.usefixtures("hang_ups_heard")
EVERY = pytest.mark.parametrize("number", stop.SIGNALS)


def ask(number: int) -> None:
    signal.raise_signal(number)


@EVERY
def test_where_nothing_is_to_be_saved_a_stop_comes_at_once(number):
    with STOP.listening(), pytest.raises(KeyboardInterrupt):
        ask(number)
    assert STOP.requested
    assert not STOP.insisted


@EVERY
def test_where_something_is_to_be_saved_a_stop_waits(number, capfd):
    with STOP.listening(), STOP.deferred():
        ask(number)
        assert STOP.requested
    assert "stopping after this step with a checkpoint; once more to stop now" in capfd.readouterr().err


def test_a_stop_that_waited_comes_where_it_need_not_wait_any_longer():
    with STOP.listening(), STOP.deferred():
        ask(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), STOP.prompt():
            raise AssertionError("not reached")
        with STOP.deferred():
            assert STOP.requested


@pytest.mark.parametrize("first", stop.SIGNALS)
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_stops_at_once(first, second):
    with STOP.listening(), STOP.deferred():
        ask(first)
        with pytest.raises(KeyboardInterrupt):
            ask(second)
        assert STOP.insisted


def test_a_terminal_that_closes_says_so_several_times_and_means_it_once():
    with STOP.listening(), STOP.deferred():
        for _ in range(3):
            ask(signal.SIGHUP)
        assert not STOP.insisted


def test_handlers_are_those_of_before_afterwards():
    before = [signal.getsignal(s) for s in stop.SIGNALS]
    with STOP.listening():
        pass
    assert [signal.getsignal(s) for s in stop.SIGNALS] == before


def test_a_signal_that_comes_when_all_is_done_does_not_make_it_look_otherwise():
    told = "import signal\nfrom rlpost.stop import STOP\nwith STOP.listening(to_the_end=True): pass\n"
    told += "[signal.raise_signal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]"
    assert subprocess.run([sys.executable, "-c", told], timeout=60).returncode == 0


def test_under_nohup_a_hang_up_is_no_stop():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with STOP.listening():
            ask(signal.SIGHUP)
            assert not STOP.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_said_after_the_terminal_is_gone_is_no_error():
    """Standard output is a terminal whose other end is closed, as by a window that is shut."""
    told = (
        "import os, pty, signal, sys\n"
        "from rlpost.stop import STOP\n"
        "ours, theirs = pty.openpty()\n"
        "os.dup2(theirs, 1); os.dup2(theirs, 2); os.close(theirs); os.close(ours)\n"
        "with STOP.listening(), STOP.deferred():\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "    print('saved', flush=True)\n"
    )
    assert subprocess.run([sys.executable, "-c", told], timeout=60).returncode == 0


def test_ray_s_own_handlers_are_a_stop_and_do_not_stay():
    with STOP.listening():
        mine = signal.getsignal(signal.SIGTERM)

        def init() -> None:
            with STOP.through_start_of_ray():
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
                ask(signal.SIGTERM)

        with pytest.raises(KeyboardInterrupt):
            init()
        assert STOP.requested
        assert not STOP.insisted
        assert signal.getsignal(signal.SIGTERM) == mine
        assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_what_is_started_with_ray_does_not_hear_of_a_hang_up_and_the_run_does():
    with STOP.listening():
        blocked = []

        def init() -> None:
            with STOP.through_start_of_ray():
                command = ["grep", "SigBlk", "/proc/self/status"]
                blocked.append(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
                os.kill(os.getpid(), signal.SIGHUP)
                assert not STOP.requested

        with pytest.raises(KeyboardInterrupt):
            init()
        assert STOP.requested
    assert int(blocked[0].split()[1], 16) & (1 << (signal.SIGHUP - 1))


def test_a_hang_up_that_another_thread_is_told_of_waits_for_the_start_of_ray_as_well():
    """The mask of a thread is its own, and a signal to the process goes to any that does not block it."""
    over = threading.Event()
    other = threading.Thread(target=over.wait, args=(60,))
    other.start()
    waited = []
    try:
        with STOP.listening():

            def init() -> None:
                with STOP.through_start_of_ray():
                    os.kill(os.getpid(), signal.SIGHUP)
                    while signal.SIGHUP in signal.sigpending():
                        time.sleep(0.001)
                    waited.append(not STOP.requested)

            with pytest.raises(KeyboardInterrupt):
                init()
            assert waited == [True]
            assert STOP.requested
            assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        over.set()
        other.join()


def test_a_stop_on_the_way_out_of_the_start_of_ray_leaves_no_signal_blocked(monkeypatch):
    with STOP.listening():

        def interrupted(number, handler):
            monkeypatch.undo()
            ask(signal.SIGINT)

        def init() -> None:
            with STOP.through_start_of_ray():
                monkeypatch.setattr(signal, "signal", interrupted)

        with pytest.raises(KeyboardInterrupt):
            init()
        assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize(("insisted", "code"), [(False, PREEMPTED), (True, STOPPED_AT_ONCE)])
def test_the_command_ends_with_what_was_asked(monkeypatch, capsys, insisted, code):
    def app(args, prog_name):
        if insisted:
            with STOP.deferred():
                ask(signal.SIGINT)
        try:
            ask(signal.SIGINT)
        except KeyboardInterrupt:
            raise SystemExit(130) from None  # as typer does

    monkeypatch.setattr(cli, "app", app)
    assert cli.run([]) == code
    assert "stopped" in capsys.readouterr().err

"""A program that stays is asked by strangers: whatever one request does to its fork, the next has a reply of its own.

The program here runs its request as Python, which is more than a query that has taken SQLite over could do.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from rlpost.verify.sandbox import Limits, Program, Sandbox, SandboxError
from tests.faults.descriptors import more_than, settled
from tests.faults.verifiers.test_sandbox_attacks import WAIT, below, box, plain, planted, serves, state_of

__all__ = ["box", "plain", "planted"]  # fixtures

PROGRAM = """
import os, resource, signal, socket, sys, time
loaded = time.monotonic_ns()
asked = []

def main():
    asked.append(1)
    exec(sys.stdin.read(), globals())
"""
HONEST = b"print(loaded, len(asked), sorted({'b', 'a'}), sum(range(4)))"
BRIEF = Limits(seconds=1, memory_mb=512, output_kb=64)

# What a request does, and how its fork ends.
HOSTILE = {
    "names": ("import builtins\nbuiltins.len = builtins.print = None\nasked += [2, 3]\nsys.stdout = None", {"ok", "nonzero"}),
    "the environment": ("os.environ.clear()\nsys.path.clear()\nos.chdir('/')\nos.umask(0o777)", {"ok"}),
    "an exception": ("raise SystemExit(7)", {"nonzero"}),
    "an end without a reply": ("os._exit(3)", {"nonzero"}),
    "a crash": ("import ctypes\nctypes.string_at(0)", {"killed"}),
    "no end": ("while True: pass", {"timeout"}),
    "sleep": ("time.sleep(1000)", {"timeout"}),
    "no end, with every descriptor closed": ("os.closerange(0, 64)\nwhile True: pass", {"timeout"}),
    "a reply without end": ("while True: os.write(1, b'x' * 4096)", {"output"}),
    "a reply that never comes to its end": ("while True:\n    os.write(1, b'x')\n    time.sleep(0.01)", {"timeout"}),
    "memory": ("x = bytearray(2**29)", {"memory", "nonzero"}),
    "messages to whoever listens": ("for fd in range(3, 64):\n    try: os.write(fd, b'\\0' * 12)\n    except OSError: pass", {"ok"}),
    "descriptors that do not wait": ("[os.set_blocking(fd, False) for fd in range(3)]", {"ok"}),
    "a socket shut": ("socket.socket(fileno=0).shutdown(socket.SHUT_RDWR)", {"ok", "nonzero"}),
    "limits of its own": ("[resource.setrlimit(kind, (0, 0)) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)]", {"ok", "nonzero"}),
    "errors that fill a pipe": ("os.set_blocking(2, False)\nwhile True: os.write(2, b'x' * 4096)", {"nonzero"}),
}  # fmt: skip

# What would outlive the fork or reach another process, each refused.
REFUSED = {
    "a fork": "os.fork()",
    "a program": "os.execv('/bin/sh', ['sh', '-c', 'exit 0'])",
    "a file": "open('left', 'w')",
    "a file in the folder for such": "open('/tmp/left', 'w')",
    "a folder": "os.mkdir('left')",
    "a link": "os.symlink('/etc', 'left')",
    "a stop of the program": "os.kill(os.getppid(), signal.SIGSTOP)",
    "an end of the program": "os.kill(os.getppid(), signal.SIGKILL)",
    "an end of its group": "os.killpg(0, signal.SIGKILL)",
    "limits of the program": "resource.prlimit(os.getppid(), resource.RLIMIT_AS, (1, 1))",
    "limits of the first process": "resource.prlimit(1, resource.RLIMIT_AS, (1, 1))",
    "another priority of the program": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "a socket": "socket.socket()",
}


@pytest.fixture(params=["box", "plain"])
def place(request):
    """A sandbox whose program has been asked already; afterwards nothing more is open or alive, and it still serves."""
    place = request.getfixturevalue(request.param)
    honest(place)
    before, mine = settled(), alive(place)
    yield place
    honest(place)
    assert not more_than(before)
    assert alive(place) <= mine


def until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(place=None):
    """How many processes, once the program is alone with a fork that waits."""
    if place is not None:
        until(lambda: len(place._second.programs()) == 2)
    return sum(state_of(pid) not in (None, "Z") for pid in below(os.getpid()))


def honest(place):
    """When the program was loaded, as an honest request is told."""
    outcome = place.ask(PROGRAM, HONEST, limits=Limits(seconds=60))
    loaded, _, rest = outcome.stdout.decode().partition(" ")
    assert (outcome.status, rest, outcome.stderr) == ("ok", "1 ['a', 'b'] 6\n", b"")
    return int(loaded)


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_one_request_does_the_next_has_its_own_reply(name, place):
    source, ends = HOSTILE[name]
    outcome = place.ask(PROGRAM, source.encode(), limits=BRIEF)
    assert outcome.status in ends, outcome
    assert len(outcome.stdout) <= 64 * 1024
    honest(place)


def test_in_any_order_too(box):
    draw = random.Random(0)
    for _ in range(12):
        source, ends = HOSTILE[draw.choice(sorted(set(HOSTILE) - {"no end", "sleep"}))]
        assert box.ask(PROGRAM, source.encode(), limits=BRIEF).status in ends
        honest(box)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_reach_beyond_the_fork_is_refused(name, place):
    loaded = honest(place)
    source = f"try: {REFUSED[name]}\nexcept OSError as error: print('refused')\nelse: print('done')"
    assert place.ask(PROGRAM, source.encode()).stdout == b"refused\n"
    assert honest(place) == loaded


def test_a_fork_holds_its_own_socket_and_no_more(place):
    source = "for fd in range(1024):\n    try: os.fstat(fd)\n    except OSError: continue\n    print(fd)"
    assert place.ask(PROGRAM, source.encode()).stdout.split() == [b"0", b"1", b"2"]


def test_nothing_of_one_request_is_in_the_memory_of_the_next(place):
    place.ask(PROGRAM, b"secret = 'planted' + 'here'\nkept = [secret] * 100\nprint(secret)")
    source = "import gc\nprint(any('planted' + 'here' == o for o in gc.get_objects()), 'secret' in globals())"
    assert place.ask(PROGRAM, source.encode()).stdout == b"False False\n"


def test_the_program_is_loaded_once_and_again_only_after_what_had_to_be_ended(place):
    loaded = honest(place)
    assert place.ask(PROGRAM, b"import ctypes\nctypes.string_at(0)").status == "killed"
    assert place.ask(PROGRAM, b"1 / 0").stderr.endswith(b"ZeroDivisionError: division by zero\n")
    assert honest(place) == loaded
    assert place.ask(PROGRAM, b"while True: pass", limits=BRIEF).status == "timeout"
    assert honest(place) > loaded


def test_each_request_has_the_memory_it_is_given(place):
    loaded = honest(place)
    taken = b"x = bytearray(300 * 2**20)\nprint(len(x))"
    assert place.ask(PROGRAM, taken, limits=Limits(memory_mb=200)).status in ("memory", "nonzero")
    assert place.ask(PROGRAM, taken, limits=Limits(memory_mb=900)).status == "ok"
    assert honest(place) == loaded
    more = b"x = bytearray(1500 * 2**20)\nprint(len(x))"
    assert place.ask(PROGRAM, more).status in ("memory", "nonzero")
    assert place.ask(PROGRAM, more, limits=Limits(memory_mb=2000)).status == "ok"


def test_large_requests_and_replies_arrive_whole_and_need_not_be_read(place):
    program = "import sys\ndef main(): sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])"
    text = bytes(range(256)) * 40_000
    assert place.ask(program, text, limits=Limits(seconds=60, output_kb=20_000)).stdout == text[::-1]
    assert place.ask("def main(): print('done')", text).stdout == b"done\n"


def test_a_program_that_does_not_load_is_the_sandboxs_error_and_says_why(box):
    with pytest.raises(SandboxError, match="no_such_module"):
        box.ask("import no_such_module\ndef main(): pass", b"")
    honest(box)


@pytest.mark.parametrize("which", [0, 1])
def test_a_program_or_a_fork_that_is_lost_while_it_waits_is_replaced(which, place):
    loaded = honest(place)
    until(lambda: len(place._second.programs()) == 2)
    lost = place._second.programs()[which]
    os.kill(lost, signal.SIGKILL)
    until(lambda: state_of(lost) in (None, "Z"))
    assert honest(place) > loaded


def test_it_makes_way_for_two_programs_and_comes_back(box):
    honest(box)
    first, second = box.converse(Program("import os\nos.write(0, b'hi\\n')"), Program("print(input())"))
    assert (first.status, second.stdout) == ("ok", b"hi\n")
    honest(box)
    serves(box)


def test_closing_ends_it_all():
    before, mine = settled(), alive()
    own = Sandbox()
    own.ask(PROGRAM, HONEST)
    assert alive(own) > mine
    own.close()
    assert not more_than(before)
    until(lambda: alive() <= mine)

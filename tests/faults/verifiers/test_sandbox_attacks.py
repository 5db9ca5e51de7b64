"""Nothing a program does gets out of the sandbox, stays behind, or keeps the next program from its outcome.

Run as root, every test is run a second time as an ordinary user, by the last one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rlpost.verify import scratch
from rlpost.verify.sandbox import (
    Limits,
    RemoteSandbox,
    Sandbox,
    SandboxError,
    cgroup,
    host,
    kernel,
    probe,
    refuse_unsafe,
    sandbox,
)
from rlpost.verify.sandbox.attacks import ATTACKS, ESCAPED, Bait
from rlpost.verify.sandbox.host import ZygoteLostError
from rlpost.verify.sandbox.seccomp import _ATTRIBUTES, _DENIED, _OUTSIDE
from rlpost.verify.sandbox.tiers import tier_of
from tests.faults.descriptors import more_than, settled

WAIT = 120.0
ORDINARY = 4321
AS_ORDINARY_USER = "RLPOST_TEST_AS_ORDINARY_USER"
SECRET = "planted-" + secrets.token_hex(8)
BRIEF = Limits(seconds=1)
FORKING = Limits(seconds=60, memory_mb=512, processes=True)

# An honest program, its input, and what it must print: before and after every hostile one.
PROBES = (
    ("print(sum(map(int, input().split())))", b"1 2 3", b"6\n"),
    ("import math\nprint(math.comb(10, 3), sorted({'b', 'a'}))", b"", b"120 ['a', 'b']\n"),
    ("open('x', 'w').write('é')\nprint(open('x').read())", b"", "é\n".encode()),
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder, a home and an environment with things no program may see or change."""
    folder = tmp_path_factory.mktemp("outside")
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    for name in ("tests.json", ".netrc", ".ssh/id_rsa", "hidden/expected.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(SECRET)
        (folder / name).chmod(0o666)
    (folder / "open").mkdir(mode=0o777)
    (folder / "open").chmod(0o777)
    names = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, SECRET))
    yield folder
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def box(planted):
    box = Sandbox()
    assert box.tier in "AB", box.probe
    yield box
    box.close()


@pytest.fixture(scope="module")
def plain(planted):
    """Tier B: the machine's processes and files are there, and only forbidden."""
    if os.geteuid() == 0 and not reachable_by_others(sys.base_prefix):
        pytest.skip("nobody cannot read this interpreter; the ordinary user of the last test can, and runs these")
    box = Sandbox(without=("namespaces", "bwrap"))
    assert box.tier == "B", box.probe
    yield box
    box.close()


def reachable_by_others(path):
    return all(folder.stat().st_mode & 0o001 for folder in (Path(path), *Path(path).parents))


def tree(folder):
    return {
        str(path): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.is_file() and hashlib.sha256(path.read_bytes()),
        )
        if path.is_dir()
        else (path.lstat().st_mode, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
    }


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def children(pid):
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []


def below(pid):
    return [pid for child in children(pid) for pid in (child, *below(child))]


def serves(box):
    for source, stdin, expected in PROBES:
        outcome = box.run(source, stdin=stdin, limits=Limits(seconds=60))
        assert (outcome.status, outcome.stdout) == ("ok", expected), outcome


@pytest.fixture
def held(box, planted):
    """The sandbox, and after the test: nothing left, nothing changed, still serving."""
    serves(box)
    folder, python = tree(planted), os.listdir(os.path.dirname(os.__file__))
    open_before, mine = settled(), set(below(os.getpid()))
    yield box
    serves(box)
    assert tree(planted) == folder
    assert os.listdir(os.path.dirname(os.__file__)) == python
    assert not more_than(open_before)
    left = [pid for pid in set(below(os.getpid())) - mine if state_of(pid) is not None]
    assert not left


# -- the attack list: each stopped by all layers, and each able to succeed where there are none


@pytest.mark.parametrize("name", ATTACKS)
def test_the_sandbox_stops(name, held):
    attack = ATTACKS[name]
    with Bait() as bait:
        outcome = held.run(bait.fill(attack.source), limits=attack.limits)
        assert ESCAPED not in outcome.stdout
        assert not bait.touched()
        assert attack.stopped is None or outcome.status in attack.stopped


TOOTHLESS_HERE = {
    "read_past_landlock",  # its file is only in the sandbox
    "read_shadow",  # no ordinary user reads it
    "kernel_surface",  # the kernel may have them all switched off
    *("endless", "output", "daemon"),  # told by how they end
}


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - TOOTHLESS_HERE))
def test_without_a_sandbox_the_same_program_succeeds(name, tmp_path):
    with Bait() as bait:
        source = bait.fill(ATTACKS[name].source)
        environment = {**os.environ, "PYTHONPATH": "", "HF_TOKEN": SECRET}
        process = subprocess.Popen(
            [sys.executable, "-c", source],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            found = b""
            while ESCAPED not in found and (line := process.stdout.readline()):
                found += line
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            _, errors = process.communicate(timeout=WAIT)
        assert ESCAPED in found, errors.decode()


# -- table A: time

SLOW = {
    "spins": "while True: pass",
    "sleeps": "import time\ntime.sleep(10**6)",
    "deadlock": "import threading\nl = threading.Lock()\nl.acquire()\nl.acquire()",
    "selects": "import select\nselect.select([], [], [])",
    "swallows": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "deaf": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
    "regex": "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
    "threads": "import threading\n[threading.Thread(target=lambda: exec('while 1: pass')).start() for _ in range(40)]",
    "cpu_clock": "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass",
    "at_exit": "import atexit, time\natexit.register(time.sleep, 10**6)",
    "finalizer": "class A:\n    def __del__(self):\n        while True: pass\na = A()",
    "power": "print(9**9**9 % 7)",
    "compile": "s = 'x' * 10**5\nwhile True: compile('+'.join(['1'] * 100), '', 'eval')",
    "stops": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
    "closes_its_output": "import os, time\nos.closerange(0, 64)\ntime.sleep(10**6)",
}


@pytest.mark.parametrize("name", SLOW)
def test_a_program_without_end_is_ended(name, held):
    started = time.monotonic()
    outcome = held.run(SLOW[name], limits=BRIEF)
    assert (outcome.status, outcome.exit_code) == ("timeout", None)
    assert time.monotonic() - started < WAIT


def test_waiting_for_input_ends_with_the_input(held):
    assert held.run("import sys\nprint(len(sys.stdin.read()))").stdout == b"0\n"


# -- table A: processes, memory, disk, output

BOMBS = {
    "fork": "import os\nwhile True: os.fork()",
    "fork_caught": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "pool": "import multiprocessing\nmultiprocessing.set_start_method('fork')\nmultiprocessing.Pool(500).map(abs, range(9))",
    "subprocess": "import subprocess\nwhile True: subprocess.Popen(['sleep', '1000'])",
    "daemons": "import os\nfor _ in range(50):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork(): os._exit(0)\n"
    "        while True: pass",
    "shell": "import os\nos.execv('/bin/sh', ['sh', '-c', 'f(){ f|f& };f'])",
}


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("name", BOMBS)
def test_a_process_bomb_is_bounded_and_leaves_nothing(name, processes, held):
    most, done = [0], threading.Event()

    def count():
        while not done.wait(0.02):
            most[0] = max(most[0], len(below(held._host.pid)))

    watcher = threading.Thread(target=count)
    watcher.start()
    try:
        outcome = held.run(BOMBS[name], limits=Limits(seconds=2, memory_mb=512, processes=processes))
    finally:
        done.set()
        watcher.join()
    assert outcome.status != "ok" or name in ("daemons", "shell")
    assert most[0] <= 64 + 2 if processes else most[0] <= 4
    assert subprocess.run(["true"], timeout=WAIT, check=True).returncode == 0


def test_a_thread_bomb_hits_a_limit(held):
    source = "import threading, time\nfor n in range(500):\n    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    outcome = held.run(source)
    assert outcome.status in ("memory", "nonzero")


MEMORY = {
    "block": "x = bytearray(10**10)",
    "list": "x = [1]\nwhile True: x += x",
    "text": "x = 'a'\nwhile True: x += x",
    "touched": "x = []\nwhile True: x.append(bytearray(b'x' * 10**6))",
    "integer": "x = 1 << 10**11",
    "shared": "import mmap\nm = [mmap.mmap(-1, 64 << 20) for _ in range(40)]",
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_bounded(name, held):
    outcome = held.run(MEMORY[name], limits=Limits(seconds=30, memory_mb=256))
    assert outcome.status == "memory", outcome


TOGETHER = {
    "private": "for _ in range(8):\n    if os.fork() == 0:\n        x = b'x' * SIZE\n        time.sleep(100)\nos.wait()",
    "shared": "for _ in range(8):\n    if os.fork() == 0:\n        m = mmap.mmap(-1, SIZE)\n"
    "        for _ in range(SIZE >> 20): m.write(b'x' * (1 << 20))\n"
    "        time.sleep(100)\nos.wait()",
    "from_a_thread": "def fork():\n    if os.fork() == 0:\n        x = b'x' * SIZE\n        time.sleep(100)\n    os.wait()\n"
    "for _ in range(8): threading.Thread(target=fork).start()",
}


@pytest.mark.parametrize("name", TOGETHER)
def test_processes_together_have_one_memory_limit(name, held):
    source = f"import mmap, os, threading, time\nSIZE = 120 << 20\n{TOGETHER[name]}"
    assert held.run(source, limits=Limits(seconds=60, memory_mb=384, processes=True)).status == "memory"


def test_waiting_for_a_processor_is_seen_in_any_thread():
    """Two processes on one processor, the main thread of both without work."""
    code = (
        "import os, threading\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nos.fork()\n"
        "threading.Thread(target=lambda: exec('while True: pass')).start()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        deadline = time.monotonic() + WAIT
        while host.schedule([process.pid])[1] < 0.5 and time.monotonic() < deadline:
            time.sleep(0.05)
        idle = int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9
        assert host.schedule([process.pid])[1] > idle + 0.1
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(WAIT)


@pytest.mark.parametrize("where", ["/box", "/tmp", "/dev/shm"])
def test_scratch_is_bounded_and_its_end_is_the_programs_error(where, held):
    source = f"import itertools\nfor n in itertools.count():\n    open('{where}/%d' % n, 'wb').write(bytes(10**6))"
    outcome = held.run(source, limits=Limits(seconds=60))
    assert outcome.status == "nonzero"


DISK = {
    "inodes": "for n in range(10**6): open(str(n), 'w').close()",
    "sparse": "f = open('x', 'wb')\nf.truncate(10**12)",
    "one": "f = open('x', 'wb')\nwhile True: f.write(bytes(10**6))",
    "memfd": "import os\nos.memfd_create('x')",
}


@pytest.mark.parametrize("name", DISK)
def test_disk_is_bounded(name, held):
    assert held.run(DISK[name], limits=Limits(seconds=60)).status == "nonzero"


HIDDEN_DISK = {
    "deep": "import os\nfor _ in range(5000):\n    os.mkdir('d')\n    os.chdir('d')",
    "closed": "import os\nos.mkdir('d', 0o300)\nopen('d/x', 'wb').write(bytes(1 << 20))",
    "short_lived": "import itertools, os\nfor n in itertools.count():\n    open('%d' % n, 'wb').write(bytes(10**6))\n"
    "    open('x', 'w').close()\n    os.unlink('x')",
}


@pytest.mark.parametrize("name", HIDDEN_DISK)
def test_a_folder_that_stands_for_a_file_system_is_looked_into_and_removed(name, plain):
    serves(plain)
    source = f"{HIDDEN_DISK[name]}\nimport time\ntime.sleep(10**6)"
    readable = name == "closed" and os.geteuid() == 0  # for root all are
    outcome = plain.run(source, limits=Limits(seconds=2 if readable else 60))
    assert outcome.status == ("timeout" if readable else "nonzero")
    assert [entry for entry in os.listdir(plain._host._scratch) if entry != "packages"] == []
    serves(plain)


def test_removing_a_folder_touches_nothing_above_it_and_bears_what_is_in_it(tmp_path):
    tmp_path.chmod(0o755)
    scratch.remove(str(tmp_path / "absent"))
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    code = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')"
    for name in ("deep", "closed"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").touch()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "deep", check=True)
    (tmp_path / "kept").mkdir(mode=0o500)
    (tmp_path / "closed" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "closed" / "inner").chmod(0)
    (tmp_path / "closed").chmod(0)
    for name in ("deep", "closed"):
        scratch.remove(str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o500


OUTPUT = {
    "flood": "import os\nwhile True: os.write(1, bytes(65536))",
    "errors": "import os\nwhile True: os.write(2, bytes(65536))",
    "line": "import sys\nwhile True: sys.stdout.write('x' * 65536)",
    "caught": "import os\nwhile True:\n    try: os.write(1, b'PASSED\\r' * 9999)\n    except BaseException: pass",
    "once": "print('x' * 200000)",
}


@pytest.mark.parametrize("name", OUTPUT)
def test_output_is_capped_and_ends_the_program(name, held):
    outcome = held.run(OUTPUT[name], limits=Limits(seconds=60, output_kb=64))
    assert outcome.status == "output"
    assert len(outcome.stdout) + len(outcome.stderr) == 64 * 1024


# -- table A: what stays behind

BEHIND = {
    "grandchild_holds_output": "import subprocess\nsubprocess.Popen(['sleep', '1000'])\nprint('done')",
    "double_fork": ATTACKS["daemon"].source + "\nprint('done')",
    "shell": "import os\nos.system('(sleep 1000 &) ; echo done')",
}


@pytest.mark.parametrize("name", BEHIND)
def test_what_a_program_started_ends_with_it(name, held):
    started = time.monotonic()
    outcome = held.run(BEHIND[name], limits=Limits(seconds=600, processes=True))
    assert (outcome.status, outcome.stdout) == ("ok", b"done\n"), outcome
    assert time.monotonic() - started < WAIT


def test_a_program_cannot_leave_the_group_its_worker_is_killed_by(plain):
    source = """
import os
def tries(action):
    try:
        action()
        print('ESCAPED', action)
    except PermissionError:
        pass
tries(lambda: os.setpgid(0, 0))
if os.fork() == 0:
    tries(os.setsid)
    tries(lambda: os.setpgid(0, 0))
    os._exit(0)
os.wait()
print(os.getpgid(0))
"""
    assert plain.run(source, limits=FORKING).stdout == b"%d\n" % os.getpgid(plain._host.pid)


def test_nothing_written_is_there_for_the_next_program(held):
    source = """
import os, sys
for folder in {*sys.path, os.path.expanduser('~'), '.', '/tmp', '/dev/shm', '/etc', os.path.dirname(os.__file__)}:
    for name in ('sitecustomize.py', 'usercustomize.py', 'x.pth', 'math.py', '.pythonrc', 'random.py'):
        try:
            open(os.path.join(folder, name), 'w').write('print("POISON")')
        except OSError:
            pass
os.environ['LD_PRELOAD'] = '/box/evil.so'
import builtins, json
builtins.print = builtins.len = builtins.sorted = lambda *a, **k: None
json.dumps = None
"""
    assert held.run(source).status == "ok"
    listing = "import os\nprint(sorted(os.listdir('.')), os.environ.get('LD_PRELOAD'), sorted([2, 1]))"
    assert held.run(listing).stdout == b"['program.py'] None [1, 2]\n"


def test_one_hundred_programs_leave_no_descriptor_no_process_and_no_shared_memory(held):
    shared = sorted(os.listdir("/dev/shm"))
    for n in range(100):
        held.run(("print(1)", "1/0", "import os\nos.kill(os.getpid(), 11)")[n % 3])
    assert not below(held._host.pid)[1:] or held.tier == "B"
    assert [name for name in os.listdir("/dev/shm") if name not in shared and "rlpost" in name] == []


# -- table A: looking out

DUMP = """
import ctypes, gc, glob, inspect, os, sys
found = [str(os.environ), str(sys.argv), str(inspect.stack()), str(globals())]
for fd in range(3, 1024):
    try:
        found.append(str(os.read(fd, 10**6)))
    except OSError:
        pass
for pattern in ('/proc/*/*', '/tmp/**', '/home/**', '/root/**', '/run/**', '/etc/*', '/box/**', '/*', {folder!r} + '/**'):
    for path in glob.glob(pattern, recursive=True, include_hidden=True)[:5000]:
        try:
            found.append(open(path, errors='replace').read(10**6))
        except (OSError, ValueError):
            pass
frame = sys._getframe()
while frame:
    found.append(str(frame.f_locals))
    frame = frame.f_back
for thing in gc.get_objects():
    try:
        found.append(str(thing)[:10**5])
    except Exception:
        pass
out = os.open('dump', os.O_RDWR | os.O_CREAT)
libc = ctypes.CDLL(None, use_errno=True)
libc.sbrk.restype = ctypes.c_void_p
around = [libc.sbrk(0), id(found), id(found[0])]
needle = {needle!r}.encode()
for place in around:
    for page in range((place >> 12) - 6000, (place >> 12) + 6000):
        if libc.write(out, ctypes.c_void_p(page << 12), 4096) == 4096:
            page = os.pread(out, 4096, 0)
            found.append(page.decode('latin-1'))
        os.lseek(out, 0, 0)
print('SEEN' if any(needle.decode()[::-1] in text for text in found) else 'nothing')
"""


def dump(folder, needle):
    """A program that looks everywhere for a text it knows only backwards, so as not to find itself."""
    return DUMP.format(folder=str(folder), needle=needle[::-1])


def test_a_program_sees_no_secret_and_nothing_of_an_earlier_program(held, planted):
    expected = "expected-" + secrets.token_hex(8)
    held.run(
        f"tests = {expected!r}\nprint(tests)", stdin=expected.encode(), files={"t": expected.encode()}, argv=[expected]
    )
    for needle in (SECRET, expected):
        outcome = held.run(dump(planted, needle), limits=Limits(seconds=300))
        assert (outcome.status, outcome.stdout) == ("ok", b"nothing\n"), outcome


def test_the_same_program_finds_what_is_there_to_find(held, planted):
    own = "own-" + secrets.token_hex(8)
    outcome = held.run(dump(planted, own), files={"t": own.encode()}, limits=Limits(seconds=300))
    assert outcome.stdout == b"SEEN\n", outcome


@pytest.mark.parametrize(
    "address", ["127.0.0.1:6379", "127.0.0.1:8265", "[::1]:8000", "169.254.169.254:80", "1.1.1.1:53"]
)
def test_no_address_is_reached(address, held):
    host, _, port = address.rpartition(":")
    source = f"import socket\nsocket.create_connection(({host.strip('[]')!r}, {port}), 5)"
    assert held.run(source, limits=Limits(seconds=60)).status == "nonzero"


def test_no_name_is_resolved_and_no_raw_socket_opened(held):
    assert held.run("import socket\nsocket.getaddrinfo('example.com', 80)").status == "nonzero"
    assert held.run("import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 1)").status == "nonzero"
    assert held.run("import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)").status == "nonzero"


@pytest.mark.parametrize("module", ["rlpost", "rlpost.verify.sandbox.zygote", "ray", "vllm", "torch", "pytest"])
def test_the_trainers_modules_are_not_there(module, held):
    outcome = held.run(f"try:\n    import {module}\nexcept ImportError:\n    print('absent')")
    assert outcome.stdout == b"absent\n"


def test_no_setting_of_the_kernel_is_reached(held):
    names = ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/hostname")
    before = [Path(name).read_text() for name in names]
    source = f"""
for name in {(*names, "/proc/self/oom_score_adj", "/proc/sysrq-trigger", "/proc/1/root/etc/passwd", "/proc/self/mem")!r}:
    for mode in 'r', 'w', 'a':
        try:
            open(name, mode)
            print('ESCAPED', name)
        except OSError:
            pass
"""
    assert held.run(source).stdout == b""
    assert [Path(name).read_text() for name in names] == before


def test_every_call_of_the_table_is_refused(held):
    column = ["x86_64", "aarch64"].index(os.uname().machine)
    numbers = sorted(call[column] for call in _DENIED.values() if call[column] is not None)
    source = f"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for number in {numbers}:
    if libc.syscall(number, -1, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != errno.EPERM:
        print(number, ctypes.get_errno())
if libc.syscall(435, 0, 0) != -1 or ctypes.get_errno() != errno.ENOSYS:
    print('clone3')
print(libc.syscall(500, 0) == -1 and ctypes.get_errno() == errno.ENOSYS)
"""
    assert held.run(source).stdout == b"True\n"


@pytest.mark.parametrize("processes", [False, True])
def test_calls_that_reach_what_no_namespace_hides_are_refused(processes, plain):
    column = ["x86_64", "aarch64"].index(os.uname().machine)
    refused = sorted(call[column] for call in _OUTSIDE.values() if call[column] is not None)
    ignored = sorted(call[column] for call in _ATTRIBUTES.values() if call[column] is not None)
    source = f"""
import ctypes, errno, os, resource
libc = ctypes.CDLL(None, use_errno=True)
for number in {refused}:
    if libc.syscall(number, -1, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != errno.EPERM:
        print(number, ctypes.get_errno())
for number in {ignored if os.geteuid() else []}:
    if libc.syscall(number, -1, 0, 0, 0, 0, 0) != 0:
        print(number, ctypes.get_errno())
for pid in 0, os.getpid():
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (9, 9))
try:
    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)
    print('limits')
except PermissionError:
    print('fine')
"""
    assert plain.run(source, limits=Limits(seconds=60, processes=processes)).stdout == b"fine\n"


def test_copying_a_file_with_its_mode_and_times_is_no_error(held, plain):
    source = "import os, shutil\nshutil.copy2('program.py', 'x')\nprint(os.path.getsize('x') > 9)"
    for box in held, plain:
        honest(box, source, b"True\n")


def test_privileges_cannot_be_had_back(held):
    source = """
import os, resource
def tries(action):
    try:
        action()
        print('ESCAPED', action)
    except (OSError, ValueError):
        pass
tries(lambda: os.setuid(0))
tries(lambda: os.setgid(0))
tries(lambda: os.nice(-20))
tries(lambda: os.sched_setaffinity(0, range(64)))
tries(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
tries(lambda: os.chroot('.'))
tries(lambda: os.mknod('null', 0o20666, os.makedev(1, 3)))
for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_CPU):
    soft, hard = resource.getrlimit(kind)
    if soft != hard:
        print('soft', kind)
    tries(lambda: resource.setrlimit(kind, (hard + 1, hard + 1)))
print(os.getuid(), os.getgid())
"""
    uid = 65534 if held.tier == "A" else os.getuid()
    assert held.run(source).stdout.decode().split() == [str(uid), str(uid)]


@pytest.mark.parametrize("without", [(), ("namespaces", "bwrap")])
def test_the_applications_folders_are_not_the_systems_though_they_lie_in_it(without, monkeypatch, request):
    if without:
        request.getfixturevalue("plain")  # or a skip, where it does not start
    with tempfile.TemporaryDirectory(dir="/var/tmp") as top:
        os.chmod(top, 0o755)
        for name in ("lib", "src/app", "app/data", "lib/app"):
            folder = Path(top, name)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "text").write_text(SECRET)
        Path(top, "lib/link").symlink_to(f"{top}/src")
        monkeypatch.setattr(host, "SYSTEM", (*host.SYSTEM, top))
        monkeypatch.setattr(host, "PRIVATE", (f"{top}/src", f"{top}/absent"))
        monkeypatch.chdir(f"{top}/lib/app")
        box = Sandbox(without=without)
        source = f"""
import glob
for path in {[f"{top}/{name}/text" for name in ("lib", "src/app", "app/data", "lib/app", "lib/link/app")]}:
    try:
        print({SECRET!r} in open(path).read())
    except OSError:
        print(False)
"""
        try:
            assert box.run(source).stdout.split() == [b"True", b"False", b"True", b"False", b"False"]
        finally:
            box.close()


def test_a_working_directory_with_what_programs_need_is_not_hidden(monkeypatch):
    library = os.path.dirname(os.__file__)
    for folder in ("/", "/usr", "/usr/bin", library, os.path.dirname(library)):
        monkeypatch.chdir(folder)
        assert os.getcwd() not in host._private([library])


# -- table A: going for the machinery

KILLERS = {
    "parent": "import os\nos.kill(os.getppid(), 9)",
    "everyone": "import os\nos.kill(-1, 9)",
    "group": "import os\nos.killpg(0, 9)",
    "stop_parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "flood": "import os\nfor pid in range(-5, 40000):\n    try: os.kill(pid, 15)\n    except OSError: pass",
    "by_descriptor": "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
}


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("name", KILLERS)
def test_signals_reach_nobody_outside(name, processes, held):
    zygote = held._host.pid
    held.run(KILLERS[name], limits=Limits(seconds=20, processes=processes))
    assert held._host.pid == zygote
    assert state_of(zygote) not in (None, "Z", "T")


def test_a_forged_message_is_only_output(held):
    forged = json.dumps({"ended": 1, "status": 0, "cpu": 0.0})
    source = f"""
import os, socket
for fd in range(64):
    for text in (b'R', b'E', {forged!r}.encode()):
        try:
            os.write(fd, text)
        except OSError:
            pass
os._exit(3)
"""
    outcome = held.run(source)
    assert (outcome.status, outcome.exit_code) == ("nonzero", 3)


EXITS = {
    "sys.exit(0)": ("import sys\nsys.exit(0)", "ok", 0),
    "os._exit(0)": ("import os\nos._exit(0)", "ok", 0),
    "sys.exit(3)": ("import sys\nsys.exit(3)", "nonzero", 3),
    "text": ("raise SystemExit('no')", "nonzero", 1),
    "atexit": ("import atexit, os\natexit.register(os._exit, 7)", "nonzero", 7),
    "exception": ("1/0", "nonzero", 1),
    "interrupt": ("raise KeyboardInterrupt", "nonzero", 1),
    "thread": ("import threading\nthreading.Thread(target=lambda: 1/0).start()", "ok", 0),
    "segfault": ("import faulthandler\nfaulthandler._sigsegv()", "killed", -11),
    "null": ("import ctypes\nctypes.string_at(0)", "killed", -11),
    "recursion": ("def f(): f()\nf()", "nonzero", 1),
    "terminated": ("import os\nos.kill(os.getpid(), 15)", "killed", -15),
    "killed": ("import os\nos.kill(os.getpid(), 9)", "killed", -9),
    "aborted": ("import os\nos.abort()", "killed", -6),
    "syntax": ("def f(:", "nonzero", 1),
}


@pytest.mark.parametrize("name", EXITS)
def test_the_outcome_is_how_it_ended(name, held):
    source, status, code = EXITS[name]
    outcome = held.run(source)
    assert (outcome.status, outcome.exit_code) == (status, code), outcome
    assert not list(Path.cwd().glob("core*"))


SOURCES = {
    "nul": "print(1)\0",
    "bom": "\ufeffprint(1)",
    "parentheses": "(" * 10**5 + ")" * 10**5,
    "cookie": "# coding: utf-7\nprint('+AGE-')",
    "surrogate": "print('\ud800')",
    "empty": "",
    "comments": "# nothing",
    "braces": "from __future__ import braces",
    "indent": "\n".join(" " * n + "if 1:" for n in range(300)),
    "operators": "-" * 10**6 + "1",
    "fences": "```python\nprint(1)\n```",
    "big": "x = 1\n" + "#" * 20 * 10**6,
}


@pytest.mark.parametrize("name", SOURCES)
def test_hostile_source_is_the_programs_own_matter(name, held):
    outcome = held.run(SOURCES[name], limits=Limits(seconds=60))
    assert outcome.status in ("ok", "nonzero", "memory", "killed"), outcome


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "."])
def test_a_file_name_that_leads_out_is_refused(name, held):
    with pytest.raises(ValueError, match="relative"):
        held.run("print(1)", files={name: b"x"})


# -- honest twins


def honest(held, source, expected, **settings):
    outcome = held.run(source, **{"limits": Limits(seconds=120), **settings})
    assert (outcome.status, outcome.stdout) == ("ok", expected), outcome


TWINS = {
    "half_the_memory": ("x = bytearray(b'x' * (500 << 20))\nprint(len(x))", b"524288000\n"),
    "threads": (
        "import threading\nt = [threading.Thread(target=print, args=('x',)) for _ in range(30)]\n"
        "[i.start() for i in t]\n[i.join() for i in t]",
        b"x\n" * 30,
    ),
    "pool_of_threads": (
        "from concurrent.futures import ThreadPoolExecutor as P\nwith P(8) as p: print(sum(p.map(int, '123')))",
        b"6\n",
    ),
    "asyncio": ("import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    print('x')\nasyncio.run(f())", b"x\n"),
    "files": (
        "open('/box/a', 'w').write('x')\nimport os\nprint(sorted(os.listdir('/box')))",
        b"['a', 'program.py']\n",
    ),
    "tempfile": (
        "import tempfile\nwith tempfile.TemporaryFile() as f:\n    f.write(b'x' * 10**7)\n    print(f.tell())",
        b"10000000\n",
    ),
    "tmp": ("open('/tmp/a', 'w').write('x')\nprint(open('/tmp/a').read())", b"x\n"),
    "unicode": ("print('héé ☃ 漢', input())", "héé ☃ 漢 ☃\n".encode()),
    "recursion": (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**27)\n"
        "def f(n): return n and 1 + f(n - 1)\nt = threading.Thread(target=lambda: print(f(10**5)))\nt.start()\nt.join()",
        b"100000\n",
    ),
    "arguments": ("import sys\nprint(sys.argv, __name__)", b"['program.py'] __main__\n"),
    "warning": ("import warnings\nwarnings.warn('x')\nprint(1)", b"1\n"),
    "signals": (
        "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('x'))\nos.kill(os.getpid(), signal.SIGUSR1)",
        b"x\n",
    ),
    "alarm": (
        "import signal\nsignal.signal(signal.SIGALRM, lambda *_: print('x'))\nsignal.alarm(1)\nsignal.pause()",
        b"x\n",
    ),
    "unclosed": ("import os\nf = os.fdopen(1, 'w')\nf.write('x\\n')", b"x\n"),
    "atexit": ("import atexit\natexit.register(print, 'x')", b"x\n"),
    "replaced_stdout": ("import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\nprint('x')", b"x\n"),
    "future": ("from __future__ import annotations\ndef f(x: y): pass\nprint('x')", b"x\n"),
    "dataclass": ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\nprint(A())", b"A(x=1)\n"),
    "pickle": ("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)", b"A\n"),
    "nine_tenths": ("x = bytearray(900 << 20)\nx[::4096] = x[1::4096]\nprint(1)", b"1\n"),
    "decimal_sqlite_zlib": ("import decimal, sqlite3, zlib, hashlib, ssl\nprint(zlib.crc32(b''))", b"0\n"),
    "random": (
        "import os, random, secrets, uuid\nprint(len(os.urandom(8)), random.random() < 1, len(uuid.uuid4().hex))",
        b"8 True 32\n",
    ),
    "time": ("import datetime, time\ntime.sleep(0.01)\nprint(datetime.datetime.now().year > 2000)", b"True\n"),
}


@pytest.mark.parametrize("name", TWINS)
def test_an_honest_program_passes(name, held):
    source, expected = TWINS[name]
    honest(
        held,
        source,
        expected,
        stdin="☃\n".encode(),
        limits=Limits(seconds=120, memory_mb=2048 if name == "recursion" else 1024),
    )


def test_numpy_is_there_if_it_is_installed_here(held):
    pytest.importorskip("numpy")
    honest(held, "import numpy as np\nprint(np.arange(6).reshape(2, 3) @ np.ones(3))", b"[ 3. 12.]\n")


def test_input_larger_than_a_pipe_and_as_much_output(held):
    data = os.urandom(3 << 20).hex().encode()
    outcome = held.run(
        "import sys\nsys.stdout.write(sys.stdin.read())", stdin=data, limits=Limits(seconds=120, output_kb=8192)
    )
    assert (outcome.status, outcome.stdout) == ("ok", data)


def test_input_nobody_reads_is_no_error(held):
    honest(held, "print(1)", b"1\n", stdin=bytes(3 << 20))


def test_arguments_and_files_arrive(held):
    source = "import sys\nprint(sys.argv[1:], open('in/a.txt').read())"
    honest(held, source, "['a b', 'é'] x\n".encode(), argv=["a b", "é"], files={"in/a.txt": b"x"})


def test_two_programs_do_not_draw_the_same_random_numbers(held):
    draw = "import random\nprint(random.random())"
    assert held.run(draw).stdout != held.run(draw).stdout


def test_from_several_threads_each_gets_its_own_outcome(held):
    results = {}

    def one(n):
        results[n] = held.run(f"print({n})", limits=Limits(seconds=120)).stdout

    threads = [threading.Thread(target=one, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert results == {n: f"{n}\n".encode() for n in range(12)}


def test_a_shell_command_has_its_outcome(held):
    outcome = held.command(["sh", "-c", "cat; echo $HOME; exit 4"], stdin=b"in ", limits=FORKING)
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("nonzero", 4, b"in /box\n")


def test_a_command_may_not_fork_unless_told_so(held):
    outcome = held.command(["sh", "-c", "(echo a; echo b) | cat"], limits=Limits(seconds=60))
    assert outcome.status == "nonzero"
    outcome = held.command(["sh", "-c", "(echo a; echo b) | cat"], limits=FORKING)
    assert (outcome.status, outcome.stdout) == ("ok", b"a\nb\n")


@pytest.mark.parametrize("which", ["held", "plain"])
def test_a_compiler_builds_and_the_binary_runs(which, request):
    held = request.getfixturevalue(which)
    code = b'#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b << "\\n"; }\n'
    built = held.command(
        ["sh", "-c", "g++ -O1 -o a.out a.cpp && cat a.out"],
        files={"a.cpp": code},
        limits=Limits(seconds=120, output_kb=8192, processes=True),
    )
    assert built.status == "ok", built.stderr.decode()
    ran = held.command(["./a.out"], files={"a.out": built.stdout}, stdin=b"40 2", limits=Limits(seconds=60))
    assert (ran.status, ran.stdout) == ("ok", b"42\n")


def test_a_command_that_is_not_installed_is_the_sandboxs_error(held):
    with pytest.raises(SandboxError, match="no-such-compiler"):
        held.command(["no-such-compiler", "x"])


# -- faults of the sandbox itself


def test_a_lost_zygote_is_replaced_within_the_call():
    box = Sandbox()
    try:
        for pid in (box._host.pid, *children(box._host.pid)):
            os.kill(pid, signal.SIGKILL)
        serves(box)
    finally:
        box.close()


def test_a_zygote_lost_in_the_middle_is_an_error_after_the_second_time():
    box = Sandbox()
    stop = threading.Event()

    def assassin():
        while not stop.wait(0.01):
            host = box._host
            if host is not None and host.programs():
                os.kill(host.pid, signal.SIGKILL)

    killer = threading.Thread(target=assassin)
    killer.start()
    try:
        with pytest.raises(SandboxError, match="twice"):
            box.run("import time\ntime.sleep(600)", limits=Limits(seconds=600))
    finally:
        stop.set()
        killer.join(WAIT)
        box.close()


def test_a_stopped_zygote_does_not_block_its_worker(monkeypatch):
    monkeypatch.setattr("rlpost.verify.sandbox.host.KILL_SECONDS", 1.0)
    box = Sandbox()
    outcome = []
    runner = threading.Thread(target=lambda: outcome.append(box.run("while True: pass", limits=Limits(seconds=2))))
    runner.start()
    deadline = time.monotonic() + WAIT
    while not box._host.programs() and time.monotonic() < deadline:
        time.sleep(0.01)
    stopped = [box._host.pid, *children(box._host.pid)]
    time.sleep(0.5)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    runner.join(WAIT)
    assert [o.status for o in outcome] == ["timeout"]
    serves(box)
    box.close()
    assert [pid for pid in stopped if state_of(pid) not in (None, "Z")] == []


def test_after_a_failed_kill_without_namespaces_nothing_is_left_and_the_next_program_runs(plain, monkeypatch):
    monkeypatch.setattr("rlpost.verify.sandbox.host.KILL_SECONDS", 1.0)
    lost = plain._host
    outcome = []
    source = "import os, time\nfor _ in range(3): os.fork()\ntime.sleep(10**6)"
    limits = Limits(seconds=2, processes=True)
    runner = threading.Thread(target=lambda: outcome.append(plain.run(source, limits=limits)))
    runner.start()
    deadline = time.monotonic() + WAIT
    while len(lost.programs()) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    left = lost.programs()
    assert len(left) == 8
    os.kill(lost.pid, signal.SIGSTOP)
    runner.join(WAIT)
    assert [o.status for o in outcome] == ["timeout"]
    assert not os.path.exists(lost._scratch)
    with pytest.raises(ZygoteLostError, match="ended"):
        lost.run(source=b"", layers=plain.layers, limits=BRIEF)
    lost.close()
    serves(plain)
    assert plain._host is not lost
    while any(state_of(pid) not in (None, "Z") for pid in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in left if state_of(pid) not in (None, "Z")] == []


def test_when_the_worker_dies_everything_dies():
    code = (
        "import os, threading, time\nfrom rlpost.verify.sandbox import Limits, Sandbox\nbox = Sandbox()\n"
        "threading.Thread(target=box.run, args=('while True: pass',), kwargs={'limits': Limits(seconds=600)}).start()\n"
        "while not box._host.programs(): time.sleep(0.01)\n"
        "print(box._host.pid, *box._host.programs(), flush=True)\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=os.getcwd())
    )
    pids = [int(word) for word in worker.stdout.readline().split()]
    assert len(pids) == 2
    worker.kill()
    worker.wait(WAIT)
    worker.stdout.close()
    deadline = time.monotonic() + WAIT
    while any(state_of(pid) not in (None, "Z") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if state_of(pid) not in (None, "Z")] == []


def test_one_sandbox_a_process_and_a_fork_cannot_use_its_parents():
    shared = sandbox()
    assert sandbox() is shared
    pid = os.fork()
    if pid == 0:
        try:
            shared.run("print(1)")
        except SandboxError:
            os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    serves(shared)


# -- tiers


def test_the_probe_says_what_is_in_force(box):
    found = probe()
    assert found.tier == box.tier
    assert set(found.attacks) == set(ATTACKS)
    assert all(found.attacks.values())
    assert {"landlock", "seccomp", "rlimits"} <= set(found.layers)


@pytest.mark.parametrize(
    ("without", "tier"),
    [
        (("namespaces",), "B"),
        (("landlock",), "C"),
        (("landlock", "namespaces", "bwrap"), "D"),
        (("seccomp", "bwrap"), "D"),
        (("rlimits", "bwrap"), "D"),
    ],
)
def test_a_missing_layer_lowers_the_tier_and_is_named(without, tier, box):
    if "namespaces" in without and os.geteuid() == 0 and not reachable_by_others(sys.base_prefix):
        # Nobody cannot read this interpreter, and without namespaces it cannot be put where he can.
        with pytest.raises(SandboxError, match="honest program"):
            Sandbox(without=without)
        return
    found = Sandbox(without=without)
    try:
        assert found.tier == tier, found.probe
        assert without[0] in found.probe.reason
        assert without[0] not in found.layers
    finally:
        found.close()


def test_a_tier_is_only_as_good_as_its_attacks():
    layers = ("namespaces", "landlock", "seccomp", "rlimits")
    assert tier_of(layers, {"a": True}) == "A"
    assert tier_of(layers, {"a": True, "b": False}) == "D"
    assert tier_of(layers, {}) == "D"
    assert tier_of(("bwrap", "seccomp", "rlimits"), {"a": True}) == "C"


def test_a_layer_that_does_not_stop_its_attack_is_counted_absent(monkeypatch):
    monkeypatch.setitem(ATTACKS, "planted", ATTACKS["forks"].__class__("print('ESCAPED')", ("landlock",)))
    found = Sandbox()
    found.close()
    assert "landlock" not in found.layers
    assert found.tier == "D"
    assert "planted" in found.probe.reason


def test_tier_d_is_refused_unless_spelled_out(caplog):
    for tier in "ABC":
        refuse_unsafe(tier, False)
    with pytest.raises(SandboxError, match=r"tier D: no Landlock.*allow_unsafe: true"):
        refuse_unsafe("D", False, "no Landlock")
    refuse_unsafe("D", True, "no Landlock")
    assert "no Landlock" in caplog.text


def test_a_cgroup_is_used_where_one_can_be_made_and_not_missed_where_not(tmp_path):
    assert cgroup.join(1, 2**20, 9, root=tmp_path / "absent") is None
    own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    (tmp_path / own.strip("/")).mkdir(parents=True, exist_ok=True)
    assert cgroup.join(77, 2**20, 9, root=tmp_path) is None
    (tmp_path / own.strip("/") / "cgroup.controllers").write_text("memory pids")
    ended = subprocess.Popen(["true"])
    ended.wait(WAIT)
    for pid in (ended.pid, os.getpid()):
        (tmp_path / own.strip("/") / f"rlpost-sandbox-{pid}").mkdir()
    group = cgroup.join(77, 2**20, 9, root=tmp_path)
    folder = tmp_path / own.strip("/") / "rlpost-sandbox-77"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "memory.max": "1048576",
        "pids.max": "9",
        "memory.swap.max": "0",
        "cgroup.procs": "77",
    }
    (folder / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert group.out_of_memory() == 2
    left = {path.name for path in folder.parent.glob("rlpost-*")}
    assert left == {folder.name, f"rlpost-sandbox-{os.getpid()}"}, "that of a process which is gone went too"


# -- a service elsewhere


@pytest.fixture
def service():
    """An HTTP service that answers what the test says."""

    class Handler(BaseHTTPRequestHandler):
        answer: object = None
        code = 200

        def do_POST(self):
            self.seen.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            body = self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()
            self.send_response(self.code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    Handler.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Handler.url = f"http://127.0.0.1:{server.server_port}"
    yield Handler
    server.shutdown()
    thread.join(WAIT)
    server.server_close()


def finished(**result):
    ran = {"status": "Finished", "execution_time": 0.5, "return_code": 0, "stdout": "", "stderr": "", **result}
    return {"status": "Success", "message": "", "compile_result": None, "run_result": ran, "files": {}}


def test_a_remote_sandbox_sends_the_program_and_reads_the_outcome(service):
    service.answer = finished(stdout="41\n")
    remote = RemoteSandbox(service.url)
    outcome = remote.run("print(41)", stdin=b"x", files={"a": b"\xff"}, limits=Limits(seconds=3, memory_mb=99))
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("ok", 0, b"41\n")
    path, body = service.seen[0]
    assert path == "/run_code"
    assert (body["code"], body["language"], body["stdin"], body["run_timeout"]) == ("print(41)", "python", "x", 3)
    assert body["files"] == {"a": "/w=="}


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ({"return_code": 1, "stderr": "ZeroDivisionError"}, "nonzero"),
        ({"return_code": 1, "stderr": "MemoryError\n"}, "memory"),
        ({"return_code": -11}, "killed"),
        ({"status": "TimeLimitExceeded", "return_code": None}, "timeout"),
        ({"stdout": "x" * 10**5}, "output"),
    ],
)
def test_a_remote_programs_end_is_told_apart(result, status, service):
    service.answer = finished(**result)
    assert RemoteSandbox(service.url).run("", limits=Limits(output_kb=1)).status == status


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"status": "SandboxError", "message": "no room"}, 200),
        (b"not json", 200),
        ([], 200),
        ({}, 200),
        ({"status": "Success", "run_result": None}, 200),
        (finished(), 503),
    ],
)
def test_a_service_that_fails_is_never_the_programs_fault(answer, code, service):
    service.answer, service.code = answer, code
    with pytest.raises(SandboxError, match=re.escape(service.url)):
        RemoteSandbox(service.url).run("print(1)")


def test_a_service_that_is_not_there_is_a_sandbox_error(service):
    with pytest.raises(SandboxError, match=r"127\.0\.0\.1:1/"):
        RemoteSandbox("http://127.0.0.1:1").run("print(1)")
    with pytest.raises(SandboxError, match="http://"):
        RemoteSandbox("file:///etc/passwd")


# -- all of it again


def become_ordinary():
    """Go on as a user of no privilege, in a mount namespace where that user can reach this interpreter."""
    prefix = Path(sys.base_prefix)
    closed = [folder for folder in reversed(prefix.parents) if not folder.stat().st_mode & 0o001]
    if closed:
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        fd = os.open(prefix, os.O_PATH)
        kernel.mount("tmpfs", str(closed[0]), "tmpfs", 0, "mode=755")
        prefix.mkdir(parents=True)
        kernel.mount(f"/proc/self/fd/{fd}", str(prefix), None, kernel.MS_BIND | kernel.MS_REC)
        os.close(fd)
    os.setgroups([])
    os.setresgid(ORDINARY, ORDINARY, ORDINARY)
    os.setresuid(ORDINARY, ORDINARY, ORDINARY)


def test_all_of_this_holds_for_an_ordinary_user_too():
    if AS_ORDINARY_USER in os.environ:
        assert os.geteuid() == ORDINARY
        return
    if os.geteuid() != 0:
        return  # the others were run as an ordinary user already
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, ORDINARY, ORDINARY)
        environment = {**os.environ, AS_ORDINARY_USER: "1", "HOME": home, "PYTHONDONTWRITEBYTECODE": "1"}
        code = (
            "import runpy, sys; sys.path.insert(0, '.')\n"
            "from tests.faults.verifiers.test_sandbox_attacks import become_ordinary\nbecome_ordinary()\n"
            "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
        )
        files = [__file__, str(Path(__file__).with_name("test_sandbox_session.py"))]
        arguments = ["-q", "-x", "-p", "no:cacheprovider", f"--basetemp={home}/pytest", *files]
        root = Path(__file__).parents[3]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=root, env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"\b\d{3} passed", done.stdout), done.stdout[-500:]

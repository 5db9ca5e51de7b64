"""Programs that try to get out, one for each thing a sandbox must hold, and the layers that alone should stop them.

`run_all` runs them at start: a layer that does not stop what is here to test it is counted absent. Each prints ESCAPED
when it got what it came for; what it needs to find outside (files, a listener, a process) is set up by `Bait`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rlpost.verify.sandbox.limits import Limits, Outcome, SandboxError

ESCAPED = b"ESCAPED"
ALONE = ("landlock", "seccomp", "rlimits")  # can be left out of a single program
OUTSIDE = ("/var/tmp/{token}", "/usr/{token}", "/{token}", f"{os.path.dirname(os.__file__)}/{{token}}")
VARIABLES = ("PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "PYTHON", "OMP_", "OPENBLAS_", "MKL_", "LD_LIBRARY_PATH")
FORKING = Limits(seconds=10, memory_mb=512, processes=True)


@dataclass(frozen=True)
class Attack:
    """A hostile program.

    Args:
        source: Python; `{name}` is filled in from `Bait`.
        layers: each of these must stop it without the other two; empty: all together must.
        limits: it runs under.
        needs: a layer without which this says nothing.
        stopped: statuses that mean it was stopped, where it cannot tell itself; None: it prints ESCAPED when not.
    """

    source: str
    layers: tuple[str, ...] = ()
    limits: Limits = field(default_factory=lambda: Limits(seconds=10, memory_mb=512))
    needs: str = ""
    stopped: tuple[str, ...] | None = None


# An attack that fails for want of a library proves nothing: this honest program uses what they use, and a
# module that nothing has loaded before; it must pass.
HONEST = """
import colorsys, ctypes, os, signal, socket, time
with open('x', 'w') as f:
    f.write('x')
ctypes.CDLL(None).getpid()
print('fine' if os.path.getsize('x') == 1 else '')
"""

_SYSCALLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
x86 = os.uname().machine == "x86_64"
buffer = ctypes.create_string_buffer(256)
def call(x, a, *arguments):
    wide = [ctypes.c_long(v) if isinstance(v, int) else v for v in arguments]
    return libc.syscall(ctypes.c_long(x if x86 else a), *wide)
"""

ATTACKS: dict[str, Attack] = {
    "tcp_connect": Attack(
        "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nprint('ESCAPED')", ("namespaces", "seccomp")
    ),
    "abstract_socket": Attack(
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect(b'\\x00{abstract}')\nprint('ESCAPED')",
        ("namespaces", "seccomp"),
    ),
    "datagram_pair": Attack(
        "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "a.sendto(b'x', b'\\x00{abstract_datagram}')\nprint('ESCAPED')",
        ("namespaces", "seccomp"),
    ),
    "read_token_file": Attack(
        "if '{token}' in open('{folder}/token').read():\n    print('ESCAPED')", ("namespaces", "landlock")
    ),
    "read_shadow": Attack("open('/etc/shadow').read()\nprint('ESCAPED')", ("namespaces",)),
    "read_past_landlock": Attack("open('/canary').read()\nprint('ESCAPED')", ("landlock",), needs="landlock"),
    "environment": Attack(
        "import ctypes\nenviron = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')\nn = 0\n"
        "while environ[n]:\n    if not environ[n].decode().startswith({variables}):\n        print('ESCAPED')\n    n += 1"
    ),
    "write_outside": Attack(
        "for where in ('{folder}/planted', *{outside}):\n"
        "    try:\n        open(where, 'w').write('x')\n        print('ESCAPED')\n    except OSError:\n        pass",
        ("namespaces", "landlock"),
    ),
    "forks": Attack(
        "import os, time\nfor n in range(150):\n    if os.fork() == 0:\n        time.sleep(5)\n        os._exit(0)\n"
        "    print('ESCAPED' if n == 100 else '', flush=True)",
        ("seccomp",),
    ),
    "forks_allowed": Attack(
        "import os, time\nfor n in range(150):\n    if os.fork() == 0:\n        time.sleep(5)\n        os._exit(0)\n"
        "    print('ESCAPED' if n == 100 else '', flush=True)",
        limits=FORKING,
    ),
    "execute": Attack("import os\nos.execv('/bin/sh', ['sh', '-c', 'echo ESCAPED'])", ("seccomp",)),
    "memory": Attack("b = bytearray(1 << 30)\nb[::4096] = b[::4096]\nprint('ESCAPED')", ("rlimits",)),
    "kill": Attack("import os\nos.kill({victim}, 0)\nos.kill({victim}, 9)\nprint('ESCAPED')", ("namespaces",)),
    "limit_another": Attack(
        "import resource\nresource.prlimit({victim}, resource.RLIMIT_NOFILE, (3, 3))\nprint('ESCAPED')",
        ("namespaces", "seccomp"),
        limits=FORKING,
    ),
    "slow_another": Attack(
        "import os\nos.setpriority(os.PRIO_PROCESS, {victim}, 19)\nprint('ESCAPED')",
        ("namespaces", "seccomp"),
        limits=FORKING,
    ),
    "change_attributes": Attack(
        "import os\npath = '{folder}/token'\n"
        "for change in (lambda: os.chmod(path, 0), lambda: os.utime(path, (0, 0)), lambda: os.setxattr(path, 'user.x', b'x'),\n"
        "               lambda: os.truncate(path, 1)):\n"
        "    try:\n        change()\n    except OSError:\n        pass\n"
        "found = os.stat(path)\nif found.st_mode & 0o777 == 0 or found.st_mtime == 0 or found.st_size == 1:\n"
        "    print('ESCAPED')",
        ("namespaces", "seccomp"),
        limits=FORKING,
    ),
    "ptrace": Attack(
        _SYSCALLS.replace("{", "{{").replace("}", "}}")
        + "if call(101, 117, 16, {victim}, 0, 0) == 0:\n    print('ESCAPED')\n"
        "if call(101, 117, 0, 0, 0, 0) == 0:\n    print('ESCAPED')",
        ("seccomp",),
    ),
    "large_file": Attack(
        "with open('big', 'wb') as f:\n    for _ in range(300):\n        f.write(bytes(1 << 20))\nprint('ESCAPED')",
        ("rlimits", "namespaces"),
    ),
    "nested_namespace": Attack(
        _SYSCALLS.replace("{", "{{").replace("}", "}}")
        + "if call(272, 97, 0x10000000) == 0 or call(56, 220, 0x10000011, 0, 0, 0, 0) >= 0:\n    print('ESCAPED')",
        ("seccomp",),
    ),
    "kernel_surface": Attack(
        _SYSCALLS.replace("{", "{{").replace("}", "}}")
        + "for x, a, *arguments in ((425, 425, 1, buffer), (323, 282, 1), (250, 219, 0, -3, 1), (321, 280, 0, buffer, 72),\n"
        "                        (298, 241, buffer, 0, -1, -1, 0), (319, 279, b'x', 0), (29, 194, 0, 4096, 0o1600)):\n"
        "    if call(x, a, *arguments) >= 0:\n        print('ESCAPED')",
        ("seccomp",),
    ),
    "list_processes": Attack(
        "import os\nif any(n.isdigit() for n in os.listdir('/proc')):\n    print('ESCAPED')", ("namespaces", "landlock")
    ),
    "endless": Attack(
        "import signal\nfor n in range(1, 65):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
        limits=Limits(seconds=0.2),
        stopped=("timeout",),
    ),
    "output": Attack(
        "import os\nwhile True:\n    os.write(1, bytes(1 << 16))",
        limits=Limits(seconds=10, output_kb=64),
        stopped=("output",),
    ),
    "daemon": Attack(
        "import os, time\nif os.fork() == 0:\n    try:\n        os.setsid()\n    except OSError:\n        pass\n"
        "    if os.fork() == 0:\n        time.sleep(30)\n        print('ESCAPED', flush=True)\n    os._exit(0)\nos.wait()",
        limits=FORKING,
        stopped=("ok", "nonzero"),
    ),
}


class Bait:
    """What the attacks go for, on this machine, outside the sandbox; a context manager."""

    def __enter__(self) -> Bait:
        self.token = secrets.token_hex(8)
        self.folder = Path(tempfile.mkdtemp(prefix="rlpost-bait-"))
        self.folder.chmod(0o777)
        (self.folder / "token").write_text(self.token)
        (self.folder / "token").chmod(0o644)
        self._changed = (self.folder / "token").stat().st_ctime_ns  # its content, or any attribute
        self.accepted = 0
        self._sockets = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
        self._sockets[1].bind(f"\0{self.token}")
        self._sockets[1].listen()
        self._datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._datagrams.bind(f"\0{self.token}-datagrams")
        for listener in self._sockets:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        # Not of our own process group, and gone when its input ends, whatever becomes of us.
        self._victim = subprocess.Popen(
            [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, start_new_session=True
        )
        self._limits = resource.prlimit(self._victim.pid, resource.RLIMIT_NOFILE)
        self._priority = os.getpriority(os.PRIO_PROCESS, self._victim.pid)
        return self

    def __exit__(self, *_: object) -> None:
        for opened in (*self._sockets, self._datagrams):
            opened.close()
        assert self._victim.stdin is not None
        with contextlib.suppress(OSError):
            self._victim.stdin.close()
        self._victim.kill()
        self._victim.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        for where in OUTSIDE:  # where an attack got through
            with contextlib.suppress(OSError):
                os.unlink(where.format(token=self.token))

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()
                self.accepted += 1

    def fill(self, source: str) -> str:
        return source.format(
            port=self._sockets[0].getsockname()[1],
            abstract=self.token,
            abstract_datagram=f"{self.token}-datagrams",
            folder=self.folder,
            token=self.token,
            victim=self._victim.pid,
            variables=VARIABLES,
            outside=tuple(where.format(token=self.token) for where in OUTSIDE),
        )

    def touched(self) -> bool:
        """Whether anything reached what is outside."""
        return bool(
            self.accepted
            or self._victim.poll() is not None
            or resource.prlimit(self._victim.pid, resource.RLIMIT_NOFILE) != self._limits
            or os.getpriority(os.PRIO_PROCESS, self._victim.pid) != self._priority
            or sorted(path.name for path in self.folder.iterdir()) != ["token"]
            or (self.folder / "token").stat().st_ctime_ns != self._changed
        )


def blocked(attack: Attack, bait: Bait, run: Callable[[str, Limits], Outcome]) -> bool:
    """Whether a sandbox stops `attack`."""
    outcome = run(bait.fill(attack.source), attack.limits)
    if ESCAPED in outcome.stdout or bait.touched():
        return False
    return attack.stopped is None or outcome.status in attack.stopped


Run = Callable[[str, Limits, tuple[str, ...]], Outcome]


def run_all(layers: Iterable[str], run: Run) -> tuple[tuple[str, ...], dict[str, bool]]:
    """Each layer by itself against the attacks it should stop alone, then the whole list under those that do.

    Args:
        layers: what the kernel offers.
        run: a program, its limits, and the layers to put around it.

    Raises:
        SandboxError: an honest program does not run.

    Returns:
        The layers that do what they are for, and for each attack whether they stopped it together.
    """
    offered = tuple(layers)
    always = tuple(layer for layer in offered if layer not in ALONE)
    good = list(offered)
    outcome = run(HONEST, Limits(seconds=60), offered)
    if outcome.stdout != b"fine\n":
        said = outcome.stderr.decode(errors="replace").strip()
        raise SandboxError(f"an honest program ends {outcome.status} in layers {', '.join(offered)}: {said[-300:]}")
    with contextlib.ExitStack() as stack:
        bait = stack.enter_context(Bait())

        def stopped(attack: Attack, under: tuple[str, ...]) -> bool:
            nonlocal bait
            try:
                held = blocked(attack, bait, lambda source, limits: run(source, limits, under))
            except SandboxError:
                held = False
            if bait.touched():
                bait = stack.enter_context(Bait())
            return held

        for layer in [layer for layer in offered if any(layer in attack.layers for attack in ATTACKS.values())]:
            under = tuple(dict.fromkeys((*always, layer)))
            if not all(stopped(attack, under) for attack in ATTACKS.values() if layer in attack.layers):
                good.remove(layer)
        return tuple(good), {
            name: stopped(attack, tuple(good))
            for name, attack in ATTACKS.items()
            if not attack.needs or attack.needs in good
        }

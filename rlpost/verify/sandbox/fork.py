"""What a fork of the zygote becomes once every layer is in force: a script, a session, a call of the resident, a command."""

from __future__ import annotations

import atexit
import gc
import os
import resource
import signal
import socket
import struct
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, NoReturn

from rlpost.verify.sandbox import kernel

READY, FAILED = b"R", b"E"
REQUEST = struct.Struct("=QQ")  # of a session: bytes of address space, seconds of processor time; then standard input
ENDED = struct.Struct("=id")  # of its fork: wait status, seconds of processor time


def execute(report: int, argv: list[str]) -> NoReturn:
    os.write(report, READY)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.set_inheritable(report, False)  # open only if the next call fails
    try:
        os.execvpe(argv[0], argv, dict(os.environ))
    except OSError as error:
        os.write(report, FAILED + f"cannot execute {argv[0]!r}: {error}".encode())
    os._exit(127)


def interpret(source: bytes, argv: list[str]) -> NoReturn:
    """Run `source` as Python runs a script, with its end: threads joined, exit functions run, buffers written."""
    _take_signals()
    _open_streams()
    for name in [name for name in sys.modules if name.partition(".")[0] == "rlpost"]:
        del sys.modules[name]
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # a fork has its parent's state; `random` sees to that itself
    module = _main_module(argv)
    code = _exit_code(lambda: _execute(source, module))
    code = _exit_code(threading._shutdown) or code  # type: ignore[attr-defined]
    code = _exit_code(atexit._run_exitfuncs) or code
    code = _exit_code(_flush) or code
    vars(module).clear()  # files the program left open are written as they go
    _exit_code(_flush)
    os._exit(code)


def call(resident: Callable[[bytes], bytes], request: bytes) -> NoReturn:
    """Have the resident answer one request. Nothing it prints is taken for its reply, and no thread of its own waited for."""
    import tempfile  # as `random` below: loaded with the resident

    reply = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _take_signals()
    _open_streams()
    tempfile.tempdir = None  # what it found before was the zygote's
    _seed(request)
    code = _exit_code(lambda: _write(reply, resident(request)))
    _exit_code(_flush)
    os._exit(code)


def attend(source: bytes, confine: Callable[[], None]) -> NoReturn:
    """Load a program, then run its `main` in a fork for each request: one at a time, the next one made in advance.

    On standard input is the worker's socket. It gets the other end of each fork's own, and once that fork is gone how it
    ended; a fork holds nothing that another will.

    Args:
        confine: for the forks alone: who reads requests forks no more.
    """
    worker = socket.socket(fileno=os.dup(0))
    with worker:
        os._exit(_exit_code(lambda: _attend(worker, source, confine)))


def _attend(worker: socket.socket, source: bytes, confine: Callable[[], None]) -> None:
    _take_signals()
    nowhere, _ = socket.socketpair()  # the streams are opened once, on sockets, as each fork's will be
    for fd in (0, 1):
        os.dup2(nowhere.fileno(), fd)
    _open_streams()
    module = _main_module([])
    _execute(source, module)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rlpost"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()
    while True:
        mine, other = socket.socketpair()
        pid = kernel.fork()
        if pid == 0:
            worker.close()
            other.close()
            nowhere.close()
            _answer(mine, vars(module)["main"], confine)
        mine.close()
        socket.send_fds(worker, [READY], [other.fileno()])
        other.close()
        _, status, used = os.wait4(pid, 0)
        worker.send(ENDED.pack(status, used.ru_utime + used.ru_stime))


def _answer(mine: socket.socket, main: Callable[[], Any], confine: Callable[[], None]) -> NoReturn:
    confine()
    for fd in (0, 1):
        os.dup2(mine.fileno(), fd)
    head = mine.recv(REQUEST.size, socket.MSG_WAITALL)
    mine.close()
    if not head:  # the worker has no more requests
        os._exit(0)
    memory, seconds = REQUEST.unpack(head)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    code = _exit_code(main)
    os._exit(_exit_code(_flush) or code)


def _seed(request: bytes) -> None:
    """The same request draws the same numbers, whatever was asked before."""
    import random

    random.seed(request)
    seed = random.getrandbits(32)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _write(fd: int, text: bytes) -> None:
    rest = memoryview(text)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _main_module(argv: list[str]) -> types.ModuleType:
    module = types.ModuleType("__main__")
    module.__dict__.update(__builtins__=__builtins__, __file__=f"{os.getcwd()}/program.py", __cached__=None)
    sys.modules["__main__"] = module
    sys.argv = ["program.py", *argv]
    return module


def _execute(source: bytes, module: types.ModuleType) -> None:
    exec(compile(source.decode("utf-8", "surrogatepass"), "program.py", "exec"), vars(module))


def _take_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _open_streams() -> None:
    """Anew: the zygote's remember that they could seek."""
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)


def _exit_code(action: Any) -> int:
    try:
        action()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 - as the interpreter does for whatever reaches the top
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error, trace)
        return 1
    return 0


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()

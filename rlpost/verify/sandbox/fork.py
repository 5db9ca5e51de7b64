"""What a fork of the zygote becomes once every layer is in force: another program, a script, or one call of the resident."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, NoReturn

READY, FAILED = b"R", b"E"


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
    module = types.ModuleType("__main__")
    module.__dict__.update(__builtins__=__builtins__, __file__=f"{os.getcwd()}/program.py", __cached__=None)
    sys.modules["__main__"] = module
    sys.argv = ["program.py", *argv]
    code = _exit_code(
        lambda: exec(compile(source.decode("utf-8", "surrogatepass"), "program.py", "exec"), vars(module))
    )
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

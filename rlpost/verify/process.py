"""One worker process seen from the pool: start it, send items, read replies with a deadline, kill it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlpost import faults, processes
from rlpost.verify import scratch
from rlpost.verify.protocol import Traits, VerifierError

# What a Python process needs to run; everything else, API keys above all, stays with the trainer.
ENVIRONMENT = {
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR"),
    *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"),
    *(faults.ASKED, faults.ONCE),
}
MAX_REPLY = 16 * 2**20
REAP_SECONDS = 30.0


def environment(parent: Mapping[str, str]) -> dict[str, str]:
    """The worker's environment: the allow-list of the parent's, and one thread per numeric library."""
    kept = {key: value for key, value in parent.items() if key in ENVIRONMENT or key.startswith("LC_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


class WorkerProcess:
    """A `rlpost.verify.worker` in a session and process group of its own, and the two pipes to it.

    The kernel kills it when the *thread* that made it ends, so that thread must live as long as the worker is wanted.
    All methods but `interrupt` belong to that thread. It is always killed and never tidies up, so what it and the programs
    it runs write to a temporary folder goes to one of its own, removed here.
    """

    def __init__(self, verifiers: Sequence[Mapping[str, Any]], allow_unsafe: bool = False) -> None:
        self._folder = tempfile.mkdtemp(prefix=f"rlpost-{os.getpid()}-")  # whose it was, if it is left behind
        # A sandbox's program, of another user, goes through it to a folder that it is given there.
        os.chmod(self._folder, 0o711)
        theirs_in, self._requests = os.pipe()
        self._replies, theirs_out = os.pipe()
        # -P: the current directory must not come before the standard library.
        command = [
            sys.executable,
            "-P",
            "-m",
            "rlpost.verify.worker",
            str(theirs_in),
            str(theirs_out),
            str(os.getpid()),
        ]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a verifier prints goes to standard error
                pass_fds=(theirs_in, theirs_out),
                env={**environment(os.environ), "TMPDIR": self._folder},
                start_new_session=True,
            )
        except OSError:
            os.close(self._requests)
            os.close(self._replies)
            scratch.remove(self._folder)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        # Writes must not block: the worker may be writing too, or hang, and then the deadline has to count.
        os.set_blocking(self._requests, False)
        settings = {"verifiers": list(verifiers), "allow_unsafe": allow_unsafe}
        self._outbox = bytearray(json.dumps(settings).encode() + b"\n")
        self._inbox = bytearray()
        self._reaping = threading.Lock()
        self.sandbox: dict[str, Any] | None = None  # {"tier", "layers"} where verifiers run programs, once it is ready

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, seconds: float) -> list[Traits]:
        """Wait until the verifiers are loaded; what each of them is.

        Raises:
            VerifierError: the verifiers do not load.
            TimeoutError, EOFError, ValueError: as `receive`.
        """
        reply = self.receive(time.monotonic() + seconds)
        if "load_error" in reply:
            raise VerifierError(reply["load_error"])
        try:
            self.sandbox = reply["sandbox"]
            return [Traits(**traits) for traits in reply["ready"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"verifier worker {self.pid} sent {str(reply)[:200]} instead of being ready") from error

    def resident_mb(self) -> float:
        """Memory of the process itself, in MiB; 0 when it is gone."""
        return processes.resident_mb(self.pid) or 0.0

    def send(self, lines: bytes) -> None:
        """Queue calls, one JSON document a line; they are written while `receive` waits."""
        self._outbox += lines

    def quiet(self) -> bool:
        """Whether the worker is alive and has said nothing unasked."""
        return not self._inbox and not self._poll(0.0)

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next reply.

        Raises:
            TimeoutError: none by `deadline`, in seconds of `time.monotonic`.
            EOFError: the worker is gone.
            ValueError: something that is not a reply came.
        """
        searched = 0
        while (end := self._inbox.find(b"\n", searched)) < 0:
            searched = len(self._inbox)
            if searched > MAX_REPLY:
                raise ValueError(f"verifier worker {self.pid} sent {searched} bytes without an end of line")
            remaining = deadline - time.monotonic()
            events = self._poll(max(0.0, remaining))
            if not events and remaining <= 0:
                raise TimeoutError(f"no reply from verifier worker {self.pid}")
            if self._requests in events:
                self._write()
            if self._replies in events:
                chunk = os.read(self._replies, 2**16)
                if not chunk:
                    raise EOFError(f"verifier worker {self.pid} is gone")
                self._inbox += chunk
        line = bytes(self._inbox[:end])
        del self._inbox[: end + 1]
        reply = json.loads(line)
        if not isinstance(reply, dict):
            raise ValueError(f"verifier worker {self.pid} sent {line[:100]!r}")
        return reply

    def interrupt(self) -> None:
        """Kill the worker and all of its process group, from any thread; its own thread then sees EOFError."""
        with self._reaping:
            if self._process.returncode is None:
                # Until it is reaped its id is its own, so this cannot hit a stranger.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> int:
        """Kill, reap, close the pipes, remove its folder; returns the exit code (minus the signal's number)."""
        self.interrupt()
        with self._reaping:
            code = self._process.wait(timeout=REAP_SECONDS)
        os.close(self._requests)
        os.close(self._replies)
        scratch.remove(self._folder)
        return code

    def _poll(self, seconds: float) -> set[int]:
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        if self._outbox:
            poll.register(self._requests, select.POLLOUT)
        return {fd for fd, _ in poll.poll(seconds * 1000)}

    def _write(self) -> None:
        try:
            del self._outbox[: os.write(self._requests, self._outbox)]
        except BrokenPipeError:  # it is gone; what it still said, and then the end, is read from the other pipe
            self._outbox.clear()

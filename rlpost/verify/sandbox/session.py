"""The worker's side of a program that stays: start it, hand each of its forks one request, hold the clock, cap the reply."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

from rlpost.verify.sandbox.fork import ENDED, READY, REQUEST
from rlpost.verify.sandbox.host import (
    CHUNK,
    START_SECONDS,
    TICK_SECONDS,
    Host,
    ZygoteLostError,
    cpu_seconds,
    payload,
    schedule,
    status_of,
)
from rlpost.verify.sandbox.limits import WALL, Limits, Outcome, SandboxError, Status

LIFE = 10**6  # seconds of processor time that the program which stays may use


class Session:
    """A program in a host where nothing else runs until this is closed.

    One fork of it is always ready. It has a socket that no other will have, takes one request, replies and ends; the next
    is asked when the kernel has said that it is gone. What does not end as it should ends the session.

    Args:
        source: a Python program of ours that defines `main`.
        limits: of the largest request.

    Raises:
        ZygoteLostError: try a fresh host.
        SandboxError: a layer does not come into force.
    """

    def __init__(self, host: Host, layers: Sequence[str], source: str, limits: Limits) -> None:
        self._host, self._source, self._memory_mb = host, source, limits.memory_mb
        own = replace(Limits(), seconds=LIFE, memory_mb=limits.memory_mb, file_mb=0)
        request = host.prepare("session", layers, own, host.folder)
        self._number: int = request["run"]
        self._closed = False
        self._program, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stderr, stderr = os.pipe()
        os.set_blocking(self._stderr, False)
        report, told = os.pipe()
        with os.fdopen(report, "rb") as said:
            null = os.open(os.devnull, os.O_WRONLY)
            try:
                host.begin(request, [payload(source.encode(), (), "session", {}), theirs.detach(), null, stderr, told])
                self._wait_until_confined(said.fileno())
            except BaseException:
                self.close()
                raise

    def _wait_until_confined(self, report: int) -> None:
        said = b""
        deadline = time.monotonic() + START_SECONDS
        while chunk := _read_until(report, deadline):
            said += chunk
        if said != READY:
            raise SandboxError(
                said.lstrip(b"RE").decode(errors="replace") or "the program ended before its sandbox was up"
            )

    def serves(self, source: str, limits: Limits) -> bool:
        return not self._closed and source == self._source and limits.memory_mb <= self._memory_mb

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._program.close()
        os.close(self._stderr)
        self._host.end(self._number)

    def ask(self, request: bytes, limits: Limits) -> Outcome:
        """Raises ZygoteLostError when the program is gone, or the fork that waited for the request."""
        killed_before = self._host.out_of_memory()
        with self._fork() as end:
            started = time.monotonic()
            head = REQUEST.pack(limits.memory_mb * 2**20, cpu_seconds(limits))
            reply, ended = self._exchange(end, memoryview(head + request), limits, started)
        seconds = time.monotonic() - started
        said = self._said()
        if isinstance(ended, str):
            self.close()
            return Outcome(ended, None, reply, said, seconds, seconds)
        status, cpu = ended
        code = os.waitstatus_to_exitcode(status)
        short = self._host.out_of_memory() > killed_before
        reason = status_of(code, said, late=cpu >= cpu_seconds(limits), short_of_memory=short)
        return Outcome(reason, None if reason == "timeout" else code, reply, said, seconds, cpu)

    def _fork(self) -> socket.socket:
        """The one that waits for a request."""
        self._program.settimeout(START_SECONDS)
        try:
            _, fds, _, _ = socket.recv_fds(self._program, ENDED.size, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise ZygoteLostError(f"no fork of the program that stays: {error!r}") from error
        if not fds:
            raise ZygoteLostError(f"the program that stays is gone: {self._said().decode(errors='replace')[-1000:]}")
        end = socket.socket(fileno=fds[0])
        end.setblocking(False)
        return end

    def _exchange(
        self, end: socket.socket, rest: memoryview, limits: Limits, started: float
    ) -> tuple[bytes, tuple[int, float] | Status]:
        """What the fork replied, and its wait status and processor time, or why it has to be ended."""
        reply, most, whole = bytearray(), limits.output_kb * 1024, len(rest)
        poll = select.poll()
        poll.register(self._program, select.POLLIN)
        poll.register(end, select.POLLIN | select.POLLOUT)
        deadline = started + limits.seconds
        ended: tuple[int, float] | None = None
        while ended is None:
            for fd, flags in poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                if fd != end.fileno():
                    ended = self._ended()
                elif flags & select.POLLOUT and rest:
                    rest = rest[_send(end, rest, whole) :]
                    if not rest:
                        poll.modify(end, select.POLLIN)
                elif not (chunk := _receive(end)):
                    poll.unregister(end)
                else:
                    reply += chunk
            if len(reply) > most:
                return bytes(reply[:most]), "output"
            if ended is None and time.monotonic() >= deadline:
                left = self._time_left(limits, started)
                if left <= 0.01:
                    return bytes(reply), "timeout"
                deadline = time.monotonic() + max(left, TICK_SECONDS)
        while chunk := _receive(end):  # what lies there; nobody writes any more
            reply += chunk
        return (bytes(reply), ended) if len(reply) <= most else (bytes(reply[:most]), "output")

    def _ended(self) -> tuple[int, float]:
        message = self._program.recv(ENDED.size)
        if not message:
            raise ZygoteLostError(f"the program that stays is gone: {self._said().decode(errors='replace')[-1000:]}")
        status, cpu = ENDED.unpack(message)
        return status, cpu

    def _time_left(self, limits: Limits, started: float) -> float:
        """Seconds until the fork may have reached its limit: time in which it had no processor is not counted."""
        _, waiting = schedule(self._host.programs()[1:])
        wall = time.monotonic() - started
        return min(limits.seconds + min(waiting, wall), WALL * limits.seconds) - wall

    def _said(self) -> bytes:
        """On standard error, since the last time."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._stderr, CHUNK)
        return b""


def _send(end: socket.socket, rest: memoryview, whole: int) -> int:
    """How many bytes need not be sent any more."""
    try:
        sent = end.send(rest)
    except OSError as error:
        if len(rest) == whole:
            raise ZygoteLostError(f"the fork that waited for a request is gone: {error}") from error
        return len(rest)  # it does not read its request; that is its own affair
    if sent == len(rest):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_WR)
    return sent


def _receive(end: socket.socket) -> bytes:
    """Some of the reply; nothing at its end, or when there is nothing now."""
    try:
        return end.recv(CHUNK)
    except (BlockingIOError, ConnectionResetError):
        return b""


def _read_until(fd: int, deadline: float) -> bytes:
    if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        raise ZygoteLostError(f"a program did not start within {START_SECONDS:g} s")
    return os.read(fd, CHUNK)

"""Two hosts on one machine: network namespaces with real addresses, joined by a wire that can be cut and lose packets.

The wire is a process between two veth pairs that passes every frame on, so that it needs nothing of the kernel but
namespaces (no netem, no filter). Run as a program it is that wire, in a namespace of its own:

    python hosts.py wire END END       reads from stdin which share of frames to lose; 1 is a cut
    python hosts.py plain DEVICE       has a device write its own checksums and small frames, as a wire needs them
"""

from __future__ import annotations

import array
import fcntl
import os
import random
import selectors
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

ETHERNET = 0x0003  # every protocol
SIOCETHTOOL = 0x8946
OFFLOADS = (0x17, 0x1F, 0x24, 0x2C)  # set: checksums, segmentation, generic segmentation, generic receiving


def why_not() -> str | None:
    """Why this machine cannot have two hosts; None where it can."""
    if os.geteuid():
        return "network namespaces need root"
    try:
        hosts = Hosts()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces: {getattr(error, 'stderr', None) or error}"
    hosts.close()
    return None


class Hosts:
    """Two namespaces that reach each other and nothing else.

    Attributes:
        addresses: of the two.
    """

    def __init__(self) -> None:
        self.addresses = ("10.201.7.1", "10.201.7.2")
        self._names = [f"rl{os.getpid()}{kind}" for kind in "abw"]
        self._wire: subprocess.Popen[str] | None = None
        a, b, middle = self._names
        try:
            for name in self._names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            for name, end, address, other in zip((a, b), "ab", self.addresses, self.addresses[::-1], strict=True):
                ip("-n", middle, "link", "add", f"end{end}", "type", "veth", "peer", "name", "eth0", "netns", name)
                ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", middle, "link", "set", f"end{end}", "up", "promisc", "on")
                ip("-n", name, "route", "add", "default", "via", other)  # so that each finds its own address
                subprocess.run(self._within(name, [sys.executable, __file__, "plain", "eth0"]), check=True)
            wire = self._within(middle, [sys.executable, __file__, "wire", "enda", "endb"])
            self._wire = subprocess.Popen(wire, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self._wire.stdout is not None
            if self._wire.stdout.readline() != "joined\n":
                raise OSError("the wire did not come up")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _within(name: str, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", name, *command]

    def on(self, host: int, command: Sequence[str]) -> list[str]:
        """A command as it is run on host 0 or 1."""
        return self._within(self._names[host], command)

    def lose(self, share: float) -> None:
        """Lose this share of all frames from now on, in both directions: 0 none, 1 all."""
        assert self._wire is not None
        assert self._wire.stdin is not None
        assert self._wire.stdout is not None
        self._wire.stdin.write(f"{share}\n")
        self._wire.stdin.flush()
        assert float(self._wire.stdout.readline()) == share

    def end(self) -> None:
        """End all that runs on the hosts."""
        for name in self._names[:2]:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for pid in found.stdout.split():
                subprocess.run(["kill", "-KILL", pid], capture_output=True)

    def close(self) -> None:
        """Take the hosts down, and all that runs there."""
        self.end()
        if self._wire is not None:
            self._wire.kill()
            self._wire.wait()
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def wire(ends: Sequence[str], commands: IO[str]) -> None:
    """Pass frames between two devices until stdin ends."""
    lost, chance = 0.0, random.Random(0)
    sockets = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERNET)) for _ in ends]
    with selectors.DefaultSelector() as waiting:
        for i, (end, opened) in enumerate(zip(ends, sockets, strict=True)):
            opened.bind((end, ETHERNET))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            opened.setblocking(False)
            waiting.register(opened, selectors.EVENT_READ, sockets[1 - i])
        waiting.register(commands, selectors.EVENT_READ)
        print("joined", flush=True)
        while True:
            for key, _ in waiting.select():
                if key.data is None:
                    line = commands.readline()
                    if not line:
                        return
                    lost = float(line)
                    print(lost, flush=True)
                    continue
                while (frame := received(key.fileobj)) is not None:
                    if chance.random() >= lost:
                        sent(key.data, frame)


def received(end: Any) -> bytes | None:
    """A frame that came to this end from its host; None where none waits."""
    try:
        frame, (_, _, kind, *_) = end.recvfrom(65536)
    except BlockingIOError:
        return None
    return b"" if kind == socket.PACKET_OUTGOING else frame


def sent(end: Any, frame: bytes) -> None:
    try:
        if frame:
            end.send(frame)
    except OSError:
        return  # full: a wire loses it


def plain(device: str) -> None:
    """A frame leaves as it would on a cable."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for offload in OFFLOADS:
            held = array.array("I", [offload, 0])
            request = struct.pack("16sP", device.encode(), held.buffer_info()[0])
            fcntl.ioctl(any_socket, SIOCETHTOOL, request)


if __name__ == "__main__":
    if sys.argv[1] == "wire":
        wire(sys.argv[2:], sys.stdin)
    else:
        plain(sys.argv[2])

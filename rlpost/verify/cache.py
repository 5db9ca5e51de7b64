"""Verdicts of samples seen before, and of samples that are being scored right now."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from rlpost.types import Verdict

W = TypeVar("W")
OVERHEAD = 500  # bytes a verdict with nothing in it takes, about


def prefix(name: str, version: str, params: Mapping[str, Any]) -> bytes:
    """What a verifier adds to the key of its verdicts."""
    return json.dumps([name, version, params], sort_keys=True, default=repr).encode()


class VerdictCache(Generic[W]):
    """Least recently used verdicts, by (verifier, version, params, problem, answer), and who waits for one to come.

    Not thread-safe: the pool's lock is around it.

        if (verdict := cache.find(key)) is None and cache.lead(key, task):
            ...  # score it, then give its verdict to all of `cache.arrived(key, verdict)` too
    """

    def __init__(self, limit: int) -> None:
        """`limit`: bytes, estimated by the text in the verdicts; 0 keeps nothing and nobody waits for another."""
        self._limit = limit
        self._size = 0
        self._known: OrderedDict[bytes, tuple[Verdict, int]] = OrderedDict()
        self._waiting: dict[bytes, list[W]] = {}

    def key(self, prefix: bytes, sample: bytes) -> bytes | None:
        return hashlib.sha256(prefix + b"\0" + sample).digest() if self._limit else None

    def find(self, key: bytes) -> Verdict | None:
        """The verdict of an earlier sample that was the same, marked `cached`."""
        if key not in self._known:
            return None
        self._known.move_to_end(key)
        return self._known[key][0]

    def lead(self, key: bytes, waiter: W) -> bool:
        """Whether nobody else is at it: then the caller scores it. Otherwise `waiter` is told by `arrived`."""
        if key in self._waiting:
            self._waiting[key].append(waiter)
            return False
        self._waiting[key] = []
        return True

    def arrived(self, key: bytes, verdict: Verdict, keep: bool) -> list[W]:
        """End what `lead` began; who has waited. `keep` remembers the verdict for later samples too."""
        if keep:
            cost = OVERHEAD + len(verdict.extracted or "") + len(verdict.reason) + len(repr(verdict.details))
            if cost <= self._limit:
                self._known[key] = (shared(verdict), cost)
                self._size += cost
            while self._size > self._limit:
                self._size -= self._known.popitem(last=False)[1][1]
        return self._waiting.pop(key)

    def clear(self) -> None:
        self._known.clear()
        self._waiting.clear()
        self._size = 0


def shared(verdict: Verdict) -> Verdict:
    """A verdict for a sample that it was not worked out for."""
    return replace(verdict, cached=True, seconds=0.0, attempts=1)

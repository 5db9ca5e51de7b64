"""A verifier of rehearsals: scores that mean nothing, and are not the same for all responses of a group."""

from __future__ import annotations

import zlib


def arbitrary(response: str, prompt: str) -> float:
    """A number from 0 to 1, always the same for the same response.

    A policy with random weights is never right, so that no group would have a signal, and nothing would be learned.
    """
    return zlib.crc32(f"{prompt}\n{response}".encode()) / 0xFFFFFFFF

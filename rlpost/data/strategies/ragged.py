"""Stores of token sequences as a checkpoint holds them: two arrays, however many sequences there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def pack(sequences: Sequence[np.ndarray], dtype: type) -> dict[str, np.ndarray]:
    """{"lengths": int64 (N,), "values": (sum of lengths,) of `dtype`}."""
    return {
        "lengths": np.array([len(s) for s in sequences], np.int64),
        "values": np.concatenate([np.zeros(0, dtype), *sequences]).astype(dtype),
    }


def unpack(packed: Mapping[str, Any]) -> list[np.ndarray]:
    """The N sequences that were packed."""
    ends = np.cumsum(packed["lengths"], dtype=np.int64)
    return [packed["values"][end - n : end].copy() for end, n in zip(ends, packed["lengths"], strict=True)]

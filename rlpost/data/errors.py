"""What goes wrong with data, said so that it can be put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Data that cannot be used. The message names the place, the rows, the reason and the fix."""


class RowError(ValueError):
    """One row that cannot be used; the message is its reason. Counted or raised by `data.bad_rows`."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`name`'s nearest neighbour among `known`, or all of them when none is near, to end an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"

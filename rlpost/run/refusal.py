"""A start that is refused leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlpost.config import ConfigError
from rlpost.data.errors import DataError
from rlpost.observe import RunFolder
from rlpost.verify.protocol import VerifierError

# What a user mends: exit code 2. Nothing was learned.
REFUSALS = (ConfigError, DataError, VerifierError)


@contextmanager
def refused_leaves_nothing(folder: RunFolder) -> Iterator[None]:
    """Take the folder of a new run away again where it was refused before there was anything to look at in it.

    One that was stopped or broke keeps its folder: `rlpost resume` starts it anew.
    """
    try:
        yield
    except REFUSALS:
        if folder.is_untouched():
            folder.discard()
        raise

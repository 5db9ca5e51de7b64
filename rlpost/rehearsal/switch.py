"""Whether what this driver starts is a rehearsal: on CPU all that GPUs would do, and said by nothing but `rlpost rehearse`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlpost.config import Config

_on = False


@contextmanager
def rehearsing() -> Iterator[None]:
    """Until this ends, engines and ranks that would have GPUs compute on CPUs and exchange weights as if they had."""
    global _on
    _on = True
    try:
        yield
    finally:
        _on = False


def stood_in(config: Config) -> bool:
    """Whether the GPUs of a configuration are stood in for."""
    return _on and config.on_gpu


def computes_on_gpu(config: Config) -> bool:
    """Whether engines and ranks of a configuration compute on GPUs."""
    return config.on_gpu and not _on

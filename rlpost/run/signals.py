"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlpost.run.training import Run


@contextmanager
def stop_signals(run: Run) -> Iterator[None]:
    """Ctrl-C or SIGTERM asks for a stop after this step, with a checkpoint; a second one stops now."""

    def handle(number: int, frame: Any) -> None:
        if run.stop_requested:
            raise KeyboardInterrupt
        run.stop_requested = True
        print("stopping after this step with a checkpoint; once more to stop now", file=sys.stderr, flush=True)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)

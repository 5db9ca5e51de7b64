"""What a run does by the clock: saves that come due, and a stop in time for what must end with its allocation."""

from __future__ import annotations

import time
from collections import deque

from rlpost.config import Config
from rlpost.stop import STOP

RECENT = 5  # steps and saves that the next ones are judged by, the longest of them
LONGER = 1.2  # times as long the next one may take
LEAVING = 15.0  # seconds to take everything down


class Timetable:
    """Watches `checkpoint.minutes` and `time_limit`, which counts from the start of the command.

    A step that is begun must be done, and saved, when the time is up. So the stop is asked for when the next step and a
    save, by the longest of the recent ones, would not fit any more; a step under way then still does. Before the first
    save one is taken to last as long as a step.
    """

    def __init__(self, config: Config) -> None:
        self._every = None if config.checkpoint.minutes is None else 60 * config.checkpoint.minutes
        self._ends = None if config.time_limit is None else STOP.began + config.time_limit
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._saves: deque[float] = deque(maxlen=RECENT)
        self._saved_at = time.monotonic()
        self._arm()

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self._every is not None and time.monotonic() - self._saved_at >= self._every

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        self._steps.append(seconds)
        self._arm()

    def saved(self, seconds: float) -> None:
        """A save took so long, and is over."""
        self._saves.append(seconds)
        self._saved_at = time.monotonic()
        self._arm()

    def _arm(self) -> None:
        if self._ends is None:
            return
        step = max(self._steps, default=0.0)
        STOP.at(self._ends - LEAVING - LONGER * (step + max(self._saves, default=step)))

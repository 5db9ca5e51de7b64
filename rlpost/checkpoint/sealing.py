"""Work on a finished draft that the training need not wait for: one at a time, in a thread, and never lost in silence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Sealing:
    """A piece of work under way, and what became of it.

    Args:
        deadline: seconds that whoever joins waits for it.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._thread: threading.Thread | None = None
        self._what = ""
        self._failed: BaseException | None = None
        self._told: Callable[[], None] | None = None

    def start(self, what: str, work: Callable[[], Any], told: Callable[[], None] | None = None) -> None:
        """Begin, after what was begun before.

        Args:
            what: what is done, in words.
            told: called by whoever joins, in their thread, once it went well.
        """
        self.join()

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised by whoever joins
                self._failed = error

        self._what, self._told = what, told
        # It holds nobody up who leaves without a word: what it works on is a draft until the last moment.
        self._thread = threading.Thread(target=run, name="sealing", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Join what is over, without waiting for what is not."""
        if self._thread is not None and not self._thread.is_alive():
            self.join()

    def join(self) -> None:
        """Wait until it is over. Within the thread itself there is nothing to wait for.

        Raises:
            Exception: what went wrong, once.
            TimeoutError: it is not over at the deadline.
        """
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        thread.join(self.deadline)
        if thread.is_alive():
            raise TimeoutError(f"waited {self.deadline:.0f} s for {self._what}")
        failed, told = self._failed, self._told
        self._thread = self._failed = self._told = None
        if failed is not None:
            raise failed
        if told is not None:
            told()

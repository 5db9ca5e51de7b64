"""Removing folders that a worker, or a program nobody trusts, wrote to."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess


def remove(path: str) -> None:
    """Remove a folder whatever is in it; nothing but it and what is below is touched, and one that is gone is no error."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):  # folders without the right to list them, or nested deeper than Python can follow
        for command in ("chmod", "-R", "u+rwx"), ("rm", "-rf"):
            with contextlib.suppress(OSError):
                subprocess.run([*command, "--", path], stdin=subprocess.DEVNULL, capture_output=True, check=False)

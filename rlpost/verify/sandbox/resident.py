"""Code of ours that lives in the zygote: loaded once, before anything is confined, and called in a fork per request.

No import here that a program of the sandbox need not have: what the zygote holds counts against each program's memory.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

INSTALLED = ("site-packages", "dist-packages")


def load(settings: Mapping[str, Any]) -> Callable[[bytes], bytes]:
    """In the zygote.

    Raises:
        ImportError: it does not load, or leaves threads behind, which no fork has.
    """
    import site

    for name in [name for name in sys.modules if name.partition(".")[0] == "rlpost"]:
        del sys.modules[name]  # stand-ins for the packages above the zygote
    os.environ.update(HOME=settings["home"], TMPDIR=settings["home"])
    for folder in settings["path"]:
        if os.path.basename(folder) in INSTALLED:
            site.addsitedir(folder)  # for the import hooks of packages installed in place
    sys.path[:] = settings["path"]
    module, _, name = settings["function"].partition(":")
    try:
        made: Callable[[bytes], bytes] = getattr(importlib.import_module(module), name)(settings["arguments"])
    except BaseException as error:  # whatever a foreign module raises while it is imported
        raise ImportError(f"{type(error).__name__}: {error}") from error
    for name in ("random", "tempfile"):  # each call needs them
        importlib.import_module(name)
    if "numpy" in sys.modules:
        importlib.import_module("numpy.random")  # else each fork would load it anew, and draw as it likes
    if others := [t.name for t in threading.enumerate() if t is not threading.main_thread()]:
        raise ImportError(f"it starts threads while it is loaded ({', '.join(others)}), which no fork of it would have")
    return made

"""`rlpost doctor`: is this the machine and the set of versions that was tested?"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import distributions

from rich.console import Console
from rich.table import Table

from rlpost import device
from rlpost.exit_codes import BAD_USAGE, DONE

TESTED = {
    "torch": "2.13.0",
    "vllm": "0.30.0",
    "transformers": "5.23.0",
    "ray": "2.60.0",
    "deepspeed": "0.19.8",
    "datasets": "5.2.0",
    "peft": "0.21.2",
    "math-verify": "0.9.0",
    "reasoning-gym": "0.1.25",
}


def show() -> int:
    """Print what is here; exit code 2 when a package is missing or of an untested version."""
    out = Console(soft_wrap=True)
    table = Table("package", "installed", "tested", "", box=None)
    wrong = []
    for name, tested in TESTED.items():
        installed = _installed(name)
        good = installed is not None and installed.split("+")[0] == tested
        if not good:
            wrong.append(name)
        table.add_row(name, installed or "missing", tested, "ok" if good else "not the tested one")
    out.print(table)
    out.print(f"python {sys.version.split()[0]}, {os.cpu_count()} cores, {_memory_gb():.0f} GiB memory")
    out.print(f"free disk here: {shutil.disk_usage('.').free / 2**30:.0f} GiB")
    out.print(f"accelerators: {_accelerators()}")
    _show_sandbox(out)
    if wrong:
        out.print(f"install the tested versions: make setup (requirements/*.lock); differing: {', '.join(wrong)}")
        return BAD_USAGE
    return DONE


def _show_sandbox(out: Console) -> None:
    """Which tier of the sandbox for generated code this machine gives; its attack list is run to find out."""
    from rlpost.verify.sandbox import probe, refuse_unsafe
    from rlpost.verify.sandbox.limits import SandboxError

    found = probe()
    out.print(f"sandbox for generated code: tier {found.tier} ({', '.join(found.layers) or 'no layer'})")
    if found.reason:
        out.print(f"  why not A: {found.reason}")
    stopped = sum(found.attacks.values())
    escaped = [name for name, held in found.attacks.items() if not held]
    out.print(f"  attacks stopped: {stopped} of {len(found.attacks)}{': not ' + ', '.join(escaped) if escaped else ''}")
    try:
        refuse_unsafe(found.tier, allow_unsafe=False, reason=found.reason)
    except SandboxError as error:
        out.print(f"  code rewards will refuse to start: {error}")


def _installed(name: str) -> str | None:
    """Version of a distribution, or of its CPU build."""
    found = [d.version for d in distributions() if d.name.lower().replace("_", "-") in (name, f"{name}-cpu")]
    return found[0] if found else None


def _memory_gb() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def _accelerators() -> str:
    if _installed("torch") is None:
        return "unknown (torch is missing)"
    return ", ".join(device.names()) or "none: rlpost runs on CPU"

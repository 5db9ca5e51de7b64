"""How much a sandbox is worth here, and the refusal to run the model's code in one that is worth too little."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rlpost.verify.sandbox.limits import SandboxError, Tier

log = logging.getLogger(__name__)

FIX = (
    "run on Linux 5.13 or newer with user namespaces (sysctl user.max_user_namespaces above 0; in Docker "
    "--security-opt seccomp=unconfined) or Landlock, install bubblewrap, or name a service by the verifier's `sandbox`"
)


@dataclass(frozen=True)
class Probe:
    """What is in force.

    Args:
        tier: A namespaces, Landlock and seccomp; B Landlock and seccomp; C namespaces of bwrap's or a remote service;
            D less than that.
        layers: those that stopped the attacks they are for.
        attacks: by name, whether it was stopped.
        reason: why the tier is not A; empty if it is.
    """

    tier: Tier
    layers: tuple[str, ...]
    attacks: Mapping[str, bool] = field(default_factory=dict)
    reason: str = ""


def tier_of(layers: Iterable[str], attacks: Mapping[str, bool]) -> Tier:
    """The tier that working layers and stopped attacks make."""
    found = set(layers)
    if not attacks or not all(attacks.values()) or not found >= {"seccomp", "rlimits"}:
        return "D"
    if found >= {"namespaces", "landlock"}:
        return "A"
    if "landlock" in found:
        return "B"
    # One wall around the files instead of two: our own namespaces, or bwrap's.
    return "C" if found & {"namespaces", "bwrap"} else "D"


def missing(layers: Iterable[str], attacks: Mapping[str, bool], failures: Sequence[str] = ()) -> str:
    """Why a tier is not A, in words."""
    found = set(layers)
    absent = [layer for layer in ("namespaces", "landlock", "seccomp", "rlimits") if layer not in found]
    escaped = [name for name, stopped in attacks.items() if not stopped]
    parts = [f"not in force: {', '.join(absent)}"] if absent else []
    parts += [f"not stopped: {', '.join(escaped)}"] if escaped else []
    return "; ".join([*parts, *failures])


def refuse_unsafe(tier: Tier, allow_unsafe: bool, reason: str = "") -> None:
    """Raise SandboxError on tier D, unless the configuration spells `allow_unsafe` out; then warn, at every start."""
    if tier != "D":
        return
    why = reason or "no layer here keeps a program from this machine's files"
    if not allow_unsafe:
        raise SandboxError(
            f"sandbox tier D: {why}. Code the model wrote does not run here. Fix: {FIX}; "
            "or set verifier_pool.allow_unsafe: true to run it all the same, with this machine's files open to it"
        )
    log.warning("sandbox tier D (%s): allow_unsafe is set, code the model wrote can reach this machine's files", why)


def bwrap_command(system: Sequence[str], hidden: Sequence[str], given: Sequence[str], scratch: str) -> list[str] | None:
    """bubblewrap around a zygote: namespaces, a read-only root, nobody. None where it is not installed."""
    program = shutil.which("bwrap")
    if program is None:
        return None
    command = [program, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--uid", "65534", "--gid", "65534", "--dev", "/dev", "--proc", "/proc"]
    for path in system:
        command += ["--ro-bind-try", path, path]
    for path in hidden:
        if os.path.isdir(path) and any(inside(path, folder) for folder in system):
            command += ["--tmpfs", path]
    for path in given:
        command += ["--ro-bind-try", path, path]
    return [*command, "--bind", scratch, scratch, "--chdir", "/", "--"]


def inside(path: str, folder: str) -> bool:
    """Whether an absolute path is that folder or below it; links are not followed."""
    return os.path.commonpath((path, folder)) == folder

"""A machine examined: is it, with what is installed on it, what rlpost was tested on and can run on? Plain data, so that
every node of a cluster can be asked the same."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution, distributions, requires
from pathlib import Path

from packaging.requirements import Requirement

from rlpost import device

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
SHARED_MEMORY = Path("/dev/shm")
INFINIBAND = Path("/sys/class/infiniband")
LEAST_FILES = 4096  # open at once: Ray's processes and their sockets
# The least driver that a CUDA release runs on, by NVIDIA's table of minor version compatibility.
LEAST_DRIVER = {12: 525, 13: 580}


@dataclass(frozen=True)
class Finding:
    """What was looked at and found. `remedy` is what to do about it, empty when all is well."""

    what: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Machine:
    """One machine: its name, its packages by name, everything else that was looked at, and GiB of each of its GPUs."""

    name: str
    python: str
    packages: dict[str, str]
    findings: list[Finding]
    gpus: tuple[float, ...] = ()

    def unlike(self, other: Machine) -> list[Finding]:
        """What differs here from another machine of the same run."""
        mine, its = {"python": self.python, **self.packages}, {"python": other.python, **other.packages}
        return [
            Finding(f"{name} on {self.name}", mine[name], f"{its[name]} on {other.name}: install the same on all nodes")
            for name in mine
            if mine[name] != its[name]
        ]


def examine(store_gb: float, folders: tuple[str, ...] = ()) -> Machine:
    """This machine.

    Args:
        store_gb: of Ray's object store, which is shared memory.
        folders: that must be here, as they are on the machine that asks.
    """
    packages = {name: installed(name) or "missing" for name in TESTED}
    findings = [*_versions(packages), *_pins(), *_gpus(), _shared_memory(store_gb), *_limits()]
    findings += [_folder(name) for name in folders]
    driver = device.driver()
    gpus = tuple(gpu.total_gb for gpu in driver.gpus) if driver is not None else ()
    return Machine(socket.gethostname(), ".".join(map(str, sys.version_info[:3])), packages, findings, gpus)


def installed(name: str) -> str | None:
    """Version of a distribution, or of its CPU build."""
    found = [d.version for d in distributions() if d.name.lower().replace("_", "-") in (name, f"{name}-cpu")]
    return found[0] if found else None


def _versions(packages: dict[str, str]) -> list[Finding]:
    remedy = "install the tested versions: make setup (requirements/*.lock)"
    return [
        Finding(
            name, version, "" if version.split("+")[0] == TESTED[name] else f"not the tested {TESTED[name]}: {remedy}"
        )
        for name, version in packages.items()
    ]


def _pins() -> list[Finding]:
    """Packages that torch asks for in one version alone, Triton and CUDA's among them, installed in another.

    pip does not mind when they are installed by a lock file; torch compiles kernels with them.
    """
    try:
        asked = [Requirement(text) for text in requires("torch") or ()]
    except PackageNotFoundError:
        return []
    findings = []
    for one in asked:
        if not any(pin.operator == "==" for pin in one.specifier) or (
            one.marker and not one.marker.evaluate({"extra": ""})
        ):
            continue
        try:
            version = distribution(one.name).version
        except PackageNotFoundError:
            version = "missing"
        good = version != "missing" and one.specifier.contains(version, prereleases=True)
        remedy = "" if good else f"torch {installed('torch')} is made for {one.name}{one.specifier}: install that"
        findings.append(Finding(one.name, version, remedy))
    return findings


def _gpus() -> list[Finding]:
    import torch

    driver, built = device.driver(), torch.version.cuda
    if driver is None:
        wants = (
            "" if built is None else f"torch is built for CUDA {built}: install a driver, or torch for CPU (make setup)"
        )
        return [Finding("GPUs", "none: rlpost runs on CPU", wants)]
    findings = [Finding("GPUs", ", ".join(f"{gpu.name}, {gpu.total_gb:.0f} GiB" for gpu in driver.gpus) or "none")]
    if built is None:
        remedy = "torch is built for CPU and does not see them: make setup EXTRA=gpu"
        return [*findings, Finding("driver", driver.version, remedy)]
    least = LEAST_DRIVER.get(int(built.split(".")[0]))
    old = least is not None and int(driver.version.split(".")[0]) < least
    remedy = f"CUDA {built}, which torch is built for, wants {least} or newer: update the driver" if old else ""
    findings.append(Finding("driver", driver.version, remedy))
    findings.append(
        Finding("NCCL", device.nccl() or "missing", "" if device.nccl() else "torch has none: make setup EXTRA=gpu")
    )
    if INFINIBAND.is_dir() and any(INFINIBAND.iterdir()):
        locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        unlimited = locked == resource.RLIM_INFINITY
        remedy = "" if unlimited else "InfiniBand registers memory, and NCCL fails without room: ulimit -l unlimited"
        findings.append(
            Finding("memory that may be locked", "all" if unlimited else f"{locked / 2**20:.0f} MiB", remedy)
        )
    return findings


def _shared_memory(store_gb: float) -> Finding:
    if not SHARED_MEMORY.is_dir():
        return Finding(str(SHARED_MEMORY), "missing", "Ray's object store and NCCL use it: mount it (tmpfs)")
    free = shutil.disk_usage(SHARED_MEMORY).free / 2**30
    remedy = f"less than cluster.object_store_gb ({store_gb:g}): docker run --shm-size, or lower that"
    return Finding(str(SHARED_MEMORY), f"{free:.1f} GiB free", remedy if free < store_gb else "")


def _limits() -> list[Finding]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = 0 <= files < LEAST_FILES
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return [
        Finding("open files", str(files), f"Ray needs more: ulimit -n {LEAST_FILES} or higher" if few else ""),
        Finding("cores, memory", f"{os.cpu_count()}, {memory:.0f} GiB"),
        Finding("free disk here", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB"),
    ]


def _folder(name: str) -> Finding:
    seen = Path(name).exists()
    return Finding(
        name, "is here" if seen else "is not here", "" if seen else "put it on a file system that all nodes share"
    )


def here(findings: list[Finding], name: str) -> list[Finding]:
    """The same, said of the machine of this name."""
    return [replace(finding, what=f"{finding.what} on {name}") for finding in findings]

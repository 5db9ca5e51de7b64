"""What is found wrong with a machine. In the place of NVIDIA's library stands a module that says what it would."""

from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from rlpost import device, machine, memory
from rlpost.commands.doctor import planned
from rlpost.config import load
from rlpost.machine import Finding, Machine, examine
from tests.conftest import ROOT


class NVMLError(Exception):
    pass


def nvml(monkeypatch, driver: str | None = "580.65.06", gpus: int = 2) -> None:
    """A machine with this driver, or one with NVIDIA's library and no driver."""

    def begin() -> None:
        if driver is None:
            raise NVMLError

    fake = ModuleType("pynvml")
    fake.__dict__.update(
        NVMLError=NVMLError,
        nvmlInit=begin,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: gpus,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetName=lambda handle: f"H100 number {handle}",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=handle * 2**30, total=80 * 2**30),
        nvmlSystemGetDriverVersion=lambda: driver,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)


def wrong(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.remedy for finding in findings if finding.remedy}


def test_gpus_are_counted_by_the_driver(monkeypatch):
    nvml(monkeypatch)
    assert device.memory_in_use() == ["GPU 0 0.0 of 80.0 GiB", "GPU 1 1.0 of 80.0 GiB"]
    nvml(monkeypatch, driver=None)
    assert device.driver() is None
    assert device.memory_in_use() == []


def test_without_a_driver_rlpost_runs_on_cpu(monkeypatch):
    nvml(monkeypatch, driver=None)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert wrong(machine._gpus()) == {}


@pytest.mark.parametrize(
    ("driver", "cuda", "what", "remedy"),
    [
        (None, "13.0", "GPUs", "install a driver"),
        ("580.65.06", None, "driver", "make setup EXTRA=gpu"),
        ("570.133.07", "13.0", "driver", "wants 580 or newer"),
    ],
)
def test_a_driver_that_is_missing_too_old_or_not_seen_has_a_remedy(monkeypatch, driver, cuda, what, remedy):
    nvml(monkeypatch, driver=driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(device, "nccl", lambda: "2.28.3")
    assert remedy in wrong(machine._gpus())[what]


def test_a_machine_with_gpus_that_fit_has_nothing_to_mend(monkeypatch):
    nvml(monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device, "nccl", lambda: "2.28.3")
    monkeypatch.setattr(machine, "INFINIBAND", machine.Path("/not/there"))
    assert wrong(machine._gpus()) == {}


def test_locked_memory_matters_where_there_is_infiniband(monkeypatch, tmp_path):
    nvml(monkeypatch)
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(machine, "INFINIBAND", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device, "nccl", lambda: "2.28.3")
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (8 * 2**20, 8 * 2**20))
    assert wrong(machine._gpus()) == {
        "memory that may be locked": "InfiniBand registers memory, and NCCL fails without room: ulimit -l unlimited"
    }


def test_a_package_that_torch_pins_in_another_version_is_found(monkeypatch):
    asked = [
        "triton==3.7.1; platform_system == 'Linux'",
        "nvidia-nccl-cu13==2.28.3",
        "sympy>=1.13",
        "odd==1; extra == 'odd'",
    ]
    have = {"triton": "3.9.0", "nvidia-nccl-cu13": "2.28.3"}

    def find(name: str) -> SimpleNamespace:
        if name not in have:
            raise importlib.metadata.PackageNotFoundError(name)
        return SimpleNamespace(version=have[name])

    monkeypatch.setattr(machine, "requires", lambda name: asked)
    monkeypatch.setattr(machine, "distribution", find)
    assert [finding.what for finding in machine._pins()] == ["triton", "nvidia-nccl-cu13"]
    (remedy,) = wrong(machine._pins()).values()
    assert remedy.endswith("is made for triton==3.7.1: install that")
    del have["triton"]
    assert machine._pins()[0].found == "missing"


@pytest.mark.parametrize("problem", ["", "too much: set learner.tokens_per_micro_batch: 64"])
def test_gpus_are_held_against_the_plan_of_a_run(monkeypatch, problem):
    asked = {}

    def plan(config: object, facts: object, gib: float) -> SimpleNamespace:
        asked["gib"] = gib
        return SimpleNamespace(problems=[problem] if problem else [])

    monkeypatch.setattr(memory, "memory_of", plan)
    found = planned(load([ROOT / "configs" / "qwen3_0.6b_gsm8k_1gpu.yaml"], []), 20.0)
    assert asked == {"gib": 20.0}
    assert (found.found, found.remedy) == ("20.0 GiB", problem)


def test_shared_memory_must_hold_the_object_store():
    assert wrong(examine(0.0).findings).get("/dev/shm") is None
    assert "cluster.object_store_gb (1e+09)" in wrong(examine(1e9).findings)["/dev/shm"]


def test_a_folder_that_is_not_here_is_not_shared(tmp_path):
    there, gone = str(tmp_path), str(tmp_path / "gone")
    found = wrong(examine(0.0, (there, gone)).findings)
    assert there not in found
    assert found[gone] == "put it on a file system that all nodes share"


def test_two_machines_are_compared_by_python_and_packages():
    one = Machine("a", "3.11.7", {"torch": "2.13.0", "ray": "2.60.0"}, [])
    other = Machine("b", "3.11.9", {"torch": "2.13.0", "ray": "2.59.0"}, [])
    assert wrong(one.unlike(other)) == {
        "python on a": "3.11.9 on b: install the same on all nodes",
        "ray on a": "2.59.0 on b: install the same on all nodes",
    }
    assert one.unlike(one) == []

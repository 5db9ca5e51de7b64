"""The locks against what their packages state of themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
STATED = ROOT / "requirements" / "torch-cuda.txt"


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def locked(extra: str) -> dict[str, str]:
    """Version by canonical name."""
    pairs = [line.split("==") for line in lines(ROOT / "requirements" / f"{extra}.lock")]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("stated", lines(STATED))
def test_the_lock_has_the_cuda_packages_that_torch_asks_for(stated: str):
    asked, have = Requirement(stated), locked("gpu")
    version = have.get(canonicalize_name(asked.name))
    assert version is not None, f"{asked.name} is of torch's, and whatever version is newest would be installed"
    assert asked.specifier.contains(version), f"the lock's {asked.name}=={version} would replace what torch asks for"


def test_what_torch_asks_for_was_read_of_the_torch_that_is_installed():
    wanted = re.search(r"^TORCH \?= torch==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert wanted is not None
    assert f"torch-{wanted[1]}-cp311-cp311-manylinux" in STATED.read_text()


def test_all_of_the_lock_is_of_one_cuda_toolkit():
    have = locked("gpu")
    toolkit = have["cuda-toolkit"].rpartition(".")[0].rpartition(".")[0]
    ours = ("cccl", "crt", "cupti", "nvcc", "nvrtc", "runtime")
    assert {have[f"nvidia-cuda-{name}"].rpartition(".")[0] for name in ours} == {toolkit}


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_torch_is_installed_under_the_lock_so_that_pip_refuses_one_that_disagrees(extra: str):
    makefile = (ROOT / "Makefile").read_text()
    (torch,) = [line for line in makefile.splitlines() if "$(TORCH) " in line]
    assert "--constraint requirements/$(EXTRA).lock" in torch
    assert "torch" not in locked(extra), "the Makefile alone says which"

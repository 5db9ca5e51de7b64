"""`make setup` on machines that are not here: DeepSpeed's own questions, asked as its installation asks them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What DeepSpeed's setup.py asks of each of its kernels, on a machine with a GPU and without nvcc. While it is installed
# there is no package `deepspeed` yet: its folders `op_builder` and `accelerator` stand on the path by themselves.
ASKED = """
import importlib.util, pathlib, sys
import torch
import torch.utils.cpp_extension

torch.cuda.is_available, torch.cuda.device_count, torch.version.cuda = lambda: True, lambda: 1, "13.0"
torch.utils.cpp_extension.CUDA_HOME = None
folder = pathlib.Path(importlib.util.find_spec("deepspeed").origin).parent
sys.path += [str(folder), str(folder / "ops")]
sys.modules["deepspeed"] = None
from op_builder.all_ops import ALL_OPS

print(len(ALL_OPS), [builder.is_compatible() for builder in ALL_OPS.values()])
"""


def asked(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    bare = {key: value for key, value in os.environ.items() if not key.startswith(("DS_", "CUDA_"))}
    return subprocess.run(
        [sys.executable, "-c", ASKED], env={**bare, **environment}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_deepspeed_is_installed_on_a_gpu_machine_that_has_no_nvcc(extra: str, tmp_path: Path):
    made = subprocess.run(
        ["make", "--dry-run", "setup", f"EXTRA={extra}", f"VENV={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    (line,) = [line for line in made.stdout.splitlines() if re.search(r" deepspeed==\S+$", line)]
    environment = dict(word.split("=", 1) for word in line[: line.index(str(tmp_path))].split())
    done = asked(environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) > 0, "nothing was asked"


def test_the_question_is_one_that_deepspeed_fails_at_where_it_is_left_to_itself():
    done = asked({"DS_BUILD_OPS": "0"})
    assert done.returncode == 1
    assert "CUDA_HOME does not exist" in done.stderr

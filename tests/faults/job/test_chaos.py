"""Everything around a run breaks at random for two minutes, and it comes to its end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.long]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare: nothing can be mounted aside")
@pytest.mark.timeout(900)
def test_a_run_survives_two_minutes_of_chaos(write_config, tmp_path):
    evaluation = {"before": False, "samples_per_prompt": 8, "k": [1]}
    # Until a tenth of the samples is right: there is something to keep, and something to lose.
    learns = {"warmup": {"steps": 120}, "learner": {"lr": 4e-4, "prompts_per_step": 16}}
    path = write_config(steps=200, evaluation=evaluation, **learns)
    found = tmp_path / "found.json"
    command = [
        sys.executable,
        "benchmarks/chaos.py",
        "--duration",
        "120",
        "--seed",
        "1",
        "--config",
        path,
        "--out",
        found,
    ]
    done = subprocess.run([*map(str, command)], cwd=ROOT, text=True, capture_output=True, timeout=850)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    said = json.loads(found.read_text())
    assert said["faults"]
    assert not said["problems"]

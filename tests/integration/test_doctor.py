"""`rlpost doctor CONFIG` on a cluster of one node."""

from __future__ import annotations

import subprocess
import sys

import pytest
import ray

from tests.conftest import ROOT

pytestmark = pytest.mark.integration


def test_the_nodes_of_the_cluster_are_looked_at_too(ray_cluster, write_config):
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "rlpost.cli", "doctor", str(write_config()), f"cluster.address={address}"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith("nodes ")]
    assert address.partition(":")[0] in line
    assert line.rstrip().endswith("ok")

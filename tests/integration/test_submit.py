"""A run submitted to a Ray cluster that wants a token, with a verifier from the user's own folder."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, tiny

pytestmark = pytest.mark.integration

VERIFIER = '''"""A user's own verifier: it imports nothing of rlpost."""

import re


def score(response, reference, entry):
    """1 when the response uses each number of the task once and in no other way; it need not reach the target."""
    return sorted(map(int, re.findall("[0-9]+", response))) == sorted(entry["metadata"]["numbers"])
'''


def free_port() -> int:
    """A free port below the ranges Ray takes its workers' (10002 up) and agents' ports from."""
    for port in random.sample(range(7000, 9999), 100):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError("no free port between 7000 and 9999")


@pytest.fixture
def cluster(tmp_path):
    """A cluster made by the launcher, with a token of its own: (address, environment of a client that has the token)."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "RAY_PORT": str(free_port()),
        "DASHBOARD_PORT": str(free_port()),
        # The job's `python` is the one of the environment the cluster was started in.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    (tmp_path / "token").write_text(secrets.token_hex(32))
    log = tmp_path / "cluster.log"
    temp = Path(tempfile.mkdtemp(prefix="rlpost-"))  # short: Unix sockets lie in it
    with log.open("w") as out:
        launcher = subprocess.Popen(
            ["bash", "launchers/local_cluster.sh", "--num-cpus", "4", "--temp-dir", str(temp)],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while "The cluster is up." not in log.read_text():
            assert launcher.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{environment['DASHBOARD_PORT']}", environment
    finally:
        launcher.terminate()
        launcher.wait(60)
        shutil.rmtree(temp, ignore_errors=True)


def submit(address: str, folder: Path, environment: dict[str, str], *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rlpost.cli", "submit", "config.yaml", "--address", address, *more],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        timeout=420,
    )


def test_a_submitted_run_finishes_with_the_users_verifier_and_its_log_is_streamed(cluster, tmp_path):
    address, environment = cluster
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_rewards.py").write_text(VERIFIER)
    config = tiny(
        name="submitted",
        runs_dir=str(tmp_path / "runs"),
        verifiers=[{"name": "my_rewards.py:score"}],
        evaluation={"before": False},
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config))

    refused = submit(address, folder, {**os.environ, "RAY_AUTH_MODE": "disabled"}, "--deadline", "5")
    assert refused.returncode == 2, refused.stderr
    assert "token" in refused.stderr

    done = submit(address, folder, environment, "steps=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout
    assert "succeeded" in done.stdout
    assert (tmp_path / "runs" / "submitted" / "summary.json").is_file()

    (folder / "my_rewards.py").unlink()
    missing = submit(address, folder, environment)
    assert missing.returncode == 2
    assert "my_rewards.py" in missing.stderr

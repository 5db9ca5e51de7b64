"""A run submitted to a Ray cluster that wants a token, with a verifier from the user's own folder."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
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
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def cluster(tmp_path):
    """A head node of its own with token authentication: (address, environment of a client that has the token)."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # The job's `python` is the one of the environment the cluster was started in.
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    port, dashboard = free_port(), free_port()
    temp = Path("/tmp") / f"rlpost-ray-{os.getpid()}"  # short: Unix sockets lie in it
    ray = Path(sys.executable).parent / "ray"
    head = subprocess.Popen(
        [
            str(ray),
            "start",
            "--head",
            "--block",
            "--num-cpus=4",
            f"--port={port}",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--temp-dir={temp}",
            f"--object-store-memory={300 * 2**20}",
            "--disable-usage-stats",
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=5)
                break
            except urllib.error.HTTPError:
                break  # it is there, and wants the token
            except (urllib.error.URLError, OSError):
                assert head.poll() is None, head.stdout.read() if head.stdout else ""
                assert time.monotonic() < deadline, "no dashboard within two minutes"
                time.sleep(0.5)
        yield address, environment
    finally:
        head.terminate()
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, 9)
            head.wait(10)
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

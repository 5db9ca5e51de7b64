"""A run on two hosts whose link is cut, for a while or for good, or loses packets: named, bounded, resumed.

The driver and its verifiers are on one host, the engine and the learner's rank on the other, so that sampling, updates and
saves all cross the link. What is cut is cut at a place of the run's: the driver stops itself there, and goes on once the
link is as it is to be.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlpost.exit_codes import DONE, FAULT
from tests.conftest import ROOT
from tests.faults.network.hosts import Hosts, why_not
from tests.integration.test_train import command, environment, metrics

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]

PORT, DEADLINE = 6379, 60
# By phase the place before it, and of what the last line speaks where the link does not come back.
PHASES = {
    "sampling": ("driver.reported:stop@step=2", ("engine", "group")),
    "update": ("driver.sampled:stop@step=3", ("learner",)),
    "sync": ("driver.learned:stop@step=3", ("learner", "engine", "weights")),
    "save": ("save.begin:stop@step=2", ("learner",)),
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    yield made
    made.close()


@contextmanager
def nodes(hosts: Hosts, folder: Path, cpus: tuple[int, int]) -> Iterator[str]:
    """A Ray node on each host, with so many CPU slots. Gives the address of the first."""
    # A socket's path may be 107 characters long.
    temporary = Path("/tmp") / f"rl{os.getpid()}n"
    settings = surroundings() | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--object-store-memory=120000000"]
    address = f"{hosts.addresses[0]}:{PORT}"
    roles = (
        ["--head", f"--port={PORT}", f"--temp-dir={temporary}", "--include-dashboard=false"],
        [f"--address={address}"],
    )
    started = []
    try:
        for host, role in enumerate(roles):
            given = [*ray, *role, f"--node-ip-address={hosts.addresses[host]}", f"--num-cpus={cpus[host]}"]
            log = folder / f"node{host}.log"
            with log.open("w") as out:
                started.append(subprocess.Popen(hosts.on(host, given), env=settings, stdout=out, stderr=out))
            await_start(started[-1], log)
        yield address
    finally:
        for process in started[::-1]:
            process.terminate()
        for process in started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        hosts.end()
        subprocess.run(["rm", "-rf", str(temporary)], check=True)


def surroundings(faults: str = "") -> dict[str, str]:
    """The environment of nodes and driver. Nobody else reaches the two hosts, so that a token guards nothing."""
    return {**environment(faults), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}


def await_start(process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while "Ray runtime started" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)


@contextmanager
def driver(hosts: Hosts, log: Path, *arguments: object, faults: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """The command on the first host."""
    with log.open("w") as out:
        given = hosts.on(0, command(*arguments))
        process = subprocess.Popen(given, env=surroundings(faults), cwd=ROOT, stdout=out, stderr=out)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def run(hosts: Hosts, log: Path, *arguments: object) -> str:
    with driver(hosts, log, *arguments) as process:
        assert process.wait(400) == DONE, log.read_text()
    return log.read_text()


def await_stop(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the driver has stopped itself at the failpoint."""
    end = time.monotonic() + 300
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def last(said: str) -> str:
    """What the command ended with; nothing where it said nothing."""
    return said[said.rfind("rlpost: ") :] if "rlpost: " in said else ""


@pytest.fixture
def config(write_config, tmp_path):
    def write(address: str) -> tuple[Path, Path]:
        path = write_config(
            name="run",
            steps=4,
            warmup=None,
            objective={"regularizers": [{"divergence": "entropy", "coef": 0.1}]},  # rewards are all 0
            evaluation={"before": False, "after": False},
            checkpoint={"every": 2},
            rollout={"deadline": DEADLINE, "sync_deadline": DEADLINE},
            learner={"deadline": DEADLINE},
            cluster={"address": address, "start_deadline": 300},
        )
        return path, tmp_path / "runs" / "run"

    return write


def test_engines_and_ranks_on_two_hosts_exchange_weights(hosts, config, tmp_path):
    with nodes(hosts, tmp_path, (1, 1)) as address:
        path, made = config(address)
        run(hosts, tmp_path / "log", "train", path)
    rows = metrics(made)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["mismatch/logp_abs_max"] < 1e-4 for row in rows), "engines serve what the ranks learned"
    assert all(row["grad_norm"] > 0 for row in rows), "there was something to send"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fault", ["cut for 20 s", "cut for good", "losing 30 %"])
def test_a_bad_link_is_named_and_bounded_and_the_run_resumes(hosts, config, tmp_path, fault, phase):
    place, words = PHASES[phase]
    log = tmp_path / "log"
    with nodes(hosts, tmp_path, (0, 2)) as address:
        path, made = config(address)
        with driver(hosts, log, "train", path, faults=place) as process:
            await_stop(process, log)
            hosts.lose(0.3 if fault == "losing 30 %" else 1)
            try:
                process.send_signal(signal.SIGCONT)
                if fault == "cut for 20 s":
                    time.sleep(20)
                    hosts.lose(0)
                code = process.wait(DEADLINE + 240)
            finally:
                hosts.lose(0)
    said = log.read_text()
    if fault == "cut for good":
        assert code == FAULT, said
        assert any(word in last(said) for word in words), said
        assert hosts.addresses[1] in said, "who is not reached, and where"
    else:
        assert code in (DONE, FAULT), said  # how long one waits for what was lost is TCP's to say
    if code == FAULT:
        assert last(said), said
        with nodes(hosts, tmp_path, (0, 2)) as address:
            run(hosts, log, "resume", made, f"cluster.address={address}")
    rows = metrics(made)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["mismatch/logp_abs_max"] < 1e-4 for row in rows), "no update was taken in part"

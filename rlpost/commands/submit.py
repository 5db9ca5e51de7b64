"""`rlpost submit`: a run as a job of an existing Ray cluster, through Ray's job API."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rlpost.commands.travel import below, check_travels, pack
from rlpost.config import Config, ConfigError, load_arguments, paths_of, split_arguments
from rlpost.exit_codes import DONE, FAULT
from rlpost.run.check import check_memory, checked

# What of the user's environment the job gets. No secrets: Ray shows a job's environment in its dashboard.
TRAVELS = ("RLPOST_FAULTS", "HF_HUB_OFFLINE", "MLFLOW_TRACKING_URI")

LISTENS = 3.0  # seconds within which a dashboard must take a connection; it may then still be starting

T = TypeVar("T")


def run(arguments: list[str], address: str, working_dir: Path, detach: bool, deadline: float, restarts: int = 0) -> int:
    """Upload the working directory with the configuration in it, start the job, stream its log.

    Returns:
        the job's own verdict: 0 when it succeeded, 5 when it failed or was stopped.

    Raises:
        ConfigError: before anything is uploaded: the job could not run, or something of it would not travel.
    """
    folder = working_dir.expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"--working-dir {str(working_dir)!r} is not a folder")
    folder = folder.resolve()
    files, overrides = split_arguments(arguments)
    files = [os.path.abspath(f) for f in files]
    here = Path.cwd()
    with contextlib.chdir(folder):  # relative paths start there on the cluster, so they do here
        config = load_arguments(files, overrides)
        luggage = pack(folder, config.runs_dir)
        notes = check_travels(config, [Path(f) for f in files], luggage, here)
        looked = checked(config, elsewhere=True)
        check_memory(looked.config, looked.facts)
    for line in luggage.lines():
        print(line)
    for note in [*looked.lines, *notes]:
        print(f"note: {note}", file=sys.stderr)
    client = connect(address, deadline)
    job = _retried(
        lambda: client.submit_job(
            entrypoint=entrypoint(files, overrides, folder, restarts),
            runtime_env={
                "working_dir": str(folder),
                "excludes": list(luggage.excludes),
                "env_vars": environment(config),
            },
            metadata={"rlpost_config": Path(files[-1]).name},
        ),
        address,
        deadline,
    )
    print(f"submitted job {job} to {address}", flush=True)
    if detach:
        print(f"follow it with: ray job logs --address {address} --follow {job}")
        return DONE
    try:
        asyncio.run(_stream(client, job))
    except KeyboardInterrupt:
        print(f"\nthe job goes on; stop it with: ray job stop --address {address} {job}", file=sys.stderr)
        raise
    return _verdict(client, job)


def entrypoint(files: Sequence[str], overrides: Sequence[str], folder: Path, restarts: int = 0) -> str:
    """The same command on the cluster: files relative to the working directory, overrides as they were typed."""
    inside = [str(below(Path(f), folder)) for f in files]
    # The job's Ray is the cluster's own: the address comes from the job, not from the file.
    again = ["--restarts", str(restarts)] if restarts else []
    return shlex.join(["python", "-m", "rlpost.cli", "train", *again, *inside, *overrides])


def environment(config: Config) -> dict[str, str]:
    """The variables a job gets: those that its paths are made of, but for the home folder, and those of `TRAVELS`."""
    named = {name for path in paths_of(config) for name in path.value.variables} - {"HOME", "USER", "PWD"}
    return {name: os.environ[name] for name in sorted({*TRAVELS, *named}) if name in os.environ}


def connect(address: str, deadline: float) -> Any:
    """A client of the cluster's job server.

    Raises:
        ConfigError: when it cannot be reached or refuses the token, with what Ray said.
    """
    from ray.job_submission import JobSubmissionClient

    check_address(address, min(deadline, LISTENS))
    return _retried(lambda: JobSubmissionClient(address), address, deadline)


def check_address(address: str, deadline: float) -> None:
    """Refuse an address that is none, and one where nothing listens for `deadline` seconds."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:  # the port
        host = port = None
    if host is None or port is None or parts.scheme not in ("http", "https"):
        raise ConfigError(f"--address {address!r} must be the dashboard's, such as http://127.0.0.1:8265")
    started = time.monotonic()
    while True:
        try:
            socket.create_connection((host, port), timeout=deadline).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() - started > deadline:
                raise ConfigError(
                    f"--address {address}: nothing answers there ({error}): is the cluster up, and is this its "
                    "dashboard's host and port?"
                ) from None
            time.sleep(0.2)


def _retried(call: Callable[[], T], address: str, deadline: float) -> T:
    """Call the job server until it answers: a cluster that has just started may not take jobs for some seconds."""
    from ray.exceptions import AuthenticationError

    started = time.monotonic()
    while True:
        try:
            return call()
        except AuthenticationError as error:
            raise ConfigError(
                f"--address {address}: the cluster wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or "
                f"RAY_AUTH_TOKEN_PATH. Ray said: {error}"
            ) from None
        except (ConnectionError, RuntimeError) as error:
            text = str(error)
            transient = isinstance(error, ConnectionError) or "try again later" in text
            if not transient or time.monotonic() - started > deadline:
                raise ConfigError(
                    f"--address {address}: no job was accepted within {time.monotonic() - started:.0f} s; is the "
                    f"dashboard there, and is it this port? Ray said: {text}"
                ) from None
            time.sleep(1)


async def _stream(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def _verdict(client: Any, job: str) -> int:
    """Wait for the job's final state, which may come a little after its last line."""
    from ray.job_submission import JobStatus

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        info = client.get_job_info(job)
        if info.status == JobStatus.SUCCEEDED:
            print(f"job {job} succeeded")
            return DONE
        if info.status in (JobStatus.FAILED, JobStatus.STOPPED):
            print(f"rlpost: job {job} {info.status.value.lower()}: {info.message}", file=sys.stderr)
            code = info.driver_exit_code
            return code if isinstance(code, int) and code > 0 else FAULT
        time.sleep(0.5)
    print(f"rlpost: job {job} is still {info.status.value} a minute after its log ended", file=sys.stderr)
    return FAULT

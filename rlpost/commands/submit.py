"""`rlpost submit`: a run as a job of an existing Ray cluster, through Ray's job API."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rlpost.config import Config, ConfigError, split_arguments
from rlpost.exit_codes import DONE, FAULT

# What of the user's environment the job gets. No secrets: Ray shows a job's environment in its dashboard.
TRAVELS = ("RLPOST_FAULTS", "HF_HUB_OFFLINE", "MLFLOW_TRACKING_URI")

T = TypeVar("T")


def run(config: Config, arguments: list[str], address: str, working_dir: Path, detach: bool, deadline: float) -> int:
    """Upload the working directory with the configuration in it, start the job, stream its log.

    Returns:
        the job's own verdict: 0 when it succeeded, 5 when it failed or was stopped.
    """
    working_dir = working_dir.resolve()
    check_travels(config, working_dir)
    client = connect(address, deadline)
    environment = {k: v for k, v in os.environ.items() if k in TRAVELS}
    job = _retried(
        lambda: client.submit_job(
            entrypoint=entrypoint(arguments, working_dir),
            runtime_env={
                "working_dir": str(working_dir),
                "excludes": ["runs/", ".venv/", ".git/", "**/__pycache__/"],
                "env_vars": environment,
            },
            metadata={"rlpost_config": Path(split_arguments(arguments)[0][-1]).name},
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


def entrypoint(arguments: list[str], working_dir: Path) -> str:
    """The same command on the cluster: files relative to the working directory, overrides as they were typed."""
    files, overrides = split_arguments(arguments)
    inside = [str(Path(f).resolve().relative_to(working_dir)) for f in files]
    # The job's Ray is the cluster's own: the address comes from the job, not from the file.
    return shlex.join(["python", "-m", "rlpost.cli", "train", *inside, *overrides])


def check_travels(config: Config, working_dir: Path) -> None:
    """Refuse before submission what the cluster would not find: files outside the working directory.

    Raises:
        ConfigError: naming each file and the fix.
    """
    values: Any = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    missing = [
        f"{key}: {path}"
        for key, path in _files(values)
        if not Path(path).is_absolute() and not (working_dir / path).exists()
    ]
    absolute = [f"{key}: {path}" for key, path in _files(values) if Path(path).is_absolute()]
    if missing:
        raise ConfigError(
            f"these files are not in the working directory {working_dir}, which is what travels to the cluster: "
            f"{'; '.join(missing)}. Submit from the folder that has them, or give --working-dir"
        )
    if not Path(config.runs_dir).is_absolute():
        print(
            f"note: runs_dir {config.runs_dir!r} is relative: the run is written into the cluster's copy of the working "
            "directory, which Ray deletes after a while. Give a folder that all nodes share: runs_dir=/shared/runs",
            file=sys.stderr,
        )
    for line in absolute:
        print(f"note: {line} is absolute: every node of the cluster must have it", file=sys.stderr)


def _files(values: Any, key: str = "") -> list[tuple[str, str]]:
    """Places of the configuration that name a file: data paths, and the file of `file.py:function`."""
    found = []
    if isinstance(values, dict):
        local = values.get("source") in ("jsonl", "parquet")
        for name, value in values.items():
            place = f"{key}.{name}" if key else name
            if local and name == "path":
                found.append((place, value))
            elif isinstance(value, str) and ".py:" in value:
                found.append((place, value.partition(":")[0]))
            else:
                found += _files(value, place)
    elif isinstance(values, list):
        for i, value in enumerate(values):
            found += _files(value, f"{key}.{i}")
    return found


def connect(address: str, deadline: float) -> Any:
    """A client of the cluster's job server.

    Raises:
        ConfigError: when it cannot be reached or refuses the token, with what Ray said.
    """
    from ray.job_submission import JobSubmissionClient

    return _retried(lambda: JobSubmissionClient(address), address, deadline)


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

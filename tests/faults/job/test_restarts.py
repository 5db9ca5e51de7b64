"""A run under `--restarts`, with real parts: its driver is killed, and it comes to its end all the same."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path

import pytest

from tests.integration.test_train import metrics

pytestmark = pytest.mark.integration


def test_a_run_whose_driver_is_killed_comes_to_its_end_and_leaves_nothing(start, write_config, tmp_path):
    run = tmp_path / "runs" / "killed"
    plain = {"warmup": None, "evaluation": {"before": False, "after": False}, "checkpoint": {"every": 2}}
    job = start(run, "train", "--restarts", 2, write_config(name="killed", steps=5, **plain))
    job.until(lambda line: line.startswith("step 3/5"))
    driver = job.driver()
    os.kill(driver, signal.SIGKILL)
    out = job.end()
    assert job.process.returncode == 0, out
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (event,) = [row for row in rows if row["kind"] == "restart"]
    assert (event["exit"], event["checkpoint"]) == (-signal.SIGKILL, 2)
    assert [row["step"] for row in metrics(run)] == [1, 2, 3, 4, 5]
    rows = metrics(run)
    assert rows[-1]["samples/submitted"] == rows[-1]["samples/consumed"] + rows[-1]["samples/dropped"]
    assert not job.left()
    temporary = Path(tempfile.gettempdir())
    assert not [*temporary.glob(f"rlpost-{driver}-*"), *temporary.glob(f"ray/session_*_{driver}")]
    assert [*(run / "logs").glob(f"session_*_{driver}/raylet.out")], "what its Ray said is kept"

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlpost.types import FinishReason, Prompt, Rollout

HOSTILE = """
import asyncio, os, subprocess, sys, time


def ordinary(response, reference):
    return response == reference


def obeys(response, reference, flag=None):
    if response == "loop":
        while True:
            pass
    if response == "child":
        subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
        time.sleep(600)
    if response == "exit":
        os._exit(3)
    if response == "sys.exit":
        sys.exit(3)
    if response == "raise":
        raise KeyError("the verifier is broken")
    if response == "once" and not os.path.exists(flag):
        open(flag, "w").close()
        os._exit(3)
    if response == "print":
        print("noise " * 1000)
        os.write(1, b"raw noise")
    if response == "garbage":
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                os.write(fd, b"garbage\\n" if fd > 2 else b"")
            except OSError:
                pass
    if response == "odd":
        return [1, 2]
    if response == "long":
        return {"score": 1.0, "extracted": "x" * 10**6, "details": {"text": "y" * 10**6}}
    return response == reference


async def later(response, reference):
    await asyncio.sleep(0.001)
    return response == reference


def environment(response, reference):
    return {"score": float(response in os.environ), "details": {"keys": sorted(os.environ)}}


def pid(response):
    return {"score": 1.0, "details": {"pid": os.getpid()}}


pid.deterministic = False


def everything(**sample):
    return {"score": 1.0, "details": sample}
"""


@pytest.fixture
def verifiers(tmp_path: Path) -> Path:
    """A user's file of verifiers, some of them hostile."""
    path = tmp_path / "my_verifiers.py"
    path.write_text(HOSTILE)
    return path


def make_sample(
    text: str, reference: Any = "yes", finish_reason: FinishReason = "stop", **metadata: Any
) -> tuple[Rollout, Prompt]:
    ids = np.arange(3, dtype=np.int32)
    prompt = Prompt("p1", "is it?", ids, reference=reference, metadata=metadata)
    rollout = Rollout(
        prompt_id=prompt.id,
        group=0,
        sample=0,
        prompt_ids=ids,
        response_ids=np.arange(2, dtype=np.int32),
        logprobs=np.zeros(2, np.float32),
        versions=np.zeros(2, np.int32),
        finish_reason=finish_reason,
        text=text,
        seed=0,
    )
    return rollout, prompt


@pytest.fixture
def sampled() -> Callable[..., tuple[Rollout, Prompt]]:
    """Make what `VerifierPool.submit` takes."""
    return make_sample

"""Shared by all tests: no network, few threads, and a small configuration that trains in seconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
import yaml

from rlpost.config.data import SOURCE_KEYS

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("rlpost", deadline=None, max_examples=50)
hypothesis.settings.load_profile("rlpost")

ROOT = Path(__file__).parent.parent
COUNTDOWN = {
    "source": "reasoning_gym",
    "task": "countdown",
    "params": {
        "min_numbers": 2,
        "max_numbers": 2,
        "min_value": 1,
        "max_value": 9,
        "min_target": 1,
        "max_target": 30,
    },
    "prompt": "{metadata[numbers]} {metadata[target]}:",
    "completion": "{metadata[expression]}",
}


@pytest.fixture
def hang_ups_heard() -> Iterator[None]:
    """Under nohup these tests would ignore hang-ups, and so would all that they start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def tiny(**changes: object) -> dict:
    """A configuration of the whole path: two-number Countdown on a model of some 60,000 parameters."""
    values: dict = {
        "steps": 3,
        "seed": 0,
        "model": {
            "dtype": "float32",
            "create": {
                "config": {
                    "model_type": "qwen2",
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 1,
                    "max_position_embeddings": 512,
                    "tie_word_embeddings": True,
                },
                "tokenizer": "0123456789+-*/()[], :",
            },
        },
        "data": {
            "train": {**COUNTDOWN, "size": 60, "seed": 2},
            "test": {**COUNTDOWN, "size": 12, "seed": 3},
            "max_prompt_tokens": 24,
        },
        "warmup": {
            "train": {**COUNTDOWN, "size": 200, "seed": 1},
            "steps": 60,
            "prompts_per_step": 32,
            "lr": 3e-3,
            "warmup_steps": 5,
        },
        "verifiers": ["countdown"],
        "verifier_pool": {"workers": 1},
        "rollout": {"samples_per_prompt": 4, "max_tokens": 12, "deadline": 120},
        "learner": {
            "prompts_per_step": 8,
            "lr": 1e-3,
            "tokens_per_micro_batch": 512,
            "layout": "padded",
        },
        "evaluation": {"samples_per_prompt": 4, "k": [1, 4]},
        "checkpoint": {"every": 2},
        "observe": {"sinks": [], "console": "plain"},
        "cluster": {"object_store_gb": 0.3},
    }
    return merge(values, changes)


def merge(low: dict, high: dict) -> dict:
    out = dict(low)
    if high.get("source", low.get("source")) != low.get("source"):  # as configuration files are merged
        out = {key: value for key, value in low.items() if key not in SOURCE_KEYS}
    for key, value in high.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


@contextmanager
def private_ray(cpus: int, store_mb: int, gpus: int = 0) -> Iterator[None]:
    """A Ray of the test's own, quiet and small; of the GPUs it says it has there need be none."""
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=store_mb * 2**20,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def ray_cluster():
    """One private Ray for the tests of a module; more CPU slots than cores, since actors take turns."""
    with private_ray(cpus=8, store_mb=300):
        yield


@pytest.fixture
def write_config(tmp_path: Path):
    """Write `tiny(**changes)` as a file whose runs go to tmp_path/runs; returns its path."""

    def write(file: str = "tiny.yaml", **changes: object) -> Path:
        path = tmp_path / file
        path.write_text(yaml.safe_dump(tiny(**{"runs_dir": str(tmp_path / "runs"), **changes})))
        return path

    return write

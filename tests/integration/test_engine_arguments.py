"""What vLLM is told of an engine on a GPU, read by vLLM's own classes with that GPU's memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from rlpost.config import parse
from rlpost.rollout.engine import Engine
from rlpost.run.start import engine_spec
from tests.conftest import merge, tiny

pytestmark = pytest.mark.integration
GPU = {"cluster": {"gpus_per_node": 2}, "rollout": {"weight_transfer": "object_store"}}
GIB = 2**30


class Device:
    """vLLM's platform with another device behind it."""

    def __init__(self, platform: Any, name: str, memory: int) -> None:
        self._platform, self._name, self._memory = platform, name, memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)

    def is_cpu(self) -> bool:
        return False

    def get_device_total_memory(self, device_id: int = 0) -> int:
        return self._memory

    def get_device_name(self, device_id: int = 0) -> str:
        return self._name


def configured(folder: Path, values: dict) -> Any:
    """An engine's configuration, as vLLM makes it; the engine itself is not made."""
    from vllm.v1.engine.llm_engine import LLMEngine

    made: list[Any] = []

    class Reached(Exception):
        pass

    def reach(arguments: Any, *context: Any) -> None:
        made.append(arguments.create_engine_config(*context))
        raise Reached

    spec = engine_spec(parse(values), str(folder))
    replaced = mock.patch.object(LLMEngine, "from_engine_args", reach)
    with mock.patch.dict(os.environ), replaced, pytest.raises(Reached):
        Engine(spec)._load()
    return made[0]


def scheduled(folder: Path, values: dict) -> tuple[int, int]:
    """Tokens and sequences of one step of the engine."""
    scheduler = configured(folder, values).scheduler_config
    return scheduler.max_num_batched_tokens, scheduler.max_num_seqs


@pytest.mark.parametrize(
    ("name", "memory", "tokens", "sequences"),
    [
        ("NVIDIA H100 80GB HBM3", 79.6, 16384, 1024),
        ("NVIDIA H200", 139.8, 16384, 1024),
        ("NVIDIA A100-SXM4-80GB", 79.3, 8192, 256),
        ("NVIDIA GeForce RTX 4090", 23.6, 8192, 256),
    ],
)
def test_a_step_of_an_engine_is_as_large_as_vllm_has_it_for_the_gpu(
    small_model, name, memory, tokens, sequences, monkeypatch
):
    from vllm.engine import arg_utils

    device = Device(arg_utils.current_platform, name, int(memory * GIB))
    monkeypatch.setattr(arg_utils, "current_platform", device)
    assert scheduled(small_model, merge(tiny(), GPU)) == (tokens, sequences)


def test_what_is_set_goes_before_what_vllm_has_for_the_gpu(small_model, monkeypatch):
    from vllm.engine import arg_utils

    monkeypatch.setattr(arg_utils, "current_platform", Device(arg_utils.current_platform, "NVIDIA H200", 139 * GIB))
    asked = {"rollout": {"max_sequences": 300, "engine_args": {"max_num_batched_tokens": 4000}}}
    assert scheduled(small_model, merge(merge(tiny(), GPU), asked)) == (4000, 300)


def test_a_step_of_an_engine_on_cpu_is_the_same_on_every_machine(small_model):
    assert scheduled(small_model, tiny(rollout={"max_sequences": None})) == (4096, 256)


@pytest.mark.parametrize(("asked", "has"), [(None, "bfloat16"), ("float32", "float32")])
def test_the_head_of_an_engine_is_of_the_dtype_that_is_asked_for(small_model, asked, has):
    found = configured(small_model, tiny(model={"dtype": "bfloat16", "head_dtype": asked}))
    assert str(found.model_config.head_dtype) == f"torch.{has}"

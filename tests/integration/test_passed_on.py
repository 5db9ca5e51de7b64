"""What is handed through to DeepSpeed and vLLM is held against the libraries themselves."""

from __future__ import annotations

import dataclasses

import pytest

from rlpost.config import ConfigError, parse
from rlpost.config import overrides as table
from rlpost.run.passed_on import check_passed_on
from tests.conftest import tiny


def test_every_name_of_the_tables_is_one_of_the_library():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from vllm.engine.arg_utils import EngineArgs

    engine = {field.name for field in dataclasses.fields(EngineArgs)}
    assert engine >= table.ENGINE
    assert set(table.ENGINE_IS) <= engine
    zero = {name for key, f in DeepSpeedZeroConfig.model_fields.items() for name in (key, f.alias) if name}
    assert zero >= table.ZERO


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"zero_optimization": {"reduce_bucket_size": "many"}}, "zero_optimization.reduce_bucket_size: 'many'"),
        ({"zero_optimization": {"reduce_bucket_size": -5}}, "zero_optimization.reduce_bucket_size: -5"),
        (
            {"zero_optimization": {"offload_param": {"device": "disk"}}},
            "zero_optimization.offload_param.device: 'disk'",
        ),
        ({"comms_logger": {"enabled": 5}}, "comms_logger.enabled: 5"),
        ({"timers": 3}, "timers: 3"),
    ],
)
def test_a_value_that_deepspeed_does_not_take_is_refused_before_it_starts(given, says):
    with pytest.raises(ConfigError) as refused:
        check_passed_on(parse(tiny(learner={"deepspeed": given})))
    assert f"learner.deepspeed.{says}" in str(refused.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"block_size": "seven"}, "block_size: 'seven'"),
        ({"attention_backend": "FLASH"}, "attention_backend: 'FLASH'"),
        ({"compilation_config": {"levle": 3}}, "compilation_config.levle: 3"),
        ({"async_scheduling": "maybe", "max_logprobs": "x"}, "max_logprobs: 'x'"),
        ({"scheduling_policy": "lifo"}, "scheduling_policy: 'lifo'"),
    ],
)
def test_a_value_that_vllm_does_not_take_is_refused_before_it_starts(given, says):
    with pytest.raises(ConfigError) as refused:
        check_passed_on(parse(tiny(rollout={"engine_args": given})))
    assert f"rollout.engine_args.{says}" in str(refused.value)


def test_values_that_they_take_pass():
    given = {
        "block_size": 32,
        "num_gpu_blocks_override": 64,
        "compilation_config": {"mode": 0},
        "async_scheduling": False,
    }
    deepspeed = {"zero_optimization": {"reduce_bucket_size": 1000, "overlap_comm": False}, "steps_per_print": 5}
    config = parse(tiny(rollout={"engine_args": given}, learner={"deepspeed": deepspeed}))
    assert check_passed_on(config) == []

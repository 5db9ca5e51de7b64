"""What is handed through to DeepSpeed and vLLM changes how fast a step is, never what it means."""

import pytest

from rlpost.config import ConfigError, parse
from tests.conftest import tiny


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ({"gradient_accumulation_steps": 4, "train_batch_size": 4}, "set learner.tokens_per_micro_batch"),
        ({"train_batch_size": 4}, "set learner.prompts_per_step"),
        ({"train_micro_batch_size_per_gpu": 4}, "set learner.tokens_per_micro_batch"),
        ({"gradient_clipping": 0.5}, "set learner.grad_clip"),
        ({"optimizer": {"type": "SGD"}}, "set learner.lr"),
        ({"scheduler": {"type": "WarmupLR"}}, "set learner.schedule"),
        ({"bf16": {"enabled": True}}, "set model.dtype"),
        ({"fp16": {"enabled": True}}, "set model.dtype"),
        ({"zero_optimization": {"stage": 2}}, "set learner.zero_stage"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "set learner.offload_optimizer"),
        ({"prescale_gradients": True}, "could scale or round gradients"),
        ({"gradient_predivide_factor": 2.0}, "could scale or round gradients"),
        ({"gradient_allreduce_op": "sum"}, "could scale or round gradients"),
        ({"sparse_gradients": True}, "could scale or round gradients"),
        ({"communication_data_type": "bfp16"}, "would round gradients: set fp32"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "would round gradients: set fp32"),
        ({"zero_optimization": {"zero_quantized_gradients": True}}, "could scale or round gradients"),
        ({"zero_optimization": {"reduce_buket_size": 1}}, "did you mean 'zero_optimization.reduce_bucket_size'"),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "'auto' is filled in by transformers' Trainer"),
        ({"zero_optimization": 2}, "could scale or round gradients"),
        ({"compression_training": {}}, "could scale or round gradients"),
    ],
)
def test_deepspeed_settings_that_make_another_step_are_refused_with_the_key_to_set(given, fix):
    key, value = next(iter(given.items()))
    if key in ("zero_optimization", "data_types") and isinstance(value, dict):
        key, value = f"{key}.{next(iter(value))}", next(iter(value.values()))
    with pytest.raises(ConfigError) as error:
        parse(tiny(learner={"deepspeed": given}))
    assert f"learner.deepspeed.{key}: {value!r}" in str(error.value)
    assert fix in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"zero_optimization": {"reduce_bucket_size": 10**6, "overlap_comm": True, "sub_group_size": 10**8}},
        {"zero_optimization": {"stage3_param_persistence_threshold": 0, "offload_param": {"device": "cpu"}}},
        {"wall_clock_breakdown": True, "comms_logger": {"enabled": True}, "steps_per_print": 1},
        {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}},
    ],
)
def test_deepspeed_settings_of_speed_alone_pass(given):
    assert parse(tiny(learner={"deepspeed": given})).learner.deepspeed == given


def test_how_the_optimizer_is_offloaded_may_be_said_once_it_is():
    given = {"zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}}
    parse(tiny(learner={"deepspeed": given, "offload_optimizer": True, "zero_stage": 1}))


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("seed", 7, "set seed"),
        ("logprobs_mode", "raw_logprobs", "may change what is sampled"),
        ("max_model_len", 16, "set data.max_prompt_tokens and rollout.max_tokens"),
        ("dtype", "float16", "set rollout.dtype"),
        ("model", "another", "set model.path"),
        ("tokenizer", "another", "set model.path"),
        ("revision", "v2", "set model.revision"),
        ("trust_remote_code", True, "set model.trust_remote_code"),
        ("quantization", "fp8", "may change what is sampled"),
        ("kv_cache_dtype", "fp8", "may change what is sampled"),
        ("enable_lora", True, "set model.lora"),
        ("speculative_config", {"method": "ngram"}, "may change what is sampled"),
        ("hf_overrides", {"rope_theta": 1}, "set config.json of the model"),
        ("override_generation_config", {"top_k": 1}, "set rollout.temperature"),
        ("logits_processors", ["x:y"], "may change what is sampled"),
        ("load_format", "dummy", "may change what is sampled"),
        ("max_num_seqs", 4, "set rollout.max_sequences"),
        ("pipeline_parallel_size", 2, "set rollout.engines and rollout.tensor_parallel"),
        ("blok_size", 32, "did you mean 'block_size'"),
        ("enable_chunked_prefill", True, "cannot be had on CPU"),
        ("max_num_batched_tokens", 8, "raise it"),
    ],
)
def test_engine_arguments_that_sample_otherwise_are_refused_with_the_key_to_set(key, value, fix):
    with pytest.raises(ConfigError) as error:
        parse(tiny(rollout={"engine_args": {key: value}}))
    assert f"rollout.engine_args.{key}: {value!r}".lower() in str(error.value).lower()
    assert fix in str(error.value)


@pytest.mark.parametrize(("width", "backend"), [(2, "ray"), (4, "external_launcher")])
def test_an_engine_of_several_gpus_keeps_its_workers_with_it(width, backend):
    """Ray would ask for the GPUs that the engine's actor holds."""
    given = {
        "model": {"dtype": "bfloat16"},
        "learner": {"layout": "packed"},
        "cluster": {"gpus_per_node": 8},
        "rollout": {"tensor_parallel": width, "engine_args": {"distributed_executor_backend": backend}},
    }
    with pytest.raises(
        ConfigError, match=rf"rollout\.engine_args\.distributed_executor_backend: '{backend}'.*leave it out"
    ):
        parse(tiny(**given))
    given["rollout"]["engine_args"] = {"distributed_executor_backend": "mp"}
    assert parse(tiny(**given)).rollout.tensor_parallel == width


def test_engine_arguments_of_speed_alone_pass():
    given = {"block_size": 32, "num_gpu_blocks_override": 64, "max_num_batched_tokens": 4096}
    assert parse(tiny(rollout={"engine_args": given})).rollout.engine_args == given

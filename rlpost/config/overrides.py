"""What may be handed through to DeepSpeed and vLLM as it is: what changes how fast a step is, never what it means.

A key that is not named here is refused: a library has hundreds, and whether one scales a gradient or another
distribution is sampled from cannot be seen from the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rlpost.user_code import nearest

if TYPE_CHECKING:
    from rlpost.config.schema import Config

DEEPSPEED = frozenset(
    [
        "aio",
        "checkpoint.parallel_write",
        "comms_logger",
        "disable_python_gc",
        "dump_state",
        "flops_profiler",
        "log_level",
        "memory_breakdown",
        "steps_per_print",
        "timers",
        "wall_clock_breakdown",
    ]
)
ZERO = frozenset(
    [
        "allgather_bucket_size",
        "allgather_partitions",
        "allgather_sequential",
        "contiguous_gradients",
        "enable_sanity_checks",
        "log_trace_cache_warnings",
        "max_live_parameters",
        "max_reuse_distance",
        "memory_efficient_linear",
        "model_persistence_threshold",
        "module_granularity_threshold",
        "offload_param",
        "overlap_comm",
        "param_persistence_threshold",
        "parameter_alignment",
        "prefetch_bucket_size",
        "reduce_bucket_size",
        "reduce_scatter",
        "round_robin_gradients",
        "stage3_allgather_sequential",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold",
        "stage3_module_granularity_threshold",
        "stage3_param_persistence_threshold",
        "stage3_prefetch_bucket_size",
        "stage3_use_all_reduce_for_fetch_params",
        "sub_group_size",
        "use_all_reduce_for_fetch_params",
        "use_multi_rank_bucket_allreduce",
        "zero_hpz_partition_size",
    ]
)
# More exact than what DeepSpeed would take, so of these one value passes.
EXACT = {"communication_data_type": "fp32", "data_types.grad_accum_dtype": "fp32"}
SINKS = "observe.sinks"
DEEPSPEED_IS = {
    "train_batch_size": "learner.prompts_per_step",
    "train_micro_batch_size_per_gpu": "learner.tokens_per_micro_batch",
    "gradient_accumulation_steps": "learner.tokens_per_micro_batch, from which the micro-batches of a step follow",
    "managed_gradient_accumulation": "learner.tokens_per_micro_batch, from which the micro-batches of a step follow",
    "gradient_clipping": "learner.grad_clip",
    "optimizer": "learner.lr, betas, eps and weight_decay",
    "scheduler": "learner.schedule, warmup_steps and min_lr_ratio",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
    "activation_checkpointing": "learner.gradient_checkpointing",
    "zero_optimization.stage": "learner.zero_stage",
    "zero_optimization.offload_optimizer": "learner.offload_optimizer",
    "zero_optimization.cpu_offload": "learner.offload_optimizer",
    "tensorboard": SINKS,
    "wandb": SINKS,
    "comet": SINKS,
    "csv_monitor": SINKS,
}

ENGINE = frozenset(
    [
        "aggregate_engine_logging",
        "all2all_backend",
        "async_scheduling",
        "attention_backend",
        "attention_config",
        "block_size",
        "collect_detailed_traces",
        "compilation_config",
        "cpu_distributed_timeout_seconds",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "cudagraph_metrics",
        "dbo_decode_token_threshold",
        "dbo_prefill_token_threshold",
        "decode_context_parallel_size",
        "disable_cascade_attn",
        "disable_custom_all_reduce",
        "disable_hybrid_kv_cache_manager",
        "disable_log_stats",
        "distributed_executor_backend",
        "distributed_timeout_seconds",
        "enable_chunked_prefill",
        "enable_cumem_allocator",
        "enable_dbo",
        "enable_expert_parallel",
        "enable_flashinfer_autotune",
        "enable_layerwise_nvtx_tracing",
        "enable_logging_iteration_details",
        "enable_mfu_metrics",
        "enable_nccl_comm_suspend",
        "expert_placement_strategy",
        "fail_on_environ_validation",
        "gdn_prefill_backend",
        "ir_op_priority",
        "jit_monitor_mode",
        "jit_monitor_verbose",
        "kda_decode_backend",
        "kda_prefill_backend",
        "kernel_config",
        "kv_cache_memory_bytes",
        "kv_cache_metrics",
        "kv_cache_metrics_sample",
        "language_model_only",
        "limit_mm_per_prompt",
        "linear_backend",
        "long_prefill_token_threshold",
        "mamba_backend",
        "mamba_block_size",
        "mamba_cache_mode",
        "max_cudagraph_capture_size",
        "max_logprobs",
        "max_num_batched_tokens",
        "max_num_scheduled_tokens",
        "max_parallel_loading_workers",
        "mm_processor_cache_gb",
        "model_impl",
        "moe_backend",
        "num_gpu_blocks_override",
        "numa_bind",
        "numa_bind_cpus",
        "numa_bind_nodes",
        "optimization_level",
        "otlp_traces_endpoint",
        "performance_mode",
        "prefix_caching_hash_algo",
        "profiler_config",
        "ray_workers_use_nsight",
        "safetensors_load_strategy",
        "safetensors_prefetch_block_size",
        "safetensors_prefetch_num_threads",
        "scheduler_reserve_full_isl",
        "scheduling_policy",
        "show_hidden_metrics_for_version",
        "shutdown_timeout",
        "skip_mm_profiling",
        "ubatch_size",
        "use_tqdm_on_load",
    ]
)
LENGTH = "data.max_prompt_tokens and rollout.max_tokens, whose sum it is"
MODEL = "model.path, which is the learner's too"
REVISION = "model.revision"
PLACED = "rollout.engines and rollout.tensor_parallel: an engine is given no other GPUs"
DRAWN = "rollout.temperature: the learner has to know the distribution that is sampled from"
ENGINE_IS = {
    "model": MODEL,
    "tokenizer": MODEL,
    "model_weights": MODEL,
    "hf_config_path": MODEL,
    "hf_overrides": "config.json of the model, which the learner reads too",
    "revision": REVISION,
    "tokenizer_revision": REVISION,
    "code_revision": REVISION,
    "trust_remote_code": "model.trust_remote_code",
    "dtype": "rollout.dtype",
    "max_model_len": LENGTH,
    "max_num_seqs": "rollout.max_sequences",
    "seed": "seed, from which every sample's own is made",
    "tensor_parallel_size": "rollout.tensor_parallel",
    "pipeline_parallel_size": PLACED,
    "prefill_context_parallel_size": PLACED,
    "data_parallel_size": PLACED,
    "enforce_eager": "rollout.enforce_eager",
    "enable_prefix_caching": "rollout.prefix_caching",
    "gpu_memory_utilization": "rollout.gpu_memory_utilization",
    "weight_transfer_config": "rollout.weight_transfer",
    "enable_return_routed_experts": "routing.replay",
    "enable_lora": "model.lora",
    "max_lora_rank": "model.lora.rank",
    "generation_config": DRAWN,
    "override_generation_config": DRAWN,
}


def check_overrides(c: Config) -> None:
    """Refuse what would make of a step another one than the configuration says.

    Raises:
        ValueError: naming key, value and, where there is one, the key of rlpost to set.
    """
    _check_deepspeed(c)
    _check_engine(c)


def _check_deepspeed(c: Config) -> None:
    known = {*DEEPSPEED, *EXACT, *DEEPSPEED_IS, *(f"zero_optimization.{key}" for key in ZERO)}
    for key, value in _flat(c.learner.deepspeed, ("zero_optimization", "data_types", "checkpoint")):
        place = f"learner.deepspeed.{key}"
        if key == "zero_optimization.offload_optimizer" and c.learner.offload_optimizer:
            continue  # how it is offloaded; that it is was asked for by our own key
        if key.partition(".")[0] in DEEPSPEED or key in DEEPSPEED or key.removeprefix("zero_optimization.") in ZERO:
            if value == "auto":
                raise ValueError(f"{place}: 'auto' is filled in by transformers' Trainer, not here: give a value")
            continue
        if key in EXACT:
            if value != EXACT[key]:
                raise ValueError(f"{place}: {value!r} would round gradients: set {EXACT[key]}, or leave it out")
            continue
        raise ValueError(
            _refusal(
                place, key, value, DEEPSPEED_IS, "may change what a step is: it could scale or round gradients", known
            )
        )


def _check_engine(c: Config) -> None:
    given = c.rollout.engine_args
    for key, value in given.items():
        if key not in ENGINE:
            why = "may change what is sampled, or by which weights"
            raise ValueError(_refusal(f"rollout.engine_args.{key}", key, value, ENGINE_IS, why, {*ENGINE, *ENGINE_IS}))
    if c.on_gpu:
        executor = given.get("distributed_executor_backend")
        if c.rollout.tensor_parallel > 1 and executor not in (None, "mp"):
            raise ValueError(
                f"rollout.engine_args.distributed_executor_backend: {executor!r} with rollout.tensor_parallel: "
                f"{c.rollout.tensor_parallel}: an engine's workers are processes (mp) of the actor that holds their GPUs; "
                "Ray would look for other GPUs: leave it out"
            )
        return
    if given.get("enable_chunked_prefill"):
        raise ValueError(
            "rollout.engine_args.enable_chunked_prefill: true cannot be had on CPU, where a prompt cut in chunks would "
            "draw from a generator that cannot go back: leave it out"
        )
    tokens = given.get("max_num_batched_tokens")
    if isinstance(tokens, int) and tokens < c.max_served_tokens:
        raise ValueError(
            f"rollout.engine_args.max_num_batched_tokens: {tokens} is less than a sequence may have on CPU, where prompts "
            f"are not cut in chunks ({c.max_served_tokens} tokens): raise it"
        )


def _flat(values: Mapping[str, Any], sections: Iterable[str]) -> list[tuple[str, Any]]:
    """Keys and values, those of these sections by `section.key`."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        inner = value if key in sections and isinstance(value, Mapping) else None
        found += [(key, value)] if inner is None else [(f"{key}.{k}", v) for k, v in inner.items()]
    return found


def _refusal(place: str, key: str, value: Any, ours: Mapping[str, str], why: str, known: Iterable[str]) -> str:
    name = ours.get(key) or ours.get(key.partition(".")[0])
    if name is not None:
        return f"{place}: {value!r} is refused: set {name}"
    return f"{place}: {value!r} {why}, and is not among what is known to be safe{nearest(key, known)}: leave it out"

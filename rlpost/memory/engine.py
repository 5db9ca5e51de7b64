"""What one GPU of an engine holds, and how many sequences its cache has room for.

vLLM takes `gpu_memory_utilization` of a GPU whole: what its weights, a trial forward pass of `max_num_batched_tokens` and
CUDA graphs leave of it is the cache (vLLM 0.30, `v1/worker/gpu_worker.py`, `determine_available_memory`).
"""

from __future__ import annotations

from typing import Any

from rlpost.config import Config
from rlpost.memory.holders import GIB, Cache
from rlpost.memory.rank import BUFFERS, CONTEXT, WIDTH
from rlpost.memory.shapes import Shapes

GRAPHS = 0.5 * GIB  # an estimate, measured on no GPU
LARGE = 70 * GIB
# float32 copies of the logits of all sequences that are sampled at once: logits, log-probs after temperature, noise.
SAMPLED = 3


def share(config: Config) -> float:
    """The part of a GPU that an engine takes (`rlpost.run.start.engine_spec`)."""
    return config.rollout.gpu_memory_utilization * (0.5 if config.cluster.colocate else 1.0)


def phases(
    config: Config, shapes: Shapes, room: float | None, notes: list[str]
) -> tuple[dict[str, dict[str, float]], Cache | None]:
    """Bytes of an engine's GPU by phase and part, and its cache.

    Args:
        room: bytes of a GPU; None where that is not known.
        notes: told what could not be counted.
    """
    width, parallel = WIDTH[config.rollout_dtype], config.rollout.tensor_parallel
    parts: dict[str, float] = {"weights": width * shapes.parameters / parallel}
    if config.on_gpu:
        parts["context"] = CONTEXT
        if not config.rollout.enforce_eager:
            parts["CUDA graphs"] = GRAPHS
    if shapes.network is not None:
        parts["at work"] = _at_work(config, shapes, room, notes)
    budget = (config.rollout.kv_cache_gb * GIB + sum(parts.values())) if not config.on_gpu else None
    if config.on_gpu and room is not None:
        budget = share(config) * room
    cache = None
    if shapes.network is not None:
        each = sequence_bytes(config, shapes.network.config.get_text_config(decoder=True), notes)
        size = None if budget is None else budget - sum(parts.values())
        cache = Cache(each, config.max_served_tokens, size)
        if size is not None and size > 0:
            parts["cache"] = size
    sync: dict[str, float] = {}
    if shapes.layer:
        # vLLM loads a layer anew beside the one it has (model_executor/model_loader/reload), out of receive buffers.
        sync["a layer, loaded anew"] = width * shapes.layer / parallel
        if buffers := BUFFERS[config.weight_transfer] if config.weight_transfer == "nccl" else 0:
            sync["receive buffers"] = buffers * width * shapes.widest
    return {"sample": parts, "sync": {**parts, **sync}}, cache


def sequence_bytes(config: Config, text: Any, notes: list[str]) -> float:
    """Bytes of keys and values of the longest sequence on each GPU of an engine.

    Args:
        text: of a model's configuration, the part that is about text.
        notes: told of layers that keep something else.
    """
    tokens, parallel = config.max_served_tokens, config.rollout.tensor_parallel
    cache_type = str(config.rollout.engine_args.get("kv_cache_dtype", "auto"))
    width = 1 if cache_type.startswith("fp8") else WIDTH[config.rollout_dtype]
    layers = int(text.num_hidden_layers)
    kinds = list(getattr(text, "layer_types", None) or ["full_attention"] * layers)
    window = getattr(text, "sliding_window", None) or tokens
    if latent := getattr(text, "kv_lora_rank", None):  # MLA keeps one latent vector a token, on every GPU
        per_token: float = (latent + text.qk_rope_head_dim) * width
    else:
        heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        per_token = 2 * max(1, heads // parallel) * size * width
    seen = {"full_attention": tokens, "sliding_attention": min(tokens, window)}
    if others := sorted({kind for kind in kinds if kind not in seen}):
        notes.append(f"the cache of layers of {' and '.join(others)} is not counted")
    return sum(seen.get(kind, 0) for kind in kinds) * per_token


def _at_work(config: Config, shapes: Shapes, room: float | None, notes: list[str]) -> float:
    """A forward pass of the largest batch, in transformers' layers and undivided, and the logits that are sampled from."""
    from rlpost.memory.activations import UncountedError, forward_peak

    tokens, sequences = batch(config, room)
    logits = SAMPLED * 4 * sequences * shapes.network.get_input_embeddings().weight.shape[0]
    try:
        return shapes.once(("forward", tokens), lambda: forward_peak(shapes.network, tokens)) + logits
    except UncountedError as error:
        notes.append(f"an engine's forward pass is not counted: {error}")
        return logits


def batch(config: Config, room: float | None) -> tuple[int, int]:
    """Tokens of an engine's largest forward pass, and sequences at once.

    By default those of vLLM's own batch inference for the memory of a GPU (vLLM 0.30, `engine/arg_utils.py`,
    `get_batch_defaults`; those of a large one where it is not known), and on CPU ours (`rlpost.rollout.request`).

    Args:
        room: bytes of a GPU.
    """
    ro = config.rollout
    large = room is None or room >= LARGE
    tokens, sequences = (16384, 1024) if large else (8192, 256)
    if not config.on_gpu:
        tokens, sequences = max(4096, config.max_served_tokens), 256
    return int(ro.engine_args.get("max_num_batched_tokens") or tokens), ro.max_sequences or sequences

"""Tiny mixture-of-experts models for tests: random weights, decisive routers, a character tokenizer.

Sizes are the smallest that transformers and vLLM both load; DeepSeek-V3 keeps the real sizes of its latent attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CHARACTERS = "0123456789+-*/=() abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;"

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
_QWEN: dict[str, Any] = {**_SIZES, "num_experts": 8, "moe_intermediate_size": 32, "head_dim": 32}
_GROUPED: dict[str, Any] = {
    **_SIZES,
    "num_hidden_layers": 3,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"model_type": "qwen3_moe", **_QWEN, "norm_topk_prob": True},
    "qwen3_moe_unnormalised": {"model_type": "qwen3_moe", **_QWEN, "norm_topk_prob": False},
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        **_SIZES,
        "num_hidden_layers": 3,
        "num_experts": 8,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
        "mlp_only_layers": [0],
        "norm_topk_prob": False,
    },
    "mixtral": {"model_type": "mixtral", **_SIZES, "intermediate_size": 32, "num_local_experts": 8},
    "olmoe": {"model_type": "olmoe", **_SIZES, "intermediate_size": 32, "num_experts": 8},
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **_GROUPED,
        "kv_lora_rank": 512,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
    },
    "glm4_moe": {"model_type": "glm4_moe", **_GROUPED, "n_group": 1, "topk_group": 1, "head_dim": 32},
    "gpt_oss": {
        "model_type": "gpt_oss",
        **_SIZES,
        "intermediate_size": 32,
        "num_local_experts": 8,
        "head_dim": 32,
        "sliding_window": 128,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 256,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    },
}


def make_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A causal language model with random weights, in evaluation mode. The global random state is left alone.

    Args:
        changes: to the family's configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlpost.data import make_tokenizer
    from rlpost.learner.replay import find_routers

    tokenizer = make_tokenizer(CHARACTERS)
    config = AutoConfig.for_model(
        **{**FAMILIES[family], **changes},
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for router in find_routers(model).values():
            # Logits with a spread of about 2: far apart for most tokens, and no softmax is saturated.
            router.weight.normal_(std=0.25)
            if hasattr(router, "bias"):
                router.bias.normal_(std=0.5)
            if hasattr(router, "e_score_correction_bias"):
                router.e_score_correction_bias.normal_(std=0.2)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.to(dtype).eval()


def save_model(model: Any, folder: Path) -> None:
    """Write a model and its tokenizer to a folder that transformers and vLLM load."""
    from rlpost.data import make_tokenizer

    model.save_pretrained(folder)
    make_tokenizer(CHARACTERS).save_pretrained(folder)

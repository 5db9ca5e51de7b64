"""Small models with random weights of any causal family of transformers: its configuration class, with small sizes put in.

Sizes go by the names that configuration classes use. What a family needs besides is in `OWN`, a row each.
"""

from __future__ import annotations

from typing import Any

import torch

CHARACTERS = "0123456789+-*/=() abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;"

# By what configuration classes call them; a name that a class does not have is left out.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "n_embed"), 64),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_attention_groups"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size_mlp", "shared_intermediate_size", "moe_shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("n_shared_experts", "first_k_dense_replace", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("head_dim", "attention_head_dim", "attn_head_dim"), 32),
    **dict.fromkeys(("kv_lora_rank",), 512),
    **dict.fromkeys(("q_lora_rank",), 32),
    **dict.fromkeys(("qk_rope_head_dim",), 64),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "index_head_dim"), 128),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 32),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "index_n_heads"), 2),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 32),
    **dict.fromkeys(("mamba_d_ssm",), 128),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 16),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_expand", "expand"), 2),
    **dict.fromkeys(("sliding_window", "attention_window_size"), 128),
    **dict.fromkeys(("hidden_size_per_layer_input",), 16),
    **dict.fromkeys(("num_nextn_predict_layers", "num_mtp_layers"), 0),
    **dict.fromkeys(("index_topk",), 32),
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
OWN: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    **{
        family: {"tie_word_embeddings": True}
        for family in ("gemma2", "vaultgemma", "gemma4_text", "gemma3n_text", "bloom", "cohere", "cohere2")
    },
    # vLLM has these sizes, whatever a configuration says.
    "phi": {"intermediate_size": 256},
    "falcon": {"ffn_hidden_size": 256, "tie_word_embeddings": True},
    "gpt_bigcode": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 128, "num_layers": 4},
    "lfm2": {
        "conv_dim": 64,
        "block_dim": 64,
        "tie_word_embeddings": True,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    },
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "num_dense_layers": 1,
        "tie_word_embeddings": True,
    },
    "mixtral": {"sliding_window": None},
    "qwen3_next": {"linear_key_head_dim": 128, "linear_value_head_dim": 128},
    "glm4_moe": {"head_dim": 32},
    "glm4_moe_lite": {"first_k_dense_replace": 1},
    "llama4_text": {"num_experts_per_tok": 1},
    "minimax_m2": {"rotary_dim": 32, "scoring_func": "sigmoid", "use_routing_bias": True},
    "gptj": {"rotary_dim": 16},
    "codegen": {"rotary_dim": 16, "n_head": 4, "n_embd": 128},
    **{family: {"head_dim": 64} for family in ("axk1", "longcat_flash")},
    "deepseek_v3": {"head_dim": 64, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
}


def small_config(family: str, vocabulary: int, **changes: Any) -> Any:
    """A configuration of the family (a `model_type` of transformers) with small sizes.

    Raises:
        Exception: whatever the configuration class says of sizes that do not go together.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own = dict(OWN.get(family, {}))
    known = set(CONFIG_MAPPING[family]().to_dict()) | set(getattr(CONFIG_MAPPING[family], "attribute_map", {}))
    values = {name: value for name, value in SIZES.items() if name in known and name not in own}
    values = {name: value for name, value in {**values, **own, **changes}.items() if value is not None}
    return AutoConfig.for_model(family, **{"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, **values})


def small_model(
    family: str, vocabulary: int = 96, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> Any:
    """A causal language model of the family with random weights. The global random state is left alone.

    Args:
        changes: to the configuration.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(small_config(family, vocabulary, **changes), dtype=torch.float32)
    return model.to(dtype)

"""Which of transformers' mixture-of-experts models replay covers, and that it refuses the others by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from routing_cases import lay_out, random_rows, sequences
from transformers import AutoConfig, AutoModelForCausalLM

from rlpost.learner.replay import Replay, UnsupportedRouterError, find_routers
from rlpost.models.architecture import experts_of, is_moe

# Every name that a family gives to one of these sizes.
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "num_dense_layers": 0,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
FULL = {"layer_types": ["full_attention", "full_attention"]}
COVERED: dict[str, dict[str, Any]] = {
    "afmoe": {},
    "aria_text": {},
    "axk1": {"head_dim": 8},
    "axk2": {},
    "bailing_hybrid": {},
    "beam": {"mlp_layer_types": ["sparse", "sparse"]},
    "cohere2_moe": {},
    "deepseek_v2": {"topk_method": "group_limited_greedy"},
    "deepseek_v3": {"head_dim": 8},
    "deepseek_v32": {},
    "deepseek_v4": {"mlp_layer_types": ["moe", "moe"]},
    "dots1": {},
    "dots3_note_text": {},
    "ernie4_5_moe": {},
    "exaone_moe": {},
    "flex_olmo": {},
    "flint": {"mlp_only_layers": []},
    "glm4_moe": {},
    "glm4_moe_lite": {},
    "glm_moe_dsa": {},
    "gpt_oss": {},
    "granitemoe": {},
    "granitemoe_swa": {},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_expand": 1, **FULL},
    "granitemoeshared": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hy_v4": {},
    "inkling2_text": {},
    "inkling_text": {},
    "jamba": {},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"]},
    "kolibri1": {},
    "laguna": {},
    "lfm2_moe": FULL,
    "longcat_flash": {"zero_expert_num": 0, "head_dim": 8},
    "mellum": {},
    "mimo_v2_flash": {"num_attention_heads": 4},
    "minimax": {},
    "minimax_m2": {},
    "minimax_m3_vl_text": {},
    "mixtral": {},
    "nemotron_h": {},
    "olmoe": {},
    "qwen2_moe": {},
    "qwen3_5_moe_text": {},
    "qwen3_moe": {},
    "qwen3_next": {},
    "qwen4_exp_text": {},
    "solar_open": {},
}
# By default configuration: no experts, or not how many a token goes to.
DENSE = {"dots1", "hunyuan_v1_moe"}
UNTOLD = {"deepseek_v2"}
# What is refused, and what the error says.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dbrx": (
        {
            "d_model": 32,
            "n_heads": 2,
            "n_layers": 2,
            "attn_config": {"rope_theta": 1e4, "kv_n_heads": 1},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2},
        },
        "found only DbrxRouter",
    ),
    "deepseek_v4": ({}, "DeepseekV4HashRouter of DeepseekV4ForCausalLM chooses by input_ids"),
    "doge": ({"is_moe": True, "num_experts": 16}, "found only DogeCDMoE"),
    "gemma4_text": (
        {"enable_moe_block": True, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 32},
        "found only Gemma4TextRouter",
    ),
    "jetmoe": ({}, "two routers in layer 0"),
    "llama4_text": ({}, "Llama4Router of Llama4ForCausalLM, layer 0, .* did not return its indices"),
    "longcat_flash": ({"head_dim": 8}, "called top-k of 2 in 8 experts 0 times"),
    "phimoe": ({}, "PhimoeTopKRouter of PhimoeForCausalLM, layer 0, called top-k of 2 in 8 experts 0 times"),
    "zaya": ({"num_experts_per_tok": 1}, "ZayaRouter of ZayaForCausalLM could not be tried"),
}


def build(family: str, changes: dict[str, Any]) -> Any:
    config = AutoConfig.for_model(family, **{**SIZES, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", COVERED)
def test_covered(family):
    model = build(family, COVERED[family])
    replay, layout = Replay(model), lay_out(sequences(1, (9,)))
    assert (replay.top_k, replay.experts) == (2, 8)
    planned = experts_of(model.config.to_dict())
    assert planned is not None
    assert (planned.per_token, planned.total) == (2, 8)
    assert planned.layers >= len(replay.layers)
    rows = random_rows(replay, 9, seed=2)
    with torch.no_grad(), replay.using(layout.grid(rows), record=True) as stats:
        logits = layout.forward(model)
    assert torch.equal(stats.recorded, rows)
    assert torch.isfinite(logits).all()
    assert stats.real == stats.replayed == 9


@pytest.mark.parametrize("family", COVERED)
def test_sizes_of_a_familys_experts_are_read_from_its_default_configuration_or_unknown(family):
    values = AutoConfig.for_model(family).to_dict()
    assert is_moe(values) == (family not in DENSE)
    found = experts_of(values)
    assert (found is None) == (family in DENSE | UNTOLD)
    if found is not None:
        assert found.per_token >= 2
        assert found.total >= 7
        assert 1 <= found.layers <= 80


@pytest.mark.parametrize("family", REFUSED)
def test_refused(family):
    changes, message = REFUSED[family]
    model = build(family, changes)
    with pytest.raises(UnsupportedRouterError, match=message) as refused:
        Replay(model)
    assert "routing.replay off" in str(refused.value)
    # Nothing is left behind in a model that was refused.
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral", "gemma3_text"])
def test_a_dense_model_has_no_routers_and_is_refused_as_dense(family):
    model = build(family, {})
    assert find_routers(model) == {}
    with pytest.raises(UnsupportedRouterError, match=f"{type(model).__name__} has no router.*the model is dense"):
        Replay(model)

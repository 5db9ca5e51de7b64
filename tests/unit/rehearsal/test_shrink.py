"""A model made small for a rehearsal is of the same architecture, for every family that is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlpost.models.known_families import FAMILIES
from rlpost.rehearsal.shrink import kept_layers, small

# What these families' classes leave open and every checkpoint of theirs says.
SAID: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 6, "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy"},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 64, "moe_topk": 8},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
}
QWEN3_MOE = {
    "vocab_size": 151_936, "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
}  # fmt: skip


def config_of(family: str, **values: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **{**SAID.get(family, {}), **values})


def shrunk_of(family: str, **values: Any) -> Any:
    from rlpost.rehearsal.shrink import shrunk

    return shrunk(config_of(family, **values), vocab_size=96, pad_token_id=0, bos_token_id=1, eos_token_id=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_built_small(family: str) -> None:
    from transformers import AutoModelForCausalLM

    before, now = config_of(family), shrunk_of(family)
    assert type(now) is type(before)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(now, attn_implementation="eager")
    assert sum(p.numel() for p in model.parameters()) < 4e6
    assert now.tie_word_embeddings == before.tie_word_embeddings
    heads, keys = getattr(now, "num_attention_heads", None), getattr(now, "num_key_value_heads", None)
    if isinstance(heads, int) and isinstance(keys, int) and getattr(before, "num_key_value_heads", 0) > 1:
        assert (heads % keys, heads % 2, keys % 2) == (0, 0, 0)  # an engine of two GPUs takes it apart
        grouped = before.num_attention_heads > before.num_key_value_heads
        assert (heads > keys) == grouped
    for name in ("layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers"):
        if isinstance(kinds := getattr(before, name, None), list):
            assert set(getattr(now, name)) == set(kinds)
            assert getattr(now, name) == kinds[: len(getattr(now, name))]


@pytest.mark.parametrize(
    "family", ["phi3", "deepseek_v3", "gpt_oss", "qwen3_next", "gemma3_text", "llama4_text", "mixtral"]
)
def test_a_small_model_computes(family: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(shrunk_of(family), dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 43)[None], use_cache=False).logits
    assert torch.isfinite(logits).all()


def test_experts_groups_and_queries_to_a_key_stay_as_a_kind() -> None:
    moe = shrunk_of("qwen3_moe", **QWEN3_MOE)
    assert (moe.num_hidden_layers, moe.num_experts, moe.num_experts_per_tok, moe.head_dim) == (2, 8, 2, 32)
    assert (moe.num_attention_heads, moe.num_key_value_heads) == (4, 2)
    grouped = shrunk_of("deepseek_v3")
    assert (grouped.n_group, grouped.topk_group, grouped.n_routed_experts) == (2, 1, 8)
    assert (grouped.num_hidden_layers, grouped.first_k_dense_replace) == (4, 3)  # one layer of experts
    assert (grouped.kv_lora_rank, grouped.qk_rope_head_dim) == (512, 64)  # latent attention has kernels of its sizes


def test_the_first_layers_that_have_one_of_each_kind_are_kept() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    assert kept_layers({"num_hidden_layers": 36, "layer_types": kinds * 6}) == 6
    assert kept_layers({"num_hidden_layers": 36, "layer_types": ["full_attention"] * 36}) == 2
    assert kept_layers({"num_hidden_layers": 40, "decoder_sparse_step": 3}) == 3
    assert kept_layers({"num_hidden_layers": 40, "mlp_only_layers": [0, 1]}) == 3
    assert kept_layers({"num_hidden_layers": 1}) == 1


def test_rotary_sections_fit_the_smaller_head() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "rope_theta": 1e4}
    values = {"hidden_size": 3072, "num_attention_heads": 32, "rope_parameters": rope}
    assert len(small(values)["rope_parameters"]["long_factor"]) == 16
    sections = {"rope_type": "default", "mrope_section": [16, 24, 24]}
    found = small({"hidden_size": 3584, "num_attention_heads": 28, "head_dim": 128, "rope_parameters": sections})
    assert sum(found["rope_parameters"]["mrope_section"]) == 16


def test_another_vocabulary_is_taken_as_it_is() -> None:
    assert shrunk_of("qwen2").vocab_size == 96

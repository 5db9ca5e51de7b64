"""Models as the learner loads them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlpost.config import Lora, Model
from rlpost.learner.adapters import add_lora
from rlpost.learner.model import load_model
from rlpost.models.source import ModelSource

SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
NOISY = {
    "qwen2": {**SIZES, **HEADS, "attention_dropout": 0.5},
    "gpt2": {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
    "mixtral": {**SIZES, **HEADS, "num_local_experts": 4, "router_jitter_noise": 0.5},
}


@pytest.mark.parametrize(
    ("family", "lora"), [*((family, None) for family in NOISY), ("qwen2", {"rank": 2})], ids=[*NOISY, "adapters"]
)
def test_a_policy_scores_the_same_tokens_alike_while_it_learns(family, lora, tmp_path):
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **NOISY[family])).train()
    tokens = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(made(tokens).logits, made(tokens).logits, atol=1e-3), "it is noisy by itself"
    made.save_pretrained(tmp_path)
    model = Model.model_validate({"path": str(tmp_path), "dtype": "float32", "lora": lora})
    policy = load_model(ModelSource(str(tmp_path)), model, trainable=True)
    assert policy.training
    torch.testing.assert_close(policy(tokens).logits, policy(tokens).logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(policy(tokens).logits, made.eval()(tokens).logits, atol=1e-5, rtol=0)


def test_adapters_for_all_linear_layers_need_some():
    gpt2 = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **NOISY["gpt2"]))  # its layers are Conv1D
    with pytest.raises(
        ValueError, match=r"GPT2LMHeadModel has no linear layers: name them in model.lora.target_modules"
    ):
        add_lora(gpt2, Lora())

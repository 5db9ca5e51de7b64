"""Adapters of the learner: where they go, what they make of a weight, and what is left of them after rounding."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from rlpost.config import ConfigError, Lora, Model
from rlpost.data import make_tokenizer
from rlpost.learner.adapters import OWN, PREFIX, add_lora, as_served, lora_layers, save_adapter, trained
from rlpost.learner.masters import Masters
from rlpost.learner.merge import merge_adapter
from rlpost.learner.stream import WeightStream
from rlpost.learner.survival import Survival
from rlpost.models.adapters import adapter_of
from rlpost.models.source import ModelSource
from tests.moe_models import FAMILIES

SIZES = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=40,
    max_position_embeddings=64,
)


def model(family: str = "llama", dtype: torch.dtype = torch.float32, **sizes: object):
    values = {**SIZES, "tie_word_embeddings": False, **sizes}
    if family == "gpt2":
        values = dict(n_embd=32, n_layer=2, n_head=2, vocab_size=40, n_positions=64)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values), dtype=dtype)


def moved(model, size: float = 0.02) -> None:
    """As if something had been learned."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += size * torch.randn_like(parameter)


@pytest.mark.parametrize(
    ("targets", "sizes", "match"),
    [
        (["q_proj", "lm_head"], {}, r"target_modules: lm_head is the language-model head of LlamaForCausalLM:.*Leave"),
        (["lm_head"], {"tie_word_embeddings": True}, r"head of LlamaForCausalLM, tied to each other.*model.lora: null"),
        (["embed_tokens"], {}, r"model.embed_tokens is the embeddings of LlamaForCausalLM"),
        (r".*head", {}, r"lm_head is the language-model head"),
        (["q_proj", "qproj"], {}, r"'qproj' matches no module of LlamaForCausalLM: give one of down_proj, .*q_proj"),
        ([r"model\.layers\.0\..*q_proj"], {}, r"matches no module.*regular expression of whole names as one string"),
        (r"layers\.0\..*q_proj", {}, r"matches no module"),
        (
            ["mlp"],
            {},
            r"model.layers.0.mlp of LlamaForCausalLM is a LlamaMLP, and adapters are for linear layers: give one of down",
        ),
    ],
    ids=["head", "tied", "embeddings", "regex-head", "in-part", "regex-in-list", "regex", "module"],
)
def test_targets_that_would_not_be_applied_are_refused(targets, sizes, match):
    with pytest.raises(ConfigError, match=match):
        add_lora(model(**sizes), Lora(rank=2, target_modules=targets))


def test_experts_are_not_modules_that_take_adapters():
    moe = AutoModelForCausalLM.from_config(AutoConfig.for_model(**FAMILIES["qwen3_moe"]))
    for target in ("experts", "gate_up_proj", "gate"):
        with pytest.raises(ConfigError, match=r"model.lora.target_modules"):
            add_lora(moe, Lora(rank=2, target_modules=[target]))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], r"model\.layers\.1\..*_proj"])
def test_what_is_asked_for_gets_adapters_and_nothing_else_is_trained(targets):
    adapted = model()
    add_lora(adapted, Lora(rank=2, target_modules=targets))
    names = list(lora_layers(adapted))
    assert len(names) == {str: 14 if targets == "all-linear" else 7, list: 4}[type(targets)]
    assert all(p.requires_grad == ("lora_" in name) for name, p in adapted.named_parameters())


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("llama", {}),
        ("llama", {"rslora": True}),
        ("llama", {"dora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
    ],
    ids=["lora", "rslora", "dora", "conv1d"],
)
def test_merged_weights_are_those_that_peft_merges_and_files_are_those_that_peft_loads(family, lora, tmp_path):
    base, adapted = model(family), model(family)
    base.save_pretrained(tmp_path / "base")
    add_lora(adapted, Lora(rank=4, alpha=12, **lora))
    moved(adapted)
    save_adapter(tmp_path / "adapter", ModelSource(str(tmp_path / "base")), adapted, trained(adapted, Masters()))

    loaded, adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval(), adapted.eval()
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(loaded(tokens).logits, adapted(tokens).logits)
    ours = dict(WeightStream(adapted).tensors(torch.float32))
    theirs = loaded.merge_and_unload().state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], msg=name)


def test_a_saved_adapter_names_its_base_and_merges_into_it_in_float32(tmp_path):
    base, adapted = model(dtype=torch.bfloat16), model(dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    make_tokenizer("0123456789+=").save_pretrained(tmp_path / "base")
    add_lora(adapted, Lora(rank=4, alpha=8))
    moved(adapted, 1e-4)
    exact = {name: tensor + 1e-6 for name, tensor in trained(adapted, Masters()).items()}  # as bfloat16 cannot hold it
    save_adapter(tmp_path / "adapter", ModelSource(str(tmp_path / "base")), adapted, exact)
    found = adapter_of(tmp_path / "adapter")
    assert found is not None
    assert (found.base, found.lora.rank, found.lora.alpha) == (str(tmp_path / "base"), 4, 8)

    asked = Model(path="base", dtype="bfloat16")
    assert merge_adapter(tmp_path / "adapter", tmp_path / "wide", asked, "float32") > 0.999
    assert merge_adapter(tmp_path / "adapter", tmp_path / "narrow", asked, "bfloat16") < 0.5
    name = "model.layers.0.self_attn.q_proj"
    a, b = (exact[f"{name}.lora_{which}.{OWN}.weight"] for which in "AB")
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype=torch.float32)
    expected = base.get_submodule(name).weight.float() + 2 * b @ a
    torch.testing.assert_close(wide.get_submodule(name).weight, expected, rtol=0, atol=1e-7)


WRITTEN = {
    "peft_type": "LORA",
    "base_model_name_or_path": "base",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "bias": "none",
    "rank_pattern": {},
}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({k: v for k, v in WRITTEN.items() if k != "r"}, "r: missing: write it as peft's save_pretrained does"),
        ({"peft_type": "LORA"}, "r: missing; lora_alpha: missing; target_modules: missing"),
        ({**WRITTEN, "r": "four"}, "r: must be a valid integer, got 'four'"),
        ({**WRITTEN, "r": 0}, "r: must be greater than 0, got 0"),
        ({**WRITTEN, "lora_alpha": None}, "lora_alpha: must be a valid number, got None"),
        ({**WRITTEN, "target_modules": 5}, "target_modules: must be"),
        ({**WRITTEN, "base_model_name_or_path": None}, "base_model_name_or_path: must be"),
        ({**WRITTEN, "alpha_pattern": {"q_proj": 16}}, "alpha_pattern: {'q_proj': 16}: not plain LoRA"),
        ({**WRITTEN, "modules_to_save": ["lm_head"]}, "modules_to_save: ['lm_head']: not plain LoRA"),
        ({"peft_type": "IA3"}, "peft_type: 'IA3': not plain LoRA; merge it with peft"),
        ([1], "holds a list, not an object"),
        (WRITTEN, "has no adapter_model.safetensors"),
    ],
)
def test_an_adapter_whose_files_lack_something_is_refused_by_file_and_key(tmp_path, content, says):
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=re.escape(says)) as refused:
        adapter_of(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_what_engines_get_is_rounded_once_with_the_scaling_in_it():
    adapted = model(dtype=torch.bfloat16)
    add_lora(adapted, Lora(rank=4, alpha=6, target_modules=["q_proj"]))
    moved(adapted)
    exact = trained(adapted, Masters())
    served = as_served(adapted, exact, torch.bfloat16)
    name = "model.layers.0.self_attn.q_proj"
    b = exact[f"{name}.lora_B.{OWN}.weight"] * 1.5
    assert torch.equal(served[f"{PREFIX}{name}.lora_B.weight"], b.bfloat16())


def test_the_share_that_survives_is_one_less_the_relative_error_of_the_whole_update():
    torch.manual_seed(0)
    a, b = torch.randn(3, 40), torch.randn(30, 3)
    near_a, near_b = a.bfloat16(), b.bfloat16()
    by_factors, by_products = Survival(), Survival()
    by_factors.add_factors(a, b, near_a, near_b)
    by_products.add(b.double() @ a.double(), near_b.double() @ near_a.double())
    assert by_factors.share == pytest.approx(by_products.share, abs=1e-9)
    assert 0.99 < by_factors.share < 1
    assert Survival().share is None
    nothing, twice = Survival(), Survival()
    nothing.add(a, torch.zeros_like(a))
    twice.add(a, 2 * a)
    assert nothing.share == twice.share == 0

"""Which implementation of attention a run takes is known before anything starts, and why not another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.small_models import small_config
from rlpost.config import ConfigError, CreateModel, Model, parse
from rlpost.models.attention import without_varlen
from rlpost.models.facts import outline_of
from rlpost.models.load import shaped
from rlpost.run.check import checked
from tests.conftest import merge, tiny
from tests.tiny_models import LLAMA, make

pytestmark = pytest.mark.usefixtures("shipped_verifiers_load")

ON_GPU = {"cluster": {"gpus_per_node": 2}, "model": {"dtype": "bfloat16"}}
PACKED, PADDED = {"learner": {"layout": "packed"}}, {"learner": {"layout": "padded"}}
WITHOUT = {
    "gemma2": r"it caps the products of attention \(attn_logit_softcapping: 50.0\)",
    "gpt_oss": "its attention has sinks",
    "llama4_text": "it has layers of chunked_attention",
    "deepseek_v32": "it has layers of indexed_attention",
    "qwen3_next": "it has layers of linear_attention",
    "mamba2": "it has layers of linear_attention",
    "rwkv": "it has layers that carry a state",
    "bloom": "its attention is not behind the interface",
    "stablelm": "its attention is not behind the interface",
    "doge": "its attention depends on a mask of its own",
    "nemotron": "its layers do not tell their attention where sequences begin",
    "gemma4_text": "it has heads of 512 numbers, and the kernel 256 at most",
}


def run_of(folder: Path, *changes: dict[str, Any]) -> Any:
    values = tiny()
    for change in changes:
        values = merge(values, change)
    model = {**values["model"], "path": str(folder), "create": None, "dtype": values["model"].get("dtype", "float32")}
    return parse({**values, "warmup": None, "model": model})


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make(tmp_path / "m")


@pytest.mark.parametrize("family", WITHOUT)
def test_what_a_family_has_instead_is_said(family):
    with torch.device("meta"):
        network = shaped(small_config(family, 96), "m", False)
    assert without_varlen(network).startswith(WITHOUT[family].replace("\\", ""))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe", "mistral", "gemma3_text", "deepseek_v3"])
def test_latent_attention_windows_and_experts_are_no_reason_against_it(family):
    assert without_varlen(shaped(small_config(family, 96), "m", False)) == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([ON_GPU, PACKED], "varlen"),
        ([ON_GPU, PADDED], "varlen"),
        ([ON_GPU, {"model": {"dtype": "float32"}}], "sdpa"),
        ([PACKED], "varlen"),
        ([PADDED], "sdpa"),
        ([ON_GPU, {"model": {"attention": "sdpa"}}], "sdpa"),
        ([PADDED, {"model": {"attention": "varlen"}}], "varlen"),
        ([{"model": {"attention": "eager"}}], "eager"),
    ],
)
def test_the_fastest_that_is_exact_is_taken_and_any_other_on_request(changes, expected, llama):
    ready = checked(run_of(llama, *changes))
    assert ready.config.model.attention == expected
    assert not any("attention" in line for line in ready.lines)


def test_a_model_without_it_gets_the_next_one_with_the_reason_and_is_refused_when_told_to(tmp_path):
    folder = make(tmp_path / "m", model_type="stablelm")
    ready = checked(run_of(folder, ON_GPU))
    assert ready.config.model.attention == "sdpa"
    assert any(
        "model.attention: set to sdpa, not varlen, which stablelm does not have: its attention is not" in line
        for line in ready.lines
    )
    with pytest.raises(ConfigError, match=r"model.attention: varlen, which stablelm does not have: its .*: set"):
        checked(run_of(folder, ON_GPU, {"model": {"attention": "varlen"}}))


def test_an_anchor_has_to_have_the_policys(llama, tmp_path):
    other = make(tmp_path / "anchor", model_type="stablelm")
    anchored = {
        "objective": {
            "references": {"other": {"name": "teacher", "path": str(other)}},
            "regularizers": [{"divergence": "k2", "coef": 0.1, "anchor": "other"}],
        }
    }
    with pytest.raises(
        ConfigError, match=r"model.attention: varlen, which objective.references.other \(stablelm\) does not have: set"
    ):
        checked(run_of(llama, PACKED, anchored))
    assert checked(run_of(llama, PADDED, anchored)).config.model.attention == "sdpa"


@pytest.mark.parametrize("kind", ["varlen", "flash_attention_2"])
def test_kernels_of_half_precision_are_refused_for_float32(kind):
    with pytest.raises(ConfigError, match=f"model.attention: {kind} on GPUs .* set model.dtype: bfloat16"):
        parse(merge(merge(tiny(), ON_GPU), {"model": {"dtype": "float32", "attention": kind}}))


def test_heads_that_differ_from_layer_to_layer_have_no_one_size():
    config = {**LLAMA, "model_type": "gemma4_text", "head_dim": 32}
    assert outline_of(Model(create=CreateModel(config=config))).head_size is None
    same = {**LLAMA, "model_type": "gemma3_text", "head_dim": 32}
    assert outline_of(Model(create=CreateModel(config=same))).head_size == 32

"""The repairs of vLLM go in where a fault is, once, and say where they cannot."""

from __future__ import annotations

import inspect
import logging

import pytest
import torch
import vllm
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.lora.ops.torch_ops import lora_ops
from vllm.model_executor.layers.activation import XIELU
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.platforms import current_platform

from rlpost.rollout.plugin import (
    _expand,
    _expand_slice,
    _shrink,
    packing_every_load,
    packs_first_load_only,
    register,
    repair_expert_reload,
    with_one_slot,
)

FAULTY = """
    def _setup_kernel(self, layer):
        is_weight_update = self.moe_kernel is not None
        if not is_weight_update:
            self._init_moe_kernel(layer)
            if self.unquantized_backend == UnquantizedMoeBackend.CPU:
                self.moe_kernel.fused_experts.process_weights_after_loading(layer)
"""
REPAIRED = """
    def _setup_kernel(self, layer):
        is_weight_update = self.moe_kernel is not None
        if not is_weight_update:
            self._init_moe_kernel(layer)
        if self.unquantized_backend == UnquantizedMoeBackend.CPU:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)
"""


def original():
    return inspect.unwrap(UnquantizedFusedMoEMethod._setup_kernel)


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    """As on a machine without accelerators, and with vLLM's own method, whatever was loaded before."""
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: True)
    monkeypatch.setattr(UnquantizedFusedMoEMethod, "_setup_kernel", original())


def test_the_fault_is_told_by_its_shape():
    assert packs_first_load_only(FAULTY)
    assert not packs_first_load_only(REPAIRED)
    assert not packs_first_load_only("def _setup_kernel(self, layer): pass")


def test_the_vllm_that_is_installed_has_it():
    """When this fails, vLLM has changed: look whether the repair is still needed, and whether it still fits."""
    assert packs_first_load_only(inspect.getsource(original()))


def test_the_repair_goes_in_once():
    register()
    repaired = UnquantizedFusedMoEMethod._setup_kernel
    assert repaired.__wrapped__ is original()
    register()
    assert UnquantizedFusedMoEMethod._setup_kernel is repaired


def test_a_version_it_was_never_tried_on_is_left_alone_and_said_so(monkeypatch, caplog):
    monkeypatch.setattr(vllm, "__version__", "0.31.0")
    with caplog.at_level(logging.ERROR):
        repair_expert_reload()
    assert UnquantizedFusedMoEMethod._setup_kernel is original()
    assert "vLLM 0.31.0 does not pack experts anew" in caplog.text


def test_a_version_without_the_fault_is_left_alone_in_silence(monkeypatch, caplog):
    def repaired_setup_kernel(self, layer):
        self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    monkeypatch.setattr(UnquantizedFusedMoEMethod, "_setup_kernel", repaired_setup_kernel)
    repair_expert_reload()
    assert UnquantizedFusedMoEMethod._setup_kernel is repaired_setup_kernel
    assert not caplog.records


def test_nothing_is_touched_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    repair_expert_reload()
    assert UnquantizedFusedMoEMethod._setup_kernel is original()


@pytest.mark.parametrize(
    ("kernel_exists", "backend", "packed"),
    [
        (False, UnquantizedMoeBackend.CPU, 0),
        (True, UnquantizedMoeBackend.CPU, 1),
        (True, UnquantizedMoeBackend.TRITON, 0),
    ],
    ids=["first", "update", "other"],
)
def test_experts_are_packed_after_an_update_and_after_nothing_else(kernel_exists, backend, packed):
    """The first load packs by itself, inside the method that is wrapped."""
    calls = []

    class Experts:
        def process_weights_after_loading(self, layer):
            calls.append(layer)

    class Kernel:
        fused_experts = Experts()

    class Method:
        unquantized_backend = backend
        moe_kernel = Kernel() if kernel_exists else None

    method, order = Method(), []

    def setup(self, layer, w13, w2):
        order.append((layer, w13, w2, len(calls)))
        self.moe_kernel = Kernel()

    packing_every_load(setup)(method, layer="layer", w13=1, w2=2)
    assert order == [("layer", 1, 2, 0)], "the new weights are in place before they are packed"
    assert calls == ["layer"] * packed


@pytest.mark.parametrize("neox", [True, False])
def test_the_rotary_kernel_turns_every_head_of_a_query_with_heads_apart(neox):
    """When the kernel does so by itself, vLLM has been mended and the repair may go."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(5, heads, 64, generator=generator) for heads in (3, 1))
    angles = torch.outer(torch.arange(8.0), 1 / 10000 ** (torch.arange(0, 64, 2) / 64))
    positions, cache = torch.arange(5), torch.cat([angles.cos(), angles.sin()], -1)

    class Rotary:
        head_size, rotary_dim, is_neox_style = 64, 64, neox

        def _match_cos_sin_cache_dtype(self, query):
            return cache

    expected = RotaryEmbedding.forward_static(positions, query.clone(), key.clone(), 64, 64, cache, neox)
    register()
    repaired = RotaryEmbedding.forward_cpu
    register()
    assert RotaryEmbedding.forward_cpu is repaired
    for found, wanted in zip(repaired(Rotary(), positions, query.clone(), key.clone()), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    alone, _ = repaired.__wrapped__(Rotary(), positions, query.clone(), key.clone())
    assert (alone - expected[0]).abs().max() > 0.1
    assert repaired(Rotary(), positions, query.clone())[1] is None


@pytest.mark.parametrize("slots", [1, 2])
def test_the_one_adapter_of_an_engine_is_multiplied_as_vllm_does_it(slots):
    torch.manual_seed(0)
    x, a, b = torch.randn(5, 12), torch.randn(slots, 1, 3, 12), torch.randn(slots, 1, 8, 3)
    index = torch.zeros(5, dtype=torch.long)
    for theirs, ours, weights, inputs, width, rest in (
        ("bgmv_shrink", _shrink, a, x, 4, (2.0,)),
        ("bgmv_expand", _expand, b, torch.randn(5, 3), 10, (True,)),
        ("bgmv_expand", _expand, b, torch.randn(5, 3), 6, (False,)),
        ("bgmv_expand_slice", _expand_slice, b, torch.randn(5, 3), 12, (4, 8, True)),
    ):
        operation = getattr(lora_ops, theirs)
        plain = getattr(operation, "__wrapped__", operation)
        expected, found = (torch.full((5, width), 0.5) for _ in range(2))
        plain(inputs, weights, expected, index, *rest)
        with_one_slot(plain, ours)(inputs, weights, found, index, *rest)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_the_bias_that_selects_experts_is_used_in_routers_without_groups(scoring):
    """When the router does so by itself, vLLM has been mended and the repair may go."""
    torch.manual_seed(0)
    logits, bias = torch.randn(7, 8), torch.randn(8)
    register()
    repaired = CPURouter._compute_routing
    register()
    assert CPURouter._compute_routing is repaired
    router = CPURouter(2, 8, renormalize=True, scoring_func=scoring, e_score_correction_bias=bias)
    scores = logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()
    chosen = (scores + bias).topk(2, -1).indices.sort(-1).values
    weights = scores.gather(1, chosen)
    found, indices = repaired(router, None, logits, None)
    order = indices.argsort(-1)
    assert torch.equal(indices.gather(1, order), chosen.int())
    torch.testing.assert_close(found.gather(1, order), weights / weights.sum(-1, keepdim=True))
    if scoring == "softmax":
        plain = CPURouter(2, 8, renormalize=True, e_score_correction_bias=bias)
        assert not torch.equal(repaired.__wrapped__(plain, None, logits, None)[1].sort(-1).values, chosen.int())


def test_a_router_without_a_bias_is_vllms_own():
    logits = torch.randn(7, 8)
    register()
    router = CPURouter(2, 8)
    for found, expected in zip(
        CPURouter._compute_routing(router, None, logits, None),
        CPURouter._compute_routing.__wrapped__(CPURouter(2, 8), None, logits, None),
        strict=True,
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scalars_of_xielu_are_of_the_engines_dtype(dtype):
    register()
    torch.set_default_dtype(dtype)
    try:
        with set_current_vllm_config(VllmConfig()):
            made = XIELU()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in (made.alpha_p, made.alpha_n, made.beta, made.eps)} == {dtype}

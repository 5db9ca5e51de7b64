"""The repairs of vLLM go in where a fault is, once, and say where they cannot."""

from __future__ import annotations

import inspect
import logging

import pytest
import torch
import vllm
from vllm.lora.ops.torch_ops import lora_ops
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
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

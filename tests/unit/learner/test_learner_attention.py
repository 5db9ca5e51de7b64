"""Attention by sequences' lengths: packed grids say what sequences alone say, on the kernel's path too, or it is refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.small_models import small_config, small_model
from rlpost.config import ConfigError, Lora, load
from rlpost.learner import attention
from rlpost.learner.adapters import add_lora
from rlpost.learner.attention import Causal, Segments, by_kernel, by_sequence, causal, varlen_attention
from rlpost.learner.batch import MicroBatch, make_grid
from rlpost.learner.logprobs import Policy
from rlpost.learner.replay import Replay
from tests.flash import dense, flash_attn_package, torch_kernels
from tests.moe_models import FAMILIES as MOE
from tests.moe_models import make_model
from tests.packing import PADDED, ROWS, alone, learned, sequences
from tests.unit.routing.routing_cases import random_rows

ROOT = Path(__file__).parents[3]
CLOSE = 1e-5
# One head of keys for all, windows in all layers and in some, layers that do not pass theirs on, heads of two widths.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "phimoe": {"sliding_window": 8},
    "minicpm3": {},
}
OTHERS = {
    "gemma2": "Gemma2Attention has attention with softcap",
    "gpt_oss": "GptOssAttention has attention with s_aux",
    "llama4_text": r"llama4_text has attention in chunks \(attention_chunk_size: 8\)",
    "stablelm": r"StableLmAttention has layers that do not tell their attention where sequences begin",
    "biogpt": "biogpt has masks of its own",
}


def small(family: str) -> Any:
    return small_model(family, num_hidden_layers=2, **KINDS[family])


@pytest.mark.parametrize("family", KINDS)
def test_packed_grids_of_any_number_of_rows_are_sequences_alone(family):
    model, batch = small(family), sequences(96)
    expected = alone(model, batch)
    for rows in (*ROWS.values(), PADDED):
        assert learned(model, batch, [rows], "varlen").far_from(expected) < CLOSE


@pytest.mark.parametrize("family", [name for name in MOE if name != "gpt_oss"])
def test_so_are_those_of_mixtures_of_experts_with_routes_replayed(family):
    model = make_model(family)
    replay = Replay(model)
    batch = sequences(70)
    batch = batch.routed(random_rows(replay, len(batch.tokens), seed=0).numpy())
    one_by_one = [((i,),) for i in range(len(batch))]
    expected = learned(model, batch, one_by_one, "sdpa", replay=replay)
    for rows in ROWS.values():
        assert learned(model, batch, [rows], "varlen", replay=replay).far_from(expected) < CLOSE


@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "adapters"])
def test_activations_that_are_made_again_and_adapters_change_nothing(adapted):
    model, batch = small("mistral"), sequences(96)
    if adapted:
        add_lora(model, Lora(rank=4))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    expected = alone(model, batch)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    for rows in ROWS.values():
        assert learned(model, batch, [rows], "varlen").far_from(expected) < CLOSE


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operator gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.elements = max(self.elements, *made, 0)
        return out


def test_no_tensor_grows_with_the_square_of_a_row():
    model, batch = small("mistral"), sequences(96, [20] * 60)
    largest = {}
    for kind in ("varlen", "sdpa"):
        with Largest() as mode:
            learned(model, batch, [(tuple(range(60)),)], kind)
        largest[kind] = mode.elements
    assert largest["varlen"] < 20 * 60 * 200 < (20 * 60) ** 2 <= largest["sdpa"]


# ------------------------------------------------------------------------------------------------- the kernel's path


@pytest.fixture
def on_kernels(monkeypatch: pytest.MonkeyPatch):
    """What runs on GPUs, down to the operators that torch has CUDA kernels for."""
    monkeypatch.setattr(attention, "by_sequence", None)
    monkeypatch.setattr(attention, "on_cpu", lambda tensor: False)
    with torch_kernels() as calls:
        yield calls


@pytest.mark.parametrize("family", KINDS)
def test_on_gpus_packed_grids_are_sequences_alone(family, on_kernels):
    model, batch = small(family), sequences(96)
    expected = alone(model, batch)
    for rows in (*ROWS.values(), PADDED):
        assert learned(model, batch, [rows], "varlen").far_from(expected) < CLOSE
    assert len(on_kernels) == 2 * 4, "a call for each layer and grid, however many sequences"
    assert {call["key"].shape[1] for call in on_kernels} == {KINDS[family].get("num_key_value_heads", 2)}, (
        "not repeated"
    )
    windows = {call["window"] for call in on_kernels}
    assert windows == (
        {(7, 0)} if family in ("mistral", "phimoe") else {(7, 0), (-1, 0)} if "gemma" in family else {(-1, 0)}
    )


@pytest.mark.parametrize("window", [None, 1, 5, 30])
@pytest.mark.parametrize(("heads", "groups", "width", "narrow"), [(4, 2, 16, 16), (2, 2, 24, 8), (3, 1, 20, 20)])
def test_kernel_and_loop_agree_with_the_definition(window, heads, groups, width, narrow):
    torch.manual_seed(0)
    ends = torch.tensor([0, 5, 6, 30], dtype=torch.int32)
    q, k, v = (
        torch.randn(30, n, d, requires_grad=True) for n, d in ((heads, width), (groups, width), (groups, narrow))
    )
    cotangent = torch.randn(30, heads, narrow)

    def out_and_gradients(out: torch.Tensor) -> list[torch.Tensor]:
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), cotangent)]

    left = -1 if window is None else window - 1
    expected = out_and_gradients(dense(q, k, v, ends, 0.3, left, 0))
    with torch_kernels():
        by_kernels = out_and_gradients(by_kernel(q, k, v, ends, 24, window, 0.3))
    for found in (by_kernels, out_and_gradients(by_sequence(q, k, v, ends, window, 0.3))):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=CLOSE, rtol=CLOSE)


def test_the_library_takes_what_it_is_given_forward_and_backward():
    """torch's own function on tensors without numbers: its signature, its operators' schemas, its shapes."""
    with torch.device("meta"):
        q = torch.empty(30, 4, 192, dtype=torch.bfloat16, requires_grad=True)
        k = torch.empty(30, 2, 192, dtype=torch.bfloat16, requires_grad=True)
        v = torch.empty(30, 2, 128, dtype=torch.bfloat16, requires_grad=True)
        ends = torch.empty(4, dtype=torch.int32)
        out = by_kernel(q, k, v, ends, 24, 8, 0.3)
        out.backward(torch.empty_like(out))
    assert out.shape == (30, 4, 128)
    assert (q.grad.shape, k.grad.shape, v.grad.shape) == (q.shape, k.shape, v.shape)
    assert out.dtype == q.grad.dtype == torch.bfloat16


def test_a_window_means_in_the_library_what_it_means_here():
    """`by_kernel` gives (window - 1, 0): this version counts the places beside a token's own."""
    assert "(W, 0) for causal attention with sliding window of size W" in inspect.getdoc(varlen_attn)
    assert inspect.signature(varlen_attn).parameters["window_size"].default == (-1, -1)


# ------------------------------------------------------------------------------------------ flash_attention_2, GPU files


@pytest.mark.parametrize("file", sorted(f.name for f in (ROOT / "configs").glob("*gpu.yaml")))
@pytest.mark.parametrize("kind", ["varlen", "flash_attention_2", "sdpa"])
def test_every_grid_that_a_configuration_for_gpus_makes_is_sequences_alone(kind, file, monkeypatch):
    learner = load([ROOT / "configs" / file]).learner
    most = learner.tokens_per_micro_batch // learner.longest
    assert most >= 1
    model, batch = small("llama"), sequences(96)
    expected = alone(model, batch)
    calls = flash_attn_package(monkeypatch)
    with torch_kernels():
        for rows in [rows for count, rows in ROWS.items() if count <= most]:
            assert learned(model, batch, [rows], kind).far_from(expected) < CLOSE
    assert set(calls) == ({"varlen"} if kind == "flash_attention_2" else set())


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("family", OTHERS)
def test_a_model_that_asks_for_what_is_not_computed_is_refused_at_its_first_forward(family):
    changes = {"attention_chunk_size": 8} if family == "llama4_text" else {}
    model = small_model(family, **changes)
    with pytest.raises(ConfigError, match=f"model.attention: varlen, but {OTHERS[family]}.*set model.attention: sdpa"):
        learned(model, sequences(96), [PADDED], "varlen")


def test_dropout_and_another_mask_are_refused():
    q = torch.zeros(1, 2, 3, 8)
    where = Segments.of(torch.arange(3)[None], "cpu").arguments()
    layer = torch.nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"Linear has attention with dropout \(0.1\)"):
        varlen_attention(layer, q, q, q, Causal(None), dropout=0.1, **where)
    with pytest.raises(ConfigError, match="Linear has masks of its own"):
        varlen_attention(layer, q, q, q, None, **where)
    with pytest.raises(ConfigError, match="Linear has masks of its own"):
        varlen_attention(layer, q, q, q, Causal(None), is_causal=False, **where)
    with pytest.raises(ConfigError, match="attention with position_bias"):
        varlen_attention(layer, q, q, q, Causal(None), position_bias=q, **where)
    for own in ({"attention_mask": torch.ones(1, 3)}, {"use_vmap": True}):
        with pytest.raises(ConfigError, match="llama has masks of its own"):
            causal(config=small_config("llama", 96), **own)


@pytest.mark.parametrize("kind", ["varlen", "flash_attention_2"])
def test_a_forward_that_is_not_told_where_sequences_are_is_refused(kind):
    model, batch = small("llama"), sequences(96)
    attention.register()
    model.config._attn_implementation = kind
    grid = make_grid(batch, MicroBatch(ROWS[2]), 0)
    with pytest.raises(ValueError, match="needs the grid's segments"):
        Policy(model, 64)(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 1.0)


def test_segments_are_the_sequences_of_a_grid_and_the_padding_of_its_rows():
    batch = sequences(96)
    grid = make_grid(batch, MicroBatch(((3, 1), (0,))), 0)
    assert grid.segments.cu_seqlens.tolist() == [0, 40, 43, 66, 86]
    assert grid.segments.cu_seqlens.dtype == torch.int32
    assert grid.segments.max_seqlen == 40

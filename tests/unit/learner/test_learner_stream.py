"""A model's weights as a stream: all that a conversion of the whole model gives, and never more than a layer at once."""

from __future__ import annotations

import pytest
import torch

from rlpost.learner import stream as streams
from rlpost.learner.delivery import _disturbed
from rlpost.learner.masters import Masters
from rlpost.learner.stream import WeightStream
from rlpost.learner.survival import Survival
from rlpost.models.load import load_causal_lm
from rlpost.models.source import ModelSource
from tests.moe_models import FAMILIES
from tests.weight_streams import LARGE, MEASURED, PLAIN, Memory, adapted, at_once, largest_layer, made


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*PLAIN, *FAMILIES])
def test_the_stream_has_the_bits_of_the_whole_model_converted_at_once_each_tensor_once(family, dtype):
    model = made(family)
    wide = ("norm.weight",) if family == "qwen2" else ()
    stream = WeightStream(model)
    sent = list(stream.tensors(dtype, wide))
    described = stream.described(dtype, wide)
    assert [(n, t.dtype, t.shape) for n, t in sent] == [(n, t.dtype, t.shape) for n, t in described.items()]
    assert all(tensor.is_meta for tensor in described.values())
    assert_same(dict(sent), at_once(model, dtype, wide))


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss", "glm4"])
def test_a_model_that_was_loaded_streams_what_is_on_disk(family, tmp_path):
    made(family).save_pretrained(tmp_path)
    from safetensors.torch import load_file

    model = load_causal_lm(ModelSource(str(tmp_path)), torch.float32, "eager")
    assert_same(dict(WeightStream(model).tensors(torch.float32)), load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", MEASURED)
def test_adapters_are_merged_on_the_way(family, dtype, held):
    model = adapted(made(family, held))
    assert_same(dict(WeightStream(model).tensors(dtype)), at_once(model, dtype))


@pytest.mark.parametrize("adapters", [False, True], ids=["all", "lora"])
@pytest.mark.parametrize(
    ("held", "dtype"), [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2]
)
@pytest.mark.parametrize("family", MEASURED)
def test_no_more_is_held_than_twice_the_largest_layer_whatever_the_depth(family, held, dtype, adapters):
    model = made(family, held, **LARGE[family])
    layer = largest_layer(model)
    assert sum(p.nbytes for p in model.parameters()) > 3.5 * layer, "a copy of the model would be seen"
    stream = WeightStream(adapted(model) if adapters else model)
    assert stream.largest <= layer
    with Memory() as memory:
        for _, tensor in stream.tensors(dtype, survival=Survival()):
            del tensor
        assert memory.held == 0
    assert memory.peak <= 2.2 * layer
    if family == "qwen3_moe":
        assert memory.peak > layer / 3, "experts are taken apart, and that is counted"


def test_a_rank_that_keeps_nothing_takes_part_in_every_read_and_holds_nothing():
    model = adapted(made("qwen3_moe"))
    asked: list[list[int]] = []

    class Recording(Masters):
        def of(self, parameter: torch.nn.Parameter) -> torch.Tensor:
            asked[-1].append(id(parameter))
            return super().of(parameter)

    stream = WeightStream(model, Recording)
    for keep in (True, False):
        asked.append([])
        with Memory() as memory:
            names = [name for name, _ in stream.tensors(torch.float32, keep=keep)]
        assert bool(names) == bool(memory.peak) == keep
    assert asked[0] == asked[1]
    assert len(asked[0]) == sum("lora_" in name for name, _ in model.named_parameters())


def test_what_is_left_of_adapters_is_said_when_the_stream_is_over():
    fine, coarse = Survival(), Survival()
    model = adapted(made("qwen2", torch.bfloat16))
    for _ in WeightStream(model).tensors(torch.float32, survival=fine):
        pass
    for _ in WeightStream(model).tensors(torch.bfloat16, survival=coarse):
        pass
    assert fine.share == 1
    assert 0.5 < coarse.share < 1


def test_a_tensor_that_does_not_come_is_an_error(monkeypatch):
    stream = WeightStream(made("qwen3_moe"))
    convert = streams._converted

    def forgetful(model, tensors):
        found = convert(model, tensors)
        found.pop("model.layers.2.mlp.experts.3.up_proj.weight", None)
        return found

    monkeypatch.setattr(streams, "_converted", forgetful)
    with pytest.raises(
        RuntimeError, match=r"model.layers.2.mlp.experts.gate_up_proj.*Qwen3MoeForCausalLM.*was to become"
    ):
        list(stream.tensors(torch.float32))


def test_a_part_that_is_left_half_used_is_an_error():
    parts = WeightStream(made("qwen2")).parts(torch.float32)
    next(next(parts))
    with pytest.raises(RuntimeError, match="was not used up"):
        list(parts)


def test_what_a_conversion_joins_is_gathered_together(monkeypatch):
    """As families whose checkpoints hold queries, keys and values as one."""
    model = made("qwen2")

    def joined(model, tensors):
        found = {}
        for name, tensor in tensors.items():
            key = name.replace("k_proj", "q_proj").replace("v_proj", "q_proj")
            found[key] = torch.cat([found[key], tensor]) if key in found else tensor
        return found

    monkeypatch.setattr(streams, "_converted", joined)
    assert_same(
        dict(WeightStream(model).tensors(torch.float32)),
        joined(model, {name: p.detach() for name, p in model.named_parameters()}),
    )


def test_noise_on_routers_leaves_all_else_alone():
    model = made("qwen3_moe")
    exact = dict(WeightStream(model).tensors(torch.float32))
    noisy = {n: t for part in _disturbed(WeightStream(model).parts(torch.float32), 0.1, 3) for n, t in part}
    moved = {name for name in exact if not torch.equal(exact[name], noisy[name])}
    assert moved == {name for name in exact if name.endswith(".gate.weight")}
    share = torch.stack([(noisy[n] - exact[n]).std() / exact[n].std() for n in sorted(moved)])
    assert ((share > 0.08) & (share < 0.12)).all()

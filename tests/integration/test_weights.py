"""Weights travel as bits: nothing changes on the way, and a probe tells other bits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlpost.rollout.probes import readable, wrong_probes
from rlpost.weights import PROBED_TENSORS, Held, Probe, Probing, checksum, held_wide, to_numpy, to_tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_survives_the_journey_bit_for_bit(dtype):
    tensor = torch.randn(5, 7).to(dtype)
    assert torch.equal(to_tensor(to_numpy(tensor)), tensor)


def test_one_changed_bit_changes_the_checksum():
    array = np.arange(1000, dtype=np.float32)
    before = checksum(array)
    array.view(np.uint8)[123] ^= 1
    assert checksum(array) != before


def worker(**tensors: torch.Tensor) -> SimpleNamespace:
    """What vLLM gives a function it runs in a worker."""
    model = torch.nn.Module()
    for name, tensor in tensors.items():
        model.register_parameter(name, torch.nn.Parameter(tensor))
    return SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: model))


def probes_of(sent: dict[str, torch.Tensor], held: dict[str, Held], version: int) -> dict[str, Probe]:
    probing = Probing({name: tuple(t.shape) for name, t in sent.items()}, held, version)
    assert dict(probing.watch(sent.items())) == sent
    return probing.probes()


def test_packed_tensors_are_not_readable():
    held = readable(worker(norm=torch.ones(4), packed=torch.empty(0)))
    assert held == {"norm": Held((4,), "float32")}


def test_probes_find_a_tensor_that_was_not_updated_also_behind_a_padded_vocabulary():
    norm, embedding = torch.randn(4), torch.randn(6, 3)
    padded = torch.cat([embedding, torch.zeros(2, 3)])
    engine = worker(norm=norm, embed=padded)
    probes = probes_of({"norm": norm, "embed": embedding}, readable(engine), version=3)
    assert set(probes) == {"norm", "embed"}
    assert wrong_probes(engine, probes) == []
    assert wrong_probes(worker(norm=norm + 1, embed=padded), probes) == ["norm"]
    assert wrong_probes(worker(embed=padded), probes) == ["norm"]


def test_other_tensors_are_probed_with_each_version():
    sent = {f"n{i}": torch.ones(2) for i in range(40)}
    held = {name: Held((2,), "float32") for name in sent}
    chosen = [set(probes_of(sent, held, version=v)) for v in range(5)]
    assert all(len(c) == PROBED_TENSORS for c in chosen)
    assert len(set().union(*chosen)) > PROBED_TENSORS


def test_only_what_was_chosen_leaves_its_device_to_be_read():
    moved = []

    class OnDevice(torch.Tensor):
        def cpu(self):
            moved.append(self.nbytes)
            return self.as_subclass(torch.Tensor).clone()

    sent = {f"n{i}": torch.randn(2 + i).as_subclass(OnDevice) for i in range(40)}
    held = {name: Held(tuple(t.shape), "float32") for name, t in sent.items()}
    probes = probes_of(sent, held, version=1)
    assert len(moved) == PROBED_TENSORS
    assert sum(moved) == sum(sent[name].nbytes for name in probes)
    assert all(probe.checksum == checksum(sent[name].numpy()) for name, probe in probes.items())


def test_a_tensor_that_was_to_be_checked_and_was_not_sent_is_an_error():
    probing = Probing({"a": (2,), "b": (2,)}, {name: Held((2,), "float32") for name in "ab"}, version=0)
    list(probing.watch([("a", torch.ones(2))]))
    with pytest.raises(RuntimeError, match="engines' b were to be checked"):
        probing.probes()


def test_an_update_that_could_not_be_checked_is_refused():
    with pytest.raises(ValueError, match="no tensor of the learner"):
        Probing({"a": (2,)}, {"b": Held((2,), "float32")}, version=0)


def test_a_probe_is_of_the_dtype_an_engine_holds_a_tensor_in():
    """vLLM keeps states of linear attention and biases of routers in float32 in a bfloat16 engine."""
    sent = torch.randn(8).bfloat16()
    engine = worker(A_log=sent.float(), norm=sent)
    probes = probes_of({"A_log": sent, "norm": sent}, readable(engine), version=0)
    assert wrong_probes(engine, probes) == []
    assert wrong_probes(worker(A_log=sent.float() + 1e-4, norm=sent), probes) == ["A_log"]


def test_what_engines_hold_in_float32_is_known_by_the_end_of_its_name():
    held = {"model.layers.0.gate.bias": Held((2,), "float32"), "model.norm.weight": Held((2,), "bfloat16")}
    assert held_wide(held) == {"gate.bias"}

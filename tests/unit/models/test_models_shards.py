"""Files of weights written as tensors come: what safetensors and transformers read, and never taken for whole before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlpost.models.shards import write_shards
from rlpost.models.weights import INDEX, WeightsError, tensors_on_disk
from tests.weight_streams import Memory

TENSORS = {
    "embed.weight": torch.randn(40, 5).bfloat16(),
    "layers.0.weight": torch.randn(6, 5),
    "layers.0.scale": torch.tensor(1.5),
    "layers.1.weight": torch.randn(5, 6).T,
    "layers.1.none": torch.empty(0, 3),
    "head.weight": torch.randn(7, 5).bfloat16(),
}
DESCRIBED = {name: tensor.to("meta") for name, tensor in TENSORS.items()}


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize(("size", "files"), [(10**9, 1), (200, 3)])
def test_what_is_written_is_what_safetensors_reads(size, files, tmp_path):
    write_shards(tmp_path, DESCRIBED, TENSORS.items(), size)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / INDEX).is_file() == (files > 1)
    found = read(tmp_path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert {n: t.shape for n, t in tensors_on_disk(tmp_path).items()} == {n: tuple(t.shape) for n, t in TENSORS.items()}
    if files > 1:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())


def test_the_files_of_another_split_do_not_stay(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    write_shards(tmp_path, DESCRIBED, TENSORS.items(), 200)
    write_shards(tmp_path, DESCRIBED, TENSORS.items())
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "adapter_model.safetensors"}


@pytest.mark.parametrize("size", [10**9, 200])
@pytest.mark.parametrize("whole", [0, 1, 5])
def test_files_that_lack_a_tensor_are_not_taken_for_whole(whole, size, tmp_path):
    with pytest.raises(ValueError, match=f"{6 - whole} of 6 tensors did not come, {list(TENSORS)[whole]} the first"):
        write_shards(tmp_path, DESCRIBED, list(TENSORS.items())[:whole], size)
    with pytest.raises(WeightsError):
        tensors_on_disk(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        [*TENSORS.items(), ("head.weight", TENSORS["head.weight"])],
        [("embed.weight", TENSORS["embed.weight"].float())],
        [("embed.weight", TENSORS["embed.weight"][:39])],
        list(TENSORS.items())[::-1],
    ],
    ids=["twice", "dtype", "shape", "order"],
)
def test_what_was_not_described_is_refused(changed, tmp_path):
    with pytest.raises(ValueError, match=f"{changed[-1][0] if len(changed) != 6 else 'head.weight'}.* was to come"):
        write_shards(tmp_path, DESCRIBED, changed)


def test_one_tensor_is_held_at_a_time(tmp_path):
    described = {f"layers.{i}.weight": torch.empty(100, 100, device="meta") for i in range(20)}
    with Memory() as memory:
        write_shards(tmp_path, described, ((name, torch.full((100, 100), 2.0)) for name in described))
    assert memory.peak <= 2 * 100 * 100 * 4  # the next is made before the last is let go

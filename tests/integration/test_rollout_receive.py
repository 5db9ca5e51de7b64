"""An update sets every tensor of an engine once, whatever the model calls it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rlpost.rollout.receive import Arrays, ObjectStoreReceiver
from rlpost.rollout.whole import WholeUpdate, fingerprint
from rlpost.weights import to_tensor


class Tied(nn.Module):
    """Embeddings that are the head, and experts that hold the shared ones as well, as some models of vLLM have them."""

    skip = ""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.lm_head = nn.Embedding(4, 2), nn.Linear(2, 4, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        self.experts = nn.ModuleDict({"_shared": nn.Linear(2, 2, bias=False)})
        self.shared = self.experts["_shared"]

    def load_weights(self, weights):
        held = dict(self.named_parameters(remove_duplicate=False))
        loaded = set()
        for name, tensor in weights:
            if name != self.skip:
                loader = getattr(held[name], "weight_loader", None)
                loader(held[name], tensor) if loader else held[name].data.copy_(tensor)
                loaded.add(name)
        return loaded


def in_pieces(model: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """As vLLM's engines have it on GPUs: tensors are views of buffers, which come one after the other."""
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

    whole, pairs = WholeUpdate(model), [(name, to_tensor(array)) for name, array in arrays.items()]
    with torch.no_grad():
        initialize_layerwise_reload(model)
        whole.begin()
        for piece in (pairs[:2], pairs[2:]):
            buffer = torch.cat([tensor.flatten() for _, tensor in piece]) if piece else torch.empty(0)
            views = buffer.split([tensor.numel() for _, tensor in piece])
            whole.load_weights((name, view.view(t.shape)) for (name, t), view in zip(piece, views, strict=True))
        whole.refuse_unless_whole()


def update(model: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    receiver = ObjectStoreReceiver.__new__(ObjectStoreReceiver)
    receiver.model = model
    with torch.no_grad():
        receiver.start_weight_update()
        for name, array in arrays.items():
            receiver.receive_weights(Arrays({name: array}))
        receiver._update.refuse_unless_whole()


@pytest.fixture
def model():
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

    made = Tied()
    record_metadata_for_reloading(made)
    return made


EMBEDDINGS, SHARED = np.ones((4, 2), np.float32), np.ones((2, 2), np.float32)


@pytest.mark.parametrize("update", [update, in_pieces])
def test_a_tensor_is_set_under_any_of_its_names(model, update):
    update(model, {"embed_tokens.weight": EMBEDDINGS, "shared.weight": SHARED})


@pytest.mark.parametrize("update", [update, in_pieces])
def test_a_tied_head_may_come_with_the_embeddings_it_is(model, update):
    update(model, {"embed_tokens.weight": EMBEDDINGS, "lm_head.weight": EMBEDDINGS.copy(), "shared.weight": SHARED})


@pytest.mark.parametrize("update", [update, in_pieces])
def test_a_head_of_its_own_is_not_taken_for_the_embeddings(model, update):
    with pytest.raises(
        RuntimeError, match=r"embed_tokens.weight and lm_head.weight, which Tied of vLLM holds as one: set tie"
    ):
        update(model, {"embed_tokens.weight": EMBEDDINGS, "lm_head.weight": EMBEDDINGS + 1, "shared.weight": SHARED})


@pytest.mark.parametrize("update", [update, in_pieces])
def test_what_the_engine_has_no_place_for_is_named(model, update):
    model.skip = "head.weight"
    with pytest.raises(
        RuntimeError, match=r"1 of 3 tensors that Tied of vLLM has no place for, first \['head.weight'\]"
    ):
        update(model, {"embed_tokens.weight": EMBEDDINGS, "head.weight": EMBEDDINGS + 1, "shared.weight": SHARED})


@pytest.mark.parametrize("update", [update, in_pieces])
def test_what_nobody_set_is_named(model, update):
    with pytest.raises(RuntimeError, match=r"left [12] of 2 tensors of Tied unset, first \['experts._shared"):
        update(model, {"embed_tokens.weight": EMBEDDINGS})


@pytest.mark.parametrize("update", [update, in_pieces])
def test_what_a_loader_raises_is_raised_when_all_was_sent(model, update):
    with pytest.raises(AssertionError, match="Attempted to load weight"):
        update(model, {"embed_tokens.weight": np.ones((3, 2), np.float32), "shared.weight": SHARED})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fingerprint_tells_a_bit_and_its_place(dtype):
    tensor = torch.randn(1025, 1100).to(dtype)
    moved = tensor.clone()
    moved[[3, 1024]] = moved[[1024, 3]]
    flipped = tensor.clone()
    flipped.view(torch.uint8)[1024, 7] ^= 1
    assert fingerprint(tensor) == fingerprint(tensor.T.contiguous().T)
    assert len({fingerprint(t) for t in (tensor, moved, flipped, tensor.flatten())}) == 4

"""A position means the same whatever else is in the batch, and what it means to the engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.small_models import small_model
from rlpost.learner.rope import fix_rope

LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 16,
    "long_factor": [4.0] * 16,
    "original_max_position_embeddings": 32,
    "factor": 16.0,
}
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3 longrope": ("phi3", LONG),
    "phimoe longrope": ("phimoe", {**LONG, "short_mscale": 1.1, "long_mscale": 1.3}),
    "llama dynamic": ("llama", {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}),
}


def model_with(rope: str) -> Any:
    family, parameters = ROPES[rope]
    changes = {"max_position_embeddings": 64} if "dynamic" in rope else {"original_max_position_embeddings": 32}
    return small_model(family, rope_parameters=parameters, **changes).eval()


def hidden(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :20]


@pytest.mark.parametrize("longest", [24, 60])
@pytest.mark.parametrize("rope", ROPES)
def test_a_sequence_means_the_same_beside_a_long_one(rope, longest):
    model = model_with(rope)
    tokens = torch.randint(0, 96, (1, 100), generator=torch.Generator().manual_seed(0))
    if rope != "phimoe longrope":  # whose own scaling follows the length, and nothing else of it
        assert not torch.allclose(hidden(model, tokens[:, :20]), hidden(model, tokens), atol=1e-4)
    fix_rope(model, longest)
    alone = hidden(model, tokens[:, :20])
    torch.testing.assert_close(hidden(model, tokens), alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden(model, tokens[:, :20]), alone, atol=0, rtol=0)  # nothing is left of the long one


def test_longrope_takes_the_factors_of_the_longest_sequence_an_engine_takes():
    def frequencies(longest: int) -> torch.Tensor:
        model = model_with("phi3 longrope")
        fix_rope(model, longest)
        return model.model.rotary_emb.inv_freq

    torch.testing.assert_close(frequencies(32), 4 * frequencies(33))

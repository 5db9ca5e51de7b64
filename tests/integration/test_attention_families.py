"""Every family of models that has attention by sequences' lengths computes with it what it computes of sequences alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch

from benchmarks.small_models import small_config, small_model
from rlpost.models.attention import without_varlen
from rlpost.models.known_families import FAMILIES
from rlpost.models.load import shaped
from tests.packing import PADDED, ROWS, alone, learned, sequences

pytestmark = pytest.mark.integration

PACKED = [family for family, (layout, _) in FAMILIES.items() if layout == "packed"]
# Of those that train packed; each with its reason in tests/unit/models/test_models_attention.py, or like one there.
WITHOUT = {
    "deepseek_v32", "doge", "gemma2", "gemma4_text", "gpt_neo", "gptj", "llama4_text", "nemotron", "stablelm", "vaultgemma",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are many times slower in several threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def reason(family: str) -> str:
    return without_varlen(shaped(small_config(family, 96), "m", False))


def test_those_that_train_packed_have_it_but_for_these():
    assert {family for family in PACKED if reason(family)} == WITHOUT


@pytest.mark.parametrize("family", sorted({*PACKED, "afmoe", "opt"} - WITHOUT))
def test_log_probs_and_gradients_are_those_of_sequences_alone(family):
    assert reason(family) == ""
    changes = {"sliding_window": 8} if small_config(family, 96).to_dict().get("sliding_window") else {}
    model, batch = small_model(family, **changes), sequences(96)
    expected = alone(model, batch, model.config._attn_implementation)
    for rows in ROWS.values() if FAMILIES[family][0] == "packed" else [PADDED]:
        assert learned(model, batch, [rows], "varlen").far_from(expected) < 1e-5

"""The table of families says what the models do: the quick part, of the learner alone, in one process.

`python benchmarks/families.py` asks every family, and engines too; tests/nightly asks engines of a few.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.families import learner
from benchmarks.families_table import layout_of
from rlpost.models.known_families import FAMILIES

pytestmark = pytest.mark.integration

QUICK = [
    "llama",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
    "opt",
    "bloom",
    "falcon",
    "glm4",
    "qwen3_moe",
    "gpt_oss",
    "deepseek_v3",
    "qwen3_next",
    "qwen3_5_text",
    "lfm2",
    "mamba",
    "falcon_h1",
]


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small are many times slower in several threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("family", QUICK)
def test_the_table_has_the_layout_that_the_model_keeps_apart(family):
    assert layout_of(learner(family))[0] == FAMILIES[family][0]

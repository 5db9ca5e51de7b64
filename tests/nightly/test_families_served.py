"""The table of families says what engines do: of some families, loaded, asked and updated in both dtypes."""

from __future__ import annotations

import pytest

from benchmarks.families import apart, served
from benchmarks.families_table import AGREE, differs

pytestmark = pytest.mark.integration

SERVED = [
    "llama",
    "qwen3",
    "mistral",
    "gemma",
    "gemma3_text",
    "phi3",
    "gpt2",
    "gpt_neox",
    "olmo2",
    "glm4",
    "qwen3_moe",
    "mixtral",
    "apertus",
    "bloom",
    "cohere",
    "dots1",
    "ernie4_5_moe",
    "lfm2_moe",
]


@pytest.mark.parametrize("dtype", AGREE)
@pytest.mark.parametrize("family", SERVED)
def test_engine_and_learner_agree_before_and_after_a_sync(family, dtype):
    found = apart(served(dtype), family, 300)
    assert "failed" not in found
    assert not differs({"learner": {"moe": "replayed" in found}, dtype: found}, dtype)

"""What an exported model is compared with."""

import numpy as np
import pytest

from rlpost.commands import export


@pytest.fixture
def scored(monkeypatch):
    """Log-probs of a stand-in model: -1 at temperature 1, -2 at others; vLLM's are off by `wrong`."""

    def at(wrong: float = 0.0) -> None:
        def transformers(model, probe, dtype, temperatures):
            return [[np.full(3, -1.0 if t == 1 else -2.0) for _ in probe["sequences"]] for t in temperatures]

        def vllm(model, probe, dtype):
            return [np.full(3, -1.0 + wrong) for _ in probe["sequences"]]

        monkeypatch.setattr(export, "transformers_logp", transformers)
        monkeypatch.setattr(export, "vllm_logp", vllm)

    return at


@pytest.mark.parametrize(("temperature", "saved"), [(1.0, -1.0), (0.6, -2.0)])
def test_vllm_is_compared_at_temperature_1_whatever_the_rollouts_were_sampled_at(scored, temperature, saved):
    probe = {"temperature": temperature, "sequences": [{"logp": [saved] * 3}] * 2}
    scored()
    assert export.by_transformers("m", probe, "float32") == export.by_vllm("m", probe, "float32") == 0
    scored(wrong=0.25)
    assert export.by_vllm("m", probe, "float32") == 0.25
    lost = {**probe, "sequences": [{"logp": [saved - 0.5] * 3}]}
    assert export.by_vllm("m", lost, "float32") == pytest.approx(0.75 if temperature == 1 else 0.5)

"""The tiny models of the tests are what they claim to be: loadable, and decisive about their experts."""

from __future__ import annotations

import pytest
import torch
from routing_cases import lay_out, sequences
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlpost.learner.replay import find_routers
from tests.moe_models import CHARACTERS, FAMILIES, make_model, save_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back_with_its_tokenizer(family, tmp_path):
    model, layout = make_model(family, seed=3), lay_out(sequences(1))
    save_model(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(layout.forward(loaded), layout.forward(model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.decode(tokenizer.encode(CHARACTERS, add_special_tokens=False)) == CHARACTERS
    assert ("noaux_tc" in (tmp_path / "config.json").read_text()) == (family == "deepseek_v3")


@pytest.mark.parametrize("family", FAMILIES)
def test_routers_are_decisive_and_a_seed_is_one_model(family):
    model, layout, margins = make_model(family), lay_out(sequences(1)), []
    for router in find_routers(model).values():
        router.register_forward_hook(
            lambda m, g, out: margins.append(out[0][layout.real].sort(-1).values.diff(dim=-1)[:, -2])
        )
    layout.forward(model)
    assert torch.cat(margins).median() > 0.2
    same, other = make_model(family).state_dict(), make_model(family, seed=1).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, other[name]) for name, value in model.state_dict().items())

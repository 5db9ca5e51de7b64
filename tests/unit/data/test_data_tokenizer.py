"""The tokenizers made on the spot give text back exactly, also after they were saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlpost.config import ConfigError
from rlpost.data import DataError, encode_completion, make_tokenizer
from rlpost.models.load import load_tokenizer
from rlpost.models.source import ModelSource

CHARACTERS = "0123456789+-*/()= []:,.\n"
BYTES = make_tokenizer("bytes")
DIGITS = make_tokenizer(CHARACTERS)


@given(st.text())
@example(" leading, and a space before a full stop .")
@example("<eos> spelled out <bos>")
def test_any_text_round_trips_through_bytes(text: str) -> None:
    ids = BYTES(text)["input_ids"]
    assert len(ids) == 1 + len(text.encode())
    assert BYTES.decode(ids, skip_special_tokens=True) == text


@given(st.text(alphabet=CHARACTERS))
def test_text_of_its_characters_round_trips_one_token_each(text: str) -> None:
    ids = DIGITS(text)["input_ids"]
    assert len(ids) == 1 + len(text)
    assert DIGITS.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("spec", ["bytes", CHARACTERS])
def test_specials_are_the_first_ids_and_a_call_adds_bos_and_no_eos(spec: str) -> None:
    tokenizer = make_tokenizer(spec)
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>", "<unk>"]) == [0, 1, 2, 3]
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [
        0,
        1,
        2,
        3,
    ]
    ids = tokenizer("12")["input_ids"]
    assert ids[0] == 1
    assert 2 not in ids
    assert len(tokenizer) == 4 + (256 if spec == "bytes" else len(spec))


@pytest.mark.parametrize("spec", ["bytes", CHARACTERS])
def test_a_saved_tokenizer_loads_as_the_same_one(spec: str, tmp_path: Path) -> None:
    made = make_tokenizer(spec)
    made.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelSource(str(tmp_path)))
    text = "1 + 2 = 3 .\n<eos>" if spec == "bytes" else "1 + 2 = 3 .\n"
    ids = made(text)["input_ids"]
    assert loaded(text)["input_ids"] == ids
    assert loaded.decode([*ids, loaded.eos_token_id], skip_special_tokens=True) == text
    assert loaded.chat_template == made.chat_template
    assert loaded.pad_token_id == 0


def test_a_chat_names_who_speaks_and_whose_turn_it_is() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    text = BYTES.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "system: Be brief.\nuser: 1 + 1?\nassistant:"


@pytest.mark.parametrize("spec", ["", "aba"])
def test_an_alphabet_must_have_distinct_characters(spec: str) -> None:
    with pytest.raises(DataError, match="distinct characters"):
        make_tokenizer(spec)


def test_padding_falls_back_to_the_end_of_sequence(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bytes")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(ModelSource(str(tmp_path))).pad_token_id == 2


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_tokenizer(ModelSource(str(tmp_path / "missing")))
    with pytest.raises(ConfigError, match="tokenizer cannot be loaded"):
        load_tokenizer(ModelSource(str(tmp_path)))


@given(st.text(min_size=1))
def test_a_completion_is_its_tokens_and_one_end_of_sequence(text: str) -> None:
    ids = encode_completion(text, BYTES)
    assert ids.dtype == np.int32
    assert ids[-1] == BYTES.eos_token_id
    assert BYTES.decode(ids[:-1]) == text


def test_a_completion_the_tokenizer_cannot_write_is_refused() -> None:
    with pytest.raises(DataError, match="no token for 'x', 'y'"):
        encode_completion("1 + x = y", DIGITS)
    endless = make_tokenizer("bytes")
    endless.eos_token = None
    with pytest.raises(DataError, match="no eos token"):
        encode_completion("1", endless)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "gpt2"])
def test_a_tokenizer_that_is_made_is_the_same_beside_any_model(tmp_path: Path, model_type: str) -> None:
    """transformers has tokenizers of its own for some types of model, whose decoders drop what these hold."""
    text = "[4, 5] 9: (4 + 5)"
    for spec in ("0123456789+-*/()[], :", "bytes"):
        made = make_tokenizer(spec)
        made.save_pretrained(tmp_path / spec[:5])
        (tmp_path / spec[:5] / "config.json").write_text(json.dumps({"model_type": model_type}))
        loaded = load_tokenizer(ModelSource(str(tmp_path / spec[:5])))
        ids = loaded(text)["input_ids"]
        assert ids == made(text)["input_ids"]
        assert loaded.decode(ids, skip_special_tokens=True) == text

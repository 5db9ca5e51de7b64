"""A response is read with its special tokens and without them."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken

from rlpost.data import make_tokenizer
from rlpost.rollout.decode import Decoder


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_special_tokens_are_in_the_raw_text_and_in_no_other() -> None:
    tokenizer = make_tokenizer("bytes")
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    hi, there = ids(tokenizer, "hi ö "), ids(tokenizer, "there")
    assert Decoder(tokenizer)([[*hi, eos], [pad, *hi, eos, *there], hi, [], [eos]]) == [
        ("hi ö ", "hi ö <eos>"),
        ("hi ö there", "<pad>hi ö <eos>there"),
        ("hi ö ", "hi ö "),
        ("", ""),
        ("", "<eos>"),
    ]


def test_tokens_that_were_added_to_a_vocabulary_as_special_are_special() -> None:
    tokenizer = make_tokenizer("bytes")
    tokenizer.add_tokens([AddedToken("<call>", special=True), AddedToken("<think>", special=False)])
    call, think = tokenizer.convert_tokens_to_ids(["<call>", "<think>"])
    assert Decoder(tokenizer)([[think, *ids(tokenizer, "x"), call]]) == [("<think>x", "<think>x<call>")]


def test_a_response_without_special_tokens_is_decoded_once() -> None:
    tokenizer = make_tokenizer("bytes")
    decode, calls = tokenizer.decode, []
    tokenizer.decode = lambda tokens, **how: calls.append(tokens) or decode(tokens, **how)  # type: ignore[method-assign,func-returns-value]
    a, b = ids(tokenizer, "a"), ids(tokenizer, "b")
    Decoder(tokenizer)([a, [*b, tokenizer.eos_token_id]])
    assert calls == [a, [*b, tokenizer.eos_token_id], [*b, tokenizer.eos_token_id]]

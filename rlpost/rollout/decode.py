"""What was sampled, as text: without special tokens for most verifiers, and as it is for those that ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Decoder:
    """Responses to text by a model's tokenizer, with no character tidied away or added between tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._specials = added | set(tokenizer.all_special_ids)

    def __call__(self, responses: Sequence[Sequence[int]]) -> list[tuple[str, str]]:
        """(without special tokens, with them) of each response; decoded once where it has none."""
        plain = self._decoded(responses, skip=True)
        marked = [index for index, tokens in enumerate(responses) if not self._specials.isdisjoint(tokens)]
        raw = dict(zip(marked, self._decoded([responses[i] for i in marked], skip=False), strict=True))
        return [(text, raw.get(index, text)) for index, text in enumerate(plain)]

    def _decoded(self, responses: Sequence[Sequence[int]], skip: bool) -> list[str]:
        return [
            str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip, clean_up_tokenization_spaces=False))
            for tokens in responses
        ]

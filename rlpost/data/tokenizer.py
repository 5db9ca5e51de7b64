"""Small tokenizers made on the spot, and text turned into token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlpost.data.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")

_ROLES_CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# The characters of a character tokenizer need not spell a role, so its chat has only what was said.
_BARE_CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def make_tokenizer(spec: str) -> PreTrainedTokenizerFast:
    """A tokenizer without training: `bytes` for one token a byte, else the characters that are one token each.

    Ids 0 to 3 are `<pad> <bos> <eos> <unk>`, then the bytes or characters in order. A call puts `<bos>` first and
    appends nothing. Text that spells a special token is text: only the tokenizer itself writes specials. Decoding
    with `skip_special_tokens=True` gives the text back: any text for `bytes`, text of its characters for the other.

    Raises:
        DataError: `spec` is empty or repeats a character.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    of_bytes = spec == "bytes"
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) if of_bytes else list(spec)
    if not symbols or len(set(symbols)) < len(symbols):
        repeated = sorted({symbol for symbol in symbols if symbols.count(symbol) > 1})
        raise DataError(f"tokenizer {spec!r}: give 'bytes' or distinct characters (repeated: {repeated})")

    # BPE without merges cuts text into its symbols, and only into them.
    vocabulary = {symbol: i for i, symbol in enumerate([*SPECIALS, *symbols])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=False))
    tokenizer.decoder = decoders.Fuse()
    if of_bytes:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", SPECIALS.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=_ROLES_CHAT if of_bytes else _BARE_CHAT,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def encode_completion(text: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """A worked example as the model should write it: int32 (R,), the tokens of `text`, then end-of-sequence.

    Raises:
        DataError: the tokenizer has no eos token, or no token for a character of the text.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("a completion must end, and the tokenizer has no eos token; set eos_token in its config")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if unknown := unknown_characters(text, ids, tokenizer):
        raise DataError(f"completion {text[:60]!r}: the tokenizer has no token for {unknown}")
    return np.array([*ids, tokenizer.eos_token_id], dtype=np.int32)


def read_otherwise(
    texts: Sequence[str], ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, str]]:
    """Which of the texts their tokens do not hold as they are, with what is read in their place.

    A tokenizer may change letters, quotes or white space before it cuts a text into tokens; then neither model nor
    engine ever sees what the data has. Special tokens that it puts around a text are no change, nor is white space that
    decoding puts beside those in it.
    """
    if not texts:
        return []
    read = tokenizer.batch_decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    found = []
    for index, (text, raw) in enumerate(zip(texts, read, strict=True)):
        if raw.endswith(text) or ("".join(raw.split()).endswith("".join(text.split())) and _marked(text, tokenizer)):
            continue
        plain = tokenizer.decode(ids[index], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if plain != text:
            found.append((index, raw.removeprefix(tokenizer.bos_token or "")))
    return found


def _marked(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    return any(token in text for token in tokenizer.all_special_tokens)


def unknown_characters(text: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The characters of `text` that `ids` holds as the unknown token only, quoted; empty when there are none."""
    unknown = tokenizer.unk_token_id
    # Some tokenizers name an ordinary special token as the unknown one and never produce it for text.
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return ""
    if unknown not in ids:
        return ""
    alone = [c for c in dict.fromkeys(text) if unknown in tokenizer(c, add_special_tokens=False)["input_ids"]]
    return ", ".join(repr(c) for c in alone) or "some of its characters"

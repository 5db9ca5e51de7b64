"""Which tokens end a response."""

from __future__ import annotations

from pathlib import Path


def eos_token_ids(folder: str) -> list[int]:
    """The token ids that end a response: of the tokenizer, the model and its generation configuration."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    found = [AutoTokenizer.from_pretrained(folder).eos_token_id, AutoConfig.from_pretrained(folder).eos_token_id]
    if (Path(folder) / "generation_config.json").is_file():
        found.append(GenerationConfig.from_pretrained(folder).eos_token_id)
    ids: set[int] = set()
    for item in found:
        ids.update(item if isinstance(item, list) else [item] if item is not None else [])
    if not ids:
        raise ValueError(
            f"{folder}: neither tokenizer nor model names an end-of-sequence token; a response could not end"
        )
    return sorted(ids)

"""A model written so that it is the same one when it is loaded again: by us, transformers, vLLM or others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlpost.models.load import config_values, load_tokenizer
from rlpost.models.shards import write_shards
from rlpost.models.source import ModelSource

if TYPE_CHECKING:
    import torch

# What goes along beside the files that a tokenizer's class names.
TRAVELS = (
    "*.py",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.tiktoken",
    "*.model",
    "chat_template*",
    "additional_chat_templates",
)


def save_pretrained(
    folder: Path,
    source: ModelSource,
    described: Mapping[str, torch.Tensor],
    tensors: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
) -> None:
    """Write weights in the Hugging Face format beside all else of the model they were made from.

    The configuration is the source's but for its dtype; tokenizer, generation configuration and code are copied file by
    file. Read and written by a library they would be what that version makes of them.

    Args:
        described, tensors: under checkpoint names, in `dtype`: see `rlpost.models.shards.write_shards`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder, described, tensors)
    values = {key: value for key, value in config_values(source).items() if key != "torch_dtype"}
    values["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    copy_companions(source, folder)


def copy_companions(source: ModelSource, folder: Path) -> None:
    """Copy tokenizer, generation configuration, chat templates and code of `source` to `folder`."""
    held = source.folder(weights=False)
    names = {str(name) for name in type(load_tokenizer(source)).vocab_files_names.values()}
    found = {path for pattern in (*TRAVELS, *names) for path in held.glob(pattern)}
    found |= {
        file.parent for file in held.glob("*/*.py") if (file.parent / "__init__.py").is_file()
    }  # a package of code
    for path in sorted(found):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, folder / path.name)  # follows links: a hub's cache has nothing else

"""Small models on disk, as users have them: plain folders, a hub's cache, code that comes with a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rlpost.config import CreateModel
from rlpost.models.create import create_model

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}

OWN_TOKENIZER = '''
from transformers import PreTrainedTokenizer

class LettersTokenizer(PreTrainedTokenizer):
    """One token a letter, from letters.txt; no file that a fast tokenizer could be made of."""

    vocab_files_names = {"letters_file": "letters.txt"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, letters_file, **kwargs):
        self.letters_file = letters_file
        with open(letters_file, encoding="utf-8") as stream:
            self.letters = stream.read().split("|")
        self.ids = {letter: i for i, letter in enumerate(self.letters)}
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        return {**self.ids, **self.added_tokens_encoder}

    def _tokenize(self, text, **kwargs):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.ids.get(token, self.ids["<unk>"])

    def _convert_id_to_token(self, index):
        return self.letters[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        raise NotImplementedError("cannot be saved, only copied")
'''

OWN_CONFIGURATION = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""

OWN_MODEL = """
from transformers import LlamaForCausalLM
from transformers import LlamaModel
from .configuration_own import OwnConfig

class OwnModel(LlamaModel):
    config_class = OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def make(folder: Path, tokenizer: str = "bytes", seed: int = 0, **config: Any) -> Path:
    """A small llama (or another, by `model_type`) with random weights; returns `folder`."""
    create_model(CreateModel(config={**LLAMA, **config}, tokenizer=tokenizer, seed=seed), folder)
    return folder


def edit(file: Path, **values: Any) -> None:
    """Change a JSON file; None takes a key out."""
    now = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in now.items() if value is not None}))


def into_hub_cache(folder: Path, cache: Path, hub_id: str, commit: str = "c" * 40, ref: str = "main") -> Path:
    """Put a model into a hub's cache as a download would leave it: links to blobs. Returns the snapshot."""
    home = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for file in (f for f in folder.rglob("*") if f.is_file()):
        blob = home / "blobs" / f"{commit[:8]}-{file.relative_to(folder).as_posix().replace('/', '-')}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / ref).write_text(commit)
    return snapshot


def with_own_tokenizer(folder: Path) -> Path:
    """A model whose tokenizer is a class that comes with it, with a file of a name of its own."""
    letters = ["<pad>", "<bos>", "<eos>", "<unk>", *"0123456789+-*/()[], :=abcdefghijklmnopqrstuvwxyz?"]
    make(folder, vocab_size=len(letters))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "letters.txt").write_text("|".join(letters))
    (folder / "tokenization_letters.py").write_text(OWN_TOKENIZER)
    config = {
        "auto_map": {"AutoTokenizer": ["tokenization_letters.LettersTokenizer", None]},
        "tokenizer_class": "LettersTokenizer",
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def with_own_code(folder: Path, **config: Any) -> Path:
    """A model whose configuration and network are classes that come with it."""
    make(folder, **config)
    (folder / "configuration_own.py").write_text(OWN_CONFIGURATION)
    (folder / "modeling_own.py").write_text(OWN_MODEL)
    edit(
        folder / "config.json",
        model_type="own_llama",
        architectures=["OwnForCausalLM"],
        auto_map={
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModel": "modeling_own.OwnModel",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    )
    return folder

"""Adapters on disk, as their own files describe them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rlpost.config import ConfigError, Lora
from rlpost.models.source import ModelSource


@dataclass(frozen=True)
class SavedAdapter:
    """A folder in PEFT's format.

    Attributes:
        base: folder or id of the weights they belong to, at `revision`.
    """

    base: str
    revision: str | None
    lora: Lora
    file: Path

    def modules(self) -> list[str]:
        """Last parts of the names of the adapted modules, each once, sorted."""
        from safetensors import safe_open

        with safe_open(self.file.with_name("adapter_model.safetensors"), "np") as tensors:
            names = tensors.keys()
        return sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in names})

    def source(self, trust_remote_code: bool = False) -> ModelSource:
        """Where the weights below are, for errors named by the file that says so."""
        return ModelSource(self.base, self.revision, trust_remote_code, f"the base that {self.file} names, model")


def adapter_of(folder: Path | str) -> SavedAdapter | None:
    """What a folder says of the adapters in it; None where it holds none.

    Raises:
        ConfigError: it cannot be read, or they are of a kind that rlpost does not make.
    """
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        plain = told["peft_type"] == "LORA" and not told.get("modules_to_save") and told.get("bias", "none") == "none"
        lora = Lora(
            rank=told["r"],
            alpha=told["lora_alpha"],
            target_modules=told["target_modules"],
            dora=bool(told.get("use_dora")),
            rslora=bool(told.get("use_rslora")),
        )
        found = SavedAdapter(told["base_model_name_or_path"], told.get("revision"), lora, file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read as LoRA of peft: {error!r}") from error
    if not plain:
        raise ConfigError(
            f"{file}: not plain LoRA (peft_type {told['peft_type']}, bias {told.get('bias')}, modules_to_save "
            f"{told.get('modules_to_save')}): merge it with peft, and give the model"
        )
    return found

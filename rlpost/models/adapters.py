"""Adapters on disk, as their own files describe them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from rlpost.config import ConfigError, Lora
from rlpost.models.source import ModelSource

WEIGHTS = "adapter_model.safetensors"


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

        with safe_open(self.file.with_name(WEIGHTS), "np") as tensors:
            names = tensors.keys()
        return sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in names})

    def source(self, trust_remote_code: bool = False) -> ModelSource:
        """Where the weights below are, for errors named by the file that says so."""
        return ModelSource(self.base, self.revision, trust_remote_code, f"the base that {self.file} names, model")


class _Written(BaseModel):
    """What of adapter_config.json is made use of, as peft writes it."""

    base_model_name_or_path: str = Field(min_length=1)
    revision: str | None = None
    r: int = Field(gt=0, strict=True)
    lora_alpha: float = Field(gt=0, allow_inf_nan=False)
    target_modules: list[str] | str
    use_dora: bool = False
    use_rslora: bool = False
    bias: str = "none"
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, Any] | None = None
    alpha_pattern: dict[str, Any] | None = None

    def beyond(self) -> dict[str, Any]:
        """What is set that plain LoRA, all modules of one rank and scaling, does not have."""
        extras = ("modules_to_save", "rank_pattern", "alpha_pattern")
        found = {key: getattr(self, key) for key in extras if getattr(self, key)}
        return found if self.bias == "none" else {"bias": self.bias, **found}


def adapter_of(folder: Path | str) -> SavedAdapter | None:
    """What a folder says of the adapters in it; None where it holds none.

    Raises:
        ConfigError: its files cannot be read, lack something, or are of a kind of adapter that rlpost does not make.
    """
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of the JSON, or of the encoding
        raise ConfigError(f"{file} is not JSON, perhaps cut off: {error}: copy the adapter's folder again") from None
    if not isinstance(told, dict):
        raise ConfigError(f"{file} holds a {type(told).__name__}, not an object: copy the adapter's folder again")
    if (kind := told.get("peft_type", "LORA")) != "LORA":
        raise ConfigError(_not_plain(file, {"peft_type": kind}))
    try:
        written = _Written.model_validate(told)
    except ValidationError as error:
        raise ConfigError(_said(file, error)) from None
    if beyond := written.beyond():
        raise ConfigError(_not_plain(file, beyond))
    if not file.with_name(WEIGHTS).is_file():
        there = ", ".join(sorted(p.name for p in file.parent.iterdir() if p != file)) or "nothing else"
        raise ConfigError(
            f"{file.parent} has no {WEIGHTS} (it has {there}): save the adapter with peft's save_pretrained"
        )
    lora = Lora(
        rank=written.r,
        alpha=written.lora_alpha,
        target_modules=written.target_modules,
        dora=written.use_dora,
        rslora=written.use_rslora,
    )
    return SavedAdapter(written.base_model_name_or_path, written.revision, lora, file)


def _not_plain(file: Path, values: Mapping[str, Any]) -> str:
    what = ", ".join(f"{key}: {value!r}" for key, value in values.items())
    return f"{file}: {what}: not plain LoRA; merge it with peft, and give the model"


def _said(file: Path, error: ValidationError) -> str:
    """Which keys are missing or wrong, and what to do."""
    problems: dict[str, str] = {}
    for item in error.errors():
        said = f"{item['msg'].replace('Input should be', 'must be')}, got {item['input']!r}"
        problems.setdefault(str(item["loc"][0]), "missing" if item["type"] == "missing" else said)
    said = "; ".join(f"{key}: {problem}" for key, problem in problems.items())
    return f"{file}: {said}: write it as peft's save_pretrained does, with what the adapter was trained with"

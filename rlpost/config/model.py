"""The policy: which model, made or given, and what is put on it."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlpost.config.paths import HubPath
from rlpost.config.section import AtKey, DType, Section

# Of a model's own configuration: without any of these there is no network, and transformers builds it all the same.
SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
)


class CreateModel(Section):
    """A small model with random weights, made when none is there: for CPUs, tests and first tries.

    `config` is a Hugging Face model configuration (`model_type` and its sizes); the vocabulary comes from the
    tokenizer. `tokenizer` is a string of characters, each one token, or `bytes` for any text.
    """

    config: dict[str, Any]
    tokenizer: str = "bytes"
    seed: int = 0

    @field_validator("config")
    @classmethod
    def _of_some_size(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in SIZES:
            size = value.get(key)  # nothing, or one for each layer, is for the model's class to judge
            if isinstance(size, int | float | str) and (type(size) is not int or size < 1):
                raise AtKey(key, ValueError(f"{size!r} must be a whole number, at least 1"))
        return value

    @field_validator("tokenizer")
    @classmethod
    def _one_token_each(cls, value: str) -> str:
        if not value:
            raise ValueError("'' is no tokenizer: give bytes, or the characters that are one token each")
        if value != "bytes" and (twice := sorted({c for c in value if value.count(c) > 1})):
            raise ValueError(
                f"{value!r} holds {', '.join(map(repr, twice))} more than once: give each character once, or bytes"
            )
        return value


class Lora(Section):
    """Low-rank adapters by peft; only they are trained, and they are saved and served as adapters.

    Engines that cannot serve them get merged weights (`rollout.adapters`). Without dropout, as the whole learner:
    log-probs must be those of the policy that the engines serve.
    """

    rank: int = Field(16, gt=0, le=4096)
    alpha: float = Field(32, gt=0, description="an update is scaled by alpha / rank")
    target_modules: list[str] | str = Field(
        "all-linear",
        description="last parts of module names, or one string as a regular expression of whole names; all-linear: "
        "every linear layer but the head",
    )
    dora: bool = Field(False, description="weight-decomposed adapters (DoRA); engines get them merged")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) (rank-stabilized)")

    @field_validator("target_modules")
    @classmethod
    def _a_pattern(cls, value: list[str] | str) -> list[str] | str:
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(
                    f"{value!r} is no regular expression: {error}: give a list of names, or mend it"
                ) from None
        return value

    @property
    def scaling(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Experts(Section):
    """Sizes of a mixture of experts."""

    layers: int = Field(gt=0, description="how many have experts")
    per_token: int = Field(gt=0, description="experts a token goes to in each")
    total: int = Field(gt=1, description="experts of each")


class Model(Section):
    """The policy: a folder or a Hugging Face id, or a small one made on the spot."""

    path: HubPath | None = None
    revision: str | None = Field(None, description="branch, tag or commit of a Hugging Face id")
    create: CreateModel | None = None
    dtype: DType = "bfloat16"
    head_dtype: Literal["float32"] | None = Field(
        None,
        description="of the logits of engines and learner: float32 does not round them to bfloat16; as config.json says, "
        "else dtype, by default",
    )
    attention: Literal["auto", "varlen", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto",
        description="of the learner; varlen keeps sequences apart by their lengths, without a mask; auto: varlen where the "
        "model has it, on GPUs in bfloat16 and on CPUs for packed rows, else sdpa, else eager",
    )
    lora: Lora | None = None
    trust_remote_code: bool = Field(
        False, description="run the code that comes with a model or its tokenizer, in every process that loads them"
    )
    parameters: float | None = Field(None, gt=0, description="count, for `rlpost plan` when the model is not on disk")
    experts: Experts | None = Field(None, description="for `rlpost plan` when the model is not on disk")

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if (self.path is None) == (self.create is None):
            raise ValueError(
                "give either model.path (a folder or Hugging Face id) or model.create, not both or neither"
            )
        return self

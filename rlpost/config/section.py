"""What every part of the schema is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

SampleSource = Literal["on_policy", "rehearsal", "success_memory", "pair", "sft", "reference"]
Aggregation = Literal["seq_mean_token_mean", "token_mean", "seq_mean_token_sum_norm", "seq_mean_token_sum"]
DType = Literal["float32", "bfloat16"]


class ConfigError(ValueError):
    """A configuration that cannot run. The message names the key, the value, the place and the fix."""


class Section(BaseModel):
    """A part of the file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class Component(Section):
    """A registry entry by name, with its parameters: `grpo`, `{name: ppo_clip, low: 0.2}`, `my_file.py:function`."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def as_component(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Named = Annotated[Component, BeforeValidator(as_component)]
# A number, or a schedule by name with its parameters.
Coefficient = Annotated[float | Component, BeforeValidator(as_component)]
# One selector or several that must all hold.
Selectors = Annotated[list[Named], BeforeValidator(lambda v: v if isinstance(v, list) else [] if v is None else [v])]

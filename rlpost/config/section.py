"""What every part of the schema is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    SerializerFunctionWrapHandler,
    StringConstraints,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from rlpost.config.paths import Code, escaped, expand_parameter

SampleSource = Literal["on_policy", "rehearsal", "success_memory", "pair", "sft", "reference"]
Aggregation = Literal["seq_mean_token_mean", "token_mean", "seq_mean_token_sum_norm", "seq_mean_token_sum"]
DType = Literal["float32", "bfloat16"]


class ConfigError(ValueError):
    """A configuration that cannot run. The message names the key, the value, the place and the fix."""


class AtKey(ValueError):
    """What is wrong with a key below the one that is being checked.

    Attributes:
        key: of the part at fault, from the section that is being checked: `source.path`.
    """

    def __init__(self, key: str, problem: ValueError) -> None:
        super().__init__(str(problem))
        self.key, self.problem = key, problem


class Section(BaseModel):
    """A part of the file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`steps: yes` is not one step."""
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError(
                f"{value} (yes, no, on, off, true and false are read as such): write another value, or quote text"
            )
        return value


def _takes_bool(annotation: Any) -> bool:
    if annotation in (bool, Any, object) or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return True
    return any(_takes_bool(part) for part in get_args(annotation))


class Component(Section):
    """A registry entry by name, with its parameters: `grpo`, `{name: ppo_clip, low: 0.2}`, `my_file.py:function`."""

    model_config = ConfigDict(extra="allow")
    name: Code

    @model_validator(mode="after")
    def _expand_paths(self) -> Component:
        for parameter, value in (self.model_extra or {}).items():
            try:
                self.__pydantic_extra__[parameter] = expand_parameter(self.name, parameter, value)  # type: ignore[index]
            except ValueError as error:
                raise AtKey(parameter, error) from None
        return self

    @model_serializer(mode="wrap")
    def _paths_as_written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = serialize(self)
        for parameter, value in (self.model_extra or {}).items():
            if isinstance(value, str):
                plain[parameter] = escaped(value)
            elif isinstance(value, list):
                plain[parameter] = [
                    escaped(item) if isinstance(item, str) else p
                    for item, p in zip(value, plain[parameter], strict=True)
                ]
        return plain

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def as_component(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


# What stands in the places of errors between a key and what is below it.
ONE, NAMED, KEY = "<one>", "<named>", "[key]"


def one_or_named(value: Any) -> str:
    """Whether a value is one source or several by name: one says by `source` what kind it is."""
    if isinstance(value, dict) and not isinstance(value.get("source"), str):
        inner = value.values()
        if complete(value) or (inner and all(isinstance(part, dict) for part in inner)):
            return NAMED
    return ONE


def complete(value: dict[str, Any]) -> bool:
    """Whether a value says of itself that it is one source or several: `source` is in it, or in what is named."""
    inner = value.values()
    return "source" in value or any(isinstance(p, Section) or (isinstance(p, dict) and "source" in p) for p in inner)


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
S = TypeVar("S", bound=Section)
OneOrNamed = Annotated[Annotated[S, Tag(ONE)] | Annotated[dict[Name, S], Tag(NAMED)], Discriminator(one_or_named)]

Named = Annotated[Component, BeforeValidator(as_component)]
# A number, or a schedule by name with its parameters.
Coefficient = Annotated[float | Component, BeforeValidator(as_component)]
# One selector or several that must all hold.
Selectors = Annotated[list[Named], BeforeValidator(lambda v: v if isinstance(v, list) else [] if v is None else [v])]

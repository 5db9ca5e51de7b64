"""What a row's columns mean: a name, or a template over them."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from rlpost.data.errors import DataError, RowError, did_you_mean


class Column:
    """One value of a row: a column by name, or a `str.format` template when `spec` contains braces.

    A name keeps the column's type; a template gives text. `{metadata[target]}` reaches into nested values, and
    `{table!j}` writes one as JSON.

    Raises:
        DataError: the template is malformed, or has a field without a column's name.
    """

    def __init__(self, role: str, spec: str) -> None:
        self.role = role
        self.spec = spec
        self.is_template = "{" in spec or "}" in spec
        if self.is_template:
            _check_template(role, spec)

    def of(self, values: Mapping[str, Any]) -> Any:
        """The value in this row.

        Raises:
            RowError: it is missing, null, or does not fit the template's format.
        """
        if not self.is_template:
            return _not_null(self.spec, find(values, self.spec))
        try:
            return _FILLER.vformat(self.spec, (), values)
        except RowError:
            raise
        except ValueError as error:  # a format such as {x:.2f} that does not suit the value
            raise RowError(f"{self.role} {self.spec!r}: {error}") from error

    def parts_of(self, values: Mapping[str, Any]) -> list[Any]:
        """The values it is made of: the column's, or those of a template's fields, without the words around them."""
        if not self.is_template:
            return [self.of(values)]
        fields = [field for _, field, _, _ in _FILLER.parse(self.spec) if field is not None]
        return [_FILLER.get_field(field, (), values)[0] for field in fields]

    def text_of(self, values: Mapping[str, Any]) -> str:
        """The value, which must be text with something in it.

        Raises:
            RowError: as `of`; or it is not text, blank, or not valid Unicode.
        """
        value = self.of(values)
        if isinstance(value, list | tuple | Mapping):
            raise RowError(
                f"{self.role} {self.spec!r} is a {type(value).__name__}, not text: a template '{{{self.spec}!j}}' writes "
                f"it as JSON, and '{{{self.spec}[...]}}' takes a part of it"
            )
        if not isinstance(value, str):
            raise RowError(
                f"{self.role} {self.spec!r} is a {type(value).__name__}, not text; a template '{{{self.spec}}}' prints it"
            )
        return checked_text(f"{self.role} {self.spec!r}", value)


def checked_text(what: str, text: str) -> str:
    """`text`, which must have something in it.

    Raises:
        RowError: it is blank, or not valid Unicode.
    """
    if not text.strip():
        raise RowError(f"{what} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell and no tokenizer reads
        raise RowError(f"{what} is not valid Unicode: {error}") from error
    return text


def find(values: Mapping[str, Any], name: str) -> Any:
    """A column by name, null included.

    Raises:
        RowError: the row has no such column.
    """
    if name not in values:
        raise RowError(f"no column {name!r}; {did_you_mean(name, values)}")
    return values[name]


def _not_null(name: str, value: Any) -> Any:
    if value is None:
        raise RowError(f"{name!r} is null")
    return value


class _Filler(string.Formatter):
    """`str.format` that reads a null as an error, not as the word None, and names what a row lacks."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            value, first = super().get_field(field_name, args, kwargs)
        except (KeyError, IndexError, TypeError) as error:
            column = field_name.partition("[")[0]
            find(kwargs, column)
            raise RowError(f"column {column!r} has nothing at {{{field_name}}}") from error
        return _not_null(field_name, value), first

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        if conversion == "j":
            return json.dumps(value, ensure_ascii=False)
        if conversion is None and _has_mapping(value):
            raise ValueError(
                "a value with keys has no spelling of its own: write {column!j} for JSON, or {column[key]} for a part"
            )
        return super().convert_field(value, conversion)


def _has_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list | tuple) and any(map(_has_mapping, value)))


_FILLER = _Filler()


def _check_template(role: str, spec: str) -> None:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(spec) if field is not None]
    except ValueError as error:
        raise DataError(f"{role}: template {spec!r}: {error} (write {{{{ and }}}} for literal braces)") from error
    for field in fields:
        column = re.sub(r"\[[^]]*\]", "", field)
        if not column or column.isdigit():
            raise DataError(f"{role}: template {spec!r} has a field {{{field}}} without a column's name")
        if "." in column:
            raise DataError(f"{role}: template {spec!r}: write {{a[b]}} for a nested value, not {{{field}}}")

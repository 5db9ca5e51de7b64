"""The response holds a JSON document that keeps a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, NoReturn

import jsonschema
import referencing

from rewards._patterns import compiled
from rewards._response import answer_tag, fences, visible

MAX_LENGTH = 1_000_000  # characters
MAX_DEPTH = 100


def verify(
    response: str, reference: Any = None, schema: Mapping[str, Any] | bool | None = None, compare: bool = False
) -> dict[str, Any]:
    """Correct when the document is valid against the schema (JSON Schema; draft 2020-12 unless it names another).

    The document is what stands, after the thought, in the last `<answer>`; there, in the last block of code marked
    `json`; else the whole text when it begins as JSON does, or the last block that is not marked at all. It is read
    strictly: no NaN, no key twice in an object. Numbers are held against `multipleOf` as they are written: 0.3 is a
    multiple of 0.1. Reasons: no_answer, too_long, too_deep, not_json, invalid (`details` say where), mismatch.

    Args:
        schema: the schema; without it, the reference is one, as an object or as text. No schema is fetched: a `$ref` to
            elsewhere makes the sample unverified. What `regex` says of the time an expression takes holds for `pattern`.
        compare: with `schema`, the document must also equal the reference (JSON, or text of it); 1 equals 1.0.
    """
    if schema is None and compare:
        raise ValueError("verifier json_schema: compare needs schema; without it the reference is the schema")
    try:
        rules = _loaded(reference) if schema is None else schema
        expected = _loaded(reference) if compare else None
        if not isinstance(rules, Mapping | bool):
            raise ValueError("a schema is an object")
        kind = jsonschema.validators.validator_for(rules, default=jsonschema.Draft202012Validator)
        kind.check_schema(rules)
    except (ValueError, RecursionError, jsonschema.SchemaError) as error:
        return _unverified(str(error))
    text = _document(response)
    if not text:
        return {"score": 0.0, "reason": "no_answer"}
    if len(text) > MAX_LENGTH:
        return {"score": 0.0, "reason": "too_long", "extracted": text}
    if _depth(text) > MAX_DEPTH:
        return {"score": 0.0, "reason": "too_deep", "extracted": text}
    try:
        value = _strict(text)
    except ValueError as error:
        return {"score": 0.0, "reason": "not_json", "extracted": text, "details": {"error": str(error)[:300]}}
    # An empty registry, or the library would fetch what a schema refers to.
    ours = {name: rule for name, rule in RULES.items() if name in kind.VALIDATORS}
    validator = jsonschema.validators.extend(kind, ours)(rules, registry=referencing.Registry())
    try:
        problem = jsonschema.exceptions.best_match(validator.iter_errors(value))
    except referencing.exceptions.Unresolvable as error:
        return _unverified(f"the schema refers to what is not in it: {error}")
    if problem is not None:
        details = {"error": problem.message[:300], "at": problem.json_path[:300]}
        return {"score": 0.0, "reason": "invalid", "extracted": text, "details": details}
    if compare and _key(value) != _key(expected):
        return {"score": 0.0, "reason": "mismatch", "extracted": text}
    return {"score": 1.0, "extracted": text}


verify.check = True  # type: ignore[attr-defined]


def _document(response: str) -> str | None:
    text = visible(response)
    if text is None:
        return None
    tagged = answer_tag(text)
    text = (text if tagged is None else tagged).strip()
    blocks = [block for block in fences(text) if block.info in ("", "json")]
    # One line that is a block has no mark of its own.
    marked = [block for block in blocks if block.info or block.body.startswith("json")]
    if not marked and text.startswith(("{", "[")):
        return text
    return (marked or blocks)[-1].body.removeprefix("json").strip() if blocks else text


def _strict(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_object)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice in an object")
    return found


def _depth(text: str) -> int:
    """How deep brackets are nested, those in strings apart."""
    depth = deepest = 0
    for bracket in re.finditer(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', text, re.DOTALL):
        depth += (bracket[0] in "[{") - (bracket[0] in "]}")
        deepest = max(deepest, depth)
    return deepest


def _loaded(reference: Any) -> Any:
    return _strict(reference) if isinstance(reference, str) else reference


def _key(value: Any) -> Any:
    """The same for equal documents, and hashable: 1 is 1.0, and true is neither."""
    if isinstance(value, dict):
        return frozenset((name, _key(part)) for name, part in value.items())
    if isinstance(value, list):
        return tuple(map(_key, value))
    return ("bool", value) if isinstance(value, bool) else value


def _unverified(why: str) -> dict[str, Any]:
    error = f"the schema or the reference cannot be used: {why}"
    return {"score": None, "reason": "bad_reference", "details": {"error": error[:500]}}


# --------------------------------------------------- rules of JSON Schema that the library has inexact or not in linear time

Problems = Iterator[jsonschema.ValidationError]


def _multiple_of(validator: Any, divisor: float, instance: Any, schema: Any) -> Problems:
    if not validator.is_type(instance, "number"):
        return
    try:
        whole = (Fraction(repr(instance)) / Fraction(repr(divisor))).denominator == 1
    except ValueError:  # beyond any float: what it is a multiple of was lost
        whole = False
    if not whole:
        yield jsonschema.ValidationError(f"{instance!r} is not a multiple of {divisor!r}")


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Problems:
    if validator.is_type(instance, "string") and compiled(pattern).search(instance) is None:
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any) -> Problems:
    if not validator.is_type(instance, "object"):
        return
    for pattern, rules in patterns.items():
        for name, value in instance.items():
            if compiled(pattern).search(name) is not None:
                yield from validator.descend(value, rules, path=name, schema_path=pattern)


def _unique_items(validator: Any, unique: bool, instance: Any, schema: Any) -> Problems:
    if unique and validator.is_type(instance, "array") and len(set(map(_key, instance))) < len(instance):
        yield jsonschema.ValidationError("an array has an item twice")


RULES = {
    "multipleOf": _multiple_of,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "uniqueItems": _unique_items,
}

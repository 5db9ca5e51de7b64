"""The response holds a JSON document that keeps a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import jsonschema
import referencing

MAX_LENGTH = 1_000_000  # characters
MAX_DEPTH = 100
FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def verify(
    response: str, reference: Any = None, schema: Mapping[str, Any] | bool | None = None, compare: bool = False
) -> dict[str, Any]:
    """Correct when the document is valid against the schema (JSON Schema; draft 2020-12 unless it names another).

    The document is what stands in the last `<answer>`, in the last code block marked `json` or not at all, or the
    whole text; only what follows `</think>` counts. It is read strictly: no NaN, no key twice in an object. Reasons:
    no_answer, too_long, too_deep, not_json, invalid (`details` say where), mismatch.

    Args:
        schema: the schema; without it, the reference is one, as an object or as text. No schema is fetched: a `$ref` to
            elsewhere makes the sample unverified.
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
    validator = kind(rules, registry=referencing.Registry())
    try:
        problem = jsonschema.exceptions.best_match(validator.iter_errors(value))
    except referencing.exceptions.Unresolvable as error:
        return _unverified(f"the schema refers to what is not in it: {error}")
    except ArithmeticError as error:  # an integer beyond any float, in a comparison with one
        return {"score": 0.0, "reason": "invalid", "extracted": text, "details": {"error": repr(error)}}
    if problem is not None:
        details = {"error": problem.message[:300], "at": problem.json_path[:300]}
        return {"score": 0.0, "reason": "invalid", "extracted": text, "details": details}
    if compare and not _equal(value, expected):
        return {"score": 0.0, "reason": "mismatch", "extracted": text}
    return {"score": 1.0, "extracted": text}


verify.check = True  # type: ignore[attr-defined]


def _document(response: str) -> str | None:
    _, closed, text = response.rpartition("</think>")
    if not closed and "<think>" in response:  # still thinking
        return None
    if (start := text.rfind("<answer>")) >= 0:
        end = text.find("</answer>", start)
        if end < 0:
            return None
        text = text[start + len("<answer>") : end]
    if (plain := text.strip())[:1] in ("{", "["):
        return plain
    blocks = [block[2] for block in FENCE.finditer(text) if block[1].lower() in ("", "json")]
    return (blocks[-1] if blocks else text).strip()


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


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _unverified(why: str) -> dict[str, Any]:
    error = f"the schema or the reference cannot be used: {why}"
    return {"score": None, "reason": "bad_reference", "details": {"error": error[:500]}}

"""Plain data between processes, as JSON text. Its source is also run inside the sandbox: the standard library only.

None, bool, int, float, str and list are JSON's own where that is exact; the others are an object with one key, their
tag. The containers of `collections` keep their type. Any other subclass crosses as its base type with the base type's
value, so nothing it overrides has an effect on the other side. Decoding is strict and never runs code: an unknown tag is
`Malformed`.
"""

from __future__ import annotations

import collections
import functools
import importlib
import json
import types
from collections.abc import Callable, Iterator
from typing import Any

MAX_DEPTH = 100
MAX_NODES = 200_000
MAX_HOSTILE = 2**14
EXACT_INT = 2**53
COLLECTIONS: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (int, float, complex, bool, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, object)
}
# Crosses as text. Each by its name in its module, which is imported only where such a value is met.
TEXTUAL = {
    "Decimal": "decimal",
    "Fraction": "fractions",
    "datetime": "datetime",
    "date": "datetime",
    "time": "datetime",
}
ITERATORS = (types.GeneratorType, map, zip, filter, enumerate, reversed, Iterator)
VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
MAPPINGS: dict[str, Callable[[Any], Any]] = {"OrderedDict": collections.OrderedDict, "Counter": collections.Counter}


class Malformed(ValueError):
    """Text that is no encoding."""


class TooLarge(ValueError):
    """More than `MAX_NODES` values, or nested deeper than `MAX_DEPTH`."""


class Opaque(TypeError):
    """A value that is not plain data."""


def shown(value: Any, most: int = 300) -> str:
    """Anything of the candidate's as a text of at most `most` characters: itself, what an error says, else its `repr`.

    It never raises, as `repr` does for a number of more than 4300 digits: what a program returns must not end, in place
    of the program's verdict, the process that shows it.
    """
    try:
        return (str(value) if isinstance(value, str | BaseException) else repr(value))[:most]
    except Exception:  # noqa: BLE001
        return f"an object of type {type(value).__name__} that cannot be shown"[:most]


def dumps(
    value: Any,
    opaque: Callable[[Any], Any] | None = None,
    first: Callable[[Any], Any] | None = None,
    most: int = MAX_NODES,
) -> str:
    """The value as text.

    Args:
        opaque: gives the JSON for an object that is not plain data.
        first: is asked before that about every value of no built-in type; None leaves it to the rules here.
        most: parts of it.

    Raises:
        TooLarge; Opaque where `opaque` is not given.
    """
    left = [most]

    def plain(value: Any, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0 or depth > MAX_DEPTH:
            raise TooLarge(f"a value of more than {most} parts, or nested deeper than {MAX_DEPTH}")
        if value is None or value is True or value is False:
            return value
        if first is not None and type(value) not in EXACT and (node := first(value)) is not None:
            return node
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            number = int.__pos__(value)
            return number if -EXACT_INT < number < EXACT_INT else {"int": hex(number)}
        if isinstance(value, float):
            real = float.__pos__(value)
            return real if real - real == 0 else {"float": repr(real)}
        if isinstance(value, list):
            return [plain(item, depth + 1) for item in list.__iter__(value)]
        if isinstance(value, tuple):
            if (fields := _fields(value)) is not None:
                name, items = type(value).__name__, tuple.__iter__(value)
                return {"namedtuple": [name, fields, [plain(item, depth + 1) for item in items]]}
            return {"tuple": [plain(item, depth + 1) for item in tuple.__iter__(value)]}
        if isinstance(value, dict):
            if (tag := type(value).__name__) in MAPPINGS and type(value) is MAPPINGS[tag]:
                return {tag: [[plain(k, depth + 1), plain(v, depth + 1)] for k, v in dict.items(value)]}
            if type(value) is collections.defaultdict:
                pairs = [[plain(k, depth + 1), plain(v, depth + 1)] for k, v in dict.items(value)]
                made = value.default_factory
                return {"defaultdict": [made.__name__ if made in TYPES.values() else None, pairs]}  # type: ignore[union-attr]
            return {"dict": [[plain(k, depth + 1), plain(v, depth + 1)] for k, v in dict.items(value)]}
        if isinstance(value, set):
            return {"set": [plain(item, depth + 1) for item in set.__iter__(value)]}
        if isinstance(value, frozenset):
            return {"frozenset": [plain(item, depth + 1) for item in frozenset.__iter__(value)]}
        if isinstance(value, complex):
            return {"complex": [plain(value.real, depth + 1), plain(value.imag, depth + 1)]}
        if isinstance(value, bytes | bytearray):
            return {"bytes" if isinstance(value, bytes) else "bytearray": bytes(memoryview(value)).hex()}
        if isinstance(value, range):
            return {"range": [plain(part, depth + 1) for part in (value.start, value.stop, value.step)]}
        if isinstance(value, slice):
            return {"slice": [plain(part, depth + 1) for part in (value.start, value.stop, value.step)]}
        if isinstance(value, type) and TYPES.get(value.__name__) is value:
            return {"type": value.__name__}
        if type(value) is collections.deque:
            return {"deque": [[plain(item, depth + 1) for item in value], value.maxlen]}
        if type(value).__module__ == "datetime" and type(value).__name__ == "timedelta":
            return {"timedelta": [value.days, value.seconds, value.microseconds]}
        if TEXTUAL.get(type(value).__name__, "") == type(value).__module__:
            exact = value.isoformat() if hasattr(value, "isoformat") else str(value)
            return {type(value).__name__: plain(exact, depth + 1)}
        if isinstance(value, types.MappingProxyType):
            return plain(dict(value), depth + 1)
        if isinstance(value, VIEWS):
            return [plain(item, depth + 1) for item in value]  # type: ignore[attr-defined]
        if isinstance(value, ITERATORS):
            return {"iterator": [plain(item, depth + 1) for item in value]}
        if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
            return plain(value.tolist(), depth + 1)
        if opaque is None:
            raise Opaque(f"a {type(value).__name__} is not plain data")
        return opaque(value)

    return json.dumps(plain(value, 0))


EXACT = {int, float, str, list, tuple, dict, set, frozenset, bytes, bytearray, complex, range}


def _fields(value: tuple[Any, ...]) -> list[str] | None:
    """Of a named tuple."""
    names = getattr(type(value), "_fields", None)
    if type(names) is not tuple or len(names) != tuple.__len__(value) or not all(type(name) is str for name in names):
        return None
    return list(names)


@functools.lru_cache(256)
def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    return collections.namedtuple(name, fields)


def loads(
    text: str, opaque: Callable[[str, int], Any] | None = None, hostile: bool = False, most: int = MAX_NODES
) -> Any:
    """The value that `dumps` was given.

    Args:
        opaque: makes the value for what `dumps` was given an `opaque` for: its tag and number.
        hostile: refuse as too large what could take long to build or to compare: sets and dicts in a long text (numbers
            with one hash), and `TEXTUAL` types (1e999999999 as a fraction). A named tuple is a tuple then.
        most: parts of it.

    Raises:
        Malformed, TooLarge.
    """
    left = [most]
    hashed = not hostile or len(text) <= MAX_HOSTILE

    def items(content: Any, depth: int) -> list[Any]:
        if type(content) is not list:
            raise Malformed("not a list")
        return [value(item, depth + 1) for item in content]

    def value(node: Any, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0 or depth > MAX_DEPTH:
            raise TooLarge(f"a value of more than {most} parts, or nested deeper than {MAX_DEPTH}")
        if type(node) is list:
            return items(node, depth)
        if type(node) is not dict:
            return node
        if len(node) != 1:
            raise Malformed("not one tag")
        ((tag, content),) = node.items()
        if (tag in ("dict", "set", "frozenset", "defaultdict", *MAPPINGS) and not hashed) or (
            tag in TEXTUAL and hostile
        ):
            raise TooLarge(f"a {tag} from there")
        if tag == "dict":
            pairs = [items(pair, depth) for pair in content]
            return {key: item for key, item in pairs}
        if tag in MAPPINGS:
            return MAPPINGS[tag]({key: item for key, item in (items(pair, depth) for pair in content)})
        if tag == "defaultdict":
            made, pairs = content
            filled = {key: item for key, item in (items(pair, depth) for pair in pairs)}
            return collections.defaultdict(None if made is None else TYPES[made], filled)
        if tag == "deque":
            held, longest = content
            return collections.deque(items(held, depth), longest)
        if tag == "timedelta":
            return importlib.import_module("datetime").timedelta(*items(content, depth))
        if tag == "namedtuple":
            name, fields, held = content
            found = items(held, depth)
            return tuple(found) if hostile else _named_tuple(str(name), tuple(fields))(*found)
        if tag in COLLECTIONS:
            return COLLECTIONS[tag](items(content, depth))
        if tag == "iterator":
            return iter(items(content, depth))
        if tag == "int":
            return int(content, 16)
        if tag == "float":
            return float(content)
        if tag == "complex":
            return complex(*items(content, depth))
        if tag == "bytes":
            return bytes.fromhex(content)
        if tag == "bytearray":
            return bytearray.fromhex(content)
        if tag == "range":
            start, stop, step = items(content, depth)
            made = range(start, stop, step)
            if len(made) > MAX_NODES:
                raise TooLarge("a range of too many numbers")
            return made
        if tag == "slice":
            return slice(*items(content, depth))
        if tag == "type":
            return TYPES[content]
        if tag in TEXTUAL:
            kind = getattr(importlib.import_module(TEXTUAL[tag]), tag)
            return kind.fromisoformat(content) if hasattr(kind, "fromisoformat") else kind(content)
        if opaque is not None and type(content) is int:
            return opaque(tag, content)
        raise Malformed(f"an unknown tag {tag[:40]!r}")

    try:
        return value(json.loads(text), 0)
    except TooLarge:
        raise
    except RecursionError:
        raise TooLarge("nested too deep") from None
    # Whatever else is wrong with it, as in {"set": [[]]} or {"Decimal": 1}.
    except (ValueError, TypeError, KeyError, OverflowError, ArithmeticError, AttributeError) as error:
        raise Malformed(f"not an encoded value: {type(error).__name__}: {shown(error, 150)}") from None


def builtin_name(kind: type) -> str:
    """The name of the nearest base that is a built-in exception."""
    return next((base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"), "Exception")


def become(argument: Any, after: Any) -> None:
    """Change what a call was given as the call has changed it on the other side."""
    if type(argument) is list and type(after) is list:
        for mine, theirs in zip(argument, after, strict=False):
            become(mine, theirs)
        argument[:] = [
            mine if type(mine) is type(theirs) and isinstance(mine, list | dict | set) else theirs
            for mine, theirs in zip(argument, after, strict=False)
        ] + after[len(argument) :]
    elif type(argument) is tuple and type(after) is tuple:
        for mine, theirs in zip(argument, after, strict=False):
            become(mine, theirs)
    elif isinstance(argument, dict | set | collections.deque) and type(after) is type(argument):
        argument.clear()
        argument.extend(after) if isinstance(argument, collections.deque) else argument.update(after)
    elif type(argument) is bytearray and type(after) is bytearray:
        argument[:] = after

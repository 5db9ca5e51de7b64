"""YAML as configurations have it: text, numbers, lists and mappings with text for keys, and errors that say where."""

from __future__ import annotations

import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from rlpost.config.section import ConfigError
from rlpost.user_code import nearest

DEEPEST = 40  # mappings and lists within each other; the schema itself needs a quarter of it
MOST = 50_000  # values with all aliases written out
LARGEST = 2**22  # bytes of a file

_TAGS = tuple(
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map", "merge", "value")
)
_HINTS = {
    "cannot start any token": "indent by spaces, and quote text that begins with a special character",
    "mapping values are not allowed": "quote text with a colon and a space in it, and indent keys of one mapping alike",
    "found another document": "a file is one document: remove the line ---, or give two files",
    "special characters are not allowed": "save it as plain text in UTF-8",
    "undefined alias": "quote text that begins with *",
    "expected alphabetic or numeric": "quote text that begins with * or &",
    "expected ',' or": "close what is open, and quote text with brackets, braces or commas in it",
    "found unexpected end of stream": "close the quote",
    "for merging": "what << names must be a mapping: <<: *name_of_a_mapping",
}


class _Loader(yaml.SafeLoader):
    """YAML 1.1, as PyYAML reads it, without what turns text into something else: 1e-6 is a number, a date is text,
    010 is ten, 1:30 is text.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.name = ""
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(
                None, None, f"more than {DEEPEST} lists or mappings within each other", self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Keys as text: `{0: ...}` is the item of a list as `verifiers.0` is."""
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = str(node.value).replace("_", "").lower()
        if node.tag.endswith("float"):
            return float(re.sub(r"\.(inf|nan)", r"\1", text))
        value = 2**64 if len(text) > 100 else int(text, 16 if "x" in text else 2 if "b" in text else 10)
        if abs(value) >= 2**63:
            raise yaml.constructor.ConstructorError(
                None, None, f"{shortened(text)} has more than 63 bits: no quantity here is as large", node.start_mark
            )
        return value


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a file.

    Raises:
        ConfigError: there is no such file, it cannot be read, is no text, no YAML, or holds something else.
    """
    text = _text(path)
    values = read(text, str(path))
    if values is None:
        raise ConfigError(f"{path} is empty: it must hold a mapping of keys to values, such as `steps: 100`")
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold a mapping of keys to values, not {_kind(values)}: {shortened(repr(values))}"
        )
    return values


def read(text: str, where: str) -> Any:
    """The value of a text.

    Args:
        where: what error messages call the text.

    Raises:
        ConfigError: with the line, the key and what to do.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Check(where).count(node, "", ())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(_said(where, mark, str(error.problem or error.context))) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"a character that is no text (code {error.character})"
        raise ConfigError(f"{where}, line {line}: {what}: save it as plain text in UTF-8") from None
    except ValueError as error:  # of a constructor: !!binary, !!timestamp, !!int
        raise ConfigError(
            f"{where}: a value does not fit its tag: {error}: remove the tag, which begins with !!"
        ) from None
    finally:
        if loader is not None:
            loader.dispose()


def _said(where: str, mark: yaml.Mark | None, problem: str) -> str:
    fix = next((f": {hint}" for part, hint in _HINTS.items() if part in problem), "")
    line = ""
    if mark is not None:
        snippet = (mark.get_snippet(indent=2) or "").splitlines() if mark.buffer else []
        line = f", line {mark.line + 1}, column {mark.column + 1}" + (
            f" ({shortened(snippet[0].strip())})" if snippet else ""
        )
    return f"{where}{line} is not valid YAML: {problem}{fix}"


class _Check:
    """What must hold of nodes before values are made of them: keys are text, aliases end, and all of it is small."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._sizes: dict[int, int] = {}

    def count(self, node: yaml.Node, key: str, above: tuple[int, ...]) -> int:
        """Values at and below a node, aliases written out."""
        if id(node) in above:
            self._refuse(node, key, "the alias leads back to what it is part of: write the value out")
        if (known := self._sizes.get(id(node))) is not None:
            return known
        if node.tag not in _TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(
                node, key, f"the tag {tag} has no meaning here: remove it; values are text, numbers, lists, mappings"
            )
        size, inner = 1, (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                size += self.count(item, f"{key}.{index}" if key else str(index), inner)
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key_node, item in node.value:
                name = self._name(key_node, key, seen)
                size += self.count(item, f"{key}.{name}" if key else name, inner)
        if size > MOST:
            self._refuse(node, key, f"{size:,} values with all aliases written out, and {MOST:,} are the most")
        self._sizes[id(node)] = size
        return size

    def _name(self, node: yaml.Node, above: str, seen: set[str]) -> str:
        """The text of a key."""
        if not isinstance(node, yaml.ScalarNode):
            self._refuse(
                node, above, "a list or mapping stands where a key must be: quote text with braces or brackets in it"
            )
        name = str(node.value)
        tag = node.tag.rpartition(":")[2]
        if tag == "merge":
            return name
        if tag not in ("str", "int", "value"):
            said = {"bool": "true or false", "null": "nothing"}.get(tag, f"a {tag}")
            self._refuse(node, above, f"the key {name!r} is read as {said}, and keys are text: quote it, or mend it")
        if name in seen:
            self._refuse(node, above, f"key {name!r} is given twice")
        seen.add(name)
        return name

    def _refuse(self, node: yaml.Node, key: str, problem: str) -> None:
        inside = f"{key}: " if key else ""
        raise yaml.composer.ComposerError(None, None, f"{inside}{problem}", node.start_mark)


def _text(path: Path) -> str:
    """What is written in a file."""
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise ConfigError(
                f"configuration file {str(path)!r} is a link to {path.readlink()}, which does not exist"
            ) from None
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise ConfigError(f"configuration file {str(path)!r} does not exist{near}") from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(f"configuration file {shortened(repr(str(path)))} cannot be read: {said}") from None
    if stat.S_ISDIR(kind):
        inside = sorted(p.name for p in path.glob("*.y*ml"))
        raise ConfigError(f"configuration file {str(path)!r} is a folder (it has {', '.join(inside[:5]) or 'no YAML'})")
    if not stat.S_ISREG(kind):
        raise ConfigError(f"configuration file {str(path)!r} is no regular file: write it to a file first")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"configuration file {str(path)!r} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise ConfigError(f"configuration file {str(path)!r} is larger than {LARGEST // 2**20} MiB: is it data?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        how = "UTF-16" if utf16 else f"line {line} has the byte 0x{content[error.start]:02x}"
        raise ConfigError(
            f"configuration file {str(path)!r} is not UTF-8 ({how}): save it as plain text in UTF-8"
        ) from None


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}.get(
        type(value), type(value).__name__
    )


def shortened(text: str, most: int = 80) -> str:
    """Text for a message, at most so long."""
    return text if len(text) <= most else f"{text[: most - 3]}..."

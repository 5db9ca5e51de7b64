"""Regular expressions of users and of schemas over text of a model: in linear time wherever RE2 can have them.

RE2 reads nearly what Python's `re` reads. Where the two differ (classes of Unicode, the end of the text) the pattern is
rewritten to mean what it means in Python; what RE2 has not (looking ahead or behind, references to groups, word
boundaries in Unicode) is left to Python's `re`, which may take exponential time.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import re2

SPACE = r"\t-\r\x1c-\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
CLASSES = {"d": r"\p{Nd}", "w": r"\p{L}\p{N}_", "s": SPACE}
TOKEN = re.compile(r"\\(.)|\[\^?\]?|.", re.DOTALL)
OTHERWISE = re.compile(r"\[\[:|\{,\d|\(\?[^:P)]*[xaLu]")  # taken by RE2, or written here, for something else
SURROGATES = re.compile(r"[\ud800-\udfff]")


@functools.lru_cache(maxsize=1000)
def compiled(pattern: str, flags: re.RegexFlag = re.NOFLAG) -> Any:
    """An object with `search`, `fullmatch` and `finditer`, of RE2 where it takes the pattern, else of `re`.

    For `finditer` hand over text without a line end at its end, before which Python's `$` matches too.

    Raises:
        re.error: the pattern is none in Python.
    """
    python = re.compile(pattern, flags)
    rewritten = _rewritten(pattern, python.flags)
    if rewritten is None:
        return python
    options = re2.Options()
    options.log_errors = False
    try:
        return Linear(re2.compile(rewritten, options), python.groups)
    except re2.error:
        return python


class Linear:
    """An expression of RE2, which takes no lone surrogates."""

    def __init__(self, expression: Any, groups: int) -> None:
        self.expression = expression
        self.groups = groups

    def search(self, text: str) -> Any:
        text = SURROGATES.sub("\ufffd", text)
        found = self.expression.search(text)
        return self.expression.search(text[:-1]) if found is None and text.endswith("\n") else found

    def fullmatch(self, text: str) -> Any:
        return self.expression.fullmatch(SURROGATES.sub("\ufffd", text))

    def finditer(self, text: str) -> Any:
        return self.expression.finditer(SURROGATES.sub("\ufffd", text))


def _rewritten(pattern: str, flags: int) -> str | None:
    if OTHERWISE.search(pattern) or flags & re.VERBOSE:
        return None
    ascii_only = bool(flags & re.ASCII)
    parts = []
    inside = False  # of a class
    for token in TOKEN.finditer(pattern):
        text, escaped = token[0], token[1]
        if escaped is None:
            if not inside and text.startswith("["):
                inside = True
            elif inside and text.startswith("["):
                text = rf"\[{text[1:]}"  # a class in a class is a bracket to Python
                inside = not text.endswith("]")
            elif inside and text == "]":
                inside = False
            elif text == "$" and not inside and not flags & re.MULTILINE:
                text = r"\z"
        elif escaped == "Z":
            text = r"\z"
        elif escaped in "bB" and not inside and not ascii_only:
            return None
        elif escaped.lower() in CLASSES and (escaped == "s" or escaped == "S" or not ascii_only):
            named = r"\t-\r\x20" if ascii_only else CLASSES[escaped.lower()]
            if escaped.isupper() and inside:
                return None
            text = named if inside else f"[{'^' if escaped.isupper() else ''}{named}]"
        elif escaped.isalnum() and escaped not in "dDwWAabBfnrtvx":
            return None
        parts.append(text)
    letters = "".join(letter for flag, letter in ((re.I, "i"), (re.M, "m"), (re.S, "s")) if flags & flag)
    return (f"(?{letters})" if letters else "") + "".join(parts)

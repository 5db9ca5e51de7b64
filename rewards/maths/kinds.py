"""Whether a text is an answer of the kind that the reference is: what a statement must be to count as one."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from rewards.maths.answers import Answer
from rewards.maths.evaluate import symbols
from rewards.maths.expression import TooLarge
from rewards.maths.normalise import normalise, words
from rewards.maths.reading import read

PROSE = re.compile(r"[^\W\d_]{2,}(?:\s+[^\W\d_]{2,}){4,}")
# Words for the state of an answer, which are no answer: "the final answer is correct".
ABOUT_ANSWERS = re.compile(
    r"(?:as|see|independent|in|of|at|from|the|a|an|indeed|also|already|now|not|now|well|given|shown|stated|written|boxed|highlighted|presented|provided|confirmed"
    r"|verified|checked|correct|right|wrong|incorrect|valid|consistent|reasonable|simplified|exact|complete|final|above|below|here|clear|unique"
    r"|positive|negative|based|expressed|rounded|therefore|thus|so|what|it|this|that|our|my|obtained|derived|found|computed|calculated|ready)\b",
    re.IGNORECASE,
)


OPTION = re.compile(r"\W*(?:\\?text\W*)?(?:[Oo]ption |[Cc]hoice )?\(?[A-J]\b")


@dataclass(frozen=True)
class Kind:
    """The kind of a normalised reference; `letters`, when it is the letter of a choice."""

    reference: str
    letters: bool = False

    @property
    def number(self) -> bool:
        return _group(_reading(self.reference)) == "number"

    def fits(self, text: str) -> bool:
        """Whether a text is an answer of this kind."""
        return OPTION.match(text) is not None if self.letters else _fits(self.reference, text)


@functools.lru_cache(8192)
def _fits(reference: str, text: str) -> bool:
    group = _group(_reading(reference))
    found = normalise(text[:1000])
    if not found:
        return False
    if words(found) == words(reference):
        return True
    if PROSE.search(re.sub(r"\\[a-zA-Z]+", " ", found)) and group != "text":
        return False
    given = _group(_reading(found))
    if group == "text":
        return given == "text" and len(found.split()) <= 8 and not about_answers(text)
    if group == "number":
        return given == "number" or (given == "several" and bool(re.search(r"\d", found)))
    return given not in ("text", "unread")


def about_answers(text: str) -> bool:
    """Whether a text says how an answer is rather than what it is."""
    return ABOUT_ANSWERS.match(re.sub(r"\\text\s*\{|[\s{]+", " ", text[:200]).strip()) is not None


def _reading(text: str) -> Answer:
    try:
        return read(text)
    except TooLarge:
        return Answer("unread", text)


def _group(answer: Answer) -> str:
    if answer.kind in ("text", "unread"):
        return answer.kind
    if answer.kind == "scalar":
        return "number" if answer.tree is None or not symbols(answer.tree) else "formula"
    if answer.kind in ("relation", "congruence", "family", "builder", "cases"):
        return "relation"
    return "number" if answer.kind == "based" else "several"

"""Instructions under rules of our own: what exactly each of them counts is said in `instructions`."""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": operator.ge,
    "at most": operator.le,
    "less than": operator.lt,
    "more than": operator.gt,
    "exactly": operator.eq,
}
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# From the beginning of a run of signs only: from each of its signs, a long run would take quadratic time.
SENTENCE_END = re.compile(r"(?<![.!?。！？])[.!?。！？]++[\"'”’)\]]*+(?:(?=\s)|\Z|(?<=[。！？]))")
ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|vs|cf|mr|mrs|ms|dr|prof|fig)\Z", re.IGNORECASE)
CHECKS: dict[str, Callable[..., bool]] = {}
TYPES: dict[str, Any] = {
    **{key: int for key in ("count", "number")},
    **{key: list | tuple for key in ("keywords", "options")},
    **{key: str for key in ("relation", "keyword", "letter", "text", "word", "marker", "characters", "separator")},
}


def rule(name: str, arguments: Mapping[str, Any]) -> Callable[[str], bool]:
    """What tells of a response whether it follows the instruction; tried once on an empty one, so that bad arguments show.

    Raises:
        ValueError, TypeError: naming an argument that is missing, unknown, or not of its kind.
    """
    for key, value in arguments.items():
        _checked(name, key, value)
    check = functools.partial(CHECKS[name], **arguments)
    check("")
    return check


def _checked(name: str, key: str, value: Any) -> None:
    if key not in TYPES or not isinstance(value, TYPES[key]) or isinstance(value, bool) or value in ("", [], ()):
        raise ValueError(f"{name}: {key} is {value!r}")
    if isinstance(value, list | tuple) and not all(isinstance(part, str) and part for part in value):
        raise ValueError(f"{name}: {key} is {value!r}; it must hold texts that are not empty")
    if key == "relation" and value not in RELATIONS:
        raise ValueError(f"{name}: relation is {value!r}; it may be {', '.join(RELATIONS)}")


def _check(name: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def register(function: Callable[..., bool]) -> Callable[..., bool]:
        CHECKS[name] = function
        return function

    return register


def _occurrences(text: str, keyword: str) -> int:
    """How often it occurs as a word or words of its own, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(keyword)}(?!\w)", text, re.IGNORECASE))


# -------------------------------------------------------------------------------------------------------------- length


@_check("rlpost:words")
def _words(text: str, count: int, relation: str = "at least") -> bool:
    return RELATIONS[relation](len(WORD.findall(text)), count)


@_check("rlpost:sentences")
def _sentences(text: str, count: int, relation: str = "at least") -> bool:
    found, begin = 0, 0
    for end in SENTENCE_END.finditer(text):
        if end[0][0] == "." and ABBREVIATION.search(text, max(begin, end.start() - 10), end.start()):
            continue
        if WORD.search(text, begin, end.start()):
            found += 1
        begin = end.end()
    return RELATIONS[relation](found + bool(WORD.search(text, begin)), count)


@_check("rlpost:paragraphs")
def _paragraphs(text: str, count: int, relation: str = "exactly", separator: str | None = None) -> bool:
    parts = re.split(r"\n[ \t]*\n", text) if separator is None else text.split(separator)
    return RELATIONS[relation](sum(bool(part.strip()) for part in parts), count)


@_check("rlpost:first_word")
def _first_word(text: str, number: int, word: str, count: int | None = None) -> bool:
    parts = [part.strip() for part in re.split(r"\n[ \t]*\n", text) if part.strip()]
    if number < 1 or number > len(parts) or (count is not None and len(parts) != count):
        return False
    first = WORD.search(parts[number - 1])
    return first is not None and first[0].casefold() == word.strip().casefold()


@_check("rlpost:characters")
def _characters(text: str, count: int, relation: str = "at least") -> bool:
    return RELATIONS[relation](len(text.strip()), count)


# ------------------------------------------------------------------------------------------------------------ keywords


@_check("rlpost:keywords")
def _existence(text: str, keywords: Sequence[str]) -> bool:
    return all(_occurrences(text, keyword) for keyword in keywords)


@_check("rlpost:forbidden_words")
def _forbidden_words(text: str, keywords: Sequence[str]) -> bool:
    return not any(_occurrences(text, keyword) for keyword in keywords)


@_check("rlpost:keyword_frequency")
def _frequency(text: str, keyword: str, count: int, relation: str = "at least") -> bool:
    return RELATIONS[relation](_occurrences(text, keyword), count)


@_check("rlpost:letter_frequency")
def _letter_frequency(text: str, letter: str, count: int, relation: str = "at least") -> bool:
    return RELATIONS[relation](text.casefold().count(letter.casefold()), count)


# ---------------------------------------------------------------------------------------------------------------- case


@_check("rlpost:lowercase")
def _lowercase(text: str) -> bool:
    return text.islower()


@_check("rlpost:uppercase")
def _uppercase(text: str) -> bool:
    return text.isupper()


@_check("rlpost:capital_words")
def _capital_words(text: str, count: int, relation: str = "at least") -> bool:
    return RELATIONS[relation](sum(len(word) > 1 and word.isupper() for word in WORD.findall(text)), count)


# ---------------------------------------------------------------------------------------- beginning, end, punctuation


@_check("rlpost:starts_with")
def _starts_with(response: str, /, text: str) -> bool:
    return response.strip().casefold().startswith(text.strip().casefold())


@_check("rlpost:ends_with")
def _ends_with(response: str, /, text: str) -> bool:
    return response.strip().casefold().endswith(text.strip().casefold())


@_check("rlpost:quotation")
def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 2 and (text[0], text[-1]) in (('"', '"'), ("“", "”"))


@_check("rlpost:no_comma")
def _no_comma(text: str) -> bool:
    return not re.search(r"[,，、،]", text)


@_check("rlpost:forbidden_characters")
def _forbidden(text: str, characters: str) -> bool:
    return not set(characters) & set(text)


# ---------------------------------------------------------------------------------------------------------------- form


@_check("rlpost:bullets")
def _bullets(text: str, count: int, relation: str = "exactly") -> bool:
    return RELATIONS[relation](len(re.findall(r"^[ \t]*+[-*•](?![-*])[ \t]*\S", text, re.MULTILINE)), count)


@_check("rlpost:numbered_list")
def _numbered(text: str, count: int, relation: str = "exactly") -> bool:
    return RELATIONS[relation](len(re.findall(r"^[ \t]*+\d{1,9}[.)][ \t]+\S", text, re.MULTILINE)), count)


@_check("rlpost:highlights")
def _highlights(text: str, count: int, relation: str = "at least") -> bool:
    found = re.findall(r"\*\*([^*\n]++)\*\*|\*([^*\n]++)\*", text)
    return RELATIONS[relation](sum(bool((double or single).strip()) for double, single in found), count)


@_check("rlpost:sections")
def _sections(text: str, count: int, relation: str = "at least", marker: str = "Section") -> bool:
    found = re.findall(rf"^[ \t#*]*+{re.escape(marker.strip())}[ \t]+\d+", text, re.MULTILINE | re.IGNORECASE)
    return RELATIONS[relation](len(found), count)


@_check("rlpost:title")
def _title(text: str) -> bool:
    return any(line.strip() for line in re.findall(r"<<([^<>\n]+)>>", text))


@_check("rlpost:json")
def _json(text: str) -> bool:
    text = text.strip()
    if len(text) >= 6 and text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@_check("rlpost:one_of")
def _constrained(text: str, options: Sequence[str]) -> bool:
    return text.strip().rstrip(".").casefold() in {option.strip().rstrip(".").casefold() for option in options}


@_check("rlpost:postscript")
def _postscript(text: str, marker: str = "P.S.") -> bool:
    return re.search(rf"^[ \t]*+{re.escape(marker.strip())}:?[ \t]*\S", text, re.MULTILINE | re.IGNORECASE) is not None


@_check("rlpost:placeholders")
def _placeholders(text: str, count: int, relation: str = "at least") -> bool:
    return RELATIONS[relation](len(re.findall(r"\[[^\[\]\n]+\]", text)), count)


# --------------------------------------------------------------------------------------------------------- combination


@_check("rlpost:repeat_prompt")
def _repeat_prompt(response: str, /, text: str) -> bool:
    rest = response.strip().removeprefix(text.strip())
    return len(rest) < len(response.strip()) and bool(rest.strip())


@_check("rlpost:two_responses")
def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]

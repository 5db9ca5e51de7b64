"""The 25 instructions of IFEval, by the rules of its published checker.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models"; ids, arguments and rules are those of
google-research/instruction_following_eval. They are kept where they are odd, too: `less than` and `at least` are the
only relations, keywords and markers are regular expressions, and a text without a letter is in any language asked for.

Two of its parts are not code but data trained elsewhere. Languages are detected by the same library, langdetect, with the
same seed. Sentences are split by rules of our own in place of NLTK's Punkt model: they end in runs of . ! or ? before
white space, abbreviations apart, and can differ from Punkt's where a period follows an abbreviation that is not listed.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewards._patterns import Linear, compiled

RELATIONS: dict[str, Callable[[int, int], bool]] = {"less than": int.__lt__, "at least": int.__ge__}
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
DETECTED = 50_000  # characters; the detector itself looks at 10,000
PLAIN = re.compile(r"[\w\s.,'’\"!:;&/@#%-]*")  # nothing in it repeats, so Python's `re` is linear
SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"'”’)\]}*_]*+(?=\s)")
ABBREVIATION = re.compile(
    r"(?<![^\s(\[\"'])(?:[A-HJ-Z]|(?i:e\.g|i\.e|a\.m|p\.m|u\.s|u\.k|ph\.d|vs|cf|mr|mrs|ms|dr|prof|st|jr|sr|inc|ltd|co|corp|gen|col|sen"
    r"|rep|gov|lt|capt|jan|feb|aug|sept?|oct|nov|dec|fig|no|vol|est|dept))\Z"
)
# Tokens in the way of the Penn Treebank, as far as it matters for which are in capitals: signs part words, and so do
# an apostrophe before what is short for a word, and two hyphens.
CLITIC = r"(?:'(?:s|m|d|ll|re|ve)|n't)(?!\w)"
SIGN = r";@#$%&?!()\[\]{}<>\"“”‘’„«»`…"
TREEBANK_WORD = re.compile(
    rf"{CLITIC}|(?:[^\s{SIGN}'n,:.-]++|(?!{CLITIC}|--|\.\.\.|[,:](?!\d))[^\s{SIGN}])++", re.IGNORECASE
)
TWO_WORDS = re.compile(r"\b(?:cannot|gimme|lemme|gonna|wanna|gotta)\b", re.IGNORECASE)  # to the Treebank
PLACEHOLDER = compiled(r"\[.*?\]")
BULLETS = (compiled(r"^\s*\*[^\*].*$", re.MULTILINE), compiled(r"^\s*-.*$", re.MULTILINE))


@dataclass(frozen=True)
class Rule:
    """An instruction: its arguments, all of which a row must give, with their types; and what follows it."""

    arguments: dict[str, Callable[[str, Any], Any]]
    follows: Callable[..., bool]


RULES: dict[str, Rule] = {}


def _rule(name: str, **arguments: Callable[[str, Any], Any]) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def register(function: Callable[..., bool]) -> Callable[..., bool]:
        RULES[name] = Rule(arguments, function)
        return function

    return register


def rule(name: str, arguments: dict[str, Any]) -> Callable[[str], bool]:
    """What tells of a response whether it follows the instruction.

    Raises:
        ValueError: naming an argument that is missing, unknown, or not of its kind; the published checker would draw one
            at random, or fail.
    """
    asked = RULES[name].arguments
    for problem, names in (("needs", asked.keys() - arguments.keys()), ("takes no", arguments.keys() - asked.keys())):
        if names:
            raise ValueError(f"{name} {problem} {', '.join(sorted(names))}")
    read = {key: kind(f"{name}: {key}", arguments[key]) for key, kind in asked.items()}
    if read.get("nth_paragraph", 0) > read.get("num_paragraphs", 0):
        raise ValueError(f"{name}: nth_paragraph is beyond num_paragraphs")
    return functools.partial(RULES[name].follows, **read)


# ------------------------------------------------------------------------------------------------------ kinds of arguments


def _count(what: str, value: Any) -> int:
    """Parquet may have made a decimal of a count."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise ValueError(f"{what} is {value!r}, not a count")
    return int(value)


def _above_zero(what: str, value: Any) -> int:
    if _count(what, value) == 0:
        raise ValueError(f"{what} is 0; it counts from 1")
    return int(value)


def _relation(what: str, value: Any) -> Callable[[int, int], bool]:
    if value not in RELATIONS:
        raise ValueError(f"{what} is {value!r}; it may be {' or '.join(RELATIONS)}")
    return RELATIONS[value]


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} is {value!r}, not a text")
    return value


def _letter(what: str, value: Any) -> str:
    if len(_text(what, value).strip()) != 1:
        raise ValueError(f"{what} is {value!r}, not one character")
    return value.strip().lower()


def _pattern(what: str, expression: str, flags: re.RegexFlag = re.IGNORECASE) -> Callable[[str], int]:
    """How often an expression occurs."""
    try:
        found = compiled(expression, flags)
    except re.error as error:
        raise ValueError(f"{what}: {expression!r} is no regular expression: {error}") from None
    if not isinstance(found, Linear) and not PLAIN.fullmatch(expression.replace(r"\b", "")):
        raise ValueError(f"{what}: {expression!r} is a regular expression that takes more than linear time")
    return lambda text: sum(1 for _ in found.finditer(text))


def _patterns(what: str, value: Any) -> list[Callable[[str], int]]:
    return [_pattern(what, word) for word in _words(what, value)]


def _whole_patterns(what: str, value: Any) -> list[Callable[[str], int]]:
    return [_pattern(what, rf"\b{word}\b") for word in _words(what, value)]


def _words(what: str, value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{what} is {value!r}, not a list of texts")
    return [_text(what, word) for word in value]


def _trimmed(what: str, value: Any) -> str:
    return _text(what, value).strip()


def _keyword(what: str, value: Any) -> Callable[[str], int]:
    return _pattern(what, _trimmed(what, value))


def _postscript_marker(what: str, value: Any) -> Callable[[str], int]:
    marker = _trimmed(what, value)
    spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return _pattern(what, spaced.get(marker, marker.lower()), re.NOFLAG)


def _section(what: str, value: Any) -> Callable[[str], int]:
    return _pattern(what, _trimmed(what, value) + r"\s?\d+", re.NOFLAG)


# --------------------------------------------------------------------------------------------------------------- language


@functools.cache
def _detector() -> Any:
    import langdetect

    langdetect.DetectorFactory.seed = 0  # or it says something else the next time
    return langdetect


def _is_in(text: str, language: str) -> bool:
    try:
        return _detector().detect(text[:DETECTED]) == language
    except _detector().LangDetectException:
        return True


@_rule("language:response_language", language=_text)
def _language(text: str, language: str) -> bool:
    return _is_in(text, language)


@_rule("change_case:english_capital")
def _capital(text: str) -> bool:
    return text.isupper() and _is_in(text, "en")


@_rule("change_case:english_lowercase")
def _lowercase(text: str) -> bool:
    return text.islower() and _is_in(text, "en")


@_rule("change_case:capital_word_frequency", capital_frequency=_count, capital_relation=_relation)
def _capital_words(text: str, capital_frequency: int, capital_relation: Callable[[int, int], bool]) -> bool:
    text = TWO_WORDS.sub(lambda word: f"{word[0][:3]} {word[0][3:]}", text)
    return capital_relation(sum(word.isupper() for word in TREEBANK_WORD.findall(text)), capital_frequency)


# --------------------------------------------------------------------------------------------------------------- keywords


@_rule("keywords:existence", keywords=_patterns)
def _existence(text: str, keywords: Sequence[Callable[[str], int]]) -> bool:
    return all(occurrences(text) for occurrences in keywords)


@_rule("keywords:forbidden_words", forbidden_words=_whole_patterns)
def _forbidden_words(text: str, forbidden_words: Sequence[Callable[[str], int]]) -> bool:
    return not any(occurrences(text) for occurrences in forbidden_words)


@_rule("keywords:frequency", keyword=_keyword, frequency=_count, relation=_relation)
def _frequency(text: str, keyword: Callable[[str], int], frequency: int, relation: Callable[[int, int], bool]) -> bool:
    return relation(keyword(text), frequency)


@_rule("keywords:letter_frequency", letter=_letter, let_frequency=_count, let_relation=_relation)
def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: Callable[[int, int], bool]) -> bool:
    return let_relation(text.lower().count(letter), let_frequency)


# ----------------------------------------------------------------------------------------------------------------- length


@_rule("length_constraints:number_words", num_words=_count, relation=_relation)
def _number_words(text: str, num_words: int, relation: Callable[[int, int], bool]) -> bool:
    return relation(len(re.findall(r"\w+", text)), num_words)


@_rule("length_constraints:number_sentences", num_sentences=_count, relation=_relation)
def _number_sentences(text: str, num_sentences: int, relation: Callable[[int, int], bool]) -> bool:
    return relation(sentences(text), num_sentences)


def sentences(text: str) -> int:
    """How many sentences there are."""
    text = text.strip()
    ends = 0
    for end in SENTENCE_END.finditer(text):
        if end[0] == "." and ABBREVIATION.search(text, max(0, end.start() - 10), end.start()):
            continue
        if end[0].startswith("..") and text[end.end() : end.end() + 9].lstrip()[:1].islower():
            continue
        ends += 1
    return ends + bool(text)


@_rule("length_constraints:number_paragraphs", num_paragraphs=_count)
def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = [part.strip() for part in text.split("***")]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


@_rule(
    "length_constraints:nth_paragraph_first_word",
    num_paragraphs=_above_zero,
    nth_paragraph=_above_zero,
    first_word=_text,
)
def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part.strip() for part in text.split("\n\n")]
    there = sum(map(bool, parts))
    if there != num_paragraphs or nth_paragraph > there or not parts[nth_paragraph - 1]:
        return False
    word = parts[nth_paragraph - 1].split(maxsplit=1)[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


# ------------------------------------------------------------------------------------------------------------------- form


@_rule("detectable_content:number_placeholders", num_placeholders=_count)
def _placeholders(text: str, num_placeholders: int) -> bool:
    return sum(1 for _ in PLACEHOLDER.finditer(text)) >= num_placeholders


@_rule("detectable_content:postscript", postscript_marker=_postscript_marker)
def _postscript(text: str, postscript_marker: Callable[[str], int]) -> bool:
    return postscript_marker(text.lower()) > 0


@_rule("detectable_format:number_bullet_lists", num_bullets=_count)
def _bullets(text: str, num_bullets: int) -> bool:
    return sum(1 for sign in BULLETS for _ in sign.finditer(text)) == num_bullets


@_rule("detectable_format:constrained_response")
def _constrained(text: str) -> bool:
    return any(answer in text for answer in ANSWERS)


@_rule("detectable_format:number_highlighted_sections", num_highlights=_count)
def _highlights(text: str, num_highlights: int) -> bool:
    single = sum(bool(part.strip()) for part in re.findall(r"\*([^\n*]*+)\*", text))
    double = sum(bool(part.strip()) for part in re.findall(r"\*\*([^\n*]*+)\*\*", text))
    return single + double >= num_highlights


@_rule("detectable_format:multiple_sections", section_spliter=_section, num_sections=_count)
def _sections(text: str, section_spliter: Callable[[str], int], num_sections: int) -> bool:
    return section_spliter(text) >= num_sections


@_rule("detectable_format:json_format")
def _json(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@_rule("detectable_format:title")
def _title(text: str) -> bool:
    for line in text.split("\n"):
        begin, end = line.find("<<"), line.rfind(">>")
        if begin >= 0 and begin + 2 < end and line[begin:end].lstrip("<").rstrip(">").strip():
            return True
    return False


# -------------------------------------------------------------------------------------------- combination, start and end


@_rule("combination:two_responses")
def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    there = [part for part in parts if part]
    return all(parts[1:-1]) and len(there) == 2 and there[0] != there[1]


@_rule("combination:repeat_prompt", prompt_to_repeat=_text)
def _repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_rule("startend:end_checker", end_phrase=_text)
def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_rule("startend:quotation")
def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@_rule("punctuation:no_comma")
def _no_comma(text: str) -> bool:
    return "," not in text

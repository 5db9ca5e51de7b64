"""Instructions that a program can check: counts of words, letter case, keywords, form.

Of the kind of IFEval (Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models") and under its
names where it has one, with rules of our own: what exactly each of them counts is said below.
"""

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
# IFEval's names of arguments.
IFEVAL = {
    **dict.fromkeys(("num_words", "num_sentences", "num_paragraphs", "num_bullets", "num_highlights"), "count"),
    **dict.fromkeys(("num_sections", "num_placeholders", "frequency", "let_frequency", "capital_frequency"), "count"),
    **dict.fromkeys(("let_relation", "capital_relation"), "relation"),
    **dict.fromkeys(("prompt_to_repeat", "end_phrase"), "text"),
    **dict.fromkeys(("section_spliter", "postscript_marker"), "marker"),
    "forbidden_words": "keywords",
    "first_word": "word",
    "nth_paragraph": "number",
}
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def verify(
    response: str,
    reference: Sequence[Mapping[str, Any]] | str | None = None,
    instructions: Sequence[Mapping[str, Any]] | str | None = None,
    strict: bool = True,
    all_or_nothing: bool = False,
) -> dict[str, Any]:
    """The share of the instructions that are followed; components hold 1 or 0 for each.

    Only what follows `</think>` counts. Reasons: no_answer (nothing there), not_followed (`details` name which).

    Args:
        reference: a list of `{"id": ..., "args": {...}}`, or JSON text of one.
        instructions: the same, from a column or the configuration; takes the place of the reference.
        strict: as the response stands. Otherwise an instruction is also followed when it is once the first line, the
            last line, both, or asterisks are taken away (IFEval's loose accuracy).
        all_or_nothing: 1 when all are followed, else 0.

    The ids and their arguments (`relation` is at least, at most, less than, more than or exactly; at least unless it
    says otherwise here). IFEval's own names for the arguments, such as `num_words`, are taken too.

        length_constraints:number_words                 count, relation. Words are runs of letters and digits.
        length_constraints:number_sentences             count, relation. They end in . ! or ?, abbreviations apart.
        length_constraints:number_paragraphs            count, relation (exactly); separator: blank lines by default.
        length_constraints:number_characters            count, relation
        length_constraints:nth_paragraph_first_word     number (from 1), word; count, when given, is exact.
        keywords:existence                              keywords: all of them; whole words, any case.
        keywords:forbidden_words                        keywords: none of them
        keywords:frequency                              keyword, count, relation
        keywords:letter_frequency                       letter, count, relation; any case.
        change_case:english_lowercase                   no letter is a capital, and there is a letter.
        change_case:english_capital                     no letter is small, and there is a letter.
        change_case:capital_word_frequency              count, relation: words of two letters and more all in capitals.
        startend:start_checker                          text; white space around the response and case are free.
        startend:end_checker                            text; the same.
        startend:quotation                              the whole response is in double quotes.
        punctuation:no_comma
        punctuation:forbidden                           characters: none of them.
        detectable_format:number_bullet_lists           count, relation (exactly): lines that begin with * - or •.
        detectable_format:numbered_list                 count, relation (exactly): lines that begin with 1. or 1)
        detectable_format:number_highlighted_sections   count, relation: *so* or **so**.
        detectable_format:multiple_sections             count, relation; marker (`Section`): lines `Section 1`.
        detectable_format:title                         a title <<so>>, not empty, on one line.
        detectable_format:json_format                   the whole response, or the one code block it is, is JSON.
        detectable_format:constrained_response          options (My answer is yes. / no. / maybe.): one, and no more.
        detectable_content:postscript                   marker (`P.S.`): a line begins with it, with text behind.
        detectable_content:number_placeholders          count, relation: [so].
        combination:repeat_prompt                       text: the response begins with it and goes on.
        combination:two_responses                       two different ones, parted by `******`.
    """
    given = reference if instructions is None else instructions
    try:
        tasks = _tasks(given)
    except (ValueError, TypeError) as error:
        details = {"error": f"the instructions cannot be used: {error}"}
        return {"score": None, "reason": "bad_reference", "details": details}
    _, closed, text = response.rpartition("</think>")
    if not text.strip() or (not closed and "<think>" in text):
        return {"score": 0.0, "reason": "no_answer"}
    texts = [text] if strict else _loosened(text)
    followed = [any(check(form) for form in texts) for _, check in tasks]
    share = sum(followed) / len(tasks)
    missed = [name for (name, _), done in zip(tasks, followed, strict=True) if not done]
    return {
        "score": float(not missed) if all_or_nothing else share,
        "reason": "not_followed" if missed else "",
        "components": {
            f"{i}:{name}": float(done) for i, ((name, _), done) in enumerate(zip(tasks, followed, strict=True))
        },
        "details": {"not_followed": missed} if missed else {},
    }


verify.check = True  # type: ignore[attr-defined]


def _tasks(given: Any) -> list[tuple[str, Callable[[str], bool]]]:
    """Each instruction as a function of the text, tried once on an empty one so that bad arguments show."""
    if isinstance(given, str):
        given = json.loads(given)
    if not isinstance(given, Sequence) or not given:
        raise ValueError('they must be a list of {"id": ..., "args": {...}} that is not empty')
    tasks: list[tuple[str, Callable[[str], bool]]] = []
    for entry in given:
        if not isinstance(entry, Mapping) or entry.get("id") not in CHECKS:
            raise ValueError(f"{str(entry)[:200]}; its id must be one of {', '.join(CHECKS)}")
        name, raw = entry["id"], entry.get("args") or {}
        arguments = {IFEVAL.get(key, key): value for key, value in raw.items() if value is not None}
        for key, value in arguments.items():
            _checked(name, key, value)
        check = functools.partial(CHECKS[name], **arguments)
        check("")
        tasks.append((name, check))
    return tasks


def _checked(name: str, key: str, value: Any) -> None:
    if key not in TYPES or not isinstance(value, TYPES[key]) or isinstance(value, bool) or value in ("", [], ()):
        raise ValueError(f"{name}: {key} is {value!r}")
    if isinstance(value, list | tuple) and not all(isinstance(part, str) and part for part in value):
        raise ValueError(f"{name}: {key} is {value!r}; it must hold texts that are not empty")
    if key == "relation" and value not in RELATIONS:
        raise ValueError(f"{name}: relation is {value!r}; it may be {', '.join(RELATIONS)}")


def _loosened(text: str) -> list[str]:
    lines = text.strip().split("\n")
    cuts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [form for cut in cuts for form in (cut, cut.replace("*", "")) if form.strip()]


def _check(name: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def register(function: Callable[..., bool]) -> Callable[..., bool]:
        CHECKS[name] = function
        return function

    return register


def _occurrences(text: str, keyword: str) -> int:
    """How often it occurs as a word or words of its own, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(keyword)}(?!\w)", text, re.IGNORECASE))


# -------------------------------------------------------------------------------------------------------------- length


@_check("length_constraints:number_words")
def _words(text: str, count: int, relation: str = "at least") -> bool:
    return RELATIONS[relation](len(WORD.findall(text)), count)


@_check("length_constraints:number_sentences")
def _sentences(text: str, count: int, relation: str = "at least") -> bool:
    found, begin = 0, 0
    for end in SENTENCE_END.finditer(text):
        if end[0][0] == "." and ABBREVIATION.search(text, max(begin, end.start() - 10), end.start()):
            continue
        if WORD.search(text, begin, end.start()):
            found += 1
        begin = end.end()
    return RELATIONS[relation](found + bool(WORD.search(text, begin)), count)


@_check("length_constraints:number_paragraphs")
def _paragraphs(text: str, count: int, relation: str = "exactly", separator: str | None = None) -> bool:
    parts = re.split(r"\n[ \t]*\n", text) if separator is None else text.split(separator)
    return RELATIONS[relation](sum(bool(part.strip()) for part in parts), count)


@_check("length_constraints:nth_paragraph_first_word")
def _first_word(text: str, number: int, word: str, count: int | None = None) -> bool:
    parts = [part.strip() for part in re.split(r"\n[ \t]*\n", text) if part.strip()]
    if number < 1 or number > len(parts) or (count is not None and len(parts) != count):
        return False
    first = WORD.search(parts[number - 1])
    return first is not None and first[0].casefold() == word.strip().casefold()


@_check("length_constraints:number_characters")
def _characters(text: str, count: int, relation: str = "at least") -> bool:
    return RELATIONS[relation](len(text.strip()), count)


# ------------------------------------------------------------------------------------------------------------ keywords


@_check("keywords:existence")
def _existence(text: str, keywords: Sequence[str]) -> bool:
    return all(_occurrences(text, keyword) for keyword in keywords)


@_check("keywords:forbidden_words")
def _forbidden_words(text: str, keywords: Sequence[str]) -> bool:
    return not any(_occurrences(text, keyword) for keyword in keywords)


@_check("keywords:frequency")
def _frequency(text: str, keyword: str, count: int, relation: str = "at least") -> bool:
    return RELATIONS[relation](_occurrences(text, keyword), count)


@_check("keywords:letter_frequency")
def _letter_frequency(text: str, letter: str, count: int, relation: str = "at least") -> bool:
    return RELATIONS[relation](text.casefold().count(letter.casefold()), count)


# ---------------------------------------------------------------------------------------------------------------- case


@_check("change_case:english_lowercase")
def _lowercase(text: str) -> bool:
    return text.islower()


@_check("change_case:english_capital")
def _uppercase(text: str) -> bool:
    return text.isupper()


@_check("change_case:capital_word_frequency")
def _capital_words(text: str, count: int, relation: str = "at least") -> bool:
    return RELATIONS[relation](sum(len(word) > 1 and word.isupper() for word in WORD.findall(text)), count)


# ---------------------------------------------------------------------------------------- beginning, end, punctuation


@_check("startend:start_checker")
def _starts_with(response: str, /, text: str) -> bool:
    return response.strip().casefold().startswith(text.strip().casefold())


@_check("startend:end_checker")
def _ends_with(response: str, /, text: str) -> bool:
    return response.strip().casefold().endswith(text.strip().casefold())


@_check("startend:quotation")
def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 2 and (text[0], text[-1]) in (('"', '"'), ("“", "”"))


@_check("punctuation:no_comma")
def _no_comma(text: str) -> bool:
    return not re.search(r"[,，、،]", text)


@_check("punctuation:forbidden")
def _forbidden(text: str, characters: str) -> bool:
    return not set(characters) & set(text)


# ---------------------------------------------------------------------------------------------------------------- form


@_check("detectable_format:number_bullet_lists")
def _bullets(text: str, count: int, relation: str = "exactly") -> bool:
    return RELATIONS[relation](len(re.findall(r"^[ \t]*+[-*•](?![-*])[ \t]*\S", text, re.MULTILINE)), count)


@_check("detectable_format:numbered_list")
def _numbered(text: str, count: int, relation: str = "exactly") -> bool:
    return RELATIONS[relation](len(re.findall(r"^[ \t]*+\d{1,9}[.)][ \t]+\S", text, re.MULTILINE)), count)


@_check("detectable_format:number_highlighted_sections")
def _highlights(text: str, count: int, relation: str = "at least") -> bool:
    found = re.findall(r"\*\*([^*\n]++)\*\*|\*([^*\n]++)\*", text)
    return RELATIONS[relation](sum(bool((double or single).strip()) for double, single in found), count)


@_check("detectable_format:multiple_sections")
def _sections(text: str, count: int, relation: str = "at least", marker: str = "Section") -> bool:
    found = re.findall(rf"^[ \t#*]*+{re.escape(marker.strip())}[ \t]+\d+", text, re.MULTILINE | re.IGNORECASE)
    return RELATIONS[relation](len(found), count)


@_check("detectable_format:title")
def _title(text: str) -> bool:
    return any(line.strip() for line in re.findall(r"<<([^<>\n]+)>>", text))


@_check("detectable_format:json_format")
def _json(text: str) -> bool:
    text = text.strip()
    if len(text) >= 6 and text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@_check("detectable_format:constrained_response")
def _constrained(text: str, options: Sequence[str] = ANSWERS) -> bool:
    return text.strip().rstrip(".").casefold() in {option.strip().rstrip(".").casefold() for option in options}


@_check("detectable_content:postscript")
def _postscript(text: str, marker: str = "P.S.") -> bool:
    return re.search(rf"^[ \t]*+{re.escape(marker.strip())}:?[ \t]*\S", text, re.MULTILINE | re.IGNORECASE) is not None


@_check("detectable_content:number_placeholders")
def _placeholders(text: str, count: int, relation: str = "at least") -> bool:
    return RELATIONS[relation](len(re.findall(r"\[[^\[\]\n]+\]", text)), count)


# --------------------------------------------------------------------------------------------------------- combination


@_check("combination:repeat_prompt")
def _repeat_prompt(response: str, /, text: str) -> bool:
    rest = response.strip().removeprefix(text.strip())
    return len(rest) < len(response.strip()) and bool(rest.strip())


@_check("combination:two_responses")
def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]

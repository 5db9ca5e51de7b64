"""Multiple choice: the response names the right option, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

EXTRACT = ("boxed", "tags", "phrase", "alone")
MAX_LENGTH = 2000  # characters of an answer
WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|boxed|fbox)[a-z]*\s*\{([^{}]*)\}")
PHRASE = re.compile(
    r"\b(?:answer|choice|option)\b(?:\s+is\b|\s*[:=])(?:\s*:)?(?:\s+(?:option|choice)\b)?", re.IGNORECASE
)
LIST = re.compile(r"\s*(?:,|;|/|&|\band\b|\bor\b)\s*", re.IGNORECASE)


def verify(
    response: str,
    reference: str | int | Sequence[str],
    options: Sequence[str] | None = None,
    letters: str = "ABCDEFGHIJ",
    extract: Sequence[str] = EXTRACT,
) -> dict[str, Any]:
    """Correct when the response's final answer is the letter, or the text, of the right option.

    Only what follows `</think>` counts. Reasons: no_answer, mismatch, hedged (several letters where the reference has
    one: `A or B`).

    Args:
        reference: the letter; the number of the option, from 0; its text, when `options` are given; or, for questions
            with several right options, a list of letters or letters one after another (`ACD`), all of which must be
            named, in any order.
        options: the texts, in order; may be a column of the data.
        letters: the options' letters, in order.
        extract: where to look for the answer, in this order; of each kind the last counts. `boxed`; `tags` (in
            `<answer>`); `phrase` (after "the answer is"); `alone` (the last line is a letter, with what may stand
            around it).

    Raises:
        ValueError: `extract` names what there is not.
    """
    unknown = [way for way in extract if way not in WAYS]
    if unknown:
        raise ValueError(f"verifier choice: extract has {unknown}; it may hold {', '.join(WAYS)}")
    known = letters[: len(options)] if options else letters
    wanted = _wanted(reference, options, known)
    if not wanted:
        error = f"{reference!r} is not among {', '.join(known)}"
        return {
            "score": None,
            "reason": "bad_reference",
            "details": {"error": f"the reference cannot be used: {error}"},
        }
    _, closed, text = response.rpartition("</think>")
    if not closed and "<think>" in response:  # still thinking
        return {"score": 0.0, "reason": "no_answer"}
    found = next((answer for way in extract if (answer := WAYS[way](text)) is not None), None)
    named = _named(found, options, known) if found is not None and len(found) <= MAX_LENGTH else set()
    if not named:
        return {"score": 0.0, "reason": "no_answer", "extracted": found}
    reason = "" if named == wanted else "hedged" if len(named) > 1 and len(wanted) == 1 else "mismatch"
    return {"score": float(not reason), "reason": reason, "extracted": "".join(sorted(named))}


verify.check = True  # type: ignore[attr-defined]


def _wanted(reference: Any, options: Sequence[str] | None, letters: str) -> set[str]:
    if isinstance(reference, int) and not isinstance(reference, bool):
        return {letters[reference]} if 0 <= reference < len(letters) else set()
    if isinstance(reference, str):
        text = reference.strip()
        if options and text in (texts := [option.strip() for option in options]):
            return {letters[texts.index(text)]}
        reference = LIST.split(text) if LIST.search(text) else [text] if len(text.strip(" ().")) == 1 else list(text)
    if not isinstance(reference, list | tuple):
        return set()
    found = {str(letter).strip(" ().").upper() for letter in reference}
    return found if found and found <= set(letters) else set()


def _named(answer: str, options: Sequence[str] | None, letters: str) -> set[str]:
    """The options an answer names: a letter or a list of them, with or without text behind; or the text of one."""
    while (plain := WRAPPED.sub(r"\1", answer)) != answer:
        answer = plain
    answer = re.sub(r"[*$`_]|\\[,;! ]", "", answer).strip()
    if options and len(answer) > 1:  # before the letters: "A triangle" is not option A
        text = answer.rstrip(" .").casefold()
        same = [i for i, option in enumerate(options) if option.strip().rstrip(" .").casefold() == text]
        if len(same) == 1:
            return {letters[same[0]]}
    one = rf"[(\[]?\s*([{re.escape(letters)}])\s*[)\]]?(?![\w'])"
    named: set[str] = set()
    rest = answer
    while match := re.match(one, rest):
        named.add(match[1])
        rest = rest[match.end() :]
        separator = LIST.match(rest)
        if separator is None:
            break
        rest = rest[separator.end() :]
    if named:
        return named
    small = re.fullmatch(one, answer.rstrip(" .").upper())  # a lone "b"; in a sentence "a" is an article
    return {small[1]} if small else set()


def _boxed(text: str) -> str | None:
    """What the last box holds; empty when it is never closed."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if start < 0:
        return None
    match = re.compile(r"\\(?:boxed|fbox)\s*\{([^{}]*+(?:\{[^{}]*\}[^{}]*+)*+)\}").match(text, start)
    return match[1] if match else ""


def _tags(text: str) -> str | None:
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    return None if start < 0 else text[start + len("<answer>") : end] if end >= 0 else ""


def _phrase(text: str) -> str | None:
    phrases = list(PHRASE.finditer(text))
    return text[phrases[-1].end() :].strip().partition("\n")[0].lstrip("* ") if phrases else None


def _alone(text: str) -> str | None:
    lines = text.rstrip().rpartition("\n")[2].strip()
    return lines if re.fullmatch(r"[\s*$(\[]*[A-Za-z][)\].:*$\s]*", lines) else None


WAYS: dict[str, Callable[[str], str | None]] = {"boxed": _boxed, "tags": _tags, "phrase": _phrase, "alone": _alone}

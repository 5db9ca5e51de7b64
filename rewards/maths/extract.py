"""Where in a response the final answer stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rewards._response import answer_tag, fences, visible
from rewards.maths.boxes import BOX, boxed
from rewards.maths.kinds import Kind, about_answers
from rewards.maths.sentences import (
    AFTER,
    BEFORE,
    DOUBT,
    FORMULA,
    LONGEST,
    MASK,
    NUMBER,
    concluding,
    first_sentence,
    stated,
)

EXTRACT = ("boxed", "hashes", "tags", "phrase", "choice", "bare", "formula", "last_number")
COMMENT = re.compile(r"^[^\S\n]*%.*$", re.MULTILINE)
# Words between a phrase and the answer that change nothing about it.
ADVERB = (
    r"(?:therefore|thus|then|hence|so|simply|exactly|precisely|clearly|again|just|obviously|indeed|also|still|now|finally|consequently"
    r"|accordingly|actually|evidently|equal to|given by)"
)
LEADING = re.compile(rf"(?:[\s,:]*\b{ADVERB}\b)+(?:[\s,:]+|(?=[$\\]))", re.IGNORECASE)
PHRASE = re.compile(
    r"(?:\b(?:final|correct|best|right)?\s{0,9}(?:answers?|réponse|respuesta|antwort|risposta|resposta|solutions?|results?)\b"
    r"|答案|答え|정답|답|الجواب|ответ)"
    r"(?:\s{1,9}finale?\b)?(?:\s{1,9}(?:to|for|of|we|that)\b[^.,:=\n$\d]{1,60}?|,[^,.:=\n$\d]{1,50},)?"
    rf"(?:,?\s{{1,9}}{ADVERB}\b,?)?"
    r"\s{0,9}(?:[*_]{1,9}\s{0,9})?(?:\s{1,9}(?:is|are(?!\s+(?:looking|asked|after|seeking|given))|must be|should be|would be|will be|est|es|ist|è|é|be)\b"
    r"|\s{1,9}(?P<doubt>might be|could be|can be|lies|belongs to|may be|cannot be|can['’]t be|isn['’]t|is not|must not be|won['’]t be)\b|[:：=]|是|为|為|は|는|은)[^\S\n]{0,9}:?",
    re.IGNORECASE,
)
FINAL = re.compile(r"\b(?:final|correct)\s{1,9}answer\b", re.IGNORECASE)
HEADING = re.compile(
    r"^[^\S\n]{0,3}[#*_]{0,9}[^\S\n]{0,3}(?:the\s)?(?:final\s)?(?:answer|solution|result)[^\S\n]{0,3}[:：]?[*_#:]{0,9}[^\S\n]{0,3}\n",
    re.IGNORECASE | re.MULTILINE,
)
BULLET = re.compile(r"^[\s*:]{0,9}\n\s{0,9}[-•]\s+(?=\S)")
LABELLED = re.compile(
    r"(?:the\s)?(?:final\s)?(?:answer|solution|result)(?:\sis\b|\s*[:：]|\**$|\*\*)(?:\s*[:：])?", re.IGNORECASE
)
OPTION = re.compile(r"(?:option |choice )?(?:\([A-J]\)|[A-J][.):])[.:]?\s+(?=\S)", re.IGNORECASE)
WHICH_IS = re.compile(r",?\s(?:which|that) (?:is|are|equals?|gives?|makes?|comes to|leaves?)\s", re.IGNORECASE)
ROWS = re.compile(
    r"\\begin\{(?:align|gather|equation|eqnarray)\*?\}((?:(?!\\begin).)*)\\end\{(?:align|gather|equation|eqnarray)\*?\}\W*$",
    re.DOTALL,
)
SUBJECT = re.compile(rf"\W*(?:(?:therefore|thus|hence|so)\W+)?({MASK})\s+(?:is|are)\s+(?:the|our)\b", re.IGNORECASE)
EQUALS = re.compile(r"=|\\equiv(?![a-zA-Z])")
RATIO = re.compile(r"(?<![\d:])\d{1,9}(?:\s?:\s?\d{1,9}){1,4}")
ALTERNATIVES = re.compile(r"\b(?:either|maybe|perhaps|or|(?:one|any|some) of)\b", re.IGNORECASE)
NUMBERED = re.compile(r"\d{1,3}[.):]\s+\S")
WORDED = re.compile(r"(?<![\\a-zA-Z])[^\W\d_]{3}")
HASHES = re.compile(r"(?<!#)####(?!#)([^\n]*)")
# These also begin other sentences than the one with the answer.
LOOSE = re.compile(r"solutions?|results?", re.IGNORECASE)
DENIED = re.compile(r"(?:not|wrong|incorrect|false|unknown|undefined|none|nothing|never)\b", re.IGNORECASE)
GUESSES = ("choice", "bare", "formula", "last_number")  # before these comes a box in fenced code
MANY = 20  # statements of an answer, from the last one, that are looked at
TAIL = re.compile(r"I hope (?:it|this) is correct.*$", re.IGNORECASE | re.DOTALL)
CHOICE = r"\(?\s*\*{0,2}([A-J])\*{0,2}\s*\)?"
UNSURE = re.compile(
    r"\b(?:or|but|maybe|perhaps|either|possibly|not|wrong|incorrect|false|no|never|if|else|otherwise|except|unless|neither|nor)\b|n['’]t\b|\\ne",
    re.IGNORECASE,
)
DENIAL = re.compile(r"n['’]t\b|\bnot\b|\bcannot\b|\brather than\b|\binstead of\b|\bneither\b|\bnon\b", re.IGNORECASE)
HEDGED = re.compile(r"\b(?:or|but|maybe|perhaps|either|possibly)\b", re.IGNORECASE)
TAG = re.compile(r"<final_answer>|\[ANSWER\]")
QUOTED = re.compile(r"\"(?:final_)?answer\"\s*:\s*\"?((?:[^\"\\]|\\.)+?)\"?\s*[,}][^{}]*$", re.IGNORECASE)
LABEL = re.compile(r"^A(?:ns(?:wer)?)?\s*[:：]\s*(?=\S)")
LIMIT = 200_000  # characters at the end of a response that are looked at


def extract(response: str, ways: Sequence[str], kind: Kind | None = None) -> str | None:
    """The final answer, or None. Only what follows `</think>` counts, outside fenced code and LaTeX comments.

    A statement after the last box replaces it, and a heading or a phrase is the answer, only with an answer of the `kind`
    that is asked for.
    """
    text = _judged(response)
    if text is None:
        return None
    outside = _outside(text)
    fenced = boxed(text) if "boxed" in ways and outside != text else None
    found = None
    for way in ways:
        found = fenced if fenced and way in GUESSES else WAYS[way](outside, kind)
        if found is not None:
            break
    if found is not None and "phrase" in ways and way == "boxed":
        found = _later_statement(outside, found, kind) or found
    return None if found is None else found.strip()


def _judged(response: str) -> str | None:
    """The part of a response in which an answer may stand; None while it still thinks."""
    text = visible(response)
    if text is None:
        return None
    text = TAIL.sub("", text[-LIMIT:]) if "I hope" in text else text[-LIMIT:]
    return COMMENT.sub("", text) if "%" in text else text


def _outside(text: str) -> str:
    """A text without its fenced code, or all of it where there is nothing else."""
    blocks = fences(text) if "```" in text or "~~~" in text else []
    ends = [0, *(block.end for block in blocks)]
    outside = (
        "\n".join(text[end : block.start] for end, block in zip(ends, blocks, strict=False)) + "\n" + text[ends[-1] :]
    )
    return outside if blocks and outside.strip() else text


def _later_statement(text: str, box: str, kind: Kind | None) -> str | None:
    """An answer that is called final after the last box: what is said last counts, if it is said at once."""
    after = text[[match.end() for match in BOX.finditer(text)][-1] :]
    if not FINAL.search(after):
        return None
    for phrase in reversed(list(PHRASE.finditer(after))[-MANY:]):
        if FINAL.search(phrase[0]):
            said = _statement(after[phrase.end() :], kind, directly=True)
            if kind is None or kind.fits(said) or (DENIED.match(said) and box and box in said):
                return said
    return None


def _boxed(text: str, kind: Kind | None) -> str | None:
    return boxed(text)


def _after_hashes(text: str, kind: Kind | None) -> str | None:
    """After `####`, which also begins a heading of Markdown: the answer when it is one of the kind asked for."""
    lines = list(HASHES.finditer(text))
    if kind is None:
        return lines[-1][1].strip() if lines else None
    for line in reversed(lines[-MANY:]):
        said, rest = line[1].strip(" \t*_:"), text[line.end() :].strip()
        labelled = LABELLED.match(said)
        if labelled is not None:
            said = said[labelled.end() :].strip(" \t*_:")
            if not said:
                return _statement(rest, kind)
        if rest and (NUMBERED.match(said) or (kind.number and WORDED.search(said)) or PHRASE.search(rest)):
            continue  # the heading of what follows
        if kind.fits(said):
            return said
        answer = _statement(said, kind, directly=True)
        if kind.fits(answer) or not rest:
            return answer if kind.fits(answer) else said
    return None


def _in_tags(text: str, kind: Kind | None) -> str | None:
    if (tagged := answer_tag(text)) is not None:
        return tagged
    starts = list(TAG.finditer(text))
    if not starts:
        found = QUOTED.search(text[-LONGEST:])
        return found[1] if found else None
    rest = text[starts[-1].end() :]
    if starts[-1][0] == "[ANSWER]":
        return rest.partition("[/ANSWER]")[0].strip().partition("\n")[0]
    inside, end, _ = rest.partition("</final_answer>")
    return inside if end else ""


def _after_phrase(text: str, kind: Kind | None) -> str | None:
    """What the last phrase such as "the answer is" states; one that only says how the answer is, is passed over."""
    found = sorted([*PHRASE.finditer(text), *HEADING.finditer(text)], key=lambda match: match.end())
    for phrase in found[-MANY:][::-1]:
        rest = text[phrase.end() : phrase.end() + LONGEST]
        if phrase.groupdict().get("doubt"):
            if re.search(r"\d", rest[len(first_sentence(rest)) :].partition("\n")[2]):
                continue
            return f"{phrase['doubt']} {first_sentence(rest)}"
        loose = LOOSE.search(phrase[0]) is not None
        said = _statement(rest, kind, directly=loose)
        if kind is None or kind.fits(said):
            return said
        if (named := WHICH_IS.search(first_sentence(rest))) and kind.fits(
            again := stated(rest[named.end() :], directly=True)
        ):
            return again
        if not loose and (DOUBT.search(said) or not about_answers(said)):
            return said
    return None


def _statement(rest: str, kind: Kind | None, directly: bool = False) -> str:
    """The answer at the beginning of a text: a display, a choice, or what its first sentence states."""
    rest = BULLET.sub("", rest[:LONGEST], count=1).strip(" \t:*\n_")
    if (adverbs := LEADING.match(rest)) is not None and adverbs.end() < len(rest):
        rest = rest[adverbs.end() :].strip(" \t:*\n_")
    if (
        rest.startswith(("\\[", "$"))
        and (display := FORMULA.match(rest))
        and ("\n" in display[0] or rest[:2] in ("\\[", "$$"))
    ):
        return next(group for group in display.groups() if group is not None)
    if kind is not None and not kind.letters:
        return stated(OPTION.sub("", rest, count=1) if OPTION.match(rest) else rest, directly)
    choice = re.match(
        rf"(?:for sure |definitely |clearly |probably |option |choice )?{CHOICE}(?![\w'])(?!\s*[-+*/=^])", rest
    )
    if choice and not _other_choice(rest[choice.end() :].partition("\n")[0]):
        line = rest.partition("\n")[0].strip("*. ")
        return choice[1] if len(line) > 6 else line
    return stated(rest, directly)


def _other_choice(rest: str) -> bool:
    """Whether more choices are offered after the first one: "D or B", but not "D, it can't be A or B"."""
    if re.match(r"\s*(?:,|/|&|\band\b|\bor\b)+\s*\(?[A-J]\b", rest):
        return True
    return bool(HEDGED.search(rest)) and not DENIAL.search(rest)


def _choice(text: str, kind: Kind | None) -> str | None:
    """A response that begins or ends with nothing but the letter of a choice."""
    stripped = text.strip()
    if (begun := re.match(r"\(?([A-J])\)?[.):](?:\s|$)", stripped)) and not _other_choice(stripped[begun.end() :]):
        return begun[1]
    if ended := re.search(
        r"(?:^|[\n:]|\b(?:option|choice|choose|select|pick)\s)\s*\(?\*{0,2}([A-J])\*{0,2}\)?[.)]?\s*$", stripped[-200:]
    ):
        return ended[1]
    return None


def _bare(text: str, kind: Kind | None) -> str | None:
    """A response that is nothing but a formula or a number."""
    stripped = LABEL.sub("", text.strip())
    stripped = stripped.rpartition("=")[2].strip() if stripped.startswith("...") else stripped
    if len(stripped) > 500 or ("\n" in stripped and "\\begin" not in stripped) or "$" in stripped.replace("\\$", ""):
        return None
    plain = re.sub(r"\\text\s*\{[^{}]*\}|\\(?:begin|end)\{[a-z]*\}|\\[a-zA-Z]+", " ", stripped)
    words = [
        w
        for w in re.findall(r"[^\W\d_]{2,}", plain)
        if w.lower() not in ("sqrt", "pi", "sin", "cos", "tan", "log", "ln", "and", "or")
    ]
    if not re.search(r"\d|\\|=", stripped) and len(stripped) > 1:
        return None
    return None if words else stripped


def _formula(text: str, kind: Kind | None) -> str | None:
    """The last formula of what the response concludes that is one of the kind, or ends in one; none before a number."""
    text = text.strip()
    if (rows := ROWS.search(text[-LONGEST:])) is not None:
        return rows[1].rpartition("=")[2].strip("&.,\\ \n")
    masked, clause = concluding(text)
    formulas = [match for match in re.finditer(MASK, clause) if not re.search(r"\d", clause[match.end() :])]
    if (subject := SUBJECT.match(clause)) is not None:
        return _side(masked.inside(subject[1]), kind) or masked.inside(subject[1])
    for match in reversed(formulas):
        if (found := _side(masked.inside(match[0]), kind)) is not None:
            return found
    return masked.inside(formulas[-1][0]) if formulas else None


def _side(formula: str, kind: Kind | None) -> str | None:
    """A formula, or what it is said to be equal to, when that is an answer of the kind."""
    side = EQUALS.split(formula)[-1].strip(" .,")
    if kind is not None and kind.fits(side) and (kind.number or not kind.fits(formula)):
        return side
    return formula if kind is None or kind.fits(formula) else None


def _last_number(text: str, kind: Kind | None) -> str | None:
    _, clause = concluding(text)
    if (ratio := RATIO.search(clause)) and not re.search(r"\d", clause[ratio.end() :]):
        return ratio[0]
    if ALTERNATIVES.search(clause) and len({match[0] for match in NUMBER.finditer(clause)}) > 1:
        return clause
    numbers = [match[0] for match in NUMBER.finditer(clause)] or [match[0] for match in NUMBER.finditer(text[-5000:])]
    return numbers[-1].replace(" ", "") if numbers else None


WAYS: dict[str, Callable[[str, Kind | None], str | None]] = {
    "boxed": _boxed,
    "hashes": _after_hashes,
    "tags": _in_tags,
    "phrase": _after_phrase,
    "choice": _choice,
    "bare": _bare,
    "formula": _formula,
    "last_number": _last_number,
}


def from_prose(text: str, choices: bool) -> str | None:
    """The answer inside a box or a tag that holds a sentence; only an explicit one when it names others too."""
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r" \1 ", text)
    numbers = list(NUMBER.finditer(text)) or list(re.finditer(r"\d+", text))
    if numbers and (BEFORE.search(text[: numbers[-1].start()]) or AFTER.match(text[numbers[-1].end() :])):
        return None
    several = len({number[0].replace(" ", "") for number in numbers}) > 1 and "=" not in text
    unsure = several or UNSURE.search(text) or DOUBT.search(text)
    for way in ("phrase", "choice") if unsure else ("phrase", "choice", "formula", "last_number"):
        found = WAYS[way](text, None) if choices or way != "choice" else None
        if found:
            return found
    return None

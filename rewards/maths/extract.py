"""Where in a response the final answer stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

EXTRACT = ("boxed", "hashes", "tags", "phrase", "choice", "bare", "formula", "last_number")
FENCE = re.compile(r"^\s*```.*?^\s*```[^\S\n]*$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"^[^\S\n]*%.*$", re.MULTILINE)
BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
BETWEEN_BOXES = re.compile(
    r"(?:[\s,;&$.+]|\\(?:quad|qquad|text|mathrm|\[|\]|\(|\)|[,;!: ]|\\)|\{|\}|\band\b|\bor\b)*", re.IGNORECASE
)
# Words between a phrase and the answer that change nothing about it.
ADVERB = (
    r"(?:therefore|thus|then|hence|so|simply|exactly|precisely|clearly|again|just|obviously|indeed|also|still|now|finally|consequently"
    r"|accordingly|actually|evidently|equal to|given by)"
)
LEADING = re.compile(rf"(?:[\s,:]*\b{ADVERB}\b)+(?:[\s,:]+|(?=[$\\]))", re.IGNORECASE)
PHRASE = re.compile(
    r"(?:\b(?:final|correct|best|right)?\s{0,9}(?:answer|réponse|respuesta|antwort|risposta|resposta|solution|result)\b|答案|الجواب|ответ)"
    r"(?:\s{1,9}(?:to|for)\s{1,9}(?:the|this)\s{1,9}(?:question|problem))?"
    rf"(?:,?\s{{1,9}}{ADVERB}\b,?)?"
    r"\s{0,9}(?:[*_]{1,9}\s{0,9})?(?:\s{1,9}(?:is|are|must be|should be|would be|est|es|ist|è|é|be)\b|[:：=]|是|为|為)\s*:?",
    re.IGNORECASE,
)
FINAL = re.compile(r"\bfinal answer\b", re.IGNORECASE)
TAIL = re.compile(
    r"I hope (?:it|this) is correct.*$|<\|[a-z_]+\|>.*$|<(?:/s|eos|end_of_turn)>.*$", re.IGNORECASE | re.DOTALL
)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:\\.|[^$\\])+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
NUMBER = re.compile(
    r"(?<![\w.,^_])(?:(?<![)\d] )-\s?|(?<=[\s(=:])-)?(?:\\?\$)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s?/\s?\d+(?!\d*[^\W\d_])"
    r"|\s?\\?%)?(?![A-Za-z]*_)", re.ASCII
)  # fmt: skip
CHOICE = r"\(?\s*\*{0,2}([A-J])\*{0,2}\s*\)?"
UNSURE = re.compile(
    r"\b(?:or|but|maybe|perhaps|either|possibly|not|wrong|incorrect|false|no|never|if|else|otherwise|except|unless|neither|nor)\b|n['’]t\b|\\ne",
    re.IGNORECASE,
)
DENIAL = re.compile(r"n['’]t\b|\bnot\b|\bcannot\b|\brather than\b|\binstead of\b|\bneither\b|\bnon\b", re.IGNORECASE)
HEDGED = re.compile(r"\b(?:or|but|maybe|perhaps|either|possibly)\b", re.IGNORECASE)
PRICE = re.compile(r"(\d+(?:[.,]\d+)*)\s?(?:\\?\$|€|£)|(?:\\?\$|€|£)\s?(\d+(?:[.,]\d+)*)", re.ASCII)
TAG = re.compile(r"<(answer|final_answer)>|\[ANSWER\]")
QUOTED = re.compile(r"\"(?:final_)?answer\"\s*:\s*\"?((?:[^\"\\]|\\.)+?)\"?\s*[,}][^{}]*$", re.IGNORECASE)
LABEL = re.compile(r"^A(?:ns(?:wer)?)?\s*[:：]\s*(?=\S)")
# Next to a number these make it another one, or a bound.
BEFORE = re.compile(
    r"(?:\b(?:at (?:least|most)|than|under|over|above|below|up to|half(?: of)?|(?:multiple|factor|divisor|power|root)s? of|first|twice|double|triple|thrice|(?:square|cube) root of|be|not|never|except"
    r"|but|between|from|minus|negative|times|all|every|any)|n['’]t)\W*$",
    re.IGNORECASE,
)
AFTER = re.compile(
    r"^[^\w\\]*(?:at (?:least|most)|or (?:more|less|fewer|greater|higher|lower)|hundred|thousand|million|billion|dozen|(?:half|halve|third|fourth|fifth|sixth|seventh|eighth|ninth"
    r"|tenth|hundredth|thousandth)s?|squared|cubed|factorial|percent|pi|and (?:a|one) \w+|if|when|otherwise|unless|to|through|choose|plus|minus|times"
    r"|more than|less than|fewer than)\b",
    re.IGNORECASE,
)
LIMIT = 200_000  # characters at the end of a response that are looked at


def extract(response: str, ways: Sequence[str]) -> str | None:
    """The final answer, or None. Only what follows `</think>` counts, outside fenced code and LaTeX comments."""
    text = visible(response)
    if text is None:
        return None
    found = None
    for way in ways:
        found = WAYS[way](text)
        if found is not None:
            break
    if found is not None and "phrase" in ways and way == "boxed":
        found = _later_statement(text) or found
    return None if found is None else found.strip()


def visible(response: str) -> str | None:
    """The part of a response in which an answer may stand; None while it still thinks."""
    if "</think>" in response:
        response = response.rpartition("</think>")[2]
    elif "<think>" in response:
        return None
    response = TAIL.sub("", response[-LIMIT:]) if "I hope" in response or "<" in response else response[-LIMIT:]
    if "```" in response:
        outside = FENCE.sub("\n", response)
        response = outside if outside.strip() else response
    return COMMENT.sub("", response) if "%" in response else response


def _later_statement(text: str) -> str | None:
    """An explicit "final answer" after the last box: what is said last counts."""
    boxes = list(BOX.finditer(text))
    after = text[boxes[-1].end() :]
    if not FINAL.search(after) or BOX.search(after):
        return None
    return _after_phrase(after)


def _boxed(text: str) -> str | None:
    """What the last box holds, or the last row of boxes with only separators between them.

    Empty when the last is never closed, so that no earlier box, often a guess, stands in.
    """
    starts = [match.start() for match in BOX.finditer(text)]
    if not starts:
        return None
    boxes: list[tuple[int, int, str]] = []
    for start in starts:
        if boxes and start < boxes[-1][1]:
            continue  # inside the one before
        opened = re.compile(r"\\(?:boxed|fbox)\s*\{").match(text, start)
        if opened is None:
            single = re.compile(r"\\(?:boxed|fbox)\s+(-?[\w.]+)").match(text, start)
            boxes.append((start, single.end(), single[1]) if single else (start, len(text), ""))
            continue
        end = closing(text, opened.end() - 1)
        if end is None:
            boxes.append((start, len(text), ""))
            break
        boxes.append((start, end + 1, text[opened.end() : end]))
    if not boxes[-1][2].strip():
        return ""
    row = [boxes[-1]]
    for before in reversed(boxes[:-1]):
        between = text[before[1] : row[0][0]]
        if len(between) > 60 or not BETWEEN_BOXES.fullmatch(between) or "\n\n" in between.strip(" "):
            break
        row.insert(0, before)
    contents = [content.strip() for _, _, content in row]
    return contents[0] if len(set(contents)) == 1 else ", ".join(contents)


def closing(text: str, opened: int) -> int | None:
    """Where the brace at `opened` is closed."""
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, opened):
        if brace[0] in "{}":
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                return brace.start()
    return None


def _after_hashes(text: str) -> str | None:
    _, hashes, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0] if hashes else None


def _in_tags(text: str) -> str | None:
    starts = list(TAG.finditer(text))
    if not starts:
        found = QUOTED.search(text)
        return found[1] if found else None
    begun = starts[-1]
    if begun[1] is None:  # [ANSWER]
        return text[begun.end() :].partition("[/ANSWER]")[0].strip().partition("\n")[0]
    end = text.find(f"</{begun[1]}>", begun.end())
    return text[begun.end() : end] if end >= 0 else ""


def _after_phrase(text: str) -> str | None:
    phrases = list(PHRASE.finditer(text))
    return _statement(text[phrases[-1].end() :]) if phrases else None


def _statement(rest: str) -> str:
    """The answer at the beginning of a text: a formula, a choice, or the sentence without its words."""
    rest = rest.strip(" \t:*\n_")
    if (adverbs := LEADING.match(rest)) is not None and adverbs.end() < len(rest):
        rest = rest[adverbs.end() :].strip(" \t:*\n_")
    if (
        rest.startswith(("\\[", "$"))
        and (display := FORMULA.match(rest))
        and ("\n" in display[0] or rest[:2] in ("\\[", "$$"))
    ):
        return next(group for group in display.groups() if group is not None)
    line = rest.partition("\n")[0].strip("* ")
    sentence = re.split(r"(?<![A-Z])[.。](?:\s|$|\*)|[.。]?\*\*|(?<=\d)[.。]\s|;\s*so ", line, maxsplit=1)[0].strip(
        "* "
    )
    if not sentence:
        sentence = line
    if re.search(r"\S\s+(?:is|are|equals)\s+", sentence) and not HEDGED.search(sentence):
        sentence = re.split(r"\s(?:is|are|equals)\s", sentence)[-1]
    formulas = [next(g for g in m.groups() if g is not None) for m in FORMULA.finditer(sentence)]
    if formulas and not HEDGED.search(sentence):
        if len(formulas) > 1 and re.fullmatch(r"[\s,.]*(?:and)?[\s,.]*", FORMULA.sub("", sentence)):
            return ", ".join(formulas)
        outside = FORMULA.sub("", sentence).strip(" .")
        return formulas[0] + (f" {outside}" if outside in ("%", "percent", "degrees") else "")
    choice = re.match(
        rf"(?:for sure |definitely |clearly |probably |option |choice )?{CHOICE}(?![\w'])(?!\s*[-+*/=^])", sentence
    )
    if choice and not _other_choice(sentence[choice.end() :]):
        return choice[1] if len(sentence) > 6 else sentence
    counted = re.fullmatch(r"(-?(?:\\?\$)?\d[\d,.]*)\s+[A-Za-z ]+", sentence)
    if HEDGED.search(sentence):
        return sentence
    if counted:
        return counted[1].rstrip(".,")
    priced = [match[1] or match[2] for match in PRICE.finditer(sentence[:2000])]
    if len(priced) == 1 and re.search(r"[^\W\d_]{3,}\s+[^\W\d_]{3,}", sentence):
        return priced[0]  # a sentence about one sum of money
    numbers = {match[0].replace(" ", "") for match in NUMBER.finditer(sentence[:2000])}
    outside = NUMBER.sub("", re.sub(r"\\[a-zA-Z]+(?:\s*\{[^{}]*\})?", "", sentence))
    if len(numbers) == 1 and len(re.findall(r"[^\W\d_]{2,}", outside)) >= 3 and "\\" not in sentence:
        return numbers.pop()  # a sentence about one number
    return sentence


def _other_choice(rest: str) -> bool:
    """Whether more choices are offered after the first one: "D or B", but not "D, it can't be A or B"."""
    if re.match(r"\s*(?:,|/|&|\band\b|\bor\b)+\s*\(?[A-J]\b", rest):
        return True
    return bool(HEDGED.search(rest)) and not DENIAL.search(rest)


def _choice(text: str) -> str | None:
    """A response that begins or ends with nothing but the letter of a choice."""
    stripped = text.strip()
    if (begun := re.match(r"\(?([A-J])\)?[.):](?:\s|$)", stripped)) and not _other_choice(stripped[begun.end() :]):
        return begun[1]
    if ended := re.search(
        r"(?:^|[\n:]|\b(?:option|choice|choose|select|pick)\s)\s*\(?\*{0,2}([A-J])\*{0,2}\)?[.)]?\s*$", stripped
    ):
        return ended[1]
    return None


def _bare(text: str) -> str | None:
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


def _formula(text: str) -> str | None:
    """The last formula of the response's last sentence with one."""
    text = text.strip()
    tail = text[-4000:]
    if text[:-4000].count("$") % 2:
        tail = tail.partition("$")[2]
    formulas = list(FORMULA.finditer(tail))
    if not formulas or re.search(r"\d", FORMULA.sub("", tail[formulas[-1].end() :])):
        return None
    return next(group for group in formulas[-1].groups() if group is not None)


def _last_number(text: str) -> str | None:
    numbers = [match[0] for match in NUMBER.finditer(text[-5000:])]
    return numbers[-1].replace(" ", "") if numbers else None


WAYS: dict[str, Callable[[str], str | None]] = {
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
    unsure = UNSURE.search(text)
    for way in ("phrase", "choice") if unsure else ("phrase", "choice", "formula", "last_number"):
        found = WAYS[way](text) if choices or way != "choice" else None
        if found:
            return found
    return None

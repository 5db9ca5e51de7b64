"""What words say: numbers, dates, times of day, and sentences whose answer is one word of them."""

from __future__ import annotations

import re
from fractions import Fraction

ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SMALL = {name: k for k, name in enumerate(ONES)} | {name: 10 * k for k, name in enumerate(TENS, 2)}
LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"]  # fmt: skip
MONTH = "|".join(f"{name}|{name[:3]}" for name in MONTHS)
DATE = re.compile(
    rf"(?P<day>\d{{1,2}})(?:\s*(?:st|nd|rd|th))?\s+(?:of\s+)?(?P<month>{MONTH})\.?(?:,?\s+(?P<year>\d{{4}}))?"
    rf"|(?P<month2>{MONTH})\.?\s+(?:the\s+)?(?P<day2>\d{{1,2}})(?:\s*(?:st|nd|rd|th))?(?:,?\s+(?P<year2>\d{{4}}))?",
    re.IGNORECASE,
)
CLOCK = re.compile(r"(?:\\text\s*\{\s*)?\d{1,2}\s*:\s*[0-5]\d(?:\s*(?:\\text\s*\{)?\s*[aApP]\.?\s*[mM]\.?)?\s*\}?")
TIME = re.compile(r"(\d{1,2})\s*:\s*(\d\d)\s*(?:([ap])\s*\.?\s*m)?")


def number(text: str) -> int | None:
    """`one hundred and forty-four` as 144; None when the words are no number, or not in the order of one."""
    parts = re.sub(r"\band\b", " and ", text.casefold().replace("-", " ")).split()
    negative = parts[:1] in (["minus"], ["negative"])
    parts = parts[negative:]
    if not parts or len(parts) > 20 or parts[-1] == "and":
        return None
    total, group, last = 0, 0, 10**12  # `last`: the unit of the word before, which the next one stays below
    scale = 10**12
    for at, part in enumerate(parts):
        if part == "and":
            if at == 0 or parts[at - 1] not in ("hundred", *LARGE):
                return None
        elif part in SMALL:
            value = SMALL[part]
            if last <= 10 or (last == 20 and not 0 < value < 10) or (value == 0 and len(parts) > 1):
                return None
            group += value
            last = 20 if value >= 20 else 10
        elif part == "hundred":
            if not 0 < group < 10:
                return None
            group, last = group * 100, 100
        elif part in LARGE:
            if group == 0 or LARGE[part] >= scale:
                return None
            total, group, scale, last = total + group * LARGE[part], 0, LARGE[part], 10**12
        else:
            return None
    return (-1 if negative else 1) * (total + group)


PARTS = {
    "half": 2,
    "halve": 2,
    "third": 3,
    "fourth": 4,
    "quarter": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
}


def fraction(text: str) -> Fraction | None:
    """`one half`, `two-thirds`, `one and a half`; None when the words are no such number."""
    parts = text.casefold().replace("-", " ").split()
    if parts[:1] in (["minus"], ["negative"]):
        positive = fraction(" ".join(parts[1:]))
        return None if positive is None else -positive
    denominator = PARTS.get(parts[-1]) or PARTS.get(parts[-1].removesuffix("s")) if len(parts) > 1 else None
    if denominator is None:
        return None
    whole, joined, rest = " ".join(parts[:-1]).rpartition(" and ")
    above = 1 if rest in ("a", "an") else number(rest)
    if above is None or not 0 < above < denominator:
        return None
    before = number(whole) if joined else 0
    return None if before is None else before + Fraction(above, denominator)


def date(text: str) -> str | None:
    """`15th of March` as `march 15`."""
    match = DATE.fullmatch(text.strip(" ."))
    if match is None:
        return None
    month = next(name for name in MONTHS if name.startswith((match["month"] or match["month2"])[:3].casefold()))
    year = match["year"] or match["year2"] or ""
    return f"{month} {int(match['day'] or match['day2'])} {year}".strip()


def same_time(a: str, b: str) -> bool:
    """13:03 is 1:03 PM; without a half of the day 1:03 is both 1:03 AM and 1:03 PM, but not 13:03."""
    found = [TIME.search(text) for text in (a, b)]
    if found[0] is None or found[1] is None:
        return False
    (hour, minute, half), (hour2, minute2, half2) = ((int(m[1]), int(m[2]), m[3]) for m in found if m is not None)
    if minute != minute2:
        return False
    if half and half2:
        return (hour % 12, half) == (hour2 % 12, half2)
    if half or half2:
        bare, named, part = (hour2, hour, half) if half else (hour, hour2, half2)
        return bare == named or (not 0 < bare < 13 and bare == named % 12 + 12 * (part == "p"))
    return hour == hour2


# A sentence with one of these does not simply say what its subject or its object is.
OTHERWISE = re.compile(
    r"\b(?:not|no|never|neither|nor|or|either|except|but|than|cannot|without|unless|if|when|maybe|perhaps|possibly|probably|might|could"
    r"|would|should|hardly|nowhere|almost|nearly|opposite|wrong|false|incorrect|instead|although|however|both|unlike|only|sometimes"
    r"|unknown|assuming|suppose|else|what|who|which|and)\b|n['’]t\b|[?]"
)
SUBJECT = r"(?:it|this|that|they|these|(?:the|this|that|its|our|these|those)(?: [a-z]+){1,5})"
COPULA = r"(?:is|are|was|were)(?: (?:always|therefore|thus|then|clearly|simply|indeed|an?|the|called|known as))*"
VERDICTS = ("yes", "no", "true", "false")


def sentence_says(sentence: str, answer: str) -> bool:
    """Whether a plain sentence (`the function is even`, `evelyn is the fastest`, `yes, it does`) gives this answer."""
    sentence = sentence.strip(" .!")
    if not re.fullmatch(r"[^\W\d_]+(?:[ '’-][^\W\d_]+){0,3}", answer) or len(sentence) > 200:
        return False
    if answer in VERDICTS:
        return _verdict(sentence, answer)
    if OTHERWISE.search(sentence) or re.search(r"[.;:!,]", sentence):
        return False
    said = re.escape(answer)
    return bool(
        re.fullmatch(rf"{SUBJECT} (?:{COPULA}|(?:falls|fell|lies) on(?: an?)?) {said}", sentence)
        or re.fullmatch(
            rf"(?:the )?{said} (?:is|are|was|were) (?:the [a-z]+(?: [a-z]+){{0,3}}|correct|right)", sentence
        )
    )


def _verdict(sentence: str, answer: str) -> bool:
    """Yes, and then nothing that takes it back; after no, a denial agrees."""
    match = re.fullmatch(rf"{answer}\s*[,.;:]\s*(?:because |since |as )?((?:it|this|that|they|the)\b.*)", sentence)
    if match is None:
        return False
    rest = match[1]
    if any(re.search(rf"\b{word}\b", rest) for word in VERDICTS) or re.search(r"[.;:!?]", rest):
        return False
    if answer in ("no", "false"):  # "no, it is not": one plain denial
        rest = re.sub(
            r"\b(is|are|was|were|does|do|did|can|has|have)(?: not\b|n['’]t\b)|\bcannot\b", r"\1", rest, count=1
        )
    return not OTHERWISE.search(rest)

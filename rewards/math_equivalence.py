"""Mathematical equivalence of the final answer and the reference, on math-verify.

Numbers are compared exactly and fast; other forms go to math-verify, after guards against expressions that are cheap
to write and endless to evaluate. Its own time-outs need SIGALRM and are off: the pool's kill is the time-out.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import math_verify

# It warns that without its time-outs it must be stopped from outside: here it is.
for _part in ("parser", "grader"):
    logging.getLogger(f"math_verify.{_part}").setLevel(logging.ERROR)

MAX_LENGTH = 2000
MAX_DEPTH = 40
MAX_EXPONENT = 4000
EXTRACT = ("boxed", "hashes", "tags", "phrase", "last_number")

NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)", re.ASCII)
HUGE_COUNT = re.compile(  # factorials and binomials of large numbers, of powers, of factorials
    r"\d{4,}[\s})]*!|\^\s*\{?\d+[\s})]*!|![\s})]*!|factorial\D*\d{4,}|binom\W*(?:\d{4,}|\d+\s*\^)|binom.{0,20}!"
)
HEDGE = re.compile(r"\b(?:or|but|maybe|perhaps|either|possibly)\b|\\(?:lor|vee)(?![a-z])", re.IGNORECASE)
SEVERAL = re.compile(r",|\\pm|\\text\{\s*and|\bor\b")
NEGATED = re.compile(r"\\neq?(?![a-z])|≠")
UNICODE = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ",
    "≥": r"\ge ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "²": "^2",
    "³": "^3", "°": "", "（": "(", "）": ")", "，": ",",
}  # fmt: skip


def verify(response: str, reference: Any, extract: Sequence[str] = EXTRACT) -> dict[str, Any]:
    """Correct when the response's final answer is mathematically the reference.

    Only what follows `</think>` counts. Reasons of a wrong verdict: no_answer, mismatch, hedged (several answers where
    the reference has one), too_large (refused unevaluated), unparsable. A reference that cannot be read is unverified.

    Args:
        reference: LaTeX, a number, or a worked solution ending in `#### answer` or `\\boxed{answer}`.
        extract: where to look for the answer, in this order; of each kind the last one counts. `boxed`, `hashes` (after
            `####`), `tags` (in `<answer>`), `phrase` (after "the answer is"), `last_number`.
    """
    unknown = [way for way in extract if way not in WAYS]
    if unknown:
        raise ValueError(f"verifier math: extract has {unknown}; it may hold {', '.join(WAYS)}")
    expected = _reference("" if reference is None else str(reference))
    found = _extract(response, extract)
    if not found:
        return _wrong("no_answer")
    if len(found) > MAX_LENGTH:
        return _wrong("too_large")
    return {**_compare(_normalised(found), expected), "extracted": found}


def _compare(answer: str, expected: str) -> dict[str, Any]:
    if not expected:
        return _unverified("it is empty")
    if _squeezed(answer) == _squeezed(expected):
        return {"score": 1.0}
    exact, value = _rational(expected), _rational(answer)
    if exact is not None and value is not None:
        return {"score": 1.0} if exact == value else _wrong("mismatch")
    if _too_large(expected):
        return _unverified("it is too large to evaluate")
    if _too_large(answer):
        return _wrong("too_large")
    if _hedged(answer, expected):
        return _wrong("hedged")
    if (words := _words(expected)) is not None:
        return {"score": 1.0} if words == _plain(answer) else _wrong("mismatch")
    if "_" in expected or "_" in answer:
        bases = _based(expected), _based(answer)
        if all(bases):
            return {"score": 1.0} if bases[0] == bases[1] else _wrong("mismatch")
    gold = _parsed(expected)
    if not gold:
        return _unverified(f"math-verify cannot parse {expected[:200]!r}")
    try:
        target = _parsed(answer)
        if not target:
            return _wrong("unparsable")
        same = math_verify.verify(list(gold), list(target), timeout_seconds=None)
    except RecursionError:
        return _wrong("too_large")
    return {"score": 1.0} if same else _wrong("mismatch")


def _wrong(reason: str) -> dict[str, Any]:
    return {"score": 0.0, "reason": reason}


def _unverified(why: str) -> dict[str, Any]:
    return {"score": None, "reason": "bad_reference", "details": {"error": f"the reference cannot be used: {why}"}}


# ------------------------------------------------------------------------------------------------ finding the answer


def _extract(response: str, ways: Sequence[str]) -> str | None:
    _, closed, answer = response.rpartition("</think>")
    if not closed and "<think>" in response:  # still thinking: there is no answer yet
        return None
    for way in ways:
        found = WAYS[way](answer)
        if found is not None:
            return found.strip()
    return None


def _boxed(text: str) -> str | None:
    """What the last box holds; empty when it is never closed, so that no earlier box, often a guess, stands in."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if start < 0:
        return None
    opened = text.find("{", start)
    if opened < 0 or text[start:opened].strip() not in (r"\boxed", r"\fbox"):
        return ""
    end = _closing(text, opened)
    return text[opened + 1 : end] if end is not None else ""


def _closing(text: str, opened: int) -> int | None:
    """Where the brace or parenthesis at `opened` is closed."""
    left, right = text[opened], {"{": "}", "(": ")"}[text[opened]]
    depth = 0
    for bracket in re.finditer(f"[{re.escape(left + right)}]", text[opened:]):
        depth += 1 if bracket[0] == left else -1
        if depth == 0:
            return opened + bracket.start()
    return None


def _after_hashes(text: str) -> str | None:
    _, hashes, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0] if hashes else None


def _in_tags(text: str) -> str | None:
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    return None if start < 0 else text[start + len("<answer>") : end] if end >= 0 else ""


def _after_phrase(text: str) -> str | None:
    phrases = list(re.finditer(r"\banswer(?:\s+is\b|\s*:)\s*:?", text, re.IGNORECASE))
    if not phrases:
        return None
    rest = text[phrases[-1].end() :].strip().partition("\n")[0].strip("* ")
    if (formula := re.match(r"[^$]{0,20}?\$([^$]+)\$", rest)) and not HEDGE.search(rest):
        return formula[1]
    sentence = re.split(r"\.(?:\s|$)", rest, maxsplit=1)[0].strip("* ")
    counted = re.fullmatch(r"\$?(-?\d[\d,.]*)\s+[A-Za-z ]+", sentence)  # "42 apples"
    return counted[1] if counted and not HEDGE.search(sentence) else sentence


def _last_number(text: str) -> str | None:
    numbers = re.findall(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?", text)
    return numbers[-1] if numbers else None


WAYS: dict[str, Callable[[str], str | None]] = {
    "boxed": _boxed,
    "hashes": _after_hashes,
    "tags": _in_tags,
    "phrase": _after_phrase,
    "last_number": _last_number,
}


# ------------------------------------------------------------------------------------------------- reading what it is


@functools.lru_cache(4096)
def _reference(text: str) -> str:
    return _normalised(_extract(text, ("boxed", "hashes")) or text)


def _normalised(text: str) -> str:
    """The same answer with less typography."""
    for old, new in UNICODE.items():
        text = text.replace(old, new)
    text = re.sub(r"√\s*(\d+|\w)", r"\\sqrt{\1}", text).replace("√", r"\sqrt").replace("**", "^")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree", "", text)
    text = re.sub(r"(?<=\d)(?:\\[,!;: ]|\{,\})(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle)(?![a-zA-Z])", "", text)
    text = re.sub(r"(?<!\\)\\[,!;: ]", " ", text)
    text = re.sub(r"\\\\\[[^]]*pt\]", r"\\\\", text)  # the space after a row of a matrix
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\s+", " ", text.replace(r"\$", "")).strip(" $").rstrip(" .,;")
    return re.sub(r"^\\[(\[]|\\[)\]]$", "", text).strip(" $")


def _squeezed(text: str) -> str:
    return text.replace(" ", "")


def _rational(text: str) -> Fraction | None:
    """An integer, decimal, fraction or mixed number, in LaTeX or not, exactly; None for all else."""
    if len(text) > MAX_LENGTH or not text:
        return None
    sign, text = (-1 if text[0] == "-" else 1), text[text[0] in "+-" :].strip()
    if mixed := re.fullmatch(r"(\d+)\s*\\frac\s*\{?(\d+)\}?\s*\{?(\d+)\}?|(\d+) (\d+)\s*/\s*(\d+)", text):
        whole, over, under = (int(part) for part in mixed.groups() if part is not None)
        return sign * (whole + Fraction(over, under)) if under else None
    if ratio := (
        re.fullmatch(r"\\frac\s*\{\s*([-\d,.]+)\s*\}\s*\{\s*([-\d,.]+)\s*\}|([-\d,.]+)\s*/\s*([-\d,.]+)", text)
        or re.fullmatch(r"\\frac\s*(\d)\s*(\d)", text)
    ):
        above, below = (_decimal(part) for part in ratio.groups() if part is not None)
        return sign * above / below if above is not None and below else None
    value = _decimal(text)
    return None if value is None else sign * value


def _decimal(text: str) -> Fraction | None:
    return Fraction(text.replace(",", "")) if NUMBER.fullmatch(text) else None


def _words(text: str) -> str | None:
    """A reference that is text, such as a name or a choice; read as mathematics it would be a product of letters."""
    plain = _plain(text)
    named = re.fullmatch(r"[^\W\d_]+(?:[ '-]+[^\W\d_]+)*", plain) is not None
    return plain if named and (len(plain) >= 3 or text.startswith(r"\text")) else None


def _plain(text: str) -> str:
    wrapped = re.fullmatch(r"\\(?:text|mathrm)[a-z]*\s*\{([^{}]*)\}", text)
    return (wrapped[1] if wrapped else text).strip(" ().").casefold()


def _based(text: str) -> tuple[str, str] | None:
    """The digits and the base of `1011_2`; math-verify reads past the base."""
    match = re.fullmatch(r"([0-9A-Za-z]+)\s*_\s*\{?\s*(?:\\text\{)?\s*(\w+)\s*\}{0,2}", text)
    return (match[1].upper(), match[2].lower()) if match else None


def _hedged(answer: str, expected: str) -> bool:
    """More than one answer where the reference has one (`3 or 4`, `3 = 4`), or all answers but one (`\neq 3`)."""
    if HEDGE.search(answer) and not HEDGE.search(expected) and not SEVERAL.search(expected):
        return True
    if NEGATED.search(answer) and not NEGATED.search(expected):
        return True
    sides = {value for side in answer.split("=") if (value := _rational(side.strip())) is not None}
    return len(sides) > 1 and "=" not in expected


@functools.lru_cache(4096)
def _parsed(text: str) -> tuple[Any, ...]:
    """As LaTeX only: math-verify's other reader evaluates the text as Python."""
    return tuple(
        math_verify.parse(
            rf"\boxed{{{text}}}",
            extraction_config=[math_verify.LatexExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )
    )


# ----------------------------------------------------------------------------------------------------- size guards


def _too_large(text: str) -> bool:
    """Cheap to write, endless to evaluate. What slips through is ended by the pool's time-out."""
    if len(text) > MAX_LENGTH or re.search(r"\d{1000}", text) or HUGE_COUNT.search(text):
        return True
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH or _exponent(text) > MAX_EXPONENT


def _exponent(text: str) -> float:
    """The largest numeric exponent in `text`; infinite for towers of three and more."""
    return max((_size(_operand(text, power.end())) for power in re.finditer(r"\^\s*", text)), default=0.0)


def _operand(text: str, start: int) -> str:
    if text[start : start + 1] in ("{", "("):
        end = _closing(text, start)
        return text[start + 1 : end]
    number = re.compile(r"-?\d+(?:\s*\^.*)?", re.DOTALL).match(text, start)
    return number[0] if number else ""


def _size(exponent: str) -> float:
    exponent = exponent.strip()
    if re.fullmatch(r"-?\d+", exponent):
        return abs(float(exponent)) if len(exponent) < 10 else math.inf
    if tower := re.fullmatch(r"\(?(\d+)\)?\s*\^\s*\{?\(?(\d+)\)?\}?", exponent):
        base, power = float(tower[1][:9]), float(tower[2][:9])
        return base**power if power * math.log10(max(base, 1)) < 6 else math.inf
    tall = any("^" in _operand(exponent, power.end()) for power in re.finditer(r"\^\s*", exponent))
    return math.inf if tall or re.search(r"\d\s*\^\s*\{?\(?\d", exponent) else 0.0

"""Mathematical equivalence of the final answer and the reference.

Both are read by a parser of our own into a typed answer (number, formula, interval, tuple, list, matrix, equation,
congruence, family with a parameter, set by a condition, cases, number in a base, text) and compared by type, exactly
where that is possible and by values elsewhere. What it cannot read goes to math-verify, after size guards, in a process
that can be killed. Model text is never evaluated.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

from rewards.maths import symbolic
from rewards.maths.answers import HEDGE, OR, Answer
from rewards.maths.compare import equal
from rewards.maths.evaluate import Undefined, evaluate, exact, symbols
from rewards.maths.expression import MAX_LENGTH, NotRead, TooLarge
from rewards.maths.extract import EXTRACT, WAYS, from_prose
from rewards.maths.extract import extract as find
from rewards.maths.guards import symbolic_worth, too_large
from rewards.maths.kinds import Kind
from rewards.maths.normalise import normalise, without_blanks, words
from rewards.maths.reading import read
from rewards.maths.values import Policy, Undecided

VERSION = "5"
NEGATED = re.compile(r"\\ne(?:q|g)?(?![a-z])|≠|!=|\\neg(?![a-z])")
LITERAL = re.compile(r"[-+]?\d{1,400}(?:\.\d{1,400})?", re.ASCII)
PROSE = re.compile(r"[A-Za-z]{2,}\s+[A-Za-z]{2,}|\b[A-J]\.\s+[a-z]{2}|[\u0400-\u04ff\u0600-\u06ff\u3040-\u9fff]{2}")


def verify(
    response: str,
    reference: Any,
    extract: Sequence[str] = EXTRACT,
    units: Literal["lenient", "strict"] = "lenient",
    percent: bool = False,
    ordered_lists: bool = False,
    decimals: bool = True,
    simplified: bool = False,
    intervals: bool = True,
    rename: bool = False,
    case: bool = False,
    seconds: float = symbolic.SECONDS,
) -> dict[str, Any]:
    """Correct when the response's final answer is mathematically the reference.

    Only what follows `</think>` counts. Reasons of a wrong verdict: no_answer, mismatch, hedged (several answers where
    the reference has one), too_large (refused unevaluated), unparsable, candidate_timeout. A reference that cannot be
    read is unverified (bad_reference).

    Args:
        reference: LaTeX, a number, or a worked solution ending in `#### answer` or `\\boxed{answer}`.
        extract: where to look for the answer, in this order; of each kind the last one counts. `boxed`, `hashes` (after
            `####`), `tags` (in `<answer>`), `phrase` (after "the answer is"), `choice` (a letter alone), `formula` (the
            last one), `last_number`; a sentence is read by its main clause. After the last box, what is called the final
            answer and is one of the reference's kind replaces it.
        units: "lenient", where they may be left out, or be others of the same quantity (25 km is 25000 m), or "strict".
        percent: a percentage equals its fraction: 25% is 1/4. Off, 25% equals 25% and, the sign left out, 25.
        ordered_lists: a list without brackets has an order. Tuples always have one, sets never.
        decimals: a decimal reference is met by what rounds to it, if it has at least 3 significant digits or says that it
            is near, and a reference that is no decimal by a decimal of at least 6.
        simplified: a number must be in lowest terms.
        intervals: an inequality may stand for an interval.
        rename: the name of the only variable does not matter.
        case: upper and lower case matter in text.
        seconds: of processor time for math-verify, for one answer.
    """
    unknown = [way for way in extract if way not in WAYS]
    if unknown:
        raise ValueError(f"verifier math: extract has {unknown}; it may hold {', '.join(WAYS)}")
    if units not in ("lenient", "strict"):
        raise ValueError(f"verifier math: units is {units!r}; it may be 'lenient' or 'strict'")
    expected = _reference("" if reference is None else str(reference))
    lettered = CHOICE.fullmatch(expected) is not None
    found = find(
        response, extract if lettered else [way for way in extract if way != "choice"], Kind(expected, lettered)
    )
    if not found:
        problem = _problem("" if reference is None else str(reference))
        return _wrong("no_answer") if problem is None else _unverified(problem)
    found = found.encode("utf-8", "replace").decode()
    policy = Policy(units, percent, ordered_lists, decimals, simplified, intervals, rename, case)
    result = _compare(found, expected, policy, float(seconds))
    return {**result, "extracted": found}


def check_reference(reference: Any) -> str | None:
    """What is wrong with a reference, or None: for the loader of the data, so that it is found before a run."""
    problem = _problem("" if reference is None else str(reference))
    return None if problem is None else f"the reference cannot be used: {problem}"


check = check_reference


@functools.lru_cache(8192)
def _problem(text: str) -> str | None:
    expected = _reference(text)
    if not expected:
        return "it is empty"
    try:
        if too_large(expected):
            return "it is too large to evaluate"
        gold = read(expected)
        if gold.kind != "unread":
            equal(gold, gold, Policy())
            return None
    except TooLarge:
        return "it is too large to evaluate"
    except (Undecided, NotRead):
        pass
    outcome = symbolic.ask(expected, expected) if symbolic_worth(expected) else "gold"
    if outcome == "timeout":
        return f"math-verify cannot evaluate {expected[:200]!r} in time"
    return f"it cannot be read: {expected[:200]!r}" if outcome == "gold" else None


def _compare(found: str, expected: str, policy: Policy, seconds: float) -> dict[str, Any]:
    if not expected:
        return _unverified("it is empty")
    if len(found) > 8 * MAX_LENGTH:
        return _wrong("too_large")
    if (
        LITERAL.fullmatch(found)
        and LITERAL.fullmatch(expected)
        and "." not in found + expected
        and policy.units == "lenient"
    ):
        return {"score": 1.0} if int(found) == int(expected) else _wrong("mismatch")
    return dict(_decide(found, expected, policy, seconds))


@functools.lru_cache(8192)
def _decide(found: str, expected: str, policy: Policy, seconds: float) -> tuple[tuple[str, Any], ...]:
    return tuple(_decision(found, expected, policy, seconds).items())


def _decision(found: str, expected: str, policy: Policy, seconds: float) -> dict[str, Any]:
    answer = normalise(found)
    if CHOICE.fullmatch(expected) is None and (option := OPTION.match(answer)) and option[1] not in expected:
        answer = answer[option.end() :]
    if not answer:
        return _wrong("no_answer")
    if len(answer) > MAX_LENGTH:
        return _wrong("too_large")
    if without_blanks(answer) == without_blanks(expected):
        return {"score": 1.0}
    try:
        gold = None if too_large(expected) else read(expected)
    except TooLarge:
        gold = None
    if gold is None:
        return _unverified("it is too large to evaluate")
    if gold.kind != "unread" and PROSE.search(re.sub(r"\\[a-z]+", "", found)) and _is_prose(answer):
        inner = from_prose(found, CHOICE.fullmatch(expected) is not None)
        if inner and inner.strip() != found.strip() and not HEDGE.search(inner) and len(inner) < len(found):
            again = _decision(inner, expected, policy, seconds)
            if again["score"] == 1.0:
                return again
    try:
        result = _typed(answer, expected, gold, policy, seconds)
    except (TooLarge, RecursionError, MemoryError):
        problem = _too_large_reference(gold)
        return _wrong("too_large") if problem is None else _unverified(problem)
    return result


def _too_large_reference(gold: Answer) -> str | None:
    if gold.tree is not None and not symbols(gold.tree):
        try:
            evaluate(gold.tree)
        except TooLarge:
            return "it is too large to evaluate"
        except (NotRead, Undefined):
            return None
    return None


def _is_prose(answer: str) -> bool:
    """A sentence rather than an answer of some type."""
    try:
        return read(answer).kind in ("unread", "text", "list")
    except TooLarge:
        return False


def _typed(answer: str, expected: str, gold: Answer, policy: Policy, seconds: float) -> dict[str, Any]:
    if too_large(answer):
        return _wrong("too_large")
    given = read(answer)
    choice = _choice(gold, expected, answer)
    if choice is not None:
        return {"score": 1.0} if choice else _wrong("mismatch")
    if (
        NEGATED.search(answer)
        and not NEGATED.search(expected)
        and not (gold.kind == "region" and given.kind == "region")
    ):
        return _wrong("hedged")
    try:
        if equal(gold, given, policy):
            return {"score": 1.0}
        return _wrong("hedged" if _hedged(gold, given, answer, expected) else "mismatch")
    except Undecided:
        if _hedged(gold, given, answer, expected) or (HEDGE.search(answer) and not HEDGE.search(expected)):
            return _wrong("hedged")
    if gold.kind == "unread" and not symbolic_worth(expected):
        return _unverified(f"it cannot be read: {expected[:200]!r}")
    if words(answer) == words(expected) != "":
        return {"score": 1.0}
    if not symbolic_worth(answer) or not symbolic_worth(expected):
        return _wrong("unparsable") if given.kind == "unread" else _wrong("mismatch")
    if _says_more(answer, expected):
        return _wrong("unparsable")
    outcome = symbolic.ask(expected, answer, seconds)
    if outcome == "gold":
        return _wrong("mismatch") if gold.kind != "unread" else _unverified(f"it cannot be read: {expected[:200]!r}")
    if outcome == "timeout":
        return _wrong("candidate_timeout")
    return {"score": 1.0} if outcome == "same" else _wrong("unparsable" if outcome == "answer" else "mismatch")


LABELLED = re.compile(r"\(\s*([A-J])\s*\)\s*(\S.*)|([A-J])[.):]\s+(\S.*)|([A-J])\s+([A-Z]?[a-z]{2}.*)", re.DOTALL)
OPTION = re.compile(
    r"(?:\\text\s*\{\s*)?\(([A-J])\)(?:\s*\})?[\s.:]*(?=[^\s,;)}])"
)  # the letter before what an option says
SINGLE = re.compile(r"\(?\s*\\text\s*\{\s*\(?\s*([A-Z])\s*\)?\s*\}\s*\)?|\(\s*([A-Z])\s*\)|([A-Z])")
CHOICE = re.compile(f"{LABELLED.pattern}|{SINGLE.pattern}", re.DOTALL)
CALLED = re.compile(
    r"(?:the\s+)?(?:correct\s+|final\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*(?=\W*[A-Za-z]\b)", re.IGNORECASE
)
LETTER = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\]]?[.:]?")
FOLLOWED = re.compile(r"[(\[]\s*([A-J])\s*[)\]]\s*[.:]?\s*(.*)|([A-J])\s*[.):]\s*(.*)", re.DOTALL)
MANY = re.compile(r"\(?[A-J]\)?(?:(?:\s*(?:,|&|;|\band\b)\s*)+\(?[A-J]\)?)+")  # a choice of several
OTHER = re.compile(r"^\W*(?:or|and|nor|not)\b|^\s*[,;/&|(]|(?<![A-Za-z\\])\(?[A-J]\)")


def _choice(gold: Answer, expected: str, answer: str) -> bool | None:
    """Whether a choice was met; None when the reference is none."""
    labelled, single = LABELLED.fullmatch(expected), SINGLE.fullmatch(expected)
    plain = re.sub(r"\\(?:text|boxed)(?![a-zA-Z])|[{}$*`'\"“”]", " ", answer).strip()
    plain = CALLED.sub("", plain, count=1) if CALLED.match(plain) else plain
    if MANY.fullmatch(bare := re.sub(r"\\text(?![a-zA-Z])|[{}]", " ", expected).strip()) and MANY.fullmatch(plain):
        return set(re.findall(r"[A-J]", plain)) == set(re.findall(r"[A-J]", bare))
    if labelled is not None:
        letter, label = next((labelled[k], labelled[k + 1]) for k in (1, 3, 5) if labelled[k])
        if words(answer) in (words(label), words(expected)):
            return True
    elif single is not None:
        letter = next(group for group in single.groups() if group)
    else:
        return None
    given = LETTER.fullmatch(plain)
    if given is not None:
        return given[1].upper() == letter
    chosen = FOLLOWED.fullmatch(plain)
    if chosen is not None:
        mark, rest = (chosen[1], chosen[2]) if chosen[1] else (chosen[3], chosen[4])
        if not OR.search(rest) and not HEDGE.search(rest) and not OTHER.search(rest):
            return mark == letter
    return False if labelled is not None or "text" in expected else None


WORD = re.compile(r"(?<!\\)(?<![a-zA-Z])[a-zA-Z]{3,}")
QUOTED = re.compile(r"\\text\s*\{([^{}]*)\}")
COMPUTED = {"text", "sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "lim", "max", "min", "det", "gcd", "lcm", "mod", "arcsin",
            "arccos", "arctan", "sinh", "cosh", "tanh", "pmatrix", "bmatrix", "matrix", "array", "cases", "left", "right"}  # fmt: skip
PARTED = re.compile(r"\d\s+\d")  # 3 4 is no sum and no product
CONTINUED = re.compile(r"\\(?:[lcv]?dots|[pb]?mod)(?![a-z])|\.\.\.")


def _says_more(answer: str, expected: str) -> bool:
    """The answer has words, a modulus, or goes on, where the reference does not: a general parser overlooks that."""
    known = COMPUTED | {word.lower() for word in WORD.findall(expected)}
    if any(word.lower() not in known for word in WORD.findall(answer)):
        return True
    if any(re.search(r"\w", words(said)) and words(said) not in words(expected) for said in QUOTED.findall(answer)):
        return True
    if "'" in answer and "'" not in expected:
        return True
    if PARTED.search(answer) and not PARTED.search(expected):
        return True
    return bool(CONTINUED.search(answer)) and not CONTINUED.search(expected)


def _hedged(gold: Answer, given: Answer, answer: str, expected: str) -> bool:
    """More answers than the reference has, or what contradicts itself."""
    if HEDGE.search(answer) and not HEDGE.search(expected):
        return True
    if given.hedge and not gold.hedge and gold.kind in ("scalar", "text", "tuple", "based"):
        return True
    values = {value for side in given.sides if (value := _constant(side)) is not None}
    if len(values) > 1:
        return True
    return bool(OR.search(answer)) and not OR.search(expected) and gold.kind in ("scalar", "text", "unread")


def _constant(text: str) -> Fraction | None:
    try:
        item = read(text)
        return exact(item.tree) if item.kind == "scalar" and item.tree is not None else None
    except NotRead:
        return None


def _wrong(reason: str) -> dict[str, Any]:
    return {"score": 0.0, "reason": reason}


def _unverified(why: str) -> dict[str, Any]:
    return {"score": None, "reason": "bad_reference", "details": {"error": f"the reference cannot be used: {why}"}}


@functools.lru_cache(8192)
def _reference(text: str) -> str:
    """The normalised answer of a reference, which may be a worked solution."""
    if "####" in text or "\\boxed" in text or "\\fbox" in text:
        text = find(text, ("boxed", "hashes")) or text
    elif "\n" in text.strip() or re.search(r"\banswer is\b", text):
        text = find(text, ("phrase",)) or text
    return normalise(text)

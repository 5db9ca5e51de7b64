"""Multiple choice: the response names the right option, and no other."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rewards._response import answer_tag, visible

EXTRACT = ("boxed", "tags", "phrase", "alone")
MAX_LENGTH = 2000  # characters of an answer
LIMIT = 100_000  # characters at the end of a response that are looked at
STATEMENTS = 100  # of the last ones, that are looked at
BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s{0,9}")
WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|boxed|fbox)[a-z]{0,9}\s{0,9}\{([^{}]*)\}")
LIST = re.compile(r"\s*(?:,|;|/|&|、|\b(?:and|or|und|oder|et|ou|y|o|e|и|или)\b|和|或|と|또는)\s*", re.IGNORECASE)
# "The answer is", in the languages that questions come in.
NOUN = (
    r"(?:answer|choice|option|antwort|lösung|réponse|respuesta|opción|resposta|alternativa|risposta|opzione|antwoord|odpowiedź"
    r"|ответ|вариант|cevap|đáp án|jawaban|उत्तर|الإجابة|答案|正解|答え|解答|回答|答|正答|정답|답)"
)
ADJECTIVE = r"(?:correcte?|correct[ao]|correta|corretta|exacte|richtig|final|finale|right|best|that i choose|الصحيحة|正确|正確|最终|最終)"
LINK = (
    r"(?:[:：=—–-]|(?:is|(?:would|should|must|will)(?:\s{1,3}[a-z]{1,12})?\s{1,3}be|was|are|ist|lautet|wäre|est|sont|serait|es|son|sería|é|è|são|sono|to|это"
    r"|là|adalah|है|هي|هو)(?![^\W_])|应该是|应该选|应选|应为|应該是|選|选择|选|是|为|為|は|が|은|는|이|가)"
)
PHRASE = re.compile(
    rf"(?:(?<![^\W_])|(?<=[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])){NOUN}[\s*_]{{0,9}}(?:{ADJECTIVE}[\s*_]{{1,9}}){{0,2}}"
    rf"{LINK}[\s*_]{{0,9}}(?:[:：][\s*_]{{0,9}})?"
    r"|\b(?:i|we)(?:\s{1,9}(?:would|will|shall|therefore|thus|must|'ll|'d)|['’](?:ll|d))?\s{1,9}"
    r"(?:choose|chose|pick|select|go\s{1,9}with|opt\s{1,9}for|answer)\s{1,9}"
    r"|(?:所以|因此|故|应|應|我)(?:应该|應該)?(?:选择|選擇|选|選)[:：]?|(?<![不可未能])[选選]\s?(?=[(]?[A-Z])",
    re.IGNORECASE,
)
# Words between it and the option.
BEFORE = re.compile(
    r"(?:(?:indeed|therefore|thus|then|clearly|definitely|the|la|le|l['’]|die|a|der|das)?\s*(?:option|choice|answer|letter|variant|vari"
    r"|opción|opção|opzione|alternativa|buchstabe|lettre|letra|вариант|选项|選項|選択肢|보기)\s*[:：]?\s*"
    r"|(?:indeed|therefore|thus|clearly|definitely|the|la|le|die)\s+)",
    re.IGNORECASE,
)
RIGHT = (
    r"(?:correct|right|the\s{1,3}answer|true|best|richtig|korrekt|correcte?|juste|bonne|correct[ao]|correta|corretta|esatta|верн|правил|doğru"
    r"|正确|正確|对的|正解|正しい|答案|정답|맞)"
)
DOUBTED = re.compile(
    r"(?:\b(?:if|whether|suppose|assum\w+|unless|were|let['’]s\s+say|not|neither|nor)|如果|假设|若|もし)[^\w.!?\n]*(?:\w+[^\w.!?\n]+)?\Z",
    re.I,
)
LEAD = re.compile(
    r"^\s*(?:[-•>#→⇒✅]+\s+)?(?:(?:so|thus|hence|therefore|i['’]d say|it is|it['’]s|it must be|option|choice|answer)\b[:,]?\s+)?",
    re.IGNORECASE,
)
CASED_WORDS = "AIOYÀEУИАОВСК"  # capitals that are words too
WORD = re.compile(r"\s+(?!(?:because|since|as|which|that|with|and|or|for|due|but|is|are|was|given|in)\b)[a-zà-ÿа-я]")
OTHER = r"\b(?:or|oder|ou|или|либо|o)\b|或|または|또는|還是|还是"


def verify(
    response: str,
    reference: str | int | Sequence[str],
    options: Sequence[str] | None = None,
    letters: str = "ABCDEFGHIJ",
    extract: Sequence[str] = EXTRACT,
) -> dict[str, Any]:
    r"""Correct when the response's final answer is the letter, or the text, of the right option.

    Only what follows the thought counts, and there only what the last `<answer>` holds, if there is one. The answer is
    the last statement that names an option: `\boxed{B}`, "the answer is B", "Option B is correct", "I choose B", and
    their like in Chinese, Japanese, Korean, German, French, Spanish, Portuguese, Italian, Russian and some others. Without any, the
    last line is the answer when it is an option alone: its letter, its letter and text, or its text. Letters may be bold,
    in brackets, in LaTeX, full-width. Reasons: no_answer, mismatch, hedged (several options where the reference has one:
    `A or B`; or a letter with another option's text).

    Args:
        reference: the letter; the number of the option, from 0; its text, when `options` are given; or, for questions
            with several right options, a list of letters or letters one after another (`ACD`), all of which must be
            named, in any order.
        options: the texts, in order; may be a column of the data.
        letters: the options' letters, in order.
        extract: where an answer may stand: `boxed`, `tags`, `phrase`, `alone` (the last line).

    Raises:
        ValueError: `extract` names what there is not.
    """
    unknown = [way for way in extract if way not in EXTRACT]
    if unknown:
        raise ValueError(f"verifier choice: extract has {unknown}; it may hold {', '.join(EXTRACT)}")
    known = letters[: len(options)] if options else letters
    wanted = _wanted(reference, options, known)
    if not wanted:
        error = f"the reference cannot be used: {reference!r} is not among {', '.join(known)}"
        return {"score": None, "reason": "bad_reference", "details": {"error": error}}
    named = _Reader(options, known).answer(visible(response), extract)
    if not named:
        return {"score": 0.0, "reason": "no_answer"}
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


class _Reader:
    """Reads which of the options a text names."""

    def __init__(self, options: Sequence[str] | None, letters: str) -> None:
        self.letters = letters
        self.texts = [_plain(option) for option in options or ()]
        several = f"[{re.escape(letters)}]"
        # Behind a letter no word goes on, but one in a script without spaces may begin.
        end = r"(?![^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|['’](?=\w))"
        one = rf"[(\[{{<]?\s{{0,3}}({several})\s{{0,3}}[)\]}}>]?{end}"
        small = rf"[(\[]?\s{{0,3}}({several.lower()})\s{{0,3}}[)\].:]?"
        self.one = re.compile(one)
        self.lone_small = re.compile(rf"{small}\s*")
        self.marked_small = re.compile(rf"(?:\(\s{{0,3}}({several.lower()})\s{{0,3}}\)|({several.lower()})[).:](?=\s))")
        self.also = re.compile(rf"(?:{OTHER})\W{{0,3}}(?:[^\W_]{{1,15}}\W{{1,3}}){{0,3}}?{one}")
        item = rf"[(\[*_]{{0,3}}{several}[)\]*_]{{0,3}}"
        joint = r"\s{0,3}(?:,|/|&|、|\band\b|\bor\b|\bund\b|\boder\b|\bet\b|\bou\b|\by\b|和|或|と){1,2}\s{0,3}"
        self.called_right = re.compile(
            rf"(?:\b(?i:options?|choices?|answers?|statements?|antwort|opción|opção|opzione|réponse|alternativa|вариант)\s{{1,3}}|(?:选项|選項|選択肢)\s{{0,3}}"
            rf"|(?:^|[.:;,!?\n。，：]|\b(?i:so|thus|hence|therefore|that)\b,?)\s{{0,3}})"
            rf"(?P<letters>{item}(?:{joint}{item}){{0,9}})\s{{0,3}}(?:[^\n.]{{0,2}}\s)?(?:is|are|ist|sind|est|sont|es|son|é|è|sono|是|が|は|이|가)?\s{{0,3}}"
            rf"(?:(?:the|la|le|die|der|das|indeed|therefore|clearly|also|最)\s{{0,3}}){{0,2}}{RIGHT}"
        )  # fmt: skip

    def answer(self, text: str | None, extract: Sequence[str]) -> set[str]:
        if text is None:
            return set()
        text = unicodedata.normalize("NFKC", text)
        tagged = answer_tag(text) if "tags" in extract else None
        if tagged is not None and (named := self._named(tagged)):
            return named
        text = (text if tagged is None else tagged)[-LIMIT:]
        statements = [match for way in extract if way in WAYS for match in WAYS[way](self, text)]
        for _, statement in sorted(statements, key=lambda found: found[0], reverse=True)[:STATEMENTS]:
            if statement is None or (named := self._named(statement)):
                return set() if statement is None else named
        return self._alone(text) if "alone" in extract else set()

    def _named(self, answer: str) -> set[str]:
        """The options an answer names: a letter or a list of them, with or without text behind; or the text of one."""
        if len(answer) > MAX_LENGTH:
            return set()
        while (plain := WRAPPED.sub(r"\1", answer)) != answer:
            answer = plain
        answer = re.sub(r"[*$`_]|\\[,;! ()\[\]]|\\", "", answer).strip(" \t\n\"“”'‘’「」")
        if (told := self._told(answer)) is not None:  # before the letters: "A triangle" is not option A
            return {told}
        if before := BEFORE.match(answer):
            answer = answer[before.end() :]
        named: set[str] = set()
        rest = last = answer
        while match := self.one.match(rest):
            after = rest[match.end() :]
            if match[0] == match[1] and match[1] in CASED_WORDS and WORD.match(after):
                break
            named.add(match[1])
            rest = last = after
            separator = LIST.match(rest)
            if separator is None:
                break
            rest = rest[separator.end() :]
        if named:
            also = self.also.search(re.split(r"[.\n。]\s", last, maxsplit=1)[0])
            told = self._told(last.strip(" .:(),-–—"))
            return named | ({also[1].upper()} if also else set()) | ({told} if told else set())
        # A small letter alone, or marked as an option's; in a sentence "a" is an article.
        small = self.lone_small.fullmatch(answer.rstrip(" .")) or self.marked_small.match(answer)
        return {next(filter(None, small.groups())).upper()} if small else set()

    def _told(self, text: str) -> str | None:
        """The option whose text it is."""
        text = _plain(text)
        same = [i for i, option in enumerate(self.texts) if option == text]
        return self.letters[same[0]] if len(same) == 1 and (len(text) > 1 or text.upper() not in self.letters) else None

    def _alone(self, text: str) -> set[str]:
        """The option that the last line is, unless the line before is another: then they are listed."""
        *_, before, last = ["", "", *(line for line in text[-2 * MAX_LENGTH :].splitlines() if line.strip())]
        marked = self._option(last)
        return marked if marked and (self._option(before) or marked) == marked else set()

    def _option(self, line: str) -> set[str]:
        line = LEAD.sub("", line)
        named = self._named(line)
        plain = re.sub(r"[*$`_\\\s]", "", line)
        alone = len(plain) <= 4 or self._told(line) is not None or re.match(r"[(\[]?\w[)\].:、]", plain)
        return named if alone else set()


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip(" .*$`_\"'“”。").casefold()


# ------------------------------------------------------------------------------------------------------------ statements

Statements = Iterator[tuple[int, str | None]]


def _boxed(reader: _Reader, text: str) -> Statements:
    """What boxes hold; None for one that is never closed, so that none before it, often a guess, stands in."""
    for match in _last(BOX.finditer(text)):
        begin = match.end()
        if text[begin : begin + 1] != "{":
            yield begin, text[begin : begin + 1]
            continue
        end = _closing(text, begin)
        yield begin, None if end is None else text[begin + 1 : end]


def _closing(text: str, opened: int) -> int | None:
    depth = 0
    for i in range(opened, min(len(text), opened + MAX_LENGTH)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i
    return None


def _phrased(reader: _Reader, text: str) -> Statements:
    for match in _last(PHRASE.finditer(text)):
        line = text[match.end() : match.end() + MAX_LENGTH].strip().partition("\n")[0]
        if not DOUBTED.search(text[max(0, match.start() - 30) : match.start()]):
            yield match.end(), line.lstrip("*_ ")
    for match in _last(reader.called_right.finditer(text)):
        if not DOUBTED.search(text[max(0, match.start() - 30) : match.start("letters")]):
            yield match.start("letters"), match["letters"]


def _last(found: Iterator[re.Match[str]]) -> list[re.Match[str]]:
    return list(found)[-STATEMENTS:]


WAYS: dict[str, Callable[[_Reader, str], Statements]] = {"boxed": _boxed, "phrase": _phrased}

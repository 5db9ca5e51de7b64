"""What a sentence states as an answer: read by its main clause, whatever is said beside it.

Formulas stand in it as one character each (`masked`), so that words are looked for in words only. All texts read here
are at most `LONGEST` characters, which bounds every pattern below.
"""

from __future__ import annotations

import re

from rewards.maths.answers import HEDGE
from rewards.maths.units import CANONICAL

LONGEST = 2000
# A dollar before a digit closes nothing: $70 + $38 are sums of money.
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:\\.|[^$\\])+?)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
NUMBER = re.compile(
    r"(?<![\w.,^_])(?:(?<![)\d] )-\s?|(?<=[\s(=:])-)?(?:\\?\$)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s?/\s?\d+(?!\d*[^\W\d_])"
    r"|\s?\\?%)?(?![A-Za-z]*_)", re.ASCII
)  # fmt: skip
PRICE = re.compile(r"(\d+(?:[.,]\d+)*)\s?(?:\\?\$|€|£)|(?:\\?\$|€|£)\s?(\d+(?:[.,]\d+)*)", re.ASCII)
# Next to a number these make it another one, or a bound.
BEFORE = re.compile(
    r"(?:\b(?:at (?:least|most)|than|under|over|above|below|up to|half(?: of)?|(?:multiple|factor|divisor|power|root)s? of|first|twice|double|triple|thrice|(?:square|cube) root of|be|not|never|except"
    r"|but|between|from|minus|negative|times|all|every|any|one of|some of|such as|like|among|element of|member of|in the (?:list|set|range)"
    r"|instead of|rather than|other than|divisible by|clos(?:e|er|est) to|near(?:er|est)?(?: to)?)|n['’]t)\W*$",
    re.IGNORECASE,
)
AFTER = re.compile(
    r"^[^\w\\]*(?:at (?:least|most)|or (?:more|less|fewer|greater|higher|lower)|hundred|thousand|million|billion|dozen|(?:half|halve|third|fourth|fifth|sixth|seventh|eighth|ninth"
    r"|tenth|hundredth|thousandth)s?|squared|cubed|factorial|percent|pi|and (?:a|one) \w+|if|when|otherwise|unless|to|through|choose|plus|minus|times"
    r"|more than|less than|fewer than)\b",
    re.IGNORECASE,
)
# What says that the answer is something else, or one of several.
DOUBT = re.compile(
    rf"{HEDGE.pattern}|\b(?:or|ou|oder|never|cannot|unknown|wrong|incorrect|false|between|at (?:least|most)|(?:less|more|greater|fewer) than"
    r"|half (?:of|that)|twice|something)\b|n['’]t\b|\\ne\b",
    re.IGNORECASE,
)
_OPENS = (
    r"which|who|whose|since|because|while|whereas|although|though|given(?: that)?|once|rather than|instead of|obtained|found|namely|i\.e|that is"
    r"|or equivalently|compared (?:to|with)|due to|thanks to|by \w+ing|using|car|puisque|parce que|porque|ya que|pues|weil|denn|da|perché|poiché|so dass"
)
# A clause of its own: what follows a word that opens one, a dash, or a semicolon.
BESIDE = re.compile(
    rf"(?:\s*[,;]\s*|\s+)(?:{_OPENS})\b|\s*[,，;；]\s*(?:因为|由于|即|поскольку|потому|так как|なぜなら)"
    r"|\s*,\s*as\b|\s+as\s+(?:we|it|the|is|was|required|desired|expected|claimed|shown|stated|calculated|computed|found|above|before|there|this|that|a result)\b"
    r"|(?<=[\ue000-\uf8ff\d]):\s+|,\s+\S+\s+of (?:them|which|whom|these|those)\b|,\s+\w+\s+\w+\s+(?:after|later|before|earlier|ago|more|less|fewer)\b|,? if I(?: a|['’])m not (?:mistaken|wrong)"
    r"|,?\s+(?:and )?not\s+(?=[\ue000-\uf8ff\d\\$-])|(?:\s+[-–—]{1,3}\s+|\s*—\s*)(?=[^\W\d_]{2})|\s*[;；]\s",
    re.IGNORECASE,
)
# After a stated answer these only go on; elsewhere what follows is what the sentence is about.
FURTHER = re.compile(
    r"(?:\s*[,;]\s*|\s+)(?:so(?: that)?|after|before|meaning|making|leaving|(?:when|once) (?:we|you|one)|as(?=\s[\ue000-\uf8ff\d]))\b|\s*[,，;；]\s*(?:所以|因此)"
    r"|,?\s+and (?=(?:this|that|it|we|so|the|he|she|they|you)\b)",
    re.IGNORECASE,
)
CONSEQUENCE = re.compile(
    r"(?:,\s*|\s+)(?:so(?! that| far| many| much)|thus|therefore|hence|meaning|which (?:means|gives|leaves|makes|is equal to)|giving|making|leaving|leading to|yielding"
    r"|it follows that)\b|;\s",
    re.IGNORECASE,
)
# After a comma these may go on with the answer; any other word begins something else.
CONTINUED = re.compile(
    r"(?:and|or|but|if|unless|otherwise|when|where|for|with|either|maybe|perhaps|possibly|nor|except|et|ou|y|o|und|oder)\b",
    re.IGNORECASE,
)
COMMA_WORD = re.compile(r"\s*[,，]\s*(?=[^\W\d_]{2})")
HARMLESS_BUT = re.compile(r",? but\b(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
ASIDE = re.compile(r"\s+[(（](?=[^\W\d_]{2})([^()（）]*)[)）]")
CONDITION = re.compile(
    r"\s*,?\s+(?:where|for|with)\b(?!.{0,60}(?:integer|real|\ball\b|\bany\b|\bevery\b|natural|\\in\b|∈))",
    re.IGNORECASE | re.DOTALL,
)
SENTENCE_END = re.compile(r"(?<![A-Z\s])(?<!i\.e)(?<!e\.g)(?<!\bvs)[.!?](?=[\s*_\"”)]|$)|[。！？]|[.。]?\*\*")
VERB = re.compile(
    r"\s(?:is|are|equals?|was|be|becomes|amounts? to|comes? to)\s(?!\s*(?:the|an?|our|also|what)\b)|:\s", re.IGNORECASE
)
ABOUT = re.compile(r"(?:approximately|about|roughly|around|nearly)\s+(?=[$\\-]?[\d.]*\.\d)", re.IGNORECASE)
ONLY_BETWEEN = re.compile(r"[\s,;.]*(?:(?:and|et|y|und|e|和)[\s,;.]*)?", re.IGNORECASE)
LEAD = re.compile(r"(?:that|the|an?|just|only|simply|equal to|given by|=|=>|→)\s+", re.IGNORECASE)
KNOWN_UNIT = re.compile(r"\s*(?:\\?%|[^\W\d_]+(?:\s?(?:/|per)\s?[a-z]+)?)\s*\.?", re.IGNORECASE)
INSERTED = re.compile(r"^,\s[^,\d]{1,40},\s*")
COPULA_AFTER = re.compile(r"(?<=[\d\ue000-\uf8ff])(?:입니다|이다|です|だ)$")
MASK = "[\ue000-\uf8ff]"


class Masked:
    """A text with each formula as one character."""

    def __init__(self, text: str) -> None:
        self.formulas: list[str] = []
        plain = re.sub(r"[^\S\n]{2,}", " ", re.sub(MASK, "", text[:LONGEST]))
        self.text = FORMULA.sub(self._mask, plain)

    def _mask(self, match: re.Match[str]) -> str:
        self.formulas.append(match[0])
        return chr(0xE000 + len(self.formulas) - 1)

    def inside(self, character: str) -> str:
        """A formula without its dollars."""
        match = FORMULA.fullmatch(self.formulas[ord(character) - 0xE000])
        return next(group for group in match.groups() if group is not None) if match else ""

    def restored(self, text: str) -> str:
        return re.sub(MASK, lambda m: self.formulas[ord(m[0]) - 0xE000], text)


def first_sentence(text: str) -> str:
    line = text.partition("\n")[0].strip("* ")
    for end in SENTENCE_END.finditer(line):
        if line[: end.start()].strip("* "):
            return line[: end.start()].strip("* ")
    return line


def main_clause(sentence: str, further: bool = True) -> str:
    """A masked sentence without the clauses beside its main one, and `further`, without what goes on after it."""
    sentence = ASIDE.sub(
        lambda m: m[0] if re.search(r"\b(?:or|also|alternatively|maybe|perhaps|either)\b", m[1]) else "", sentence
    )
    for pattern in (BESIDE, CONDITION, FURTHER) if further else (BESIDE,):
        cut = next((m.start() for m in pattern.finditer(sentence) if _says(sentence[: m.start()])), None)
        sentence = sentence if cut is None else sentence[:cut]
    for comma in COMMA_WORD.finditer(sentence) if further else ():
        rest = sentence[comma.end() :]
        if (
            not CONTINUED.match(rest)
            and re.search(rf"\d|{MASK}", sentence[: comma.start()])
            and not re.match(r"\w+\s*=", rest)
        ):
            sentence = sentence[: comma.start()]
            break
    but = HARMLESS_BUT.search(sentence)
    if (
        but
        and _says(sentence[: but.start()])
        and not re.search(rf"\d|{MASK}|\b(?:not|wrong|incorrect|maybe|perhaps|should|could|might)\b", but["rest"])
    ):
        sentence = sentence[: but.start()]
    return sentence.strip()


def _says(text: str) -> bool:
    return bool(re.search(rf"\w|{MASK}", text))


def stated(rest: str, directly: bool = False) -> str:
    """The answer at the beginning of a text that follows "the answer is"; `directly`, only one that its first words are.

    A clause that offers several answers, or denies one, is returned as it is, for the comparison to refuse.
    """
    masked = Masked(rest)
    clause = main_clause(first_sentence(masked.text))
    clause = COPULA_AFTER.sub("", INSERTED.sub("", clause, count=1), count=1)
    if DOUBT.search(clause):
        return masked.restored(clause)
    clause = ABOUT.sub("", clause, count=1)
    if directly and not re.match(rf"[-\d.$(\[{{\\]|{MASK}", clause):
        return masked.restored(clause)
    verb = list(VERB.finditer(clause))
    if verb and not re.search(r"\d", clause[: verb[-1].start()]):
        before = re.findall(MASK, clause[: verb[-1].start()])
        if all(
            re.fullmatch(r"\\?[a-zA-Z]+(?:\([^()]*\))?(?:_\{?\w+\}?)?", masked.inside(one).strip()) for one in before
        ):
            clause = clause[verb[-1].end() :].strip()
    return answer_of(clause, masked)


REMARK = re.compile(
    r"(?:this|that|these|it|which) (?:took|is (?:our|the|what|correct|because)|was|agrees|matches|completes|confirms|checks|can be|makes sense)\b"
    r"|(?:note|notice|i|we (?:have|can) (?:check|verif)|let me|let us|hope|check|verif|thanks?|please|recall|remember|you)\b|\(",
    re.IGNORECASE,
)
CAUSE = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
CONCLUDES = re.compile(
    r"(?:therefore|thus|hence|so|consequently|in total|in all|altogether|in conclusion|finally)\b", re.IGNORECASE
)
OPENING = re.compile(r"(?:since|as|because|if|given|after|when|with|for|of|by|from|in)\b[^,]{0,300},\s*", re.IGNORECASE)
# What only says more about something in the sentence: numbers there are no answer where another one is.
ADJUNCT = re.compile(
    r"\b(?:(?:less|more|greater|fewer|smaller|larger|higher|lower|older|younger|longer|shorter) than|between|that (?:are|is|have|has|will|can|were|was)"
    r"|such that|(?:twice|thrice|half|times) as|compared (?:to|with)|divisible by|divided by|when divided|after (?:division|dividing)|out of|away from|away by"
    r"|(?:in|for|over|per|during|within|across) (?:(?:the|these|those|all|her|his|their|first|last) ){0,2}[\d\ue000-\uf8ff]+ [a-z]+)\b.*",
    re.IGNORECASE | re.DOTALL,
)


def concluding(text: str) -> tuple[Masked, str]:
    """The main clause of the sentence that concludes a text, and what its formulas are."""
    masked = Masked(_tail(text))
    pieces = [piece.strip("*_# >") for line in masked.text.split("\n") for piece in _sentences(line)]
    telling = [piece for piece in pieces if re.search(rf"\d|{MASK}", piece)]
    if not telling:
        return masked, ""
    chosen = telling[-1]
    for before in telling[-2:-4:-1]:
        if not REMARK.match(chosen):
            break
        if CONCLUDES.match(before) or not REMARK.match(before):
            chosen = before
    opened = OPENING.match(chosen)
    if opened and re.search(rf"\d|{MASK}", chosen[opened.end() :]):
        chosen = chosen[opened.end() :]
    for consequence in reversed(list(CONSEQUENCE.finditer(chosen))):
        if re.search(rf"\d|{MASK}", chosen[consequence.end() :]):
            chosen = chosen[consequence.end() :]
            break
    if (last := re.search(rf"({MASK})[\s.]*$", chosen)) and masked.restored(last[1]).startswith(("\\[", "$$")):
        return masked, last[1]
    computed = CAUSE.split(chosen, maxsplit=1)[0].rpartition("=")[2].strip()
    if "=" in chosen and (result := NUMBER.match(computed)):
        return masked, result[0]
    clause = main_clause(chosen, further=False)
    clause = clause if re.search(rf"\d|{MASK}", clause) else chosen
    adjunct = ADJUNCT.search(clause)
    if adjunct and "=" not in adjunct[0] and re.search(rf"\d|{MASK}", clause[: adjunct.start()]):
        clause = clause[: adjunct.start()]
    return masked, clause


def _tail(text: str) -> str:
    """The end of a text, begun outside a formula."""
    text = text.strip()
    tail = text[-LONGEST:]
    return tail.partition("$")[2] if text[:-LONGEST].count("$") % 2 else tail


def _sentences(line: str) -> list[str]:
    pieces, start = [], 0
    for end in SENTENCE_END.finditer(line):
        pieces.append(line[start : end.start()])
        start = end.end()
    return [*pieces, line[start:]]


def answer_of(clause: str, masked: Masked) -> str:
    """What the words of a clause say: its formulas, its only number, or all of it."""
    while lead := LEAD.match(clause):
        clause = clause[lead.end() :]
    found = re.findall(MASK, clause)
    if found:
        between = re.split(MASK, clause)
        if len(found) > 1 and all(ONLY_BETWEEN.fullmatch(part) for part in between[1:-1]):
            return ", ".join(masked.inside(one) for one in found)
        if not NUMBER.search(between[0]):
            return masked.inside(found[0] if between[0] == "" or len(found) == 1 else found[-1]) + _unit(
                between[1] if len(found) == 1 else ""
            )
    numbers = list(NUMBER.finditer(clause))
    values = {match[0].replace(" ", "") for match in numbers}
    if not numbers or found or "\\" in clause.replace("\\$", "").replace("\\%", ""):
        return masked.restored(clause)
    priced = [match[1] or match[2] for match in PRICE.finditer(clause)]
    if len(priced) == 1 and re.search(r"[^\W\d_]{3,}\s+[^\W\d_]{3,}", clause):
        return priced[0]  # a sentence about one sum of money
    first, rest = numbers[0], clause[numbers[0].end() :]
    if BEFORE.search(clause[: first.start()]) or AFTER.match(rest):
        return clause
    words = re.findall(r"[^\W\d_]{2,}", NUMBER.sub(" ", clause))
    if first.start() == 0 and re.match(r"\s+[^\W\d_]{2}", rest) and not re.match(r"\s+and\b", rest):
        return first[0].strip() + _unit(rest)
    if "=" in clause and len(words) >= 1:
        last = NUMBER.match(clause.rpartition("=")[2].strip())
        return last[0].strip() if last else clause
    if len(values) == 1 and (len(words) >= 2 or (words and first.start() > 0)):
        return values.pop() + _unit(rest)
    if len(words) >= 3 and first.start() > 0:
        return first[0].strip()
    return clause


def _unit(after: str) -> str:
    """A unit of measure that stands right after a number, with it; what is counted is left out."""
    word = after.strip().rstrip(".")
    if word in ("%", "\\%"):
        return word
    known = KNOWN_UNIT.fullmatch(after) and re.split(r"\s?(?:/|per)\s?", word)[0].lower() in CANONICAL
    return rf" \text{{{word}}}" if known and len(word) > 1 else ""

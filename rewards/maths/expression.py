"""Formulas in LaTeX or plain text, read by a parser of our own into small trees; nothing is evaluated here.

A tree is a tuple: `("num", Fraction)`, `("sym", name)`, `("add", trees)`, `("mul", trees)`, `("div", a, b)`,
`("pow", a, b)`, `("neg", a)`, `("pm", a)` (plus or minus a), `("fn", name, trees)`, `("index", name, tree)` (a term of a
sequence), `("sum", kind, variable, low, high, body)`, `("inf",)`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from rewards.maths.normalise import CAPITALS, LETTERS

Tree = tuple[Any, ...]
Token = tuple[str, str, bool]  # kind, text, whether space stands before it

MAX_LENGTH = 2000
MAX_DEPTH = 60
MAX_DIGITS = 1000
MAX_FACTORS = 100
MAX_POSTFIX = 8
GREEK = {*LETTERS, *CAPITALS, "ell", "hbar", "aleph"} - {"pi"}  # which is a number
FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "lg", "exp",
    "min", "max", "gcd", "lcm", "arccot", "arcsec", "arccsc", "abs", "cis", "floor", "ceil",
}  # fmt: skip
PLAIN = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "abs": "abs", "floor": "floor", "ceil": "ceil", "binomial": "binom",
         "factorial": "factorial", "cbrt": "cbrt"}  # fmt: skip
NAMED = {
    "pi": ("sym", "pi"),
    "infty": ("inf",),
    "inf": ("inf",),
    "infinity": ("inf",),
    "oo": ("inf",),
    "imath": ("sym", "i"),
    "basisi": ("sym", "unit vector i"),
    "basisj": ("sym", "unit vector j"),
    "basisk": ("sym", "unit vector k"),
}
MULTIPLY = {"*", "\\cdot", "\\times"}
CLOSE = {
    "(": ")",
    "[": "]",
    "{": "}",
    "\\{": "\\}",
    "\\lfloor": "\\rfloor",
    "\\lceil": "\\rceil",
    "\\langle": "\\rangle",
}
TOKEN = re.compile(
    r"\s*(?:(?P<text>\\text\{(?P<inside>[^{}]*)\})"
    r"|(?P<num>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+(?![\d.]))?)"
    r"|(?P<cmd>\\(?:[a-zA-Z]+|.))"
    r"|(?P<word>[a-zA-Z]+)"
    r"|(?P<op>\S))",
    re.ASCII | re.DOTALL,
)


class NotRead(ValueError):
    """The text is no formula this parser knows."""


class TooLarge(NotRead):
    """The formula is longer, deeper or larger than what is ever looked at."""


def tokenise(text: str) -> list[Token]:
    """Words, numbers, macros and signs of normalised text, with whether space stood before each."""
    tokens: list[Token] = []
    narrow = 0  # arguments of a macro written without braces are single digits: \frac12
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            break
        spaced = match.start(match.lastgroup or 0) > at
        kind = "text" if match["text"] is not None else str(match.lastgroup)
        piece = match["inside"] if kind == "text" else match[kind]
        start = match.start("text" if kind == "text" else kind)
        spaced, end = start > at, match.end()
        if kind == "num" and narrow and len(piece) > 1:
            piece, end = piece[0], start + 1
        narrow = 2 if piece in ("\\frac", "\\binom") else max(0, narrow - 1) if kind in ("num", "word") else 0
        if kind == "op" and piece == "{" and tokens and tokens[-1][1] in ("\\frac", "\\binom"):
            narrow = 0
        tokens.append((kind, piece, spaced))
        at = end
    return tokens


def parse(text: str) -> Tree:
    """The formula in normalised `text`.

    Raises:
        NotRead: when it is none; TooLarge when it is longer or deeper than allowed.
    """
    return parse_tokens(guarded(text))


def guarded(text: str) -> list[Token]:
    if len(text) > MAX_LENGTH:
        raise TooLarge("length")
    depth = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        if depth > MAX_DEPTH:
            raise TooLarge("depth")
    return tokenise(text)


def parse_tokens(tokens: list[Token]) -> Tree:
    if not tokens:
        raise NotRead("empty")
    parser = _Parser(tokens)
    tree = parser.sum()
    if parser.peek()[1] == "\\over":
        parser.take()
        tree = ("div", tree, parser.sum())
    if parser.at < len(tokens):
        raise NotRead(f"cannot go on at {tokens[parser.at][1]!r}")
    return tree


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.bars = 0
        self.depth = 0

    def peek(self, ahead: int = 0) -> Token:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else ("end", "", False)

    def take(self, what: str | None = None) -> str:
        _, text, _ = self.peek()
        if self.at >= len(self.tokens) or (what is not None and text != what):
            raise NotRead(f"expected {what!r}")
        self.at += 1
        return text

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH * 2:
            raise TooLarge("depth")
        terms = []
        sign = self.sign()
        terms.append(_signed(sign, self.term()))
        while self.peek()[1] in ("+", "-", "\\pm", "\\mp") and self.peek()[0] in ("op", "cmd"):
            sign = self.sign()
            terms.append(_signed(sign, self.term()))
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("add", *terms)

    def sign(self) -> str:
        sign = "+"
        while self.peek()[1] in ("+", "-", "\\pm", "\\mp"):
            found = self.take()
            if found in ("\\pm", "\\mp"):
                sign = "pm"
            elif found == "-":
                sign = {"+": "-", "-": "+", "pm": "pm"}[sign]
        return sign

    def term(self) -> Tree:
        tree = self.factor()
        for _ in range(MAX_FACTORS):
            kind, text, _ = self.peek()
            if text in MULTIPLY:
                self.take()
                tree = ("mul", tree, self.factor())
            elif text == "/":
                self.take()
                tree = ("div", tree, self.factor())
            elif text in ("\\bmod", "\\mod"):
                self.take()
                tree = ("fn", "mod", (tree, self.factor()))
            elif self.starts(kind, text):
                if kind == "num" and self.tokens[self.at - 1][0] == "num":
                    raise NotRead("two numbers side by side")
                tree = ("mul", tree, self.power())
            else:
                return tree
        raise TooLarge("factors")

    def starts(self, kind: str, text: str) -> bool:
        """Whether an operand begins here, so that a product is meant."""
        if kind in ("num", "word"):
            return True
        if text == "|":
            return self.bars == 0
        if kind == "cmd":
            name = text[1:]
            return name in GREEK or name in FUNCTIONS or name in NAMED or name in (
                "frac", "sqrt", "binom", "lfloor", "lceil", "sum", "prod", "angle", "{", "lim", "int"
            )  # fmt: skip
        return text in ("(", "[", "{")

    def factor(self) -> Tree:
        sign = self.sign()
        return _signed(sign, self.power())

    def power(self) -> Tree:
        tree = self.postfix(self.primary())
        if self.peek()[1] == "^":
            self.take()
            tree = self.postfix(("pow", tree, self.exponent()))
        return tree

    def exponent(self) -> Tree:
        if self.peek()[1] in ("+", "-"):
            sign = self.sign()
            return _signed(sign, self.power())
        if self.peek()[1] == "{":
            base = self.group()
        else:
            base = self.primary(single=True)
        if self.peek()[1] == "^":  # 2^3^2 is a tower
            self.take()
            return ("pow", base, self.exponent())
        return base

    def postfix(self, tree: Tree) -> Tree:
        for _ in range(MAX_POSTFIX):
            text = self.peek()[1]
            if text == "!" and self.peek(1)[1] != "=":
                self.take()
                tree = ("fn", "factorial", (tree,))
            elif text == "\\degree":
                self.take()
                tree = ("mul", tree, ("sym", "degree"))
            elif text == "%":
                self.take()
                tree = ("div", tree, ("num", Fraction(100)))
            elif text == "'":  # a derivative, or minutes: not what stands before it
                self.take()
                tree = ("fn", "any '", (tree,))
            else:
                return tree
        raise TooLarge("signs after an operand")

    def group(self) -> Tree:
        self.take("{")
        bars, self.bars = self.bars, 0
        tree = self.sum()
        if self.peek()[1] in ("\\over", "\\atop"):
            self.take()
            tree = ("div", tree, self.sum())
        self.bars = bars
        self.take("}")
        return tree

    def argument(self) -> Tree:
        """A macro's argument: a group or one sign."""
        return self.group() if self.peek()[1] == "{" else _signed(self.sign(), self.primary(single=True))

    def primary(self, single: bool = False) -> Tree:
        kind, text, _ = self.peek()
        if kind == "num":
            self.take()
            return self.mixed(text) if not single else ("num", number(text))
        if kind == "word":
            return self.word(text, single)
        if kind == "op" and text == "{":
            return self.group()
        if kind == "op" and text in ("(", "["):
            self.take()
            bars, self.bars = self.bars, 0
            tree = self.sum()
            self.bars = bars
            self.take(CLOSE[text])
            return tree
        if text == "\\{":
            self.take()
            tree = self.sum()
            self.take("\\}")
            return tree
        if text == "|":
            self.take()
            self.bars += 1
            tree = self.sum()
            self.bars -= 1
            self.take("|")
            return ("fn", "abs", (tree,))
        if kind == "cmd":
            return self.macro(self.take()[1:])
        raise NotRead(f"{text!r} is no operand")

    def mixed(self, text: str) -> Tree:
        """A number, with the proper fraction after it when it is a mixed number: 3\\frac{1}{2}, 3 1/2."""
        whole = number(text)
        if not text.isdigit():
            return ("num", whole)
        ahead = [self.peek(k) for k in range(9)]
        parts: list[str] = []
        if ahead[0][1] == "\\frac":
            plain = [t for _, t, _ in ahead[1:]]
            if plain[0] == "{" and plain[2] == "}" and plain[3] == "{" and plain[5] == "}":
                parts, length = [plain[1], plain[4]], 7
            elif plain[0] == "{" and plain[2] == "}":
                parts, length = [plain[1], plain[3]], 5
            elif plain[1] == "{" and plain[3] == "}":
                parts, length = [plain[0], plain[2]], 5
            else:
                parts, length = [plain[0], plain[1]], 3
        elif ahead[0][0] == "num" and ahead[0][2] and ahead[1][1] == "/" and ahead[2][0] == "num":
            parts, length = [ahead[0][1], ahead[2][1]], 3
        if len(parts) == 2 and all(p.isdigit() and p.isascii() for p in parts) and 0 < int(parts[0]) < int(parts[1]):
            if self.peek(length)[1] == "^":
                return ("num", whole)
            self.at += length
            return ("num", whole + Fraction(int(parts[0]), int(parts[1])))
        return ("num", whole)

    def word(self, text: str, single: bool) -> Tree:
        lower = text.lower()
        if lower in FUNCTIONS or lower in PLAIN or lower in ("sqrt", "binom"):
            self.take()
            return self.function(PLAIN.get(lower, lower))
        if lower in NAMED:
            self.take()
            return NAMED[lower]
        for name in ("sqrt", "pi"):  # 2xpi
            if len(text) > len(name) and text.endswith(name) and len(text) - len(name) <= 2:
                letters = text[: -len(name)]
                self.tokens[self.at : self.at + 1] = [*(("word", c, False) for c in letters), ("word", name, False)]
                return self.word(letters[0], single)
        if len(text) > 1:
            if len(text) > 3 and not text.isupper():
                raise NotRead(f"{text!r} is a word")
            self.tokens[self.at : self.at + 1] = [("word", c, False) for c in text]
            text = text[0]
        self.take()
        return self.subscript(text, single)

    def subscript(self, name: str, single: bool = False) -> Tree:
        if self.peek()[1] == "'":
            while self.peek()[1] == "'":
                name += self.take()
        if self.peek()[1] == "_":
            self.take()
            start = self.at
            if self.peek()[0] == "text":
                return ("sym", f"{name}_{self.take().strip()}")
            if self.peek()[1] == "{" and self.peek(1)[0] == "text" and self.peek(2)[1] == "}":
                self.at += 3
                return ("sym", f"{name}_{self.tokens[start + 1][1].strip()}")
            try:
                index = self.argument()
            except NotRead:
                self.at = start
                index = ("sym", "".join(self.raw_group()))
            if index[0] == "num":
                return ("sym", f"{name}_{index[1]}")
            return ("index", name, index)
        if name in ("f", "g") and self.peek()[1] == "(" and not single:
            return ("fn", f"any {name}", self.arguments())
        if name == "C" and self.peek()[1] == "(" and not single:
            start = self.at
            counts = self.arguments()
            if len(counts) == 2:
                return ("fn", "binom", counts)
            self.at = start
        return ("sym", name)

    def arguments(self) -> tuple[Tree, ...]:
        """In any brackets, with commas between them."""
        closing = CLOSE[self.take()]
        found = [self.sum()]
        while self.peek()[1] == ",":
            self.take()
            found.append(self.sum())
        self.take(closing)
        return tuple(found)

    def raw_group(self) -> list[str]:
        if self.peek()[1] != "{":
            return [self.take()]
        self.take()
        pieces = []
        while self.peek()[1] != "}":
            pieces.append(self.take())
        self.take()
        return pieces

    def macro(self, name: str) -> Tree:
        if name == "frac":
            return ("div", self.argument(), self.argument())
        if name == "binom":
            return ("fn", "binom", (self.argument(), self.argument()))
        if name == "sqrt":
            return self.function("sqrt")
        if name in NAMED:
            return NAMED[name]
        if name in ("operatorname", "mathrm", "mathbb"):
            raise NotRead(f"\\{name}")
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("lfloor", "lceil"):
            tree = self.sum()
            self.take(CLOSE["\\" + name])
            return ("fn", {"lfloor": "floor", "lceil": "ceil"}[name], (tree,))
        if name in ("sum", "prod"):
            return self.series(name)
        if name == "Gamma" and self.peek()[1] == "(":
            return ("fn", "factorial", (("add", self.primary(), ("num", Fraction(-1))),))
        if name in GREEK:
            return self.subscript(name)
        if name in ("angle", "triangle"):
            points = "".join(self.raw_group() if self.peek()[1] == "{" else [self.take()])
            if name == "angle" and len(points) == 3 and points[0] > points[2]:
                points = points[::-1]  # an angle has its vertex in the middle, and no order
            return ("sym", name + points)
        raise NotRead(f"\\{name} is not known")

    def series(self, kind: str) -> Tree:
        self.take("_")
        self.take("{")
        variable = self.take()
        self.take("=")
        low = self.sum()
        self.take("}")
        self.take("^")
        high = self.argument()
        return ("sum", kind, variable, low, high, self.term())

    def function(self, name: str) -> Tree:
        extra: Tree | None = None
        exponent: Tree | None = None
        if name == "sqrt" and self.peek()[1] == "[":
            self.take()
            extra = self.sum()
            self.take("]")
        if name in ("log",) and self.peek()[1] == "_":
            self.take()
            extra = self.argument()
        if self.peek()[1] == "^":
            self.take()
            exponent = self.exponent()
        if name == "sqrt":
            arguments: tuple[Tree, ...] = (self.argument() if self.peek()[1] != "(" else self.primary(),)
        elif self.peek()[1] in ("(", "[", "\\{") or (self.peek()[1] == "{" and name != "log"):
            arguments = self.arguments()
        else:
            arguments = (self.bare_argument(),)
        if name == "cis" and len(arguments) == 1:
            return ("pow", ("sym", "e"), ("mul", ("sym", "i"), arguments[0]))
        if name == "sqrt" and extra is not None:
            tree: Tree = ("fn", "root", (arguments[0], extra))
        elif extra is not None:
            tree = ("fn", "log_base", (arguments[0], extra))
        else:
            tree = ("fn", name, arguments)
        if exponent == ("neg", ("num", Fraction(1))) and name in ("sin", "cos", "tan"):
            return ("fn", "arc" + name, arguments)
        return tree if exponent is None else ("pow", tree, exponent)

    def bare_argument(self) -> Tree:
        """What a function written without parentheses is applied to: the product up to the next sign or function."""
        sign = self.sign()
        tree = self.power()
        while True:
            kind, text, _ = self.peek()
            if text == "/" and self.peek(1)[0] in ("num", "word"):
                self.take()
                tree = ("div", tree, self.power())
            elif (
                text in ("(", "[")
                or not self.starts(kind, text)
                or (kind == "cmd" and (text[1:] in FUNCTIONS or text in ("\\sqrt", "\\sum")))
                or text.lower() in FUNCTIONS
            ):
                break
            else:
                tree = ("mul", tree, self.power())
        return _signed(sign, tree)


def number(text: str) -> Fraction:
    if len(text) > MAX_DIGITS:
        raise TooLarge("digits")
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > MAX_DIGITS:
        raise TooLarge("exponent")
    return Fraction(mantissa.rstrip(".")) * (Fraction(10) ** int(exponent) if exponent else 1)


def _signed(sign: str, tree: Tree) -> Tree:
    return tree if sign == "+" else ("neg", tree) if sign == "-" else ("pm", tree)

"""The same answer with less typography: one spelling for what LaTeX, Unicode and plain text write in many ways."""

from __future__ import annotations

import functools
import re
import unicodedata

UNICODE = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "÷": "/", "∕": "/", "⁄": "/", "π": r"\pi ", "𝜋": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ",
    "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
    "∖": r"\setminus ", "±": r"\pm ", "∓": r"\mp ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℂ": r"\mathbb{C}",
    "°": r"^\circ ", "º": r"^\circ ", "∠": r"\angle ", "⟨": r"\langle ", "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∣": "|", "∨": r"\lor ", "∧": r"\land ",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "⅕": r"\frac{1}{5}",
    "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}", "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}",
    "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}", "′": "'", "’": "'", "，": ",", "、": ",", "；": ";", "。": ". ",
    "…": r"\ldots ", "∗": "*", "∛": r"\sqrt[3]", "∴": r"\therefore ", "⇒": r"\Rightarrow ", "≡": r"\equiv ", "∥": r"\parallel ", "⟂": r"\perp ", "∀": r"\forall ", "ℓ": r"\ell ", "→": r"\to ", "✓": "", "■": "", "∎": "",
}  # fmt: skip
LETTERS = (
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "omicron", "pi", "rho", "sigma", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
)  # fmt: skip
# The other capitals look Latin.
CAPITALS = ("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega")
GREEK = {chr(code): f"\\{name} " for code, name in zip(range(0x3B1, 0x3CA), LETTERS, strict=True)}
SUPERSCRIPT = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
SUBSCRIPT = dict(zip("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n", strict=True))

SPACES = re.compile(r"(?<!\\)\\(?:[,:;! >]|q?quad(?![a-zA-Z])|(?:thin|med|thick|en)space(?![a-zA-Z]))|~|&nbsp;")
SIZES = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|phantom\{\}|normalsize"
    r"|large|Large|protect|bm(?=\{\})|hfill|noindent|nonumber|notag|tag\{[^{}]*\})(?![a-zA-Z])"
)
SAME = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "leqslant": "le",
    "geq": "ge", "geqslant": "ge", "neq": "ne", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "degree": "^circ",
    "varnothing": "emptyset", "empty": "emptyset", "infin": "infty", "vert": "|", "lvert": "|", "rvert": "|", "mid": "|",
    "vee": "lor", "wedge": "land", "backslash": "setminus", "ast": "*", "colon": ":", "lt": "<", "gt": ">", "div": "/",
    "operatorname*": "operatorname", "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta", "R": "mathbb{R}",
    "textdegree": "^circ", "textdollar": "$", "bigcup": "cup", "bigcap": "cap", "nicefrac": "frac", "sfrac": "frac", "Reals": "mathbb{R}", "reals": "mathbb{R}", "euro": "€", "pounds": "£", "lparen": "(", "rparen": ")",
}  # fmt: skip
SYMBOLS = {"[", "]", "|", "*", ":", "<", ">", "/", "€", "£", "$", "(", ")"}
WORDS = "text|textbf|textit|textrm|textsf|texttt|textup|textnormal|mbox|hbox|emph"
FONTS = re.compile(
    r"\\(?:math(?:bf|it|sf|tt|cal|scr|frak|normal)|boldsymbol|bm|pmb|bold|vec|overrightarrow|overline|bar|hat|displaylines"
    r"|boxed|fbox|underline|cancel|ensuremath|mathopen|mathclose|mathbin|mathrel|mathord)\s*(?=\{)"
)
ROMAN = re.compile(
    r"\\(?:mathrm|rm|operatorname|math(?:bf|it|sf))\s*\{\s*([^{}]*)\s*\}"
    r"|\\text\s*\{\s*(?=(?:cis|lcm|gcd|lg|ln|log|arctg|tg)\s*\})([^{}]*?)\s*\}"
)
COUNTED = re.compile(r"(?<![\d.,])(\d{1,3}(?:(?:,(?:\\!\s*)?|'|\{,\}|\\[,!;:]|\\ | ,?\\! ?|~)\d{3})+)(?![\d])")
SPACED = re.compile(r"(?<![\d.,] )(?<![\d.,/^_}])(\d{1,3}(?:[    ]\d{3})+)(?![\d,/]| ?\d)")
MARKUP = re.compile(r"\$\$|(?<!\\)\$|(?<!\\)\\[()\[\]](?!\s*-?\d+(?:\.\d+)?(?:pt|em|ex|cm|mm)\])")


@functools.lru_cache(8192)
def normalise(text: str) -> str:
    """One spelling: ASCII and LaTeX, no sizes, spaces or font changes, `\\text{..}` for words, `,` out of numbers."""
    text = _undecorated(ascii_form(text))
    if "\\begin" not in text:  # doubly escaped: "\\frac" for "\frac"; in a matrix it ends a row
        text = re.sub(r"\\\\(?=[a-zA-Z]{2,})", r"\\", text)
        text = re.sub(r"\\\\(?=[{}%$])", r"\\", text)
    text = re.sub(r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|cm|mm)\s*\]", r"\\\\", text)
    text = re.sub(rf"\\(?:{WORDS})\s*(?=\{{)", r"\\text", text)
    text = re.sub(r"\\text\s*\{\s*(\\?[$€£%])\s*\}", r"\1", text)
    text = MARKUP.sub(" ", text)
    text = SIZES.sub("", text)
    text = COUNTED.sub(lambda m: re.sub(r"\D", "", m[1]), text)
    text = SPACES.sub(" ", text)
    text = REPEATING.sub(_repeating, text)
    text = MAGNITUDE.sub(_magnitude, text)
    text = re.sub(r"\\(?:mathbf|Bbb)\s*\{?\s*R\s*\}?(?![a-zA-Z])", r"\\mathbb{R}", text)
    text = _unit_vectors(text)
    text = SINGLE.sub(r"\1 ", text)
    text = FONTS.sub("", text)
    text = ROMAN.sub(_roman, text)
    text = re.sub(r"\\text\s*\{\s*(\\text\s*\{[^{}]*\})\s*\}", r"\1", text)
    text = CHOSEN.sub(_chosen, text)
    text = re.sub(r"\\([a-zA-Z]+\*?)\s*", _macro, text)
    text = re.sub(
        r"\^\s*(?:\{\s*(?:\\(?:top|intercal|text\s*\{\s*T\s*\})|T)\s*\}|\\(?:top|intercal)(?![a-zA-Z]))", "^T", text
    )
    text = re.sub(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])", r"\\degree ", text)
    text = re.sub(r"(?<=\d)\s*\^\s*(?:\{\s*)?(?:\\text\s*\{\s*)?o(?:\s*\})*(?![a-zA-Z])", r"\\degree ", text)
    text = ORDINAL.sub("", text)
    text = re.sub(r"(?<![a-zA-Z\d}\])_^])\{([-+])\}", r"\1", text).replace("{:}", ":")
    text = re.sub(r"(?<=[)\]}])\s*(?:U|\\text\s*\{\s*union\s*\})\s*(?=[(\[{]|\\\{)", r"\\cup ", text)
    text = re.sub(r"\{\s*(\\(?:sin|cos|tan|cot|sec|csc|log|ln|exp))\s*\}", r"\1 ", text)
    text = re.sub(r"(?<=\d)\s*(?:\\text\s*\{)?\s*and (?:a|one) half\s*\}?", r" \\frac{1}{2}", text)
    text = re.sub(r"\*\*(?=\s*[\w(\\{-])(?<=[\w)}]\*\*)", "^", text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?|[a-zA-Z])", r"\\sqrt{\1}", text)
    text = re.sub(r"√\s*\(", r"\\sqrt(", text).replace("√", r"\sqrt ")
    text = text.replace(r"\%", "%").replace(r"\&", "&").replace(r"\_", "_").replace(r"\#", "#")
    text = re.sub(r"\s+", " ", text).strip(" *`")
    text = ENDS.sub("", BEGINS.sub("", text)).strip(" *")
    text = SPACED.sub(lambda m: re.sub(r"\D", "", m[1]), text)
    text = re.sub(r"(?:\s*[.,;:])+$", "", text) if not text.endswith("...") else text
    return text.strip()


def ascii_form(text: str) -> str:
    """Unicode mathematics as LaTeX, digits of all scripts and full-width forms as ASCII; no invisible characters."""
    if text.isascii():
        return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "", text)
    text = re.sub(f"[{''.join(SUPERSCRIPT)}]+", lambda m: "^{" + "".join(SUPERSCRIPT[c] for c in m[0]) + "}", text)
    text = re.sub(f"[{''.join(SUBSCRIPT)}]+", lambda m: "_{" + "".join(SUBSCRIPT[c] for c in m[0]) + "}", text)
    text = re.sub(r"(?<=\d)\s*([¼-¾⅓-⅞])", r" \1", text)
    text = "".join(UNICODE.get(c) or GREEK.get(c) or c for c in text)
    text = unicodedata.normalize("NFKC", text)
    return "".join(_character(c) for c in text)


def _character(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Nd":
        return str(unicodedata.digit(character))
    if kind in ("Cf", "Cc") and character not in "\n\t\r":
        return ""
    return UNICODE.get(character) or GREEK.get(character) or character


REPEATING = re.compile(
    r"(\d{0,20})\.(\d{0,20})(?:\\(?:overline|bar|dot)\s*\{?(\d{1,20})\}?((?:\\dot\s*\{?\d\}?)*)|\((\d{1,20})\)(?=\s*$))",
    re.ASCII,
)
MAGNITUDE = re.compile(
    r"(?<=\d)\s*(?:\\text\s*\{\s*(hundred|thousand|million|billion|trillion)\b\s*(?:\}|(?=[^{}]))"
    r"|\b(hundred|thousand|million|billion|trillion)\b)",
    re.IGNORECASE,
)
POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# What is written around an answer and says nothing.
COLOR = re.compile(r"\\(?:text)?color\s*(?:\[[^\]]*\])?\{[^{}]*\}")
NOTHING = re.compile(
    r"\\(?:v|h)?phantom\s*\{[^{}]*\}|\\[hv]space\*?\s*\{[^{}]*\}|\\label\s*\{[^{}]*\}|\\tag\*?\s*\{[^{}]*\}|\\mbox\s*\{\s*\}"
    r"|\\(?:left|right)\s*\.|\\(?:strut|mathstrut|allowbreak|nobreak|relax)(?![a-zA-Z])|</?(?:b|i|em|strong|p|span|u|code|center|br)\s*/?>"
)
BEGINS = re.compile(
    r"^(?:[&\s]|\.{2,}\s*=?|\\(?:therefore|Rightarrow|Longrightarrow|implies|iff|Leftrightarrow|rightarrow|because)(?![a-zA-Z]))+"
)
ENDS = re.compile(
    r"(?:\s|\\\\|\\(?:checkmark|blacksquare|square|Box|qed|qedsymbol|newline|par)(?![a-zA-Z])"
    r"|(?:\\text\s*\{\s*,?\s*(?:for|where)\s(?:all|every|any|each|some)(?![^{}]*integer)[^{}]*\}|(?:\\text\s*\{\s*for\s*\})?\s*\\forall)\s*\(?[a-zA-Z]?(?:\s*\\in(?![a-z])\s*\\mathbb\s*\{?[A-MO-Y]\}?)?\)?)++$"
)
SINGLE = re.compile(rf"{FONTS.pattern}\{{\s*(\\?[a-zA-Z])\s*\}}")
ORDINAL = re.compile(
    r"(?<=\d)\s*(?:\^\s*\{?\s*(?:\\text\s*\{\s*)?(?:st|nd|rd|th)(?:\s*\})*|\\text\s*\{\s*(?:st|nd|rd|th)\s*\}|(?:st|nd|rd|th)\b)"
)
# nCk: with the numbers below and above, before and after
CHOSEN = re.compile(
    r"(?:\{\})?[_^]\{?(\d+|[a-z])\}?\s*C_\s*\{?(\d+|[a-z])\}?|(?<![\w\\])C_\s*\{?(\d+)\}?\s*\^\s*\{?(\d+)\}?|(?<![\w\\])(\d+)\s?C\s?(\d+)(?!\d)"
)


def _chosen(match: re.Match[str]) -> str:
    above, below = (found for found in match.groups() if found is not None)
    return rf"\binom{{{above}}}{{{below}}}"


def _undecorated(text: str) -> str:
    if "\\" not in text and "<" not in text:
        return text
    text = COLOR.sub("", NOTHING.sub("", text))
    return re.sub(r"\\root\s*\{?(\d+)\}?\s*\\of\s*(\{[^{}]*\}|\w)", r"\\sqrt[\1]{\2}", text)


def _repeating(match: re.Match[str]) -> str:
    """0.1\\overline{6} as the fraction it is."""
    whole, fixed, first, more, parenthesised = match.groups()
    repeated = parenthesised or first + re.sub(r"\D", "", more)
    below = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    above = int((whole or "0") + fixed + repeated) - int((whole or "0") + fixed or "0")
    return rf"\frac{{{above}}}{{{below}}}"


def _magnitude(match: re.Match[str]) -> str:
    """`3 \\text{ million people}` as 3 \\cdot 10^6 \\text{people}."""
    power = rf"\cdot 10^{{{POWERS[(match[1] or match[2]).lower()]}}}"
    return power + (r"\text{" if match[1] and not match[0].endswith("}") else "")


BASIS = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|vec|hat|bold|textbf|mathrm)\s*(?:\{\s*(?:\\(?:mathbf|hat|vec)\s*)?\{?\s*\\?([ijk])(?:math)?\s*\}?\s*\}|\s\\?([ijk])(?:math)?(?![a-zA-Z]))"
)


def _unit_vectors(text: str) -> str:
    """Bold or hatted i, j and k, at least two of them, are the unit vectors and not numbers."""
    found = {match[1] or match[2] for match in BASIS.finditer(text)}
    return BASIS.sub(lambda m: rf"\basis{m[1] or m[2]} ", text) if len(found) > 1 else text


def _roman(match: re.Match[str]) -> str:
    """Upright text: a constant or a function when it is one, otherwise words."""
    inside = (match[1] or match[2] or "").strip()
    name = ALIASES.get(inside.lower(), inside.lower())
    if re.fullmatch(r"[a-zA-Z]{2,}", inside) and name in FUNCTIONS:
        return f"\\{name} "
    return inside if len(inside) == 1 or re.fullmatch(r"[-+\d.,/%\s]+", inside) else rf"\text{{{match[1] or ''}}}"


FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "lg", "exp",
    "sqrt", "min", "max", "gcd", "lcm", "det", "pi", "arccot", "arcsec", "arccsc", "abs", "cis", "floor", "ceil",
}  # fmt: skip


ALIASES = {
    "tg": "tan",
    "ctg": "cot",
    "arctg": "arctan",
    "arcctg": "arccot",
    "cosec": "csc",
    "sh": "sinh",
    "ch": "cosh",
    "th": "tanh",
}


def _macro(match: re.Match[str]) -> str:
    name = SAME.get(match[1])
    if name is None:
        return match[0]
    return (
        name if name in SYMBOLS else f"\\{name}" + (" " if name[-1].isalpha() else "") if name[0] != "^" else r"^\circ "
    )


def without_blanks(text: str) -> str:
    """A text without its blanks but those that part two numbers: 1 1/2 is not 11/2."""
    return re.sub(r"(?<![\d.]) +| +(?![\d.])", "", text)


def words(text: str) -> str:
    """Text for comparison: no markup, case, articles, punctuation around it or space."""
    text = re.sub(r"\\(?:text|math[a-z]*|operatorname)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"[{}$\\*~`“”\"]|''", " ", text).casefold()
    text = re.sub(r"\s+", " ", text).strip(" .,;:!'\"")
    wrapped = re.fullmatch(r"[(\[]([^()\[\]]*)[)\]]", text)
    text = (wrapped[1] if wrapped else text).strip(" .,;:!'\"")
    return re.sub(r"^(?:the|an?) (?=\w)", "", text)

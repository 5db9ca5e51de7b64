"""Units, currencies and counted things that stand with a number."""

from __future__ import annotations

import itertools
import re
from fractions import Fraction

ALIASES = {
    "degree": "degree °c degrees deg", "dollar": "$ usd dollars buck", "euro": "€ eur", "pound sterling": "£ gbp", "cent": "cents ¢",
    "cm": "centimeter centimetre", "mm": "millimeter millimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch inches", "ft": "foot feet", "mi": "mile", "yd": "yard", "g": "gram gm gms grams", "kg": "kilogram kilo",
    "lb": "pound lbs", "oz": "ounce", "s": "second sec secs", "min": "minute mins", "h": "hour hr hrs", "l": "liter litre",
    "ml": "milliliter millilitre", "mph": "mi/h", "km/h": "kmh kph", "rad": "radian", "unit": "units",
    "percent": "% pct percentage",
}  # fmt: skip
CANONICAL = {alias: name for name, aliases in ALIASES.items() for alias in (name, *aliases.split())}
NOT_UNITS = re.compile(
    r"\b(?:or|and|but|not|maybe|perhaps|either|possibly|is|are|isn't|nor|than|if|instead|actually|wrong|no|approximately"
    r"|about|at least|at most|less|more|plus|minus|times|thousand|million|billion|hundred|dozen|half|percent|x|base|to|otherwise|when"
    r"|factorial|choose|over|pi|(?:hal(?:f|ve)|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s?)\b"
    r"|^\s*(?:squared|cubed)\b",
    re.IGNORECASE,
)
POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
TEXT = re.compile(rf"\s*\\text\s*\{{([^{{}}]*)\}}\s*({POWER})\s*(?:\\text\s*\{{[^{{}}]*\}}{POWER}\s*)*$")
PLAIN = re.compile(
    rf"(?<=[\d)}}\]%. $])\s*((?:[a-zA-Z][a-z]+\.?|[ckm]?[mg]|ft|in|lb|oz|[sh]|mph|[lL]|units?|mL|kW|GB|MB|sq\.?)(?:[ /]+[a-zA-Z][a-z]*\.?)*)\s*({POWER})\s*$"
)
PERCENT = re.compile(
    r"\s*(?:%|\\text\s*\{\s*(?:%|percent|pct|percentage)\s*(?:points?)?\s*\}|\b(?:percent(?:age)?|pct)\b)\s*$",
    re.IGNORECASE,
)
CURRENCY = re.compile(r"^\s*([-+]?)\s*(\\\$|\$|€|£|¥|(?:US|USD)\s*\\?\$|(?:USD|EUR|GBP)\b)\s*(?=[\d.(\\])")
TRAILING_CURRENCY = re.compile(r"(?<=[\d)}. ])\s*(\\\$|\$|€|£|¥|USD|EUR|GBP)\s*$")
NOTED = re.compile(r"(?<=[\d)}\]%.])\s*\(\s*(?:\\text\s*\{)?\s*([a-zA-Z]{2,}(?:\s[a-zA-Z]{2,}){0,3})\s*\}?\s*\)\s*$")
DEGREE = re.compile(
    r"\s*(?:\\degree|\\text\s*\{\s*degrees?\s*\}|(?<=[\d})])\s*degrees?)\s*(?:\\text\{\s*)?(C|F|Celsius|Fahrenheit)?\s*\}?\s*$"
)


TRIGONOMETRY = re.compile(r"\\?(?:arc)?(?:sin|cos|tan|cot|sec|csc|cis)")


def split_unit(text: str) -> tuple[str, str, bool]:
    """A text without its unit; the unit, as one of its names; whether it is a percentage."""
    if (match := CURRENCY.match(text)) is not None:
        body, _, percent = split_unit(match[1] + text[match.end() :])
        return body, canonical(match[2].replace("\\", "").removeprefix("US").strip("D ") or "$"), percent
    if (match := PERCENT.search(text)) is not None:
        return text[: match.start()].strip(), "", True
    if (match := DEGREE.search(text)) is not None and match.start() > 0 and not TRIGONOMETRY.search(text):
        return text[: match.start()].strip(), "degree" + (match[1] or "")[:1], False
    if (match := TRAILING_CURRENCY.search(text)) is not None:
        return text[: match.start()].strip(), canonical(match[1].replace("\\", "")), False
    if (match := NOTED.search(text)) is not None and not NOT_UNITS.search(match[1]):
        return text[: match.start()].strip(), canonical(match[1]), False
    for pattern in (TEXT, PLAIN):
        if (match := pattern.search(text)) is not None and match.start() > 0:
            words = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text[match.start() :])
            if NOT_UNITS.search(words) or re.search(r"\d(?!\s*\}?\s*$)", words) or len(words.split()) > 6:
                continue
            if pattern is PLAIN and not _unit_like(match[1]):
                continue
            body = text[: match.start()].strip()
            if body and body[-1] not in "-+*/^=<>(_":
                return body, canonical(words), False
    return text, "", False


# Units, and words beside what is counted, that are no plurals; `ALIASES` has others.
_NO_PLURALS = (
    "n j w v a k c f pa kpa mpa hz khz mhz ghz ev kev mev db mol cal kcal wh kwh kw mw gb mb kb tb b bit byte nm um dm hm dl cl mpg rpm fps psi atm"
    " bar ha acre yen won yuan baht rand rupee peso franc celsius fahrenheit kelvin newton joule watt volt ohm ampere hertz pascal mole stone"
    " people men women children feet teeth mice geese sheep fish deer dice oxen cattle pence inch foot mile day week month year hour minute second"
    " total altogether all left remaining each apiece old tall long wide high deep away ago overall apart thick heavy exactly only am pm noon"
)
# Words that end like plurals, and make another number of the one before them or judge it.
_NO_UNITS = (
    "tens hundreds thousands millions billions trillions dozens halves thirds fourths fifths sixths sevenths eighths ninths tenths twelfths"
    " hundredths thousandths times this is was as plus minus always perhaps thus yes"
)
SINGULAR, NO_UNITS = frozenset(_NO_PLURALS.split()), frozenset(_NO_UNITS.split())
ENDS_NOUN = re.compile(
    r"\b(?:of|per|in|on|at|for|from|to|with|and|that|who|which|after|before|by|each|a|an|the)\b|/|\^"
)


def names_unit(written: str, one: bool = False) -> bool:
    """Whether the words after a number are a unit or what is counted, a plural unless it is `one`: not a verdict on it."""
    words = re.sub(r"\\text\s*\{|[(){}$\\]", " ", written).casefold().strip(" .,")
    head = ENDS_NOUN.split(words, maxsplit=1)[0].split()
    if not head:
        return True
    last = head[-1].strip(".,")
    if last in NO_UNITS:
        return False
    if last in CANONICAL or last in SINGULAR or not last.isalpha() or canonical(last) in CANONICAL:
        return True
    return one or (last.endswith("s") and not last.endswith("ss"))


def _unit_like(word: str) -> bool:
    """A plain word after a number that is a unit rather than a function or a product of variables."""
    from rewards.maths.expression import FUNCTIONS, NAMED

    first = word.split()[0].rstrip(".")
    if first.lower() in FUNCTIONS or first.lower() in NAMED or first in ("sqrt", "i", "e"):
        return False
    return (
        (first.lower() in CANONICAL and len(first) > 1)
        or len(first) >= 4
        or first in ("m", "km", "cm", "mm", "kg", "ft", "in", "mi", "lb", "sq")
    )


def canonical(words: str) -> str:
    """One spelling of a unit: singular, abbreviations known, powers as a suffix, order of words ignored."""
    text = words.casefold().replace("\\", "").strip()
    power = ""
    if (raised := re.search(r"\^\s*\{?\s*(-?\d)\s*\}?\s*$", text)) is not None:
        power, text = raised[1], text[: raised.start()]
    parts = []
    text = text.replace("miles per hour", "mph").replace("kilometers per hour", "km/h")
    for part in re.findall(r"[^\W\d]+|[$€£¥°%¢/]", text):
        if part in ("square", "sq", "squared"):
            power = "2"
        elif part in ("cubic", "cu", "cubed"):
            power = "3"
        elif part in ("of", "the", "a", "total", "per") or part == "/":
            continue
        else:
            singular = part if part in CANONICAL else re.sub(r"(?<=[^s])s$", "", part)
            parts.append(CANONICAL.get(part) or CANONICAL.get(singular) or singular)
    return " ".join(parts) + (f"^{power}" if power and power != "1" else "")


# How much of the first unit of its row each is: of length, mass, time, volume, American and European money.
SCALES: tuple[dict[str, Fraction], ...] = tuple(
    {name: Fraction(value) for name, value in row.items()}
    for row in (
        {
            "m": "1",
            "mm": "1/1000",
            "cm": "1/100",
            "km": "1000",
            "in": "0.0254",
            "ft": "0.3048",
            "yd": "0.9144",
            "mi": "1609.344",
        },
        {"g": "1", "mg": "1/1000", "kg": "1000", "oz": "28.349523125", "lb": "453.59237"},
        {"s": "1", "min": "60", "h": "3600", "day": "86400", "week": "604800"},
        {"l": "1", "ml": "1/1000"},
        {"dollar": "1", "cent": "1/100"},
    )
)


def conversion(unit: str, other: str) -> Fraction | None:
    """How much of `unit` one `other` is; None when they measure different things, or are not known."""
    (name, _, power), (name2, _, power2) = unit.partition("^"), other.partition("^")
    if power != power2 or (power and power not in ("2", "3")):
        return None
    for row in SCALES:
        if name in row and name2 in row and (not power or "m" in row):
            return (row[name2] / row[name]) ** int(power or 1)
    return None


PART = r"(\d+(?:\.\d+)?)\s*([a-z]+)"


def compound(text: str) -> tuple[Fraction, str] | None:
    """2 hours and 42 minutes as 162 minutes: each part in a smaller unit than the one before."""
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).casefold()
    if not re.fullmatch(rf"\s*{PART}(?:\s*(?:,|\band\b|,\s*and\b)?\s*{PART}){{1,3}}\s*", plain):
        return None
    parts = [(Fraction(amount), canonical(unit)) for amount, unit in re.findall(PART, plain)]
    smallest = parts[-1][1]
    rates = [conversion(smallest, unit) for _, unit in parts]
    if any(rate is None for rate in rates) or any(not (a or 0) > (b or 0) for a, b in itertools.pairwise(rates)):
        return None
    return sum((amount * (rate or 0) for (amount, _), rate in zip(parts, rates, strict=True)), Fraction(0)), smallest

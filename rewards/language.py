"""Whether the response is written in one language, judged by the script of its letters."""

from __future__ import annotations

import bisect
import re
from collections import Counter
from typing import Any

# First and last code point, script. Enough of Unicode for the languages below; letters elsewhere are of "other".
RANGES = sorted(
    [
        (0x0041, 0x005A, "latin"), (0x0061, 0x007A, "latin"), (0x00AA, 0x00AA, "latin"), (0x00BA, 0x00BA, "latin"),
        (0x00C0, 0x024F, "latin"), (0x1E00, 0x1EFF, "latin"), (0xFF21, 0xFF3A, "latin"), (0xFF41, 0xFF5A, "latin"),
        (0x0370, 0x03FF, "greek"), (0x1F00, 0x1FFF, "greek"), (0x0400, 0x052F, "cyrillic"), (0x0530, 0x058F, "armenian"),
        (0x0590, 0x05FF, "hebrew"), (0x0600, 0x06FF, "arabic"), (0x0750, 0x077F, "arabic"), (0x08A0, 0x08FF, "arabic"),
        (0xFB50, 0xFDFF, "arabic"), (0xFE70, 0xFEFF, "arabic"), (0x0900, 0x097F, "devanagari"), (0x0980, 0x09FF, "bengali"),
        (0x0B80, 0x0BFF, "tamil"), (0x0C00, 0x0C7F, "telugu"), (0x0E00, 0x0E7F, "thai"), (0x10A0, 0x10FF, "georgian"),
        (0x1100, 0x11FF, "hangul"), (0x3130, 0x318F, "hangul"), (0xAC00, 0xD7AF, "hangul"), (0x3040, 0x30FF, "kana"),
        (0x31F0, 0x31FF, "kana"), (0x3400, 0x4DBF, "han"), (0x4E00, 0x9FFF, "han"), (0xF900, 0xFAFF, "han"),
        (0x20000, 0x323AF, "han"),
    ]
)  # fmt: skip
STARTS = [first for first, _, _ in RANGES]
SCRIPTS = {
    "ar": {"arabic"}, "bn": {"bengali"}, "el": {"greek"}, "fa": {"arabic"}, "he": {"hebrew"}, "hi": {"devanagari"},
    "hy": {"armenian"}, "ja": {"kana", "han"}, "ka": {"georgian"}, "ko": {"hangul"}, "ta": {"tamil"}, "te": {"telugu"},
    "th": {"thai"}, "ur": {"arabic"}, "zh": {"han"},
    **{code: {"cyrillic"} for code in ("bg", "mk", "ru", "uk")},
    **{
        code: {"latin"}
        for code in ("cs", "da", "de", "en", "es", "fi", "fr", "hu", "id", "it", "nl", "no", "pl", "pt", "ro", "sv", "tr", "vi")
    },
}  # fmt: skip
# Names of variables and commands are of no language.
FORMULA = re.compile(r"\\[A-Za-z]+|(?<![^\W\d_])[^\W\d_](?![^\W\d_])")
SINGLE_LETTER_WORDS = {"han", "kana", "hangul", "thai"}


def verify(response: str, prompt: str = "", language: str = "en", minimum: float | None = None) -> dict[str, Any]:
    """The share of the response's letters that are in the script of `language` (DeepSeek-R1's language consistency).

    A rule about scripts: it sees Chinese in English, not German in English. LaTeX commands and letters that stand
    alone do not count. A response without letters has a share of 1. Reasons: no_answer (nothing but white space),
    mixed.

    Args:
        language: a code of two letters, or "prompt" for the script most of the prompt's letters are in.
        minimum: score 1 from this share on and 0 below, instead of the share.

    Raises:
        ValueError: a language that is not known.
    """
    if language != "prompt" and language not in SCRIPTS:
        raise ValueError(f"verifier language: language is {language!r}; it may be prompt, {', '.join(sorted(SCRIPTS))}")
    if not response.strip():
        return {"score": 0.0, "reason": "no_answer"}
    counts = _scripts(response)
    wanted = _main(_scripts(prompt)) if language == "prompt" else SCRIPTS[language]
    letters = sum(counts.values())
    share = sum(counts[script] for script in wanted) / letters if letters and wanted else 1.0
    score = share if minimum is None else float(share >= minimum)
    return {"score": score, "reason": "" if score >= 1 else "mixed", "components": {"share": share}}


def _main(counts: Counter[str]) -> set[str]:
    """The scripts of the language most letters are of; Japanese is the one of two."""
    if not counts:
        return set()
    script = counts.most_common(1)[0][0]
    return {"kana", "han"} if script == "kana" or (script == "han" and counts["kana"]) else {script}


def _scripts(text: str) -> Counter[str]:
    """How many letters are of which script."""
    counts: Counter[str] = Counter()
    alone = Counter(match[0] for match in FORMULA.finditer(text))
    characters = Counter(text)
    for formula, times in alone.items():
        if _script(formula[-1]) not in SINGLE_LETTER_WORDS:
            for character in formula:
                characters[character] -= times
    for character, times in characters.items():
        if character.isalpha():
            counts[_script(character)] += times
    return +counts


def _script(character: str) -> str:
    point = ord(character)
    i = bisect.bisect_right(STARTS, point) - 1
    return RANGES[i][2] if i >= 0 and point <= RANGES[i][1] else "other"

"""When two prompts ask the same: what is asked, whatever stands around it and however it is spelled."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlpost.config import Identity
from rlpost.types import Prompt

# Signs that copies of one text differ in. Compatibility forms (NFKC) are left: x² and x2 are two problems.
_SIGNS = str.maketrans("‘’ʼ“”‐‑‒–—−", "'''\"\"------")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
# White space tells something between two letters or digits alone: `12 3` is not `123`, and `2 + 1` is `2+1`.
_SPACE = re.compile(r"\s+")


def normalized(text: str, rule: Identity) -> str:
    """`text` as it is compared: composed characters, plain quotes and dashes, and by `rule` without the rest."""
    text = unicodedata.normalize("NFC", text).translate(_SIGNS)
    if rule.ignore_space:
        text = _SPACE.sub(lambda gap: " " if _between_words(gap) else "", _INVISIBLE.sub("", text))
    return unicodedata.normalize("NFC", text.casefold() if rule.ignore_case else text)


def _between_words(gap: re.Match[str]) -> bool:
    before, after = gap.string[: gap.start()][-1:], gap.string[gap.end() : gap.end() + 1]
    return before.isalnum() and after.isalnum()


def problem_of(text: str, asked: Iterable[Any], rule: Identity) -> tuple[str, ...]:
    """Digests of what a prompt asks, for `Prompt.problem`.

    Args:
        text: what the model reads, after the template.
        asked: what it was made of: text, turns of a conversation, or the values of several columns.
    """
    questions = [*asked] if rule.ignore_template else []
    return tuple(dict.fromkeys(_digest(_comparable(value, rule)) for value in (text, *questions)))


class Problems:
    """A set of problems, such as those of the test.

    Args:
        prompts: with `Prompt.problem`, as data is loaded; one without it is known by its text alone.
        rule: by which their digests were made.
    """

    def __init__(self, prompts: Iterable[Prompt], rule: Identity | None = None) -> None:
        self._rule = rule or Identity()
        found = [self._digests(prompt) for prompt in prompts]
        self._texts = {digests[0] for digests in found}
        self._questions = {digest for digests in found for digest in digests}

    def why(self, prompt: Prompt) -> str | None:
        """What this prompt has in common with one of the set: "same prompt", "same question", or None."""
        digests = self._digests(prompt)
        if digests[0] in self._texts:
            return "same prompt"
        return None if self._questions.isdisjoint(digests) else "same question"

    def apart(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], Counter[str]]:
        """The prompts that are none of these problems, and how many were left out, by `why`."""
        why = [self.why(prompt) for prompt in prompts]
        return [p for p, reason in zip(prompts, why, strict=True) if reason is None], Counter(filter(None, why))

    def _digests(self, prompt: Prompt) -> tuple[str, ...]:
        return prompt.problem or problem_of(prompt.text, (), self._rule)


def left_out(counts: Mapping[str, int]) -> str:
    """`3 (same prompt), 1 (same question)`."""
    return ", ".join(f"{count} ({why})" for why, count in counts.items())


def _comparable(value: Any, rule: Identity) -> Any:
    """`value` with every text in it as it is compared; a list of one is what it holds, a number its text."""
    if isinstance(value, Mapping):
        return {str(key): _comparable(item, rule) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item, rule) for item in value] if len(value) != 1 else _comparable(value[0], rule)
    return normalized(str(value), rule)


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]

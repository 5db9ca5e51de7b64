"""A penalty for saying the same again and again."""

from __future__ import annotations

import re
from typing import Any

# Words; a character of Chinese, Japanese or Korean is one, and so is a sign. Long runs are cut, or text without spaces
# would be one word, which cannot repeat.
UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|\w{1,12}|[^\w\s]")


def verify(response: str, n: int = 4, penalty: float = -1.0, free: float = 0.0) -> dict[str, Any]:
    """A score from `penalty` to 0: `penalty` times the share of n-grams that occurred before.

    The share is 1 - (different n-grams) / (n-grams), as in Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning
    in LLMs", per response rather than per token. Text of fewer than `n` words scores 0. Reason: repetition.

    Args:
        n: words. Mathematics repeats short phrases honestly: 2 or 3 punishes that, 20 and more only loops.
        penalty: the score of a response that is nothing but repetition; 0 or below.
        free: a share that costs nothing; what is above it is scaled so that 1 still costs `penalty`.

    Raises:
        ValueError: a parameter out of its range.
    """
    if n < 1 or penalty > 0 or not 0 <= free < 1:
        raise ValueError(
            f"verifier repetition: n is {n}, penalty {penalty}, free {free}; they must be above 0, 0 or below, in [0, 1)"
        )
    words = UNIT.findall(response.casefold())
    count = len(words) - n + 1
    if count <= 0:
        return {"score": 0.0, "components": {"share": 0.0}}
    share = 1 - len(set(zip(*(words[i:] for i in range(n)), strict=False))) / count
    excess = max(share - free, 0.0) / (1 - free)
    return {
        "score": penalty * excess if excess else 0.0,
        "reason": "repetition" if excess else "",
        "components": {"share": share},
    }

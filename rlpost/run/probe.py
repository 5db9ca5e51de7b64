"""Fixed sequences whose log-probs a checkpoint remembers, for `rlpost export` to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlpost.data import PromptSets
from rlpost.learner.batch import Batch


def probe_batch(prompts: PromptSets, longest: int, count: int = 8) -> Batch:
    """Fixed sequences, for which a checkpoint remembers the learner's log-probs: prompts, continued by the next one.

    Args:
        longest: tokens of the continuation, at most; what the model is asked for in training fits everywhere.
    """
    pool = (prompts.test or prompts.train)[: count + 1]
    pairs = list(zip(pool, [*pool[1:], pool[0]], strict=True))[:count]
    return Batch.from_examples([a.token_ids for a, _ in pairs], [b.token_ids[:longest] for _, b in pairs])


def probe_to_json(probe: Batch, logp: Sequence[np.ndarray], temperature: float) -> dict[str, Any]:
    """{"temperature", "sequences": [{"prompt", "response", "logp"}]} as plain numbers."""
    sequences = []
    for i in range(len(probe)):
        one = probe.select([i])
        split = int(one.prompt_lengths[0])
        sequences.append(
            {
                "prompt": one.tokens[:split].tolist(),
                "response": one.tokens[split:].tolist(),
                "logp": [float(x) for x in logp[i]],
            }
        )
    return {"temperature": temperature, "sequences": sequences}

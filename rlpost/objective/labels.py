"""Names of the summands of the loss, for metrics, coefficients and selections."""

from __future__ import annotations

from collections import Counter

from rlpost import config
from rlpost.objective.divergence import DIVERGENCES
from rlpost.objective.terms import TERMS


def labels(settings: config.Objective) -> dict[str, config.Term | config.Regularizer]:
    """Every term and regularizer by a label of its own.

    The label is the entry's name, for a user's entry the attribute's; where a name is there more than once, with its
    anchor: `k3@teacher`, and if that is not enough with its source: `sft#pair`.

    Raises:
        ConfigError: two summands cannot be told apart.
    """
    summands = [summand for _, summand in settings.summands()]

    found = [s.entry.rpartition(":")[2] for s in summands]
    for mark, field in (("@", "anchor"), ("#", "source")):
        times = Counter(found)
        found = [
            f"{label}{mark}{getattr(s, field)}" if times[label] > 1 else label
            for label, s in zip(found, summands, strict=True)
        ]
    twice = [label for label, n in Counter(found).items() if n > 1]
    if twice:
        raise config.ConfigError(f"objective: {twice[0]} is there twice; make it one and add the coefficients")
    return dict(zip(found, summands, strict=True))


def anchor_of(summand: config.Term | config.Regularizer) -> str | None:
    """The anchor a summand compares with; None for one that does not (an entropy, a likelihood)."""
    if isinstance(summand, config.Regularizer):
        anchored = DIVERGENCES.trait(summand.divergence, "anchored", True)
    else:
        anchored = TERMS.trait(summand.loss, "anchored", False)
    return summand.anchor if anchored else None

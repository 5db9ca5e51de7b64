"""The experts chosen for each token of a sequence: the record, what of it may be learned from, and its size.

Captured by `rlpost.rollout.capture`, replayed by `rlpost.learner.replay`. Importable without torch, vllm or
pydantic: the records that travel are read in verifier processes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from rlpost.exit_codes import ALARM

if TYPE_CHECKING:
    from rlpost.config import Experts
    from rlpost.types import Sample


@dataclass(frozen=True)
class Routes:
    """The experts an engine chose for the tokens of one sequence, in the mixture-of-experts layers alone.

    Row t belongs to token t: what was chosen when token t was fed to predict token t + 1, under the weight version that
    sampled token t + 1. The last token of a sequence was never fed and has no row.

    Attributes:
        shared: uint8 or uint16 (S, layers, top_k), the rows of the prompt's first S tokens; one array for all samples
            of a group.
        own: of the same dtype (P + R - 1 - S, layers, top_k), the rows after them.
        valid: bool (P + R - 1,), False on rows that must not be replayed: missing, damaged, or of other weights.
    """

    shared: np.ndarray
    own: np.ndarray
    valid: np.ndarray

    def __post_init__(self) -> None:
        if self.shared.shape[1:] != self.own.shape[1:] or self.shared.dtype != self.own.dtype:
            raise ValueError(
                f"routes of a prompt {self.shared.dtype}{self.shared.shape} and of what follows "
                f"{self.own.dtype}{self.own.shape} differ in dtype, layers or experts"
            )
        if len(self.valid) != len(self):
            raise ValueError(f"{len(self)} rows of routes but {len(self.valid)} marks of validity")

    def __len__(self) -> int:
        return len(self.shared) + len(self.own)


class DamagedRoutesError(RuntimeError):
    """Routes are missing or wrong, and `routing.invalid: fail` says that the run ends then."""

    exit_code = ALARM


def admitted(
    samples: Sequence[Sample], invalid: Literal["live", "mask", "fail"]
) -> tuple[list[Sample], dict[str, float]]:
    """The samples, those with damaged routes as `invalid` has it, and metrics of all that an engine sampled.

    Where one sample of a pair is masked, the other is too.

        routing/coverage          share of the tokens that were fed whose routes are there and sound
        routing/damaged           samples of which a token has none
        routing/bytes_per_token   of the routes, each prompt's counted once for its group

    Raises:
        DamagedRoutesError: some are damaged and `invalid` is "fail".
    """
    from rlpost.config import SAMPLED

    fed = sound = size = 0
    seen: set[int] = set()
    damaged: list[int] = []
    for i, sample in enumerate(samples):
        if sample.source not in SAMPLED:
            continue
        here = len(sample.prompt_ids) + len(sample.response_ids) - 1
        good = int(sample.routes.valid.sum()) if sample.routes is not None else 0
        fed, sound = fed + here, sound + good
        if good < here:
            damaged.append(i)
        if sample.routes is not None:
            size += sample.routes.own.nbytes
            if id(sample.routes.shared) not in seen:
                seen.add(id(sample.routes.shared))
                size += sample.routes.shared.nbytes
    if damaged and invalid == "fail":
        first = samples[damaged[0]]
        raise DamagedRoutesError(
            f"{len(damaged)} of {len(samples)} samples have tokens without sound routes, first sample {first.number} of "
            f"group {first.group}, and routing.invalid is fail; live or mask go on without them"
        )
    kept = list(samples)
    if invalid == "mask":
        pairs = {samples[i].group for i in damaged if samples[i].source == "pair"}
        other_sides = {i for i, s in enumerate(samples) if s.source == "pair" and s.group in pairs}
        for i in other_sides.union(damaged):
            kept[i] = replace(kept[i], mask=np.zeros(len(kept[i].response_ids), bool))
    metrics = {"routing/damaged": float(len(damaged))}
    if fed:
        metrics |= {"routing/coverage": sound / fed, "routing/bytes_per_token": size / fed}
    return kept, metrics


def bytes_per_token(experts: Experts) -> int:
    """Of the routes of a token, at most: a group's samples share those of their prompt."""
    return experts.layers * experts.per_token * (1 if experts.total <= 256 else 2)

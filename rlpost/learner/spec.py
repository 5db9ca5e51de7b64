"""What the driver tells a learner rank: once, and at every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlpost.cluster import Threads
from rlpost.config import Learner, Model, Objective, Routing
from rlpost.learner.batch import MicroBatch
from rlpost.learner.references import AnchorSpec
from rlpost.models.source import ModelSource


@dataclass(frozen=True)
class LearnerSpec:
    """Everything a rank needs to know, decided by the driver.

    Attributes:
        source: the model whose weights it starts from.
        anchors: models that terms compare with, by name.
        total_steps: optimizer steps of the whole run, for the learning-rate schedule.
        temperature: what the engine samples at; log-probs are of that distribution.
        response_limit: the longest response there can be (the constant of seq_mean_token_sum_norm).
        routing: which experts a mixture-of-experts policy chooses.
        longest: tokens of the longest sequence the engines take, which some rotary embeddings depend on; None: there
            are no engines.
        adapter: folder of saved adapters to begin with, in PEFT's format.
        stand_in: send weights as on GPUs where there are none: `rlpost.rehearsal`.
    """

    source: ModelSource
    anchors: Mapping[str, AnchorSpec]
    model: Model
    learner: Learner
    objective: Objective
    total_steps: int
    temperature: float
    response_limit: int
    pad_id: int
    seed: int
    on_gpu: bool
    threads: Threads
    routing: Routing = field(default_factory=Routing)
    longest: int | None = None
    adapter: str | None = None
    stand_in: bool = False


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step of one rank.

    Attributes:
        counts: (sequences, tokens) by pool, over all ranks and micro-batches of the step: `Batch.counts`.
    """

    micro_batches: list[MicroBatch]
    counts: dict[str, tuple[int, int]]

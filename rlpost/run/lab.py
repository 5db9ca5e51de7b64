"""What a data strategy may ask of a run outside of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlpost.learner.batch import Batch
from rlpost.types import Group, Prompt, Sample

if TYPE_CHECKING:
    from rlpost.run.training import Run

LAB_SEED = 2_000_003


class RunLab:
    """What a data strategy may ask of a run (`rlpost.data.strategy.Lab`)."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.judge = run.referee
        self.tokenizer = run.tokenizer
        self.data = run.config.data
        self.held_out = run.prompts.test
        self.longest = run.config.learner.longest

    def say(self, line: str) -> None:
        self._run.recorder.console.info(line)

    def sample(self, prompts: Sequence[Prompt], samples: int) -> list[Group]:
        run = self._run
        return run.sampler.sample_all(prompts, samples, run.sampling, run.config.seed + LAB_SEED, run.tried)

    def log_probs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        return self._run.learner.log_probs(Batch.from_samples(samples))

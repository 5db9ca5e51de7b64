"""What a run says of its data before anything starts."""

from __future__ import annotations

import numpy as np
import pytest

from rlpost.run.start import repetitions
from rlpost.types import Prompt


@pytest.mark.parametrize(
    ("have", "wanted", "said"),
    [
        (4, 64, "data.train has 4 prompts, a step takes 64: each is drawn 16 times a step"),
        (1, 4, "data.train has 1 prompt, a step takes 4: each is drawn 4 times a step"),
        (3, 8, "data.train has 3 prompts, a step takes 8: each is drawn 2 or 3 times a step"),
    ],
)
def test_a_step_that_must_repeat_prompts_is_told_before_the_run(have: int, wanted: int, said: str):
    prompts = [Prompt(str(i), "", np.ones(1, np.int32)) for i in range(have)]
    assert repetitions(prompts, wanted) == [f"{said}, with other samples each time"]
    assert repetitions(prompts, have) == []

"""What a run says of its data before anything starts."""

from __future__ import annotations

import numpy as np
import pytest

from rlpost.config import Config, parse
from rlpost.run.start import repetitions, steps_of
from rlpost.types import Prompt
from tests.conftest import tiny


def sources(**sizes: int) -> dict[str, list[Prompt]]:
    return {name: [Prompt(f"{name}/{i}", "", np.ones(1, np.int32)) for i in range(n)] for name, n in sizes.items()}


def mixed(wanted: int, until: str = "forever", length: dict | None = None, **weights: float) -> Config:
    values = tiny(learner={"prompts_per_step": wanted})
    one = values["data"]["train"]
    values["data"] |= {"train": {n: {**one, "weight": w} for n, w in weights.items()}, "mix": {"until": until}}
    return parse({**values, "steps": None, **(length or {})})


@pytest.mark.parametrize(
    ("have", "wanted", "said"),
    [
        (4, 64, "data.train has 4 prompts, a step takes 64: each is drawn 16 times a step"),
        (1, 4, "data.train has 1 prompt, a step takes 4: each is drawn 4 times a step"),
        (3, 8, "data.train has 3 prompts, a step takes 8: each is drawn 2 or 3 times a step"),
    ],
)
def test_a_step_that_must_repeat_prompts_is_told_before_the_run(have: int, wanted: int, said: str):
    prompts = {"": sources(a=have)["a"]}
    assert repetitions(parse(tiny(learner={"prompts_per_step": wanted})), prompts) == [
        f"{said}, with other samples each time"
    ]
    assert repetitions(parse(tiny(learner={"prompts_per_step": have})), prompts) == []


def test_each_source_of_a_mixture_is_told_by_what_a_step_takes_of_it():
    lines = repetitions(mixed(8, a=3, b=1), sources(a=6, b=1))
    assert lines == [
        "data.train.b has 1 prompt, a step takes 2 of it: each is drawn 2 times a step, with other samples each time"
    ]


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2, 8), (0.1, 1), (0.8, 3), (1.1, 5), (1e-9, 1)])
def test_epochs_are_rounded_up_to_whole_steps(epochs: float, steps: int):
    values = {**tiny(learner={"prompts_per_step": 8}), "steps": None}
    assert steps_of(parse({**values, "epochs": epochs}), {"": sources(a=30)["a"]}) == steps


@pytest.mark.parametrize(
    ("until", "length", "steps"),
    [
        ("forever", {"steps": 9}, 9),
        ("forever", {"epochs": 1}, 13),  # 100 prompts, 8 a step
        ("first_ends", {}, 5),  # b gives 2 a step and has 10
        ("all_end", {}, 15),  # a gives 6 a step and has 90
        ("all_end", {"epochs": 2}, 30),
        ("first_ends", {"steps": 3}, 3),
        ("first_ends", {"steps": 300}, 5),
    ],
)
def test_a_mixture_ends_with_the_step_in_which_its_first_or_last_source_was_seen(until: str, length: dict, steps: int):
    assert steps_of(mixed(8, until, length, a=3, b=1), sources(a=90, b=10)) == steps

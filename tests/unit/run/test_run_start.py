"""What a run says of its data before anything starts."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlpost.config import Config, ConfigError, parse
from rlpost.run.start import repetitions, started, steps_of
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


class Parts:
    """Stand-ins of a run's engines and learner, and what happened to them in its order."""

    def __init__(self, tmp_path: Path, blind: str | None = None) -> None:
        self.happened: list[str] = []
        self.folder = SimpleNamespace(path=tmp_path, logs=tmp_path)
        self.engines: Any = SimpleNamespace(fleet=SimpleNamespace(crew=[]), ready=lambda: self._ready("engines"))
        self.learner = SimpleNamespace(
            crew=[],
            ready=lambda: self._ready("learner"),
            unshared=lambda folder: blind,
            shutdown=lambda: self.happened.append("learner taken down"),
        )

    def _ready(self, who: str) -> dict[str, str]:
        self.happened.append(f"{who} ready")
        return {"of": who}

    def start(self) -> Any:
        self.happened.append("learner started")
        return self.learner


@pytest.mark.parametrize("colocate", [True, False])
def test_an_engine_that_shares_its_gpu_has_measured_it_before_a_learner_is_there(colocate: bool, tmp_path: Path):
    config = parse(tiny(cluster={"gpus_per_node": 1 if colocate else 2, "colocate": colocate}))
    parts = Parts(tmp_path)
    with ExitStack() as stack:
        learner, model, engine = started(config, parts.engines, parts.start, parts.folder, stack)
    assert (learner, model, engine) == (parts.learner, {"of": "learner"}, {"of": "engines"})
    assert parts.happened.index("engines ready") < parts.happened.index("learner started") or not colocate
    assert sorted(parts.happened) == ["engines ready", "learner ready", "learner started", "learner taken down"]


def test_a_folder_that_is_not_on_all_nodes_is_refused_before_the_first_sample(tmp_path: Path):
    parts = Parts(tmp_path, blind="it cannot be seen by rank 1 on node-7")
    with ExitStack() as stack, pytest.raises(ConfigError, match="rank 1 on node-7"):
        started(parse(tiny()), parts.engines, parts.start, parts.folder, stack)
    assert parts.happened[-1] == "learner taken down"

"""What the three sides of the step benchmark have in common: model, prompts, batch, settings, threads, records.

As a program it makes the model of the workload in the folder it is given.

Importable without torch, ray or vllm: a side says how many threads it computes with before it imports them.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlpost import cluster
from rlpost.config import Config, load
from rlpost.types import Prompt

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
PHASES = ("generate", "verify", "learn", "sync")

Step = dict[str, float]
"""Seconds of one step by phase, with `total`, and `length`, the mean number of tokens in a response."""


@dataclass(frozen=True)
class Workload:
    """One step, `warmup + steps` times: `prompts` x `samples` responses of `tokens` tokens, one optimizer step.

    Attributes:
        folder: where the model lies and the sides write; gone after the benchmark.
        warmup: steps that are run and not counted, at least one: a step's total runs from the end of the step before.
    """

    folder: Path
    prompts: int
    samples: int
    tokens: int
    steps: int
    warmup: int

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def total_steps(self) -> int:
        return self.warmup + self.steps

    def config(self) -> Config:
        """The quickstart's run without its warm-up, evaluations and checkpoints, on this model and batch."""
        overrides = {
            "model.path": self.model,
            "model.create": "null",
            "warmup": "null",
            "steps": self.total_steps,
            "runs_dir": self.folder / "runs",
            "data.train.size": self.prompts * self.total_steps,
            "data.test": "null",
            "data.shuffle": "false",
            "rollout.samples_per_prompt": self.samples,
            "rollout.max_tokens": self.tokens,
            "learner.prompts_per_step": self.prompts,
            "evaluation.before": "false",
            "evaluation.after": "false",
            "checkpoint.every": 0,
            "observe.sinks": "[]",
            "observe.console": '"off"',
            # The model is untrained: no group of it has a signal, and that is no reason to stop.
            "data.groups.no_signal": "keep",  # no response is right, and every one is to be learned from
            "alarms.no_signal_steps": self.total_steps + 1,
        }
        return load([QUICKSTART], [f"{key}={value}" for key, value in overrides.items()])

    def batches(self) -> list[list[Prompt]]:
        """The prompts of each step, in the order in which the loop takes them."""
        from rlpost.data import PromptOrder, load_prompts
        from rlpost.models.load import load_tokenizer
        from rlpost.models.source import ModelSource

        config = self.config()
        prompts = load_prompts(config.data, load_tokenizer(ModelSource(str(self.model))), config.seed).train
        order = PromptOrder(prompts, config.seed, config.data.shuffle)
        return [[order.next() for _ in range(self.prompts)] for _ in range(self.total_steps)]

    def threads(self) -> int:
        """CPU threads of every side: what rlpost gives its engine and its learner, which compute in turns."""
        return cluster.threads(self.config())[0].here()

    def save(self) -> None:
        (self.folder / "workload.json").write_text(json.dumps({**asdict(self), "folder": str(self.folder)}))

    @classmethod
    def open(cls, folder: Path) -> Workload:
        values: dict[str, Any] = json.loads((folder / "workload.json").read_text())
        return cls(**{**values, "folder": folder})


def make_model(workload: Workload) -> None:
    """Write the quickstart's model, untrained, changed so that it never ends a response.

    All sides then sample exactly `tokens` tokens with no rule against the end-of-sequence token, which would cost one
    side more than another. Each token's embedding has 1 on the first axis, and that of end-of-sequence -10. The axis
    outweighs all others (deviation 0.02), so after the last norm every hidden state has about sqrt(192) there; the
    head being tied to the embeddings, end-of-sequence's logit lies some 11 * sqrt(192) = 150 below the others'.
    """
    import torch

    from rlpost.models.create import create_model
    from rlpost.models.load import load_causal_lm
    from rlpost.models.source import ModelSource

    spec = load([QUICKSTART]).model.create
    if spec is None or not spec.config.get("tie_word_embeddings"):
        raise ValueError(f"{QUICKSTART} no longer makes a small model with tied embeddings, which the benchmark is of")
    create_model(spec, workload.model)
    model = load_causal_lm(ModelSource(str(workload.model)), torch.float32)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings[:, 0] = 1.0
        embeddings[model.config.eos_token_id, 0] = -10.0
    model.save_pretrained(workload.model)


def run_side(name: str, folder: Path, measure: Callable[[Workload], tuple[str, list[Step]]]) -> None:
    """Be one side: run `measure` and write its steps to `<folder>/<name>.json`.

    Args:
        measure: gives how the phases were timed, in words, and the record of every step but the first.
    """
    workload = Workload.open(folder)
    cluster.set_thread_environment(workload.threads())
    os.environ.update(VLLM_LOGGING_LEVEL="WARNING", HF_HUB_OFFLINE="1")
    how, steps = measure(workload)
    measured = steps[-workload.steps :]
    if len(measured) < workload.steps:
        raise RuntimeError(f"{name} measured {len(measured)} steps, not {workload.steps}")
    (folder / f"{name}.json").write_text(json.dumps({"timed": how, "steps": [complete(s) for s in measured]}))


def complete(step: Step) -> Step:
    """A step with `other`: what of its total no phase accounts for."""
    return {**step, "other": step["total"] - sum(step.get(phase, 0.0) for phase in PHASES)}


def medians(steps: Iterable[Step]) -> Step:
    """The median over steps of each number on its own; so phases need not add up to the total."""
    steps = list(steps)
    return {name: statistics.median(step[name] for step in steps) for name in steps[0]}


if __name__ == "__main__":
    make_model(Workload.open(Path(sys.argv[1])))

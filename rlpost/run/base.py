"""The weights a run starts from: given, made on the spot, or warmed up on worked examples first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rlpost.config import Config, ConfigError, Sft
from rlpost.data import encode_completion, load_examples, load_prompts
from rlpost.data.identity import Problems, left_out
from rlpost.models.create import create_model, tokenizer_of
from rlpost.models.facts import outline_of
from rlpost.models.fits import check_length
from rlpost.observe import Recorder
from rlpost.run.cache import made_once
from rlpost.run.warmup import Warmup, longest
from rlpost.types import Prompt
from rlpost.verify.references import checker
from rlpost.weights import LEAST_SURVIVING


def base_model(config: Config, recorder: Recorder, join: Callable[[], None]) -> str:
    """Folder or id of the weights reinforcement learning starts from.

    What is made (a created model, a warm-up) is kept in `<runs_dir>/.models` under a digest of everything it depends
    on, and found there by the next run that asks for the same. `join` is called where a
    warm-up needs Ray.
    """
    if config.warmup is None:
        return config.model.path or str(_created(config, recorder))
    tokenizer = tokenizer_of(config.model)
    examples = worked_examples(config, config.warmup, tokenizer, recorder)
    start = config.model.path or str(_created(config, recorder))
    made_from = _made_from(config, examples)
    folder = _cache(config) / f"warm-{made_from}"
    warmup = Warmup(config, config.warmup, start, tokenizer, examples, made_from, recorder)

    def teach(draft: Path) -> None:
        join()
        share = warmup.teach(draft)
        if share is not None and share < LEAST_SURVIVING:
            raise ConfigError(
                f"warmup: only {share:.3f} of what the adapters of model.lora learned survives in model.dtype: "
                f"{config.model.dtype}, in which the run would begin from it: set model.dtype: float32, or raise warmup.lr"
            )

    if made_once(folder, teach):
        recorder.console.info(f"warm-up: found in {folder}")
    warmup.done()
    return str(folder)


def supervised(config: Config, sft: Sft, into: Path, recorder: Recorder, join: Callable[[], None]) -> None:
    """Train on worked examples and have the model in `into`."""
    start = base_model(config.model_copy(update={"warmup": None}), recorder, join)
    tokenizer = tokenizer_of(config.model, start)
    examples = worked_examples(config, sft, tokenizer, recorder)
    warmup = Warmup(config, sft, start, tokenizer, examples, _made_from(config, examples), recorder)

    def teach(draft: Path) -> None:
        join()
        warmup.teach(draft)

    made_once(into, teach)
    warmup.done()


def _made_from(config: Config, examples: list[tuple[Prompt, np.ndarray]]) -> str:
    """A digest of all that a warm-up's result depends on."""
    # The examples themselves: which there are depends on files and on what is held out.
    settings = config.model_dump(mode="json", include={"model", "warmup", "seed"})
    return _digest([settings, [[p.token_ids.tolist(), c.tolist()] for p, c in examples]])


def worked_examples(config: Config, sft: Sft, tokenizer: Any, recorder: Recorder) -> list[tuple[Prompt, np.ndarray]]:
    """The examples to learn from with their completions' tokens: none of a held-out problem.

    Raises:
        DataError: as `load_examples`.
        ConfigError: nothing is left, or one is too long for the model or a micro-batch.
    """
    examples: list[Prompt] = []
    for name, source in sft.sources.items():
        found, report = load_examples(source, config.data, tokenizer, name)
        examples += found
        for line in report.lines():
            recorder.console.info(line)
    examples = apart_from_test(examples, config, tokenizer, recorder)
    encoded = [(p, encode_completion(p.completion or "", tokenizer)) for p in examples]
    most = longest(encoded)
    if most > config.learner.tokens_per_micro_batch:
        raise ConfigError(
            f"the longest worked example has {most} tokens, more than learner.tokens_per_micro_batch "
            f"{config.learner.tokens_per_micro_batch}: raise it"
        )
    outline = outline_of(config.model)
    check_length(outline.positions, outline.where, most, "the longest worked example of warmup.train")
    return encoded


def apart_from_test(examples: list[Prompt], config: Config, tokenizer: Any, recorder: Recorder) -> list[Prompt]:
    """Worked examples of problems that are not among the held-out ones: an evaluation must not ask what was taught."""
    # Which are held out depends on which rows a verifier refuses, where those are skipped.
    refused = config.data.holdout is not None and config.data.bad_rows == "skip"
    check = checker(config.verifiers, config.verifier_pool) if refused else None
    held_out = Problems(load_prompts(config.data, tokenizer, config.seed, check).test, config.data.identity)
    apart, why = held_out.apart(examples)
    if not apart:
        raise ConfigError(
            "every worked example of warmup.train is a held-out problem of data: nothing is left to teach"
        )
    if len(apart) < len(examples):
        recorder.console.info(
            f"warmup.train: {why.total()} examples left out, their problems are held out: {left_out(why)}"
        )
    return apart


def _created(config: Config, recorder: Recorder) -> Path:
    assert config.model.create is not None
    spec = config.model.create.model_copy(update={"seed": config.model.create.seed + config.seed})
    folder = _cache(config) / f"new-{_digest(spec.model_dump(mode='json'))}"

    def make(draft: Path) -> None:
        recorder.console.phase("making a small model with random weights")
        create_model(spec, draft)

    made_once(folder, make)
    return folder


def _cache(config: Config) -> Path:
    return Path(config.runs_dir).expanduser().resolve() / ".models"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

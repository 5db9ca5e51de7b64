"""The weights a run starts from: given, made on the spot, or warmed up on worked examples first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from rlpost import cluster
from rlpost.config import Config, ConfigError, Learner, Objective, Optimizer, Sft, Term
from rlpost.data import PromptOrder, encode_completion, load_examples, load_prompts
from rlpost.data.chat import save_chat_template, saved_template
from rlpost.data.identity import Problems, left_out
from rlpost.learner.batch import Batch
from rlpost.learner.spec import LearnerSpec
from rlpost.models.create import create_model, tokenizer_of
from rlpost.models.facts import outline_of
from rlpost.models.fits import check_length
from rlpost.models.source import ModelSource
from rlpost.observe import Recorder
from rlpost.rehearsal import switch
from rlpost.run.cache import made_once
from rlpost.run.failed import starting
from rlpost.run.lost import accounted
from rlpost.run.start import start_learner
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
    # The examples themselves: which there are depends on files and on what is held out.
    made_from = config.model_dump(mode="json", include={"model", "warmup", "seed"})
    folder = _cache(config) / f"warm-{_digest([made_from, [[p.token_ids.tolist(), c.tolist()] for p, c in examples]])}"
    warmup = config.warmup

    def teach(draft: Path) -> None:
        join()
        share = _teach(config, warmup, start, tokenizer, examples, draft, recorder)
        if share is not None and share < LEAST_SURVIVING:
            raise ConfigError(
                f"warmup: only {share:.3f} of what the adapters of model.lora learned survives in model.dtype: "
                f"{config.model.dtype}, in which the run would begin from it: set model.dtype: float32, or raise warmup.lr"
            )

    if made_once(folder, teach):
        recorder.console.info(f"warm-up: found in {folder}")
    return str(folder)


def supervise(config: Config, sft: Sft, start: str, into: Path, recorder: Recorder, join: Callable[[], None]) -> None:
    """Train `start` on worked examples and write the model to `into`: the learner of the run, another objective."""
    tokenizer = tokenizer_of(config.model, start)
    examples = worked_examples(config, sft, tokenizer, recorder)
    join()
    _teach(config, sft, start, tokenizer, examples, into, recorder)


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
    longest = _longest(encoded)
    if longest > config.learner.tokens_per_micro_batch:
        raise ConfigError(
            f"the longest worked example has {longest} tokens, more than learner.tokens_per_micro_batch "
            f"{config.learner.tokens_per_micro_batch}: raise it"
        )
    outline = outline_of(config.model)
    check_length(outline.positions, outline.where, longest, "the longest worked example of warmup.train")
    return encoded


def _longest(examples: list[tuple[Prompt, np.ndarray]]) -> int:
    return max(len(p.token_ids) + len(completion) for p, completion in examples)


def _teach(
    config: Config,
    sft: Sft,
    start: str,
    tokenizer: Any,
    examples: list[tuple[Prompt, np.ndarray]],
    into: Path,
    recorder: Recorder,
) -> float | None:
    """Returns which share of adapters survives in `model.dtype`, merged; None without adapters."""
    console = recorder.console
    longest = _longest(examples)
    schedule = {name: getattr(sft, name) for name in Optimizer.model_fields}
    row_tokens = config.learner.row_tokens
    learner = config.learner.model_copy(
        update={
            **schedule,
            "optimizer_steps_per_batch": 1,
            "row_tokens": max(row_tokens, longest) if row_tokens else None,
        }
    )
    with ExitStack() as stack:
        placement = cluster.place(config, cluster.RANKS)
        stack.callback(placement.release)
        group = start_learner(config, _spec(config, learner, start, sft.steps, tokenizer.pad_token_id), placement)
        stack.callback(group.shutdown)
        console.phase("warm-up: starting the learner")
        begin = starting("the learner of the warm-up", config, "learner", "warmup", "model", log=recorder.folder.logs)
        with begin, accounted(group.crew):
            group.ready()
        stack.enter_context(accounted(group.crew))
        into.parent.mkdir(parents=True, exist_ok=True)
        if unshared := group.unshared(into.parent):
            raise ConfigError(unshared)
        order = PromptOrder([p for p, _ in examples], config.seed, shuffle=True)
        completions = {p.id: completion for p, completion in examples}
        for step in range(1, sft.steps + 1):
            chosen = [order.next() for _ in range(sft.prompts_per_step)]
            batch = Batch.from_examples([p.token_ids for p in chosen], [completions[p.id] for p in chosen])
            metrics = group.update(batch, version=0).values()
            if step % max(1, sft.steps // 20) == 0 or step == sft.steps:
                console.info(
                    f"warm-up step {step}/{sft.steps}  loss {metrics['loss']:.4f}  lr {metrics['lr']:.2e}  "
                    f"epoch {order.consumed / len(examples):.2f}"
                )
        share = group.save_model(into)
        save_chat_template(into, saved_template(config.data, sft.sources.values())[0], tokenizer)
        if share is not None and share < LEAST_SURVIVING:
            console.warn(
                f"warm-up: only {share:.3f} of what the adapters learned survives in {config.model.dtype}; the model is "
                "written in float32"
            )
    return share


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


def _spec(config: Config, learner: Learner, path: str, steps: int, pad_id: int) -> LearnerSpec:
    return LearnerSpec(
        source=ModelSource.of(config.model, path),
        anchors={},
        model=config.model,
        learner=learner,
        objective=Objective(policy_loss=None, terms=[Term(loss="sft", source="sft")], aggregation="token_mean"),
        total_steps=steps,
        temperature=1.0,
        response_limit=config.rollout.max_tokens,
        pad_id=pad_id,
        seed=config.seed,
        on_gpu=switch.computes_on_gpu(config),
        stand_in=switch.stood_in(config),
        threads=cluster.threads(config)[1],
    )


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

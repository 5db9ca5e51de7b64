"""A run made small: the user's configuration with fewer parts and shorter sequences, and a record of what was changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpost.config import Config, parse

SCORER = "rlpost.rehearsal.scorer:arbitrary"
LABEL = "rehearsal"
ROWS = 64  # of each source
FEW = 2  # of what there are several
TOKENS = 24  # of a response
SECONDS = 300.0  # that anything may take
RATE = 1e-3
# What a rehearsal passes on to engines: the rest is about kernels and memory of GPUs.
PASSED_ON = ("distributed_executor_backend", "enable_expert_parallel")


@dataclass(frozen=True)
class Change:
    """A key of the configuration that is not the user's in the rehearsal.

    Attributes:
        why: in a few words; empty where it is only smaller.
    """

    key: str
    was: Any
    now: Any
    why: str = ""


def scaled(config: Config, model: Path, folder: Path) -> tuple[Config, list[Change]]:
    """The configuration of a rehearsal, and each key that differs from the user's.

    Of parts of which there are several at least two are left, so that what goes wrong between them goes wrong here.

    Args:
        model: folder of the small model.
        folder: where the rehearsal's runs go.
    """
    values = config.model_dump(mode="json")
    changes = _Changes(values)
    _parts(config, changes)
    _sequences(config, changes)
    _batch(config, changes)
    _data(config, changes)
    _verifiers(config, values, changes)
    _course(config, changes)
    if config.model.path is not None:
        changes.set("model.path", str(model), "made small, with random weights")
    else:
        values["model"]["path"] = str(model)
    values["model"] |= {"create": None, "revision": None, "parameters": None, "experts": None}
    for name, reference in config.objective.references.items():
        if reference.params.get("path") is not None:
            changes.set(f"objective.references.{name}.path", str(model), "an anchor of the policy's own sizes")
    values |= {"runs_dir": str(folder), "name": "rehearsal"}
    values["cluster"]["gpu_memory_gb"] = None
    values["observe"] |= {"sinks": [], "console": "plain"}
    return parse(values, origin="the rehearsal"), changes.made


class _Changes:
    """Keys set in nested values, and remembered where that made a difference."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self.made: list[Change] = []

    def set(self, key: str, value: Any, why: str = "") -> None:
        *sections, last = key.split(".")
        inner: Any = self._values
        for section in sections:
            inner = inner[section]
        if inner.get(last) != value:
            self.made.append(Change(key, inner.get(last), value, why))
            inner[last] = value

    def most(self, key: str, value: float | None, most: float, why: str = "") -> None:
        """Lower a value that is there."""
        if value is not None:
            self.set(key, min(value, type(value)(most)), why)


def parts(config: Config) -> dict[str, int]:
    """How many of each part a rehearsal has; two where there are more.

    Returns:
        engines, tensor_parallel, ranks, nodes, gpus_per_node.
    """
    ro, le, cl = config.rollout, config.learner, config.cluster
    engines, width, ranks = (min(n, FEW) for n in (ro.engines, ro.tensor_parallel, le.ranks))
    nodes = min(cl.nodes, FEW)
    gpus = 0
    if config.on_gpu:
        all_gpus = ranks if cl.colocate else engines * width + ranks
        # Not a GPU more than there must be, so that with two nodes both have a part of the run.
        gpus = max(width, math.ceil(all_gpus / nodes))
    return {"engines": engines, "tensor_parallel": width, "ranks": ranks, "nodes": nodes, "gpus_per_node": gpus}


def _parts(config: Config, changes: _Changes) -> None:
    few, ro, cl = parts(config), config.rollout, config.cluster
    for key in (
        "rollout.engines",
        "rollout.tensor_parallel",
        "learner.ranks",
        "cluster.nodes",
        "cluster.gpus_per_node",
    ):
        changes.set(key, few[key.rpartition(".")[2]])
    for key in ("cluster.cpus_per_engine", "cluster.cpus_per_rank"):
        changes.set(key, 1.0, "what is declared of a node's CPUs is made up too")
    for key, seconds in (
        ("cluster.start_deadline", cl.start_deadline),
        ("rollout.deadline", ro.deadline),
        ("rollout.sync_deadline", ro.sync_deadline),
        ("learner.deadline", config.learner.deadline),
    ):
        changes.most(key, seconds, SECONDS, "a small model that takes longer hangs")
    changes.most("verifier_pool.workers", config.verifier_pool.workers, FEW)
    changes.set("rollout.max_sequences", min(ro.max_sequences or 64, 64))
    changes.set("rollout.threads", 1)
    changes.set("learner.threads", 1)
    if config.on_gpu:
        changes.set("rollout.enforce_eager", True, "no CUDA graphs on a CPU")
        changes.set("learner.offload_optimizer", False, "all there is is a CPU's memory")
        kept = {key: value for key, value in ro.engine_args.items() if key in PASSED_ON}
        changes.set("rollout.engine_args", kept, "kernels and memory of GPUs are not rehearsed")


def _sequences(config: Config, changes: _Changes) -> None:
    """Short responses, in rows and micro-batches that hold as many of the longest sequence, two at most."""
    le = config.learner
    changes.most("rollout.max_tokens", config.rollout.max_tokens, TOKENS)
    longest = config.data.max_prompt_tokens + min(config.rollout.max_tokens, TOKENS)
    row = min(le.longest, min(FEW, le.longest // config.max_sequence_tokens) * longest)
    rows = min(FEW, le.tokens_per_micro_batch // le.longest)
    if le.row_tokens is not None:
        changes.set("learner.row_tokens", row)
    changes.set("learner.tokens_per_micro_batch", rows * row)
    changes.most("learner.logits_chunk_tokens", le.logits_chunk_tokens, 256)


def _batch(config: Config, changes: _Changes) -> None:
    """As few prompts and samples as leave each optimizer step two groups, and each rank a sample."""
    le, ro, ranks = config.learner, config.rollout, parts(config)["ranks"]
    samples = min(ro.samples_per_prompt, 2 * FEW)
    groups = max(FEW, math.ceil(ranks / samples))
    changes.set("rollout.samples_per_prompt", samples)
    changes.most("learner.prompts_per_step", le.prompts_per_step, groups * le.optimizer_steps_per_batch)
    if config.warmup is not None:
        changes.most("warmup.steps", config.warmup.steps, FEW)
        changes.most("warmup.prompts_per_step", config.warmup.prompts_per_step, 2 * FEW)


def _data(config: Config, changes: _Changes) -> None:
    """The first rows of each source, and few prompts of each test."""
    keys = [key for key, _ in config.data.sources()]
    if config.warmup is not None:
        keys += [f"warmup.train.{name}".rstrip(".") for name in config.warmup.sources]
    sources = [*(s for _, s in config.data.sources()), *(config.warmup.sources.values() if config.warmup else ())]
    for key, source in zip(keys, sources, strict=True):
        changes.set(f"{key}.limit", min(source.limit or ROWS, ROWS), "the first rows")
    for name, test in config.data.test_sources.items():
        key = f"data.test.{name}".rstrip(".")
        changes.most(f"{key}.max_tokens", test.max_tokens, TOKENS)
        changes.most(f"{key}.prompts", test.prompts, FEW)
    changes.set("evaluation.prompts", min(config.evaluation.prompts or FEW, FEW))
    if isinstance(config.data.holdout, int):
        changes.most("data.holdout", config.data.holdout, ROWS // 4)


def _verifiers(config: Config, values: dict[str, Any], changes: _Changes) -> None:
    """One more verifier, so that there is something to learn: a random model is never right."""
    scorer = {"name": SCORER, "label": LABEL, "weight": 1.0}
    values["verifiers"] = [*values["verifiers"], scorer]
    changes.made.append(
        Change(
            "verifiers",
            len(config.verifiers),
            len(config.verifiers) + 1,
            "arbitrary scores beside yours, to learn from",
        )
    )
    for key, source in config.data.sources():
        if source.verifiers:
            changes.set(f"{key}.verifiers", [*source.verifiers, LABEL])


def _course(config: Config, changes: _Changes) -> None:
    for key, value in (("steps", FEW), ("epochs", None), ("data.mix.until", "forever")):
        changes.set(key, value)
    if config.learner.lr < RATE:
        changes.set("learner.lr", RATE, "so that a step moves weights that bfloat16 can tell apart")

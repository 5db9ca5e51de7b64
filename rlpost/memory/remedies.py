"""What to change where a GPU has not the room: the first key that would do, with the value it would do with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rlpost.config import Config
from rlpost.memory.holders import GIB, Holder, Memory

Measure = Callable[[Config], Memory]


def problems(config: Config, measure: Measure, found: Memory) -> list[str]:
    """What of a plan does not fit, each as a sentence with the key to change.

    Args:
        measure: what another configuration takes.
        found: what this one takes.
    """
    said = []
    for holder in found.gpus:
        if holder.fits:
            continue
        fix = _first_that_fits(config, measure, holder.name)
        said.append(f"{_what(config, holder)}: {fix}")
    cache = found.cache
    if cache is not None and cache.size is not None and (cache.sequences or 0) < 1:
        said.append(
            f"rollout.gpu_memory_utilization: {config.rollout.gpu_memory_utilization} of a GPU leaves an engine "
            f"{cache.size / GIB:.1f} GiB for keys and values, and one sequence of {cache.tokens:,} tokens takes "
            f"{cache.sequence / GIB:.1f}: {_first_that_serves(config, measure)}"
        )
    return said


def _what(config: Config, holder: Holder) -> str:
    """What does not fit, by the key that asks for most of it."""
    phase = holder.peak
    room = holder.room or 0.0
    parts = sorted(holder.phases[phase].items(), key=lambda part: -part[1])
    largest = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts[:3])
    return (
        f"{_key(config, holder)}: {holder.name} takes {holder.most / GIB:.1f} GiB in phase {phase} ({largest}) and has "
        f"{room / GIB:.1f}"
    )


def _key(config: Config, holder: Holder) -> str:
    if "engine" in holder.name or "both" in holder.name:
        return f"rollout.gpu_memory_utilization {config.rollout.gpu_memory_utilization}"
    if holder.peak in ("logits", "layers"):
        return f"learner.tokens_per_micro_batch {config.learner.tokens_per_micro_batch}"
    return f"learner.zero_stage {config.learner.zero_stage} on learner.ranks {config.learner.ranks}"


def _first_that_fits(config: Config, measure: Measure, name: str) -> str:
    """The first change alone that makes a holder fit; all of them up to the first that does; or that none does."""
    together, keys = config, []
    for key, value, changed in _changes(config):
        if _fits(measure(changed), name):
            return f"set {key}: {value}"
    for key, value, changed in _changes(together):
        together = _merged(together, config, changed)
        keys.append(f"{key}: {value}")
        if len(keys) > 1 and _fits(measure(together), name):
            return f"set {' and '.join(keys)}"
    return "take more ranks or larger GPUs"


def _fits(memory: Memory, name: str) -> bool:
    return all(h.fits for h in memory.gpus if h.name == name) and (
        memory.cache is None or memory.cache.size is None or (memory.cache.sequences or 0) >= 1
    )


def _changes(config: Config) -> Iterator[tuple[str, Any, Config]]:
    """Other values of keys that decide memory, those first that cost least of speed."""
    lo, ro = config.learner, config.rollout
    if config.cluster.colocate:
        for value in (0.7, 0.6, 0.5, 0.4, 0.3):
            if value < ro.gpu_memory_utilization:
                yield "rollout.gpu_memory_utilization", value, _with(config, "rollout", gpu_memory_utilization=value)
    if not lo.gradient_checkpointing:
        yield "learner.gradient_checkpointing", "true", _with(config, "learner", gradient_checkpointing=True)
    least = max(lo.row_tokens or 0, config.max_sequence_tokens)
    tokens = lo.tokens_per_micro_batch // 2
    while tokens >= least:
        value = tokens // least * least
        yield "learner.tokens_per_micro_batch", value, _with(config, "learner", tokens_per_micro_batch=value)
        tokens //= 2
    if lo.logits_chunk_tokens > 256:
        yield "learner.logits_chunk_tokens", 256, _with(config, "learner", logits_chunk_tokens=256)
    for stage in range(lo.zero_stage + 1, 4):
        if lo.ranks > 1:
            yield "learner.zero_stage", stage, _with(config, "learner", zero_stage=stage)
    if not lo.offload_optimizer:
        yield "learner.offload_optimizer", "true", _with(config, "learner", offload_optimizer=True)


def _first_that_serves(config: Config, measure: Measure) -> str:
    ro = config.rollout
    for value in (0.8, 0.85, 0.9, 0.92, 0.95):
        if value > ro.gpu_memory_utilization and _serves(
            measure(_with(config, "rollout", gpu_memory_utilization=value))
        ):
            return f"set rollout.gpu_memory_utilization: {value}"
    parallel = ro.tensor_parallel * 2
    while not config.cluster.colocate and parallel <= config.cluster.gpus_per_node:
        if _serves(measure(_with(config, "rollout", tensor_parallel=parallel))):
            return f"set rollout.tensor_parallel: {parallel}"
        parallel *= 2
    return "lower rollout.max_tokens, or take larger GPUs"


def _serves(memory: Memory) -> bool:
    return memory.cache is not None and (memory.cache.sequences or 0) >= 1 and all(h.fits for h in memory.gpus)


def _with(config: Config, section: str, **values: Any) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def _merged(together: Config, config: Config, changed: Config) -> Config:
    """`together` with what `changed` has otherwise than `config`."""
    update = {}
    for section in ("learner", "rollout"):
        was, now = getattr(config, section), getattr(changed, section)
        other = {
            name: getattr(now, name) for name in type(now).model_fields if getattr(now, name) != getattr(was, name)
        }
        update[section] = getattr(together, section).model_copy(update=other)
    return together.model_copy(update=update)

"""What was sampled, scored and learned from: one Parquet file a step, one row a rollout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlpost import atomic
from rlpost.types import Prompt, Rollout, Status, Verdict

# What a rollout is made of, token by token, and its text with special tokens.
TOKENS = {
    "response_raw": pa.string(),
    "prompt_ids": pa.list_(pa.int32()),
    "response_ids": pa.list_(pa.int32()),
    "logprobs": pa.list_(pa.float32()),
    "versions": pa.list_(pa.int32()),
}
SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("group", pa.int64(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("reference", pa.string()),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("response_tokens", pa.int32(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("reward", pa.float64()),
        pa.field("status", pa.string()),
        pa.field("verdicts", pa.string(), nullable=False),
        pa.field("advantage", pa.float64()),
        pa.field("learned", pa.bool_(), nullable=False),
        pa.field("version_min", pa.int64()),
        pa.field("version_max", pa.int64()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("logprob_sum", pa.float64(), nullable=False),
        *(pa.field(name, kind, nullable=False) for name, kind in TOKENS.items()),
    ]
)


def write_rollouts(
    path: Path,
    rollouts: Sequence[Rollout],
    prompts: Mapping[str, Prompt],
    advantages: Sequence[float | None],
    learned: Sequence[bool],
    step: int,
) -> None:
    """Write the rollouts of one step, atomically, with the columns of `SCHEMA`.

    Args:
        prompts: by `Prompt.id`; must hold every rollout's prompt.
        advantages: one a rollout; None where there is none (a sample that is not usable).
        learned: one a rollout, whether it entered the loss.

    `response` is the text without special tokens, `response_raw` with them; `logprobs` are of the distribution sampled
    from and `versions` the weights that sampled, both one a token of `response_ids`.
    `reference` and `verdicts` are JSON; a value JSON cannot hold is written as its text. `status` is null before
    scoring; of several verdicts it is "unverified" if any is, "correct" or "wrong" if all are, else "partial".

    Raises:
        ValueError: if the lengths differ or a prompt is missing.
    """
    if not len(rollouts) == len(advantages) == len(learned):
        raise ValueError(
            f"{path.name}: {len(rollouts)} rollouts but {len(advantages)} advantages and {len(learned)} learned flags"
        )
    missing = sorted({r.prompt_id for r in rollouts} - set(prompts))
    if missing:
        raise ValueError(f"{path.name}: {len(missing)} rollouts' prompts are not given, the first is {missing[0]!r}")
    rows = [
        _row(rollout, prompts[rollout.prompt_id], advantage, was_learned, step)
        for rollout, advantage, was_learned in zip(rollouts, advantages, learned, strict=True)
    ]
    with atomic.replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary, compression="zstd")


def read_rollouts(path: Path) -> pa.Table:
    """The rollouts of one step as a table with the columns of `SCHEMA`."""
    return pq.read_table(path, schema=SCHEMA)


def combined_status(verdicts: Mapping[str, Verdict]) -> Status | None:
    """One word for all verdicts of a rollout; None when there are none."""
    statuses = {verdict.status for verdict in verdicts.values()}
    if not statuses:
        return None
    if "unverified" in statuses:
        return "unverified"
    return statuses.pop() if len(statuses) == 1 else "partial"


def _row(rollout: Rollout, prompt: Prompt, advantage: float | None, learned: bool, step: int) -> dict[str, Any]:
    has_tokens = len(rollout.response_ids) > 0
    return {
        "step": step,
        "group": rollout.group,
        "sample": rollout.sample,
        "prompt_id": rollout.prompt_id,
        "prompt": prompt.text,
        "response": rollout.text,
        "reference": None if prompt.reference is None else json.dumps(prompt.reference, default=str),
        "prompt_tokens": len(rollout.prompt_ids),
        "response_tokens": len(rollout.response_ids),
        "finish_reason": rollout.finish_reason,
        "reward": None if rollout.reward is None else float(rollout.reward),
        "status": combined_status(rollout.verdicts),
        "verdicts": json.dumps({name: _verdict(v) for name, v in rollout.verdicts.items()}, default=str),
        "advantage": None if advantage is None else float(advantage),
        "learned": bool(learned),
        "version_min": int(rollout.versions.min()) if has_tokens else None,
        "version_max": int(rollout.versions.max()) if has_tokens else None,
        "seed": rollout.seed,
        "logprob_sum": float(rollout.logprobs.sum(dtype=np.float64)),
        "response_raw": rollout.text if rollout.raw is None else rollout.raw,
        "prompt_ids": rollout.prompt_ids,
        "response_ids": rollout.response_ids,
        "logprobs": rollout.logprobs,
        "versions": rollout.versions,
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    score = None if verdict.score is None else float(verdict.score)
    said = {"status": verdict.status, "score": score, "reason": verdict.reason, "extracted": verdict.extracted}
    # Why there is no verdict is what one looks for; what a verifier adds to a verdict it reached may be long.
    return {**said, "details": dict(verdict.details)} if verdict.status == "unverified" else said

"""`rlpost export`: a checkpoint's weights as a Hugging Face model, compared before it is called done."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlpost import checkpoint
from rlpost.config import ConfigError, load
from rlpost.exit_codes import DONE, FAULT
from rlpost.models.load import load_causal_lm
from rlpost.models.source import ModelSource
from rlpost.observe import RunFolder
from rlpost.observe.console import Console

# Largest difference of a log-prob between the learner that saved and the model that was loaded.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15}


def run(path: Path, to: Path, step: int | Literal["best"] | None, check: str) -> int:
    """Export and compare. The folder appears only when every comparison holds."""
    if check not in ("transformers", "vllm", "both"):
        raise ConfigError(f"--check {check!r} must be transformers, vllm or both")
    if to.exists():
        raise ConfigError(f"--to {to} is there already: name a new folder")
    folder = RunFolder.open(path)
    config = load([folder.config])
    console = Console("plain", 0)
    saved = checkpoint.Store(folder.checkpoints, folder.run_id).choose(step, console.warn, config.checkpoint.best)
    probe = json.loads((saved.path / "probe.json").read_text())
    draft = to.with_name(f".{to.name}-{uuid.uuid4().hex[:8]}")
    try:
        shutil.copytree(saved.model, draft)
        (draft / "README.md").write_text(
            f"Exported by rlpost from run {folder.read_manifest()['run_id']}, step {saved.step}.\n"
        )
        for name, difference_by in (("transformers", by_transformers), ("vllm", by_vllm)):
            if check not in (name, "both"):
                continue
            difference = difference_by(ModelSource.of(config.model, str(draft)), probe, config.model.dtype)
            console.info(f"{name}: largest log-prob difference from the learner {difference:.2e}")
            if not difference <= TOLERANCE[config.model.dtype]:
                print(
                    f"rlpost: {name} loads another model than was saved: log-probs differ by {difference:.3g}, more "
                    f"than {TOLERANCE[config.model.dtype]:g}; nothing was written to {to}",
                    flush=True,
                )
                return FAULT
        draft.rename(to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    console.info(f"exported step {saved.step} to {to}")
    return DONE


def by_transformers(model: ModelSource, probe: dict[str, Any], dtype: str) -> float:
    """Largest difference of a log-prob between the learner that saved and plain transformers, over the probe."""
    (found,) = transformers_logp(model, probe, dtype, [probe["temperature"]])
    return _largest(_saved(probe), found)


def by_vllm(model: ModelSource, probe: dict[str, Any], dtype: str) -> float:
    """The same for vLLM, whose log-probs of a prompt know no temperature.

    Where the learner's were taken at another than 1, they are compared with transformers', and these at 1 with vLLM's.
    """
    found = vllm_logp(model, probe, dtype)
    if probe["temperature"] == 1:
        return _largest(_saved(probe), found)
    as_saved, plain = transformers_logp(model, probe, dtype, [probe["temperature"], 1.0])
    return max(_largest(_saved(probe), as_saved), _largest(plain, found))


def _saved(probe: dict[str, Any]) -> list[np.ndarray]:
    return [np.array(s["logp"]) for s in probe["sequences"]]


def _largest(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def transformers_logp(
    model: ModelSource, probe: dict[str, Any], dtype: str, temperatures: Sequence[float]
) -> list[list[np.ndarray]]:
    """By temperature, log-probs of the probe's responses by plain transformers, one sequence at a time."""
    import torch

    loaded = load_causal_lm(model, getattr(torch, dtype)).eval()
    found: list[list[np.ndarray]] = [[] for _ in temperatures]
    with torch.no_grad():
        for s in probe["sequences"]:
            tokens = torch.tensor([s["prompt"] + s["response"]])
            logits = loaded(tokens).logits[0, :-1].float()
            for rows, temperature in zip(found, temperatures, strict=True):
                logp = torch.log_softmax(logits / temperature, -1).gather(-1, tokens[0, 1:, None])[:, 0]
                rows.append(logp[len(s["prompt"]) - 1 :].numpy())
    return found


def vllm_logp(model: ModelSource, probe: dict[str, Any], dtype: str) -> list[np.ndarray]:
    """The same by vLLM, as log-probs of a prompt: at temperature 1."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    from vllm import LLM, SamplingParams

    longest = max(len(s["prompt"]) + len(s["response"]) for s in probe["sequences"])
    engine = LLM(
        model=str(model.folder()),
        trust_remote_code=model.trust_remote_code,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=longest + 1,
        skip_tokenizer_init=True,
    )
    outputs = engine.generate(
        [{"prompt_token_ids": s["prompt"] + s["response"]} for s in probe["sequences"]],
        SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False),
        use_tqdm=False,
    )
    found = []
    for s, output in zip(probe["sequences"], outputs, strict=True):
        start = len(s["prompt"])
        tokens = s["response"]
        entries = output.prompt_logprobs[start:]
        found.append(np.array([entry[t].logprob for entry, t in zip(entries, tokens, strict=True)]))
    return found

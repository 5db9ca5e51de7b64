"""`rlpost export`: a checkpoint's weights as a Hugging Face model, or its adapters, compared before it is called done."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from rlpost import checkpoint
from rlpost.config import ConfigError, DType, Model, load
from rlpost.exit_codes import DONE, FAULT
from rlpost.models.adapters import adapter_of
from rlpost.models.load import load_causal_lm
from rlpost.models.source import ModelSource
from rlpost.observe import RunFolder
from rlpost.observe.console import Console
from rlpost.weights import LEAST_SURVIVING

QUANTILE = 0.99


@dataclass(frozen=True)
class Difference:
    """Of log-probs, between the learner that saved and the model that was loaded, in nats.

    The largest says little in bfloat16: of text that a model finds improbable it is a matter of how many tokens there are,
    as a logit between 16 and 32 alone is rounded by up to 0.06 on each side.

    Attributes:
        mean: of its absolute value.
        high: the quantile of it at `QUANTILE`.
        largest: there is.
    """

    mean: float
    high: float
    largest: float = 0.0

    @classmethod
    def between(cls, one: list[np.ndarray], other: list[np.ndarray]) -> Difference:
        found = np.concatenate([np.abs(a - b) for a, b in zip(one, other, strict=True)])
        return cls(float(found.mean()), float(np.quantile(found, QUANTILE)), float(found.max()))

    def worst(self, other: Difference) -> Difference:
        return Difference(max(self.mean, other.mean), max(self.high, other.high), max(self.largest, other.largest))

    def within(self, bound: Difference) -> bool:
        return self.mean <= bound.mean and self.high <= bound.high

    def __str__(self) -> str:
        return f"mean {self.mean:.2e}, {QUANTILE:.0%} below {self.high:.2e}, largest {self.largest:.2e}"


BOUNDS = {"float32": Difference(mean=2e-5, high=1e-4), "bfloat16": Difference(mean=0.05, high=0.5)}


def run(
    path: Path,
    to: Path,
    step: int | Literal["best"] | None,
    check: str,
    adapter: bool = False,
    dtype: str | None = None,
) -> int:
    """Export and compare. The folder appears only when every comparison holds.

    Args:
        adapter: write the adapters of a run with `model.lora`, in PEFT's format, instead of the weights they make.
        dtype: of the weights; that of the run by default.
    """
    if check not in ("transformers", "vllm", "both"):
        raise ConfigError(f"--check {check!r} must be transformers, vllm or both")
    if dtype not in (None, "float32", "bfloat16"):
        raise ConfigError(f"--dtype {dtype!r} must be float32 or bfloat16")
    if adapter and dtype is not None:
        raise ConfigError(
            f"--dtype {dtype} is of merged weights: adapters are written in float32; leave one of the two out"
        )
    if to.exists():
        raise ConfigError(f"--to {to} is there already: name a new folder")
    folder = RunFolder.open(path)
    config = load([folder.config])
    console = Console("plain", 0)
    saved = checkpoint.Store(folder.checkpoints, folder.run_id).choose(step, console.warn, config.checkpoint.best)
    probe = json.loads((saved.path / "probe.json").read_text())
    draft = to.with_name(f".{to.name}-{uuid.uuid4().hex[:8]}")
    wanted = cast(DType, dtype or config.model.dtype)
    bound = BOUNDS[wanted].worst(BOUNDS[config.model.dtype])
    try:
        _write(saved, draft, config.model, wanted, adapter, console)
        merged = adapter_of(saved.model) is not None and not adapter
        if not merged and (wrong := changed(saved.model, draft, wanted)):
            print(
                f"rlpost: {len(wrong)} tensors are not those that were saved, {wrong[0]} among them; nothing was written to "
                f"{to}: is the disk full, or damaged?",
                flush=True,
            )
            return FAULT
        (draft / "README.md").write_text(
            f"Exported by rlpost from run {folder.read_manifest()['run_id']}, step {saved.step}.\n"
        )
        for name, difference_by in (("transformers", by_transformers), ("vllm", by_vllm)):
            if check not in (name, "both"):
                continue
            difference = difference_by(ModelSource.of(config.model, str(draft)), probe, wanted)
            console.info(f"{name}: log-probs against the learner's: {difference}")
            if not difference.within(bound):
                print(
                    f"rlpost: {name} loads another model than was saved: log-probs differ ({difference}) by more than a "
                    f"mean of {bound.mean:g} or, {QUANTILE:.0%} of them, {bound.high:g}; nothing was written to {to}",
                    flush=True,
                )
                return FAULT
        draft.rename(to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    console.info(f"exported step {saved.step} to {to}")
    return DONE


def _write(
    saved: checkpoint.Checkpoint, draft: Path, model: Model, dtype: DType, adapter: bool, console: Console
) -> None:
    """What is to be exported, before it is compared."""
    found = adapter_of(saved.model)
    if found is None and adapter:
        raise ConfigError(f"--adapter: {saved.path} holds whole weights, not adapters (model.lora: null): leave it out")
    if (found is None and dtype == model.dtype) or adapter:
        shutil.copytree(saved.model, draft)
        return
    from rlpost.learner.merge import convert, merge_adapter

    if found is None:
        convert(saved.model, draft, model, dtype)
        return
    share = merge_adapter(saved.model, draft, model, dtype)
    for template in saved.model.glob("chat_template*"):  # that it was trained with, where it is not the base's own
        shutil.copy(template, draft)
    if share is None:
        console.info("the adapters have not moved: these are the weights of the base")
        return
    console.info(f"merged into {dtype}: {share:.3f} of what was trained survives")
    if share < LEAST_SURVIVING:
        raise ConfigError(
            f"--dtype {dtype}: only {share:.3f} of what was trained would survive in merged weights of {dtype} (at least "
            f"{LEAST_SURVIVING:g} must): it is smaller than what they are rounded to. Export with --adapter, or --dtype float32"
        )


def changed(saved: Path, exported: Path, dtype: DType) -> list[str]:
    """Names of tensors of which not the bits were exported that were saved, rounded to `dtype` where that is asked for."""
    import torch

    wide = (getattr(torch, dtype), torch.float32)  # some of a model's tensors stay in float32 whatever its dtype
    wrong: list[str] = []
    with _opened(saved) as before, _opened(exported) as after:
        for name in sorted({*before, *after}):
            if name not in before or name not in after:
                wrong.append(name)
                continue
            old, new = before[name].get_tensor(name), after[name].get_tensor(name)
            same = old.shape == new.shape and new.dtype in (old.dtype, *wide)
            if not same or not torch.equal(*(t.to(new.dtype).contiguous().view(torch.uint8) for t in (old, new))):
                wrong.append(name)
    return wrong


@contextmanager
def _opened(folder: Path) -> Iterator[dict[str, Any]]:
    """By name of a tensor, the open file that holds it: of a model, or of adapters."""
    from safetensors import safe_open

    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(file, "pt")) for file in sorted(folder.glob("*.safetensors"))]
        yield {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping


def by_transformers(model: ModelSource, probe: dict[str, Any], dtype: str) -> Difference:
    """Of the learner that saved and plain transformers, over the probe."""
    (found,) = transformers_logp(model, probe, dtype, [probe["temperature"]])
    return Difference.between(_saved(probe), found)


def by_vllm(model: ModelSource, probe: dict[str, Any], dtype: str) -> Difference:
    """The same for vLLM, whose log-probs of a prompt know no temperature.

    Where the learner's were taken at another than 1, they are compared with transformers', and these at 1 with vLLM's.
    """
    found = vllm_logp(model, probe, dtype)
    if probe["temperature"] == 1:
        return Difference.between(_saved(probe), found)
    as_saved, plain = transformers_logp(model, probe, dtype, [probe["temperature"], 1.0])
    return Difference.between(_saved(probe), as_saved).worst(Difference.between(plain, found))


def _saved(probe: dict[str, Any]) -> list[np.ndarray]:
    return [np.array(s["logp"]) for s in probe["sequences"]]


def transformers_logp(
    model: ModelSource, probe: dict[str, Any], dtype: str, temperatures: Sequence[float]
) -> list[list[np.ndarray]]:
    """By temperature, log-probs of the probe's responses by plain transformers, one sequence at a time."""
    import torch

    adapter = adapter_of(model.path)
    loaded: Any = load_causal_lm(adapter.source(model.trust_remote_code) if adapter else model, getattr(torch, dtype))
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, model.path)
    loaded.eval()
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
    from vllm.lora.request import LoRARequest

    from rlpost.rollout.adapters import served_rank

    longest = max(len(s["prompt"]) + len(s["response"]) for s in probe["sequences"])
    request, weights = None, model
    more: dict[str, Any] = {}
    if (adapter := adapter_of(model.path)) is not None:
        if adapter.lora.dora:
            raise ConfigError(
                "vLLM serves no DoRA adapters: export merged weights (without --adapter), or --check transformers"
            )
        request, weights = LoRARequest("exported", 1, model.path), adapter.source(model.trust_remote_code)
        more = {
            "enable_lora": True,
            "max_lora_rank": served_rank(adapter.lora.rank),
            # Else vLLM 0.30 wraps the head too, which then takes no more rows than there are sequences: a prompt has more.
            "lora_target_modules": adapter.modules(),
        }
    engine = LLM(
        model=str(weights.folder()),
        trust_remote_code=model.trust_remote_code,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=longest + 1,
        skip_tokenizer_init=True,
        **more,
    )
    outputs = engine.generate(
        [{"prompt_token_ids": s["prompt"] + s["response"]} for s in probe["sequences"]],
        SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False),
        use_tqdm=False,
        lora_request=request,
    )
    found = []
    for s, output in zip(probe["sequences"], outputs, strict=True):
        start = len(s["prompt"])
        tokens = s["response"]
        entries = output.prompt_logprobs[start:]
        found.append(np.array([entry[t].logprob for entry, t in zip(entries, tokens, strict=True)]))
    return found

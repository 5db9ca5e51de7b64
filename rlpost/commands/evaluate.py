"""`rlpost eval`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlpost import checkpoint, cluster, device
from rlpost.atomic import write_json
from rlpost.config import Config, ConfigError, DType, load, parse
from rlpost.data import PromptSets, load_prompts
from rlpost.exit_codes import DONE
from rlpost.models.adapters import adapter_of
from rlpost.models.facts import outline_of
from rlpost.models.fits import check_length
from rlpost.models.load import load_tokenizer
from rlpost.models.source import ModelSource
from rlpost.observe import RunFolder
from rlpost.observe.console import Console
from rlpost.rollout.request import Sampling
from rlpost.rollout.sampler import GroupSampler
from rlpost.run.evaluation import by_name, evaluate, pass_at
from rlpost.run.inputs import check_verifiers
from rlpost.types import Prompt
from rlpost.user_code import nearest
from rlpost.verify import open_pool
from rlpost.verify.references import checker


@dataclass(frozen=True)
class Request:
    """The command line of `rlpost eval`."""

    target: str
    step: int | Literal["best"] | None
    k: list[int]
    data: Path | None
    prompt: str
    reference: str
    verifier: str | None
    config: Path | None
    samples: int | None
    seeds: list[int]
    temperature: float
    top_p: float
    max_tokens: int | None
    limit: int | None
    out: Path | None
    on: str = "test"
    set_name: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False


def run(request: Request) -> int:
    """Evaluate, print a table, write JSON."""
    samples = request.samples or max(request.k)
    if samples < max(request.k) or min(request.k) < 1:
        raise ConfigError(f"--samples {samples} must be at least the largest --k {max(request.k)}, and k at least 1")
    model, config, run_folder = _resolve(request)
    sampling = Sampling(request.temperature, config.rollout.max_tokens, request.top_p, tuple(config.rollout.stop))
    console = Console("plain", 0)
    started = time.monotonic()
    check_verifiers(config)
    base = str(config.model.path)  # where `model` is of adapters, the weights below them
    tokenizer = load_tokenizer(ModelSource.of(config.model))
    sets = load_prompts(config.data, tokenizer, config.seed, checker(config.verifiers, config.verifier_pool))
    on, asked = _asked(request, sets)
    outline = outline_of(config.model)
    asked = {name: prompts[: request.limit] for name, prompts in asked.items()}
    said = {"test": "held-out prompts", "train": "prompts of data.train, which are learned from", "data": "prompts"}[on]
    for name, prompts in asked.items():
        of = f" of {name}" if name else ""
        console.info(f"{model}: {len(prompts)} {said}{of} x {samples} samples x {len(request.seeds)} seed(s)")

    from rlpost.learner.merge import merge_adapter
    from rlpost.run.adapters import saved_adapter
    from rlpost.run.failed import starting
    from rlpost.run.lost import accounted
    from rlpost.run.start import Engines

    own = config.test_sets if on == "test" and request.max_tokens is None else {}
    limits = {name: own[name].max_tokens if name in own else config.rollout.max_tokens for name in asked}
    # As long as these prompts need, and no longer: a model may hold less than the configuration allows for.
    longest = max(len(p.token_ids) + limits[name] for name, prompts in asked.items() for p in prompts)
    check_length(outline.positions, outline.where, longest, "the longest prompt + --max-tokens or rollout.max_tokens")
    judges = {name: [*prompts[0].verifiers, config.verifiers[0].label][0] for name, prompts in asked.items()}
    per_seed: dict[int, dict[str, Any]] = {}
    correct: dict[str, list[list[bool]]] = {name: [[] for _ in prompts] for name, prompts in asked.items()}
    unverified = 0
    connected, verifying = cluster.connected(config), open_pool(config.verifiers, config.verifier_pool)
    with connected, verifying as pool, ExitStack() as stack:

        def merged(dtype: DType) -> str:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlpost-merged-")))
            merge_adapter(Path(model), folder, config.model, dtype)
            return str(folder)

        engines = Engines(config, base, cluster.place(config, cluster.ENGINES), longest, merged)
        stack.callback(engines.shutdown)
        with starting("the engines", config, "rollout", "model"), accounted(engines.fleet.crew):
            engines.ready()
        fleet = engines.fleet
        fleet.says(lambda who, what: print(f"{who}: {what}", file=sys.stderr))
        stack.enter_context(accounted(fleet.crew))
        if fleet.spec.adapters is not None:
            fleet.load_adapters(*saved_adapter(Path(model), fleet.dtype, version=1), version=1)
        sampler = GroupSampler(fleet, pool, config.seed, config.rollout.deadline)
        for seed in request.seeds:
            intervals: dict[str, tuple[float, float, float]] = {}
            for name, prompts in asked.items():
                how = replace(sampling, max_tokens=limits[name])
                found = evaluate(
                    sampler, prompts, samples, request.k, how, seed, judges[name], config.alarms, name=name
                )
                if found.caveat:
                    console.warn(f"seed {seed}: {found.caveat}")
                intervals |= by_name({name: found.intervals})
                correct[name] = [a + b for a, b in zip(correct[name], found.correct, strict=True)]
                unverified += found.unverified
            per_seed[seed] = {name: list(value) for name, value in intervals.items()}
            console.evaluation(f"seed {seed}", intervals)
    pooled = by_name({name: pass_at(mine, request.k) for name, mine in correct.items()})
    if len(request.seeds) > 1:
        console.evaluation("all seeds", pooled)
        for name in pooled:
            values = [v[name][0] for v in per_seed.values()]
            console.info(f"{name}: spread over seeds {np.std(values, ddof=1):.4f} (standard deviation)")
    written = {
        "model": model,
        "on": on,
        "pass": {name: list(value) for name, value in pooled.items()},
        "seeds": {str(seed): value for seed, value in per_seed.items()},
        "prompts": sum(map(len, asked.values())),
        "samples_per_prompt": samples,
        "unverified": unverified,
        "prompts_left_out": sum(len(known) < max(request.k) for mine in correct.values() for known in mine),
        "verifier": _alone(judges),
        "decoding": {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": _alone(limits),
            "stop": list(sampling.stop),
            "dtype": fleet.dtype,
        },
        "seconds": time.monotonic() - started,
    }
    out = request.out or (
        run_folder.path / f"eval-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json" if run_folder else None
    )
    if out is not None:
        write_json(out, written)
        console.info(f"results  {out}")
    else:
        print(json.dumps(written))
    return DONE


def _alone(by_set: dict[str, Any]) -> Any:
    """What holds for the test set without a name; by name where there are several."""
    return by_set[""] if list(by_set) == [""] else by_set


def _asked(request: Request, sets: PromptSets) -> tuple[str, dict[str, list[Prompt]]]:
    """What is evaluated on, "test", "train" or "data" (a file of the command line), and its prompts by set."""
    if request.data is not None:
        if request.on != "test":
            raise ConfigError(f"--on {request.on} and --data {request.data} both say on what to evaluate: give one")
        on, found = "data", {"": sets.train}
    elif request.on not in ("test", "train"):
        raise ConfigError(f"--on {request.on}: must be test (held-out prompts) or train")
    elif request.on == "train":
        on, found = "train", sets.by_source
    elif not sets.test:
        raise ConfigError(
            f"{request.config or request.target} has no test set: its configuration has neither data.test nor "
            "data.holdout. Give --data FILE or --config FILE, or evaluate on what is learned from by --on train"
        )
    else:
        on, found = "test", sets.tests
    if request.set_name is None:
        return on, found
    if request.set_name not in found:
        named = ", ".join(filter(None, found)) or "one set, which has no name"
        raise ConfigError(
            f"--set {request.set_name}: no set of that name{nearest(request.set_name, found)} (there is {named})"
        )
    return on, {request.set_name: found[request.set_name]}


def _resolve(request: Request) -> tuple[str, Config, RunFolder | None]:
    """The model to load, the configuration that says on what and how, and the run it belongs to."""
    folder = None
    if request.step is not None and not (Path(request.target) / "manifest.json").is_file():
        raise ConfigError(
            f"--step {request.step} chooses a checkpoint of a run, and {request.target} is no run's folder"
        )
    if (Path(request.target) / "manifest.json").is_file():
        folder = RunFolder.open(request.target)
        config = load([request.config or folder.config])
        best = load([folder.config]).checkpoint.best if request.step == "best" else None
        store = checkpoint.Store(folder.checkpoints, folder.run_id)
        model = str(store.choose(request.step, Console("plain", 0).warn, best).model)
    elif request.config is not None:
        model, config = request.target, load([request.config])
    elif request.data is not None and request.verifier is not None:
        model, config = request.target, None
    else:
        raise ConfigError(
            f"{request.target} is not a run: say on what to evaluate it, by --config FILE, or by --data FILE with "
            f"--prompt, --reference and --verifier"
        )
    values: dict[str, Any] = config.model_dump(mode="json") if config else {"model": {}, "learner": {}, "rollout": {}}
    if config is None:
        values["model"] = {"dtype": "float32" if not device.present() else "bfloat16"}
        # Room for a rank too, without which there is no configuration; none is started.
        values["cluster"] = {"gpus_per_node": 1, "colocate": True} if device.present() else {}
    adapter = adapter_of(model)
    base = adapter.base if adapter else model
    if base != values["model"].get("path"):
        values["model"]["revision"] = None  # of the weights a run started from
    values["model"] |= {"path": base, "create": None, "lora": adapter.lora.model_dump() if adapter else None}
    if adapter is not None:
        values["model"]["revision"] = adapter.revision
    if request.revision is not None:
        if folder is not None or adapter is not None:
            what = "a run" if folder is not None else "an adapter, which says itself what it is for"
            raise ConfigError(f"--revision {request.revision}: {request.target} is {what}: leave --revision out")
        values["model"]["revision"] = request.revision
    if request.trust_remote_code:
        values["model"]["trust_remote_code"] = True
    values["warmup"] = None
    values["routing"] = {"replay": "off"}  # nothing is learned: no routes are wanted, nor what they forbid refused
    if request.data is not None:
        kind = {".parquet": "parquet", ".json": "json"}.get(request.data.suffix, "jsonl")
        source = {"source": kind, "path": str(request.data), "prompt": request.prompt, "reference": request.reference}
        values["data"] = {**values.get("data", {}), "train": source, "test": None, "holdout": None}
        values["evaluation"] = {"before": False, "after": False}
    if request.verifier is not None:
        values["verifiers"] = [request.verifier]
        for part in filter(None, (values["data"].get("train"), values["data"].get("test"))):
            for source in [part] if isinstance(part.get("source"), str) else part.values():
                source["verifiers"] = None
    if request.max_tokens is not None:
        values["rollout"]["max_tokens"] = request.max_tokens
        needed = values.get("data", {}).get("max_prompt_tokens", 512) + request.max_tokens
        values["learner"] |= {"tokens_per_micro_batch": max(8192, needed), "row_tokens": None}
    config = parse(values, origin="rlpost eval")
    return model if adapter else str(config.model.path), config, folder

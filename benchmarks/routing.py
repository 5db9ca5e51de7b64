"""Engine and learner of a mixture of experts on the same tokens, with and without replayed routes.

    python benchmarks/routing.py --write docs/routing_replay.md

See benchmarks/README.md for what is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from experiments import HERE, LEVEL, ROOT, Spread, execute, positive
from rich.console import Console
from rich.table import Table

from rlpost import atomic
from rlpost.cluster import set_thread_environment
from rlpost.config import Config, dump, parse
from rlpost.config import load as load_config
from rlpost.observe import RunFolder
from rlpost.routing import admitted
from rlpost.types import Rollout, Sample

CONFIG = ROOT / "configs" / "moe_tiny_cpu.yaml"
DTYPES = ("float32", "bfloat16")
CAP = 2.0  # of truncated importance sampling
TAUS = (1.02, 1.1, 2.0)
OFF = 0.02  # of a token's probability
AIMS = {"kl": 2.0, "off": 5.0}  # R3 is to lower these at least so many times
COST = 0.03  # of throughput, that capture is to stay below

_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,  # vLLM 0.30 leaves the tied head of some of these at random weights, without a word
}
_QWEN = {**_SIZES, "num_experts": 16, "moe_intermediate_size": 64}
_SHARED = {
    **_SIZES,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**_QWEN, "head_dim": 32, "norm_topk_prob": True},
    "qwen2_moe": {**_QWEN, "shared_expert_intermediate_size": 64, "mlp_only_layers": [0], "norm_topk_prob": False},
    "mixtral": {**_SIZES, "intermediate_size": 64, "num_local_experts": 16},
    "olmoe": {**_SIZES, "intermediate_size": 64, "num_experts": 16},
    "glm4_moe": {**_SHARED, "n_group": 1, "topk_group": 1, "head_dim": 32},
    "deepseek_v3": {
        **_SHARED,
        "n_group": 4,
        "topk_group": 2,
        "num_key_value_heads": 4,
        "kv_lora_rank": 512,
        "q_lora_rank": 64,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
    },
    "gpt_oss": {
        **_SIZES,
        "intermediate_size": 64,
        "num_local_experts": 16,
        "head_dim": 32,
        "sliding_window": 64,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    },
}
WIDTHS = (  # what is taken times `--throughput-widths`
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)
CORRECTIONS = ("none", "tis", "r2", "r3", "r3_tis")
LABELS = {"none": "none", "tis": "TIS", "r2": "R2", "r3": "R3", "r3_tis": "R3 + TIS"}


# ------------------------------------------------------------------------------------------------------- what is said


def mismatch(engine: np.ndarray, learner: np.ndarray) -> dict[str, float]:
    """How far two policies are from each other on tokens that the first one sampled.

    Args:
        engine, learner: (M,) log-probs.

    Returns:
        `kl`, the mean of q - 1 - log q with q = learner / engine; `f<tau>`, the share of tokens with
        max(q, 1 / q) > tau (both arXiv 2510.11370, section 2); `off`, the share with probabilities that differ by more
        than 0.02; `max`, the largest |log q|.
    """
    log_q = np.subtract(learner, engine, dtype=np.float64)
    distance = np.abs(log_q)
    return {
        "kl": float(np.mean(np.expm1(log_q) - log_q)),
        **{f"f{tau:g}": float(np.mean(distance > math.log(tau))) for tau in TAUS},
        "off": float(np.mean(np.abs(np.exp(learner, dtype=np.float64) - np.exp(engine, dtype=np.float64)) > OFF)),
        "max": float(distance.max()),
    }


def weighting(engine: np.ndarray, learner: np.ndarray, lengths: np.ndarray, cap: float | None) -> dict[str, float]:
    """What weights on the engine's tokens leave of the mismatch in a mean over them, and what they cost.

    With rho = learner / engine a token is weighed with W = min(rho, cap), or with 1 where there is no cap.

    Args:
        engine, learner: (M,) log-probs, of the tokens of all responses end to end.
        lengths: (responses,), tokens of each.

    Returns:
        `left`, the mean of W (r - 1 - log r) with r = rho / W: the KL that the weights do not account for, all of it
        without weights; `bias`, the mean of |W - rho|: rho would make the mean over tokens one under the learner, the
        prefix aside; `clipped`, the share with rho > cap; `ess`, the effective sample size (sum W)^2 / sum W^2 over the
        number of tokens; `ess_sequence`, that of whole responses, of weights that are the product of rho over their
        tokens, unbounded: what it would cost to count the prefix in.
    """
    log_rho = np.subtract(learner, engine, dtype=np.float64)
    rho = np.exp(log_rho)
    weights = np.ones_like(rho) if cap is None else np.minimum(rho, cap)
    rest = log_rho - np.log(weights)
    ends = np.cumsum(lengths)
    whole = np.diff(np.cumsum(log_rho)[ends - 1], prepend=0.0)
    return {
        "left": float(np.mean(weights * (np.expm1(rest) - rest))),
        "bias": float(np.mean(np.abs(weights - rho))),
        "clipped": 0.0 if cap is None else float(np.mean(rho > cap)),
        "ess": effective(weights),
        "ess_sequence": 1.0 if cap is None else effective(np.exp(whole - whole.max())),
    }


def effective(weights: np.ndarray) -> float:
    """Effective sample size over the number of samples: 1 with equal weights."""
    return float(weights.sum() ** 2 / (len(weights) * np.square(weights).sum()))


def differing(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Where two choices of experts, (tokens, layers, top_k), are not the same sets.

    Returns:
        shares: of (token, layer) pairs (`routings`), of tokens with such a layer (`tokens`), and `by_layer`.
    """
    differ = (np.sort(one, -1) != np.sort(other, -1)).any(-1)
    return {
        "routings": float(differ.mean()),
        "tokens": float(differ.any(1).mean()),
        "by_layer": [float(x) for x in differ.mean(0)],
    }


@dataclass(frozen=True)
class Lowered:
    """How many times something was lowered, by seed and over all.

    Attributes:
        pooled: ratio of the sums over seeds; None where both are zero, infinite where only the second is.
        mean, low, high: geometric mean of the seeds' ratios with its 95 % t-interval; None where a seed has a zero, or
            (the interval) where there is one seed.
        least, most: of the seeds' ratios.
        counted: for shares of tokens, the least pooled ratio that is likely: with as many tokens left as a mean could
            have that gives those seen with a probability of 5 %. None for what is no share.
    """

    pooled: float | None
    mean: float | None
    low: float | None
    high: float | None
    least: float | None
    most: float | None
    counted: float | None

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float], tokens: Sequence[int] | None = None) -> Lowered:
        """
        Args:
            before, after: by seed.
            tokens: by seed, what they are shares of; None when they are no shares.
        """
        if tokens is not None:  # seeds differ in length; pooled are counts
            before = [b * n for b, n in zip(before, tokens, strict=True)]
            after = [a * n for a, n in zip(after, tokens, strict=True)]
        counted = sum(before) / most_likely(round(sum(after))) if tokens is not None else None
        by_seed = zip(before, after, strict=True)
        ratios = [r for b, a in by_seed if (r := ratio(b, a)) is not None]
        pooled = ratio(sum(before), sum(after))
        least, most = min(ratios, default=None), max(ratios, default=None)
        if len(ratios) < len(before) or not all(0 < r < math.inf for r in ratios):
            return cls(pooled, None, None, None, least, most, counted)
        logs = Spread.of(math.log(r) for r in ratios)
        low, high = (None, None) if logs.half is None else (math.exp(logs.low), math.exp(logs.high))
        return cls(pooled, math.exp(logs.mean), low, high, least, most, counted)

    def text(self) -> str:
        if self.pooled is None:
            return "0 / 0"
        if self.mean is not None:
            interval = f", {self.low:.3g} to {self.high:.3g}" if self.low is not None else ""
            return f"{self.mean:.3g}{interval} (seeds {self.least:.3g} to {self.most:.3g})"
        likely = f", likely at least {self.counted:.3g}" if self.counted is not None else ""
        seeds = ", none left" if self.pooled == math.inf else f" (seeds {self.least:.3g} to {self.most:.3g})"
        return (f"{self.pooled:.3g} pooled" if self.pooled < math.inf else "∞") + likely + seeds

    def verdict(self, aim: float) -> str:
        """Whether it was lowered at least `aim` times: by the lower end of the interval, or of what counts allow."""
        if self.pooled is None:
            return "open: there was nothing to lower"
        if self.pooled < aim and (self.mean is None or self.mean < aim):
            return "not met"
        surely = self.low if self.mean is not None else self.counted
        if surely is None:
            return "met by this one seed: a spread is not known"
        return "met" if surely >= aim else f"met on average; by the spread it could be {surely:.3g}"


def most_likely(seen: int) -> float:
    """The mean of a Poisson distribution that gives `seen` or fewer with a probability of 5 %: 3.0 for none."""
    low, high = 0.0, 20.0 + 3.0 * seen
    for _ in range(100):
        mean = (low + high) / 2
        terms = (math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(seen + 1))
        low, high = (mean, high) if sum(terms) > 0.05 else (low, mean)
    return low


def ratio(before: float, after: float) -> float | None:
    """before / after; infinite when only `after` is zero, None when both are."""
    if after:
        return before / after
    return math.inf if before else None


# ---------------------------------------------------------------------------------------------------------- measuring
# Everything below that computes with a model runs in a process of its own, so that its memory is given back.


def child(config: Config) -> ProcessPoolExecutor:
    """A process that does one thing after the other, with the threads of the configuration; its output is in a log."""
    log = Path(config.runs_dir) / "logs" / "processes.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=_begin, initargs=(config.rollout.threads or 1, str(log))
    )


def _begin(threads: int, log: str) -> None:
    set_thread_environment(threads)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):  # below Python too: vLLM says a lot
        os.dup2(output, stream)


def random_model(config: Config, folder: str) -> None:
    """A model with random weights whose routers neither take all experts alike nor always the same ones."""
    import torch

    from rlpost.learner.replay import find_routers
    from rlpost.models.create import create_model
    from rlpost.models.load import load_causal_lm
    from rlpost.models.source import ModelSource

    assert config.model.create is not None
    spec = config.model.create.model_copy(update={"seed": config.seed})
    spec = spec.model_copy(update={"config": {**spec.config, "initializer_range": 0.1}})
    draft = Path(folder + ".draft")
    create_model(spec, draft)
    model = load_causal_lm(ModelSource(str(draft)), torch.float32)
    torch.manual_seed(config.seed)
    with torch.no_grad():
        for router in find_routers(model).values():
            router.weight.normal_(std=2 / math.sqrt(router.weight.shape[1]))  # logits of about +-2
    model.save_pretrained(draft)
    draft.rename(folder)


_engine: Any = None
_groups = itertools.count()


def open_engine(config: Config, folder: str, capture: bool) -> dict[str, Any]:
    """Load the real engine into this process. Returns its `routing` (`Engine.start`)."""
    global _engine
    from rlpost.rollout.engine import Engine
    from rlpost.run.start import engine_spec

    _engine = Engine(replace(engine_spec(config, folder), capture_routes=capture))
    return dict(_engine._load())


def prompts_of(config: Config, folder: str, count: int) -> list[np.ndarray]:
    """int32, the first held-out prompts."""
    from rlpost.data import load_prompts
    from rlpost.models.load import load_tokenizer
    from rlpost.models.source import ModelSource

    tokenizer = load_tokenizer(ModelSource(folder))
    return [p.token_ids for p in load_prompts(config.data, tokenizer, config.seed).test[:count]]


def sample(prompts: Sequence[np.ndarray], samples: int, tokens: int, seed: int) -> tuple[list[Rollout], float]:
    """Rollouts, and the seconds until the last was there; the engine's steps are taken in this thread."""
    from rlpost.rollout.request import SampleRequest, Sampling, sample_seed

    futures: list[Future[list[Rollout]]] = [Future() for _ in prompts]
    began = time.perf_counter()
    for number, (ids, future) in enumerate(zip(prompts, futures, strict=True)):
        seeds = tuple(sample_seed(seed, 1, str(number), i) for i in range(samples))
        request = SampleRequest(str(number), next(_groups), ids, seeds, Sampling(1.0, tokens), 3600.0)
        _engine._submit(request, future)
    while not all(f.done() for f in futures):
        for output in _engine._engine.step():
            _engine._collect(output)
    return [r for f in futures for r in f.result(0)], time.perf_counter() - began


def learner_view(config: Config, folder: str, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """What the learner's policy says of the engine's tokens, and how it routes them.

    Returns:
        `logp`, by replay ("none", "r2", "r3") float32 (response tokens,); `engine`, the engine's log-probs; `lengths` of
        the responses; `differ`, the engine's choice against the learner's own (`differing`).
    """
    import torch

    from rlpost.learner.batch import Batch
    from rlpost.learner.logprobs import Policy
    from rlpost.learner.model import load_model
    from rlpost.learner.replay import Replay
    from rlpost.models.source import ModelSource

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = load_model(ModelSource(folder), config.model, trainable=False)
    policy = Policy(model, config.learner.logits_chunk_tokens, Replay(model))
    batch = Batch.from_samples([Sample.on_policy(r) for r in rollouts])
    assert batch.routes is not None
    assert batch.route_index is not None
    live, chosen = forward(config, policy, replace(batch, routes=None, route_index=None))
    known = batch.route_index >= 0
    return {
        "logp": {
            "none": live,
            "r2": forward(config, policy, batch.routed(chosen))[0],
            "r3": forward(config, policy, batch)[0],
        },
        "engine": batch.behavior_logp,
        "lengths": batch.response_lengths,
        "differ": differing(batch.routes[batch.route_index[known]], chosen[known]),
    }


def forward(config: Config, policy: Any, batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """The policy's log-probs of the response tokens and the experts it used for all tokens, in the batch's order.

    As `rlpost.learner.rank` makes them, without DeepSpeed around the model, which changes nothing in a forward.
    """
    import torch

    from rlpost.learner.batch import make_grid, plan

    lo, logp, used = config.learner, {}, {}
    micro_batches = plan(batch.lengths, 1, lo.layout, lo.tokens_per_micro_batch, lo.row_tokens)[0]
    with torch.no_grad():
        for micro in micro_batches:
            grid = make_grid(batch, micro, pad_id=0)
            routes = grid.routes if grid.routes is not None else grid.live(policy.replay)
            said = policy(
                grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 1.0, routes=routes, record=True
            )
            wide = grid.spread(said.logp).float().numpy()
            experts = policy.routers.recorded[grid.real].numpy()
            parts = np.split(experts, np.cumsum(batch.lengths[micro.sequences])[:-1])
            for b, i in enumerate(micro.sequences):
                logp[i], used[i] = wide[b, : batch.response_lengths[i]], parts[b]
    order = range(len(batch))
    return np.concatenate([logp[i] for i in order]), np.concatenate([used[i] for i in order])


# --------------------------------------------------------------------------------------------------------- a family


def family_config(family: str, seed: int, arguments: argparse.Namespace, width: int = 1) -> Config:
    """The run of `configs/moe_tiny_cpu.yaml` with another model, `width` times as wide as the family's own."""
    values = load_config([CONFIG]).model_dump(mode="json")
    sizes = {k: v * width if k in WIDTHS else v for k, v in FAMILIES[family].items()}
    values["model"]["create"]["config"] = {"model_type": family, **sizes}
    if family == "gpt_oss":  # transformers' own has attention sinks in its eager attention alone
        values["model"]["attention"], values["learner"]["layout"] = "eager", "padded"
    values["warmup"]["steps"] = arguments.warmup_steps
    values["data"]["test"]["size"] = arguments.prompts
    values["rollout"] |= {"samples_per_prompt": arguments.samples, "max_tokens": arguments.tokens}
    values |= {"seed": seed, "runs_dir": str(arguments.runs_dir.expanduser().resolve())}
    for part in ("rollout", "learner"):
        values[part]["threads"] = arguments.threads
    return parse(values, origin=f"the configuration for {family}")


def make_model(
    config: Config, family: str, start: str, arguments: argparse.Namespace, say: Callable[[str], None]
) -> str:
    """Folder of the model: random, or warmed up by `rlpost sft`. One that is there already is taken."""
    shape = {"model": True, "warmup": True, "data": True, "seed": True}
    digest = hashlib.sha256(config.model_dump_json(include=shape).encode()).hexdigest()[:12]
    name = f"routing-{family}-{config.seed}-{start}-{digest}"
    folder = RunFolder(Path(config.runs_dir) / name)
    model = folder.path / "model"
    if (model / "config.json").is_file():
        return str(model)
    shutil.rmtree(folder.path, ignore_errors=True)
    say(f"{family}, seed {config.seed}: making the model")
    if start == "random":
        folder.path.mkdir(parents=True)
        with child(config) as process:
            process.submit(random_model, config, str(model)).result()
        return str(model)
    file = folder.path.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dump(config))
    execute(["sft", str(file), f"name={name}"], file.parent / "logs" / f"{name}.log", arguments.deadline)
    return str(model)


def measured(family: str, seed: int, arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All numbers of a family and a seed; those of the throughput with seed 0 alone."""
    config = family_config(family, seed, arguments)
    folder = make_model(config, family, arguments.start, arguments, say)
    found: dict[str, Any] = {"family": family, "seed": seed}
    with child(config) as engine:
        started = engine.submit(open_engine, config, folder, True).result()
        prompts = engine.submit(prompts_of, config, folder, arguments.prompts).result()
        say(f"{family}, seed {seed}: sampling")
        rollouts, _ = engine.submit(sample, prompts, arguments.samples, arguments.tokens, seed).result()
    if seed == 0 and arguments.repeats:
        found["throughput"] = {}
        for width in arguments.throughput_widths:
            wide = family_config(family, seed, arguments, width)
            path = make_model(wide, family, arguments.start if width == 1 else "random", arguments, say)
            size = FAMILIES[family]["hidden_size"] * width
            say(f"{family}, width {size}: throughput")
            found["throughput"][size] = throughput(wide, path, arguments)
    samples = [Sample.on_policy(replace(r, reward=0.0)) for r in rollouts]
    _, metrics = admitted(samples, "live")
    found |= {
        "routing": started["routing"],
        "tokens": sum(len(r.response_ids) for r in rollouts),
        "coverage": metrics["routing/coverage"],
        "bytes_per_token": metrics["routing/bytes_per_token"],
    }
    for dtype in DTYPES:
        say(f"{family}, seed {seed}: learner in {dtype}")
        theirs = config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
        with child(config) as learner:
            view = learner.submit(learner_view, theirs, folder, rollouts).result()
        found[dtype] = numbers(view)
    return found


def numbers(view: Mapping[str, Any]) -> dict[str, Any]:
    """By correction, the mismatch and what weights do of it; and how routes differ."""
    logp, engine = view["logp"], view["engine"]
    made: dict[str, Any] = {"differ": view["differ"]}
    for name in CORRECTIONS:
        replayed = {"tis": "none", "r3_tis": "r3"}.get(name, name)
        cap = CAP if name.endswith("tis") else None
        made[name] = {
            **mismatch(engine, logp[replayed]),
            **weighting(engine, logp[replayed], view["lengths"], cap),
        }
    made["r2_moves"] = float(np.abs(logp["r2"] - logp["none"]).max())
    return made


def throughput(config: Config, folder: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens a second of two engines in turns, the first one each time the other than before.

    Returns:
        `on`, `off`: with capture and without, by repeat; the first round is not counted.
    """
    rates: dict[str, list[float]] = {"on": [], "off": []}
    with child(config) as capturing, child(config) as plain:
        engines = {"on": capturing, "off": plain}
        for name, engine in engines.items():
            engine.submit(open_engine, config, folder, name == "on").result()
        prompts = plain.submit(prompts_of, config, folder, arguments.prompts).result()
        for repeat in range(-1, arguments.repeats):
            for name in ("on", "off") if repeat % 2 else ("off", "on"):
                job = engines[name].submit(sample, prompts, arguments.samples, arguments.tokens, 1000 + repeat)
                rollouts, seconds = job.result()
                if repeat >= 0:
                    rates[name].append(sum(len(r.response_ids) for r in rollouts) / seconds)
    return rates


# ------------------------------------------------------------------------------------------------------------ report

COLUMNS = {
    "kl": "KL",
    **{f"f{tau:g}": f"F({tau:g})" for tau in TAUS},
    "off": f"off by > {OFF:g}",
    "max": "max abs Δ log p",
    "left": "KL left",
    "bias": "bias",
    "clipped": "clipped",
    "ess": "ESS, tokens",
    "ess_sequence": "ESS, responses",
}
Rows = list[list[str]]


class Report:
    """What was measured, as tables and sentences."""

    def __init__(self, cells: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> None:
        self.cells, self.arguments = cells, arguments
        self.families = list(dict.fromkeys(c["family"] for c in cells))

    def of(self, family: str) -> list[Mapping[str, Any]]:
        return [c for c in self.cells if c["family"] == family]

    def lowered(self, family: str, dtype: str, measure: str) -> Lowered:
        """How many times R3 lowers a measure."""
        cells = self.of(family)
        before, after = ([c[dtype][name][measure] for c in cells] for name in ("none", "r3"))
        share = measure == "off" or measure.startswith("f")
        return Lowered.of(before, after, [c["tokens"] for c in cells] if share else None)

    def tables(self) -> list[tuple[str, Rows]]:
        """(title, rows); the first row has the headings."""
        made = [
            (f"{family}: engine in bfloat16, learner in {dtype}", self._corrections(family, dtype))
            for family in self.families
            for dtype in DTYPES
        ]
        made.append(("How many times R3 lowers it", self._aims()))
        made.append(("Routings in which the learner's own choice differs from the engine's", self._differ()))
        if any("throughput" in c for c in self.cells):
            made.append(("Rollout throughput with capture, and what routes take", self._cost()))
        return made

    def _corrections(self, family: str, dtype: str) -> Rows:
        rows = [["correction", *COLUMNS.values()]]
        for name in CORRECTIONS:
            row = [spread(c[dtype][name][key] for c in self.of(family)) for key in COLUMNS]
            rows.append([LABELS[name], *row])
        return rows

    def _aims(self) -> Rows:
        rows = [["model", "learner", "measure", "without → with", "times lowered", "aim", "found"]]
        for family in self.families:
            for dtype in DTYPES:
                for measure in ("kl", "off", "f1.02", "max"):
                    found, aim = self.lowered(family, dtype, measure), AIMS.get(measure)
                    verdict = (f"at least {aim:g}", found.verdict(aim)) if aim else ("–", "–")
                    values = [np.mean([c[dtype][how][measure] for c in self.of(family)]) for how in ("none", "r3")]
                    change = f"{values[0]:.3g} → {values[1]:.3g}"
                    rows.append([family, dtype, COLUMNS[measure], change, found.text(), *verdict])
        return rows

    def _differ(self) -> Rows:
        rows = [["model", "learner", "of (token, layer)", "of tokens, in a layer at least", "by layer, first to last"]]
        for family in self.families:
            for dtype in DTYPES:
                cells = [c[dtype]["differ"] for c in self.of(family)]
                layers = np.mean([c["by_layer"] for c in cells], 0)
                shares = [spread(c[key] for c in cells) for key in ("routings", "tokens")]
                rows.append([family, dtype, *shares, ", ".join(f"{x:.2g}" for x in layers)])
        return rows

    def _cost(self) -> Rows:
        rows = [["model", "width", "tokens/s with", "tokens/s without", "with / without", "bytes per token"]]
        for family in self.families:
            for c in self.of(family):
                if "throughput" not in c:
                    continue
                size = f"{c['bytes_per_token']:.3g} (at most {most_bytes(c['routing'])})"
                for width, rates in c["throughput"].items():
                    row = [spread(rates["on"]), spread(rates["off"]), spread(quotients(rates))]
                    rows.append([family, str(width), *row, size])
        return rows

    def reading(self) -> list[str]:
        """What the numbers say."""
        said = []
        for family in self.families:
            for dtype in DTYPES:
                parts = []
                for measure, aim in AIMS.items():
                    found = self.lowered(family, dtype, measure)
                    parts.append(f"{COLUMNS[measure]}: {found.text()}; aim {aim:g}, {found.verdict(aim)}")
                said.append(f"{family}, learner in {dtype}, times lowered by R3. {'. '.join(parts)}.")
        views = [c[dtype] for c in self.cells for dtype in DTYPES]
        moved = max(v["r2_moves"] for v in views)
        said.append(
            "R2 replays what the learner itself chose under the same weights, and so changes nothing between engine and "
            + (
                "learner: all its log-probs are bit-equal to those without replay. It can matter from the second update "
                "of a batch on, which is not measured here."
                if moved == 0
                else f"learner up to {moved:.2g} in a log-prob, which should be 0."
            )
        )
        clipped = max(v["tis"]["clipped"] for v in views)
        said.append(
            "TIS does not change the mismatch; it weighs tokens by it. "
            + (
                f"Here no ratio is above {CAP:g}, so nothing is cut off and no bias in a token's weight remains"
                if clipped == 0
                else f"Up to {clipped:.2g} of the ratios are above {CAP:g} and cut off, with a bias of up to "
                f"{max(v['tis']['bias'] for v in views):.2g}"
            )
            + f"; its weights keep {min(v['tis']['ess'] for v in views):.4f} of the effective sample size at the least. "
            f"Weights of whole responses, which would count the prefix in, keep {min(v['tis']['ess_sequence'] for v in views):.3f} "
            f"without R3 and {min(v['r3_tis']['ess_sequence'] for v in views):.3f} with it."
        )
        for c in self.cells:
            for width, rates in c.get("throughput", {}).items():
                said.append(f"{c['family']}, width {width}: {cost_verdict(quotients(rates))}")
        if not any("throughput" in c for c in self.cells):
            said.append("What capture costs of the rollout throughput was not measured.")
        if (coverage := min(c["coverage"] for c in self.cells)) < 1:
            said.append(f"Routes came for {coverage:.4f} of the tokens at the least; the rest used the live router.")
        return said

    def note(self) -> str:
        a = self.arguments
        start = f"warmed up with {a.warmup_steps} steps on worked examples" if a.start == "warm" else "random weights"
        tokens = ", ".join(f"{c['tokens']}" for c in self.cells)
        return (
            f"{a.seeds} seed(s), each a model of its own: {start}. {a.prompts} prompts with {a.samples} responses of at most "
            f"{a.tokens} tokens, temperature 1; response tokens by model and seed: {tokens}. {a.threads} CPU thread(s) of "
            f"{os.cpu_count()} cores."
        )

    def show(self, console: Console) -> None:
        for title, (headings, *rows) in self.tables():
            table = Table(title=title, title_justify="left")
            for heading in headings:
                table.add_column(heading)
            for row in rows:
                table.add_row(*(cell.replace(" (", "\n(").replace(" ±", "\n±") for cell in row))
            console.print(table)
        console.print("\n".join([self.note(), HOW_TO_READ, *self.reading()]), highlight=False)

    def write_json(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self.arguments).items()}
        ratios = {
            family: {d: {m: plain(self.lowered(family, d, m)) for m in (*AIMS, "f1.02", "max")} for d in DTYPES}
            for family in self.families
        }
        atomic.write_json(path, {"settings": settings, "cells": list(self.cells), "lowered": ratios})

    def page(self) -> str:
        parts = [INTRODUCTION.strip().format(command=command(self.arguments)), "## Results", self.note()]
        for title, (headings, *rows) in self.tables():
            lines = [headings, ["---"] * len(headings), *rows]
            parts.append(f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts += [HOW_TO_READ, "## Reading", "\n".join(f"- {line}" for line in self.reading())]
        return "\n\n".join(parts) + "\n"


def command(arguments: argparse.Namespace) -> str:
    """The command line of these measurements, what was left at its default included."""
    names = ["families", "seeds", "start", "warmup_steps", "prompts", "samples", "tokens", "repeats"]
    names += ["throughput_widths", "threads"]
    if arguments.start == "random":
        names.remove("warmup_steps")
    given = {name: getattr(arguments, name) for name in names} | {"write": "docs/routing_replay.md"}
    words = (f"--{k.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in given.items())
    return " ".join(["python benchmarks/routing.py", *words])


def spread(values: Iterable[float]) -> str:
    """Mean ± half of the interval (least to most), three digits; one number where all are the same."""
    found = Spread.of(values)
    if found.half is None or found.least == found.most:
        return f"{found.mean:.3g}"
    return f"{found.mean:.3g} ± {found.half:.2g} ({found.least:.3g} to {found.most:.3g})"


def quotients(rates: Mapping[str, Sequence[float]]) -> list[float]:
    """Throughput with capture over that without, repeat by repeat."""
    return [on / off for on, off in zip(rates["on"], rates["off"], strict=True)]


def cost_verdict(found: Sequence[float]) -> str:
    """What the interval of the ratio says of the cost of capture."""
    cost = Spread.of(1 - q for q in found)
    text = f"capture costs {cost.mean:.1%} of the rollout throughput"
    if cost.half is None:
        return f"{text} in one repeat, which says nothing."
    text += f" (95 % interval {cost.low:.1%} to {cost.high:.1%}, {cost.seeds} pairs)"
    if cost.high < COST:
        return f"{text}: below {COST:.0%}."
    if cost.low > COST:
        return f"{text}: above {COST:.0%}."
    return f"{text}: open whether below {COST:.0%}; more pairs (`--repeats`) on a quiet machine would tell."


def most_bytes(routing: Mapping[str, Any]) -> int:
    """Bytes of a token's routes when nothing is shared."""
    return len(routing["layers"]) * int(routing["top_k"]) * (1 if routing["experts"] <= 256 else 2)


def plain(found: Lowered) -> dict[str, float | str | None]:
    """In JSON, which has no infinity."""
    return {k: "inf" if v == math.inf else v for k, v in asdict(found).items()}


HOW_TO_READ = (
    f"Mean over seeds ± half of its {LEVEL:.0%} t-interval (least to most of the seeds). The times something is lowered "
    "are the geometric mean over seeds and its interval; where a seed has none left, those of the sums over seeds, and "
    "likely at least those with the most tokens left that a Poisson mean would make likely (5 %). Throughput is over pairs "
    "of repeats with seed 0; the bytes of a prompt's routes count once for its group."
)
INTRODUCTION = f"""\
# Routing replay, measured

How far are engine and learner of a small mixture of experts from each other on the same tokens, and what do routing
replay and importance weights change?

```bash
{{command}}
```

Made by that command, all of it.

**How.** The engine is the real one (vLLM, bfloat16) and samples Countdown prompts at temperature 1 with captured routes.
The learner's policy then says the log-probs of the same tokens, from the same checkpoint, in float32 and in bfloat16.
Responses alone are counted. Models are small: {_SIZES["num_hidden_layers"]} layers of width {_SIZES["hidden_size"]},
{_QWEN["num_experts"]} experts, {_SIZES["num_experts_per_tok"]} of them for a token.

**Rows.** none: the learner's own routers. R2: the experts that the learner chose itself in a forward before. R3: the
experts that the engine chose. TIS: truncated importance sampling, each token's part in the loss weighed with
W = min(ρ, {CAP:g}), ρ = p_learner / p_engine; it changes no log-prob, so the columns up to "max" are those of the row it
weighs.

**Columns.** With q = ρ: KL is the mean of q − 1 − log q, which estimates KL(engine ‖ learner); F(τ) the share of tokens
with max(q, 1/q) > τ; off by > {OFF:g}, the share of tokens whose probabilities differ by more than that. KL left is the
mean of W (r − 1 − log r) with r = ρ / W: what the weights do not account for; without weights, W = 1, all of it. Bias is
the mean of |W − ρ|. With ρ as its weight a mean over tokens is one under the learner's choice of that token; the prefix
is still the engine's. ESS is the effective sample size (Σ W)² / Σ W² over the number of samples: 1 costs no variance. ESS
of responses is that of weights which are the product of ρ over a response, without a bound. Under R3 the learner's policy
is the one that replays: what replay does to the policy that is learned is not in these numbers.
"""


# ---------------------------------------------------------------------------------------------------------- a command


def main() -> None:
    arguments = parse_arguments()
    console = Console(width=max(200, Console().width))
    cells = []
    for family in arguments.families:
        for seed in range(arguments.seeds):
            cells.append(measured(family, seed, arguments, lambda line: console.print(line, highlight=False)))
    report = Report(cells, arguments)
    report.show(console)
    report.write_json(arguments.out)
    console.print(f"written to {arguments.out}", highlight=False)
    if arguments.write:
        arguments.write.write_text(report.page())
        console.print(f"written to {arguments.write}", highlight=False)


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description="Engine and learner of mixtures of experts on the same tokens, with and without replayed routes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--families", nargs="+", choices=list(FAMILIES), default=["qwen3_moe"], help="kinds of models")
    made.add_argument("--seeds", type=positive, default=5, help="models of each kind; seeds 0, 1, ...")
    made.add_argument(
        "--start", choices=["warm", "random"], default="warm", help="warmed up on worked examples, or random weights"
    )
    made.add_argument("--warmup-steps", type=positive, default=150, help="with --start warm")
    made.add_argument("--prompts", type=positive, default=128, help="held-out prompts")
    made.add_argument("--samples", type=positive, default=8, help="responses to each")
    made.add_argument("--tokens", type=positive, default=24, help="of a response, at most")
    made.add_argument("--repeats", type=int, default=10, help="pairs of throughput measurements; 0: none")
    made.add_argument(
        "--throughput-widths", nargs="+", type=positive, default=[1, 4], help="models for these, times as wide"
    )
    made.add_argument("--threads", type=positive, default=os.cpu_count() or 1, help="CPU threads of each process")
    made.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "routing", help="where models go and stay")
    made.add_argument("--deadline", type=positive, default=1800, help="seconds one warm-up may take")
    made.add_argument("--out", type=Path, default=HERE / "results" / "routing.json", help="JSON file to write")
    made.add_argument("--write", type=Path, help="page to write, such as docs/routing_replay.md")
    return made.parse_args(given)


if __name__ == "__main__":
    main()

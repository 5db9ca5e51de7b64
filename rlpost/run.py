"""A run put together: data, model, Ray, engines, learner, verifiers and recorder, and what the loop does with them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np

from rlpost import checkpoint, cluster
from rlpost.config import Config
from rlpost.data import PromptOrder, PromptSets, judge_group, load_prompts, load_tokenizer
from rlpost.evaluation import Results, evaluate
from rlpost.learner.batch import Batch
from rlpost.learner.group import LearnerGroup
from rlpost.learner.rank import LearnerSpec
from rlpost.observe import Recorder, Watch
from rlpost.rollout.fleet import Fleet
from rlpost.rollout.request import EngineSpec, Sampling
from rlpost.rollout.sampler import Group, GroupSampler
from rlpost.types import Rollout, Status
from rlpost.verify import VerifierPool


class Run:
    """What `rlpost.loop.train` works on. Made by `running`, which also takes it down again."""

    def __init__(
        self,
        config: Config,
        recorder: Recorder,
        prompts: PromptSets,
        learner: LearnerGroup,
        fleet: Fleet,
        pool: VerifierPool,
        base: str,
    ) -> None:
        from rlpost.objective import Objective

        self.config = config
        self.recorder = recorder
        self.prompts = prompts
        self.learner = learner
        self.fleet = fleet
        self.pool = pool
        self.base = base
        self.objective = Objective.from_config(config.objective)
        self.order = PromptOrder(prompts.train, config.seed, config.data.shuffle)
        self.sampler = GroupSampler(fleet, pool, config.seed, config.rollout.deadline)
        self.watch = Watch(config.alarms, config.model.dtype == config.rollout_dtype == "float32")
        self.sampling = Sampling(
            temperature=config.rollout.temperature,
            max_tokens=config.rollout.max_tokens,
            stop=tuple(config.rollout.stop),
        )
        self.step = 0
        self.version = 0
        self.submitted = 0
        self.order_before: dict[int, dict[str, Any]] = {}
        self.stop_requested = False

    def say(self, phase: str) -> None:
        self.recorder.console.phase(phase)

    # ------------------------------------------------------------------------------------------------- groups

    def judge(self, group: Group) -> str:
        """ "keep", or why the policy for groups leaves this one out: "no_signal" or "incomplete"."""
        return judge_group(group.rewards, self.config.data.groups)

    # ----------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, when: str) -> Results:
        """pass@k on the held-out prompts with the weights the engines serve; recorded under `when`."""
        ev = self.config.evaluation
        self.say(f"evaluating ({when})")
        results = evaluate(
            self.sampler,
            self.prompts.test[: ev.prompts],
            samples=ev.samples_per_prompt,
            k=ev.k,
            sampling=Sampling(ev.temperature, self.config.rollout.max_tokens, ev.top_p, self.sampling.stop),
            seed=self.config.seed + EVALUATION_SEED,
            judge=self.config.verifiers[0].name,
        )
        self.recorder.evaluation(when, self.step, results.intervals)
        return results

    # -------------------------------------------------------------------------------------------------- reports

    def report(
        self,
        groups: Sequence[Group],
        learned: Sequence[Rollout],
        advantages: Sequence[float],
        learner: dict[str, float],
        times: dict[str, float],
    ) -> None:
        """Write a finished step's rollouts and metrics, then raise if they set off an alarm."""
        rollouts = [r for g in groups for r in g.rollouts]
        credit = {(r.group, r.sample): a for r, a in zip(learned, advantages, strict=True)}
        metrics = {
            **self.pool.stats(),  # since the last step, evaluations included: times, time-outs, restarts
            **step_metrics(self, groups, learned, times["time/total"]),  # of this step's own samples: verdicts
            **learner,
            **times,
        }
        self.recorder.rollouts(
            self.step,
            rollouts,
            {g.prompt.id: g.prompt for g in groups},
            [credit.get((r.group, r.sample)) for r in rollouts],
            [(r.group, r.sample) in credit for r in rollouts],
        )
        self.recorder.step(self.step, metrics)
        self.watch.check(self.step, metrics)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def save(self) -> None:
        """Write a checkpoint of this step, then drop the oldest."""
        self.say("saving a checkpoint")
        folder = self.recorder.folder.checkpoints
        probe = probe_batch(self.prompts, self.config.rollout.max_tokens)
        logp = self.learner.log_probs(probe)

        def fill(draft: Path) -> None:
            self.learner.save(draft)
            (draft / "probe.json").write_text(json.dumps(probe_to_json(probe, logp, self.config.rollout.temperature)))

        checkpoint.write(folder, self.step, self.state_dict(), fill)
        checkpoint.retain(folder, self.config.checkpoint.keep)

    def state_dict(self) -> dict[str, Any]:
        """The driver's own state. The next step's prompts are drawn again on resume, also if they are in flight."""
        return {
            "step": self.step,
            "version": self.version,
            "order": self.order_before.get(self.step + 1, self.order.state_dict()),
            "watch": self.watch.state_dict(),
            "sampler": self.sampler.state_dict(),
            "base": self.base,
            "ranks": self.config.learner.ranks,
            "zero_stage": self.config.learner.zero_stage,
        }

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Take up where a checkpoint left off."""
        state = saved.state()
        for key in ("ranks", "zero_stage"):
            now = getattr(self.config.learner, key)
            if state[key] != now:
                raise checkpoint.CheckpointError(
                    f"{saved.path} was written with learner.{key}={state[key]}; optimizer shards cannot be restored "
                    f"with {now}. Resume with learner.{key}={state[key]}, or start a new run from {saved.model}"
                )
        restored = self.learner.load(saved.path)
        steps = self.config.learner.optimizer_steps_per_batch
        if restored["optimizer_steps"] > state["step"] * steps:
            raise checkpoint.CheckpointError(
                f"{saved.path}: the learner is at optimizer step {restored['optimizer_steps']}, the driver at step "
                f"{state['step']} with {steps} each"
            )
        self.order.load_state_dict(state["order"])
        self.watch.load_state_dict(state["watch"])
        self.sampler.load_state_dict(state["sampler"])
        self.step = self.submitted = state["step"]
        self.version = state["version"]

    def kill(self) -> None:
        """The `driver.kill` failpoint."""
        os.kill(os.getpid(), signal.SIGKILL)


# Evaluation draws from its own stream of seeds, the same at every evaluation: before and after differ by the weights.
EVALUATION_SEED = 1_000_003


def step_metrics(run: Run, groups: Sequence[Group], learned: Sequence[Rollout], seconds: float) -> dict[str, float]:
    """What can be said of a step from its groups alone."""
    rollouts = [r for g in groups for r in g.rollouts]
    usable = [r for r in rollouts if r.usable]
    judged = [run.judge(g) for g in groups]
    first = run.config.verifiers[0].name
    lengths = np.array([len(r.response_ids) for r in rollouts] or [0])
    account = run.sampler.account
    metrics = {
        "length/mean": float(lengths.mean()),
        "length/max": float(lengths.max()),
        "length/truncated": float(np.mean([float(r.finish_reason == "length") for r in rollouts] or [0.0])),
        "groups/total": len(groups),
        "groups/with_signal": sum(len(set(g.rewards) - {None}) > 1 for g in groups),
        "groups/no_signal": sum(len(set(g.rewards) - {None}) == 1 for g in groups),
        "groups/incomplete": judged.count("incomplete"),
        "groups/dropped": sum(v != "keep" for v in judged),
        "samples/submitted": account.submitted,
        "samples/consumed": account.consumed,
        "samples/dropped": account.dropped,
        "samples/running": account.running,
        "samples/learned": len(learned),
        "staleness/max": max((run.version - 1 - int(r.versions.min()) for r in learned), default=0),
        "tokens_per_second": float(lengths.sum()) / max(seconds, 1e-9),
        "version": run.version,
    }
    for name in (v.name for v in run.config.verifiers):
        found = [r.verdicts[name].status for r in rollouts if r.finish_reason != "abort"]
        metrics |= {f"verifier/{name}/{status}": found.count(status) for status in get_args(Status)}
    if usable:
        metrics["reward/mean"] = float(np.mean([r.reward for r in usable]))
        metrics["reward/std"] = float(np.std([r.reward for r in usable]))
        metrics["train/pass@1"] = float(np.mean([r.verdicts[first].status == "correct" for r in usable]))
    return metrics


def probe_batch(prompts: PromptSets, longest: int, count: int = 8) -> Batch:
    """Fixed sequences, for which a checkpoint remembers the learner's log-probs: prompts, continued by the next one.

    Args:
        longest: tokens of the continuation, at most; what the model is asked for in training fits everywhere.
    """
    pool = (prompts.test or prompts.train)[: count + 1]
    pairs = list(zip(pool, [*pool[1:], pool[0]], strict=True))[:count]
    return Batch.from_examples([a.token_ids for a, _ in pairs], [b.token_ids[:longest] for _, b in pairs])


def probe_to_json(probe: Batch, logp: Sequence[np.ndarray], temperature: float) -> dict[str, Any]:
    """{"temperature", "sequences": [{"prompt", "response", "logp"}]} as plain numbers."""
    sequences = []
    for i in range(len(probe)):
        one = probe.select([i])
        split = int(one.prompt_lengths[0])
        sequences.append(
            {
                "prompt": one.tokens[:split].tolist(),
                "response": one.tokens[split:].tolist(),
                "logp": [float(x) for x in logp[i]],
            }
        )
    return {"temperature": temperature, "sequences": sequences}


# ------------------------------------------------------------------------------------------------------- building


def engine_spec(config: Config, path: str, max_model_len: int | None = None) -> EngineSpec:
    ro = config.rollout
    return EngineSpec(
        path=path,
        dtype=config.rollout_dtype,
        max_model_len=max_model_len or config.max_sequence_tokens,
        max_sequences=ro.max_sequences,
        tensor_parallel=ro.tensor_parallel,
        enforce_eager=ro.enforce_eager if ro.enforce_eager is not None else not config.on_gpu,
        prefix_caching=ro.prefix_caching,
        gpu_memory_utilization=ro.gpu_memory_utilization * (0.5 if config.cluster.colocate else 1.0),
        kv_cache_gb=ro.kv_cache_gb,
        threads=cluster.threads(config)[0],
        weight_transfer=config.weight_transfer,
        stop_strings=bool(ro.stop),
        on_gpu=config.on_gpu,
        trust_remote_code=config.model.trust_remote_code,
        engine_args=ro.engine_args,
    )


def start_fleet(config: Config, path: str, placement: cluster.Placement, max_model_len: int | None = None) -> Fleet:
    return Fleet(
        engine_spec(config, path, max_model_len),
        placement.engines,
        cpus=config.cluster.cpus_per_engine,
        gpus=placement.engine_gpus,
        sync_deadline=config.rollout.sync_deadline,
        start_deadline=config.cluster.start_deadline,
    )


def start_learner(config: Config, spec: LearnerSpec, placement: cluster.Placement) -> LearnerGroup:
    return LearnerGroup(
        spec,
        placement.ranks,
        cpus=config.cluster.cpus_per_rank,
        gpus=placement.rank_gpus,
        start_deadline=config.cluster.start_deadline,
    )


def learner_spec(config: Config, path: str, pad_id: int) -> LearnerSpec:
    anchored = any(r.anchor == "frozen" for r in config.objective.regularizers)
    return LearnerSpec(
        path=path,
        reference_path=path if anchored else None,
        model=config.model,
        learner=config.learner,
        objective=config.objective,
        total_steps=config.steps * config.learner.optimizer_steps_per_batch,
        temperature=config.rollout.temperature,
        response_limit=config.rollout.max_tokens,
        pad_id=pad_id,
        seed=config.seed,
        on_gpu=config.on_gpu,
        threads=cluster.threads(config)[1],
    )


@contextmanager
def running(config: Config, recorder: Recorder, base: str, resume: checkpoint.Checkpoint | None) -> Iterator[Run]:
    """All parts of a run, started; taken down on the way out, whatever happened.

    Args:
        base: folder or id of the weights the run started from.
        resume: continue from this checkpoint.
    """
    console = recorder.console
    tokenizer = load_tokenizer(base, config.model.trust_remote_code)
    prompts = load_prompts(config.data, tokenizer, config.seed)
    for line in prompts.report.lines():
        console.info(line)
    with ExitStack() as stack:
        console.phase("starting verifiers, engines and learner")
        pool = stack.enter_context(VerifierPool(config.verifiers, config.verifier_pool))
        placement = cluster.place(config)
        fleet = start_fleet(config, base, placement)
        stack.callback(fleet.shutdown)
        learner = start_learner(config, learner_spec(config, base, tokenizer.pad_token_id), placement)
        stack.callback(learner.shutdown)
        model, engine = learner.ready(), fleet.ready()
        fleet.connect(learner)
        console.info(
            f"learner: {model['parameters'] / 1e6:.1f} M parameters ({model['trainable'] / 1e6:.1f} M trained) on "
            f"{config.learner.ranks} rank(s), ZeRO {config.learner.zero_stage}, {config.model.dtype}; engines: "
            f"{config.rollout.engines}, {config.rollout_dtype}, {engine['kv_tokens']:,} cached tokens each"
        )
        run = Run(config, recorder, prompts, learner, fleet, pool, base)
        if resume is not None:
            run.restore(resume)
        fleet.sync(learner, run.version, config.rollout_dtype)
        with stop_signals(run):
            yield run


@contextmanager
def stop_signals(run: Run) -> Iterator[None]:
    """Ctrl-C or SIGTERM asks for a stop after this step, with a checkpoint; a second one stops now."""

    def handle(number: int, frame: Any) -> None:
        if run.stop_requested:
            raise KeyboardInterrupt
        run.stop_requested = True
        print("stopping after this step with a checkpoint; once more to stop now", file=sys.stderr, flush=True)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)

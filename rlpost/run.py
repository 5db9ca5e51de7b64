"""A run put together: data, model, Ray, engines, learner, verifiers and recorder, and what the loop does with them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from rlpost import checkpoint, cluster
from rlpost.config import SAMPLED, SOURCES, Config, ConfigError
from rlpost.credit import Lesson
from rlpost.data import PromptOrder, PromptSets, fill, judge_group, load_prompts, load_tokenizer
from rlpost.evaluation import Results, evaluate
from rlpost.learner.batch import Batch
from rlpost.learner.group import LearnerGroup
from rlpost.learner.rank import LearnerSpec
from rlpost.observe import Recorder, Watch
from rlpost.rollout.fleet import Fleet
from rlpost.rollout.request import EngineSpec, Sampling
from rlpost.rollout.sampler import GroupSampler
from rlpost.routing import admitted
from rlpost.types import Group, Prompt, Sample, Status
from rlpost.verify import open_pool
from rlpost.verify.references import checker
from rlpost.verify.task import ON_ROW

if TYPE_CHECKING:
    from rlpost.likelihood import LikelihoodReward
    from rlpost.objective import Move
    from rlpost.roles import Roles
    from rlpost.verify import VerifierPool
    from rlpost.verify.remote import ClusterPool


class Run:
    """What `rlpost.loop.train` works on. Made by `running`, which also takes it down again."""

    def __init__(
        self,
        config: Config,
        recorder: Recorder,
        prompts: PromptSets,
        learner: LearnerGroup,
        fleet: Fleet,
        pool: VerifierPool | ClusterPool,
        base: str,
        tokenizer: Any,
        roles: Roles,
        likelihood: LikelihoodReward | None,
    ) -> None:
        self.config = config
        self.recorder = recorder
        self.prompts = prompts
        self.learner = learner
        self.fleet = fleet
        self.pool = pool
        self.base = base
        self.tokenizer = tokenizer
        self.referee = config.verifiers[0].name
        self.credit, self.references, self.wanted = roles.credit, roles.references, roles.wanted
        self.likelihood = likelihood
        self.order = PromptOrder(prompts.train, config.seed, config.data.shuffle)
        self.strategy = roles.strategy
        self.strategy.begin(self.order)
        self.sampler = GroupSampler(fleet, pool, config.seed, config.rollout.deadline)
        fp32 = config.model.dtype == config.rollout_dtype == "float32"
        self.watch = Watch(config.alarms, fp32, config.routing.replay)
        self.sampling = Sampling(
            temperature=config.rollout.temperature,
            max_tokens=config.rollout.max_tokens,
            stop=tuple(config.rollout.stop),
        )
        self.step = 0
        self.version = 0
        self.submitted = 0
        self.drawn: dict[int, list[Prompt]] = {}  # by step what is in flight, but for refills
        self.routing_metrics: dict[str, float] = {}
        self.stop_requested = False

    def say(self, phase: str) -> None:
        self.recorder.console.phase(phase)

    # ------------------------------------------------------------------------------------------------- groups

    def judge(self, group: Group) -> str:
        """ "keep", or why the policy for groups leaves this one out: "no_signal" or "incomplete"."""
        return judge_group(group.rewards, self.config.data.groups)

    def rewarded(self, groups: Sequence[Group]) -> list[Group]:
        """These groups with the rewards that need a scoring forward added to those of the verifiers."""
        if self.likelihood is None:
            return list(groups)
        return self.likelihood.apply(groups, self._score_answers)

    def chosen(self, groups: Sequence[Group]) -> list[Group]:
        """The groups that are learned from, as `data.groups` and a filter of the likelihood reward have it."""
        judged = [self.judge(g) for g in groups]
        kept = [groups[i] for i in fill(judged, self.config.learner.prompts_per_step, self.config.data.groups)]
        if self.likelihood is None:
            return kept
        return [g for g, ok in zip(kept, self.likelihood.keep(kept), strict=True) if ok]

    def _score_answers(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        assert self.config.objective.likelihood is not None
        scorer = self.config.objective.likelihood.scorer
        name = "old_logp" if scorer == "learner" else f"anchors.{scorer}"
        return self.learner.log_probs(Batch.from_samples(samples), name)

    def scored(self, batch: Batch) -> Batch:
        """The batch with what has to be known of it before the update: log-probs, and routes the learner chose."""
        scores = self.learner.score(batch, self.wanted)
        routes = scores.pop("routes", None)
        batch = batch.carrying(per_token=scores)
        return batch if routes is None else batch.routed(routes)

    def samples(self, groups: Sequence[Group], step: int) -> list[Sample]:
        """All that is learned from: the groups' own samples, and what the strategy and the reward add."""
        samples = self.strategy.samples(groups, self.referee, step)
        if self.config.routing.replay == "r3":
            samples, self.routing_metrics = admitted(samples, self.config.routing.invalid)
        if self.likelihood is None:
            return samples
        return self.likelihood.restricted(samples, groups) + self.likelihood.samples(groups)

    # ----------------------------------------------------------------------------------------------- adaptation

    def adapt(self, metrics: dict[str, float]) -> None:
        """Let coefficients and anchors react to a step that was learned from."""
        self.credit.observe(metrics)
        self._move({name: r.after_step(self.step, metrics) for name, r in self.references.items()})

    def _move(self, moves: dict[str, Move | None]) -> None:
        for name, move in moves.items():
            if move is not None:
                if move.why:
                    self.recorder.console.info(f"step {self.step}: anchor {name} moves to the policy: {move.why}")
                self.learner.move_anchor(name, move.amount, move.clear_optimizer)

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
            judge=self.referee,
            alarms=self.config.alarms,
            step=self.step,
        )
        if results.caveat:
            self.recorder.console.warn(results.caveat)
        self.recorder.evaluation(when, self.step, results.intervals, results.counts)
        if self.step:
            values = {name: interval[0] for name, interval in results.intervals.items()}
            self._move({name: r.after_evaluation(self.step, values) for name, r in self.references.items()})
        return results

    # -------------------------------------------------------------------------------------------------- reports

    def report(
        self,
        groups: Sequence[Group],
        kept: Sequence[Group],
        lesson: Lesson | None,
        learner: dict[str, float],
        times: dict[str, float],
    ) -> None:
        """Write a finished step's rollouts and metrics, then raise if they set off an alarm."""
        rollouts = [r for g in groups for r in g.rollouts]
        credit = lesson.credited if lesson is not None else {}
        metrics = {
            **self.pool.stats(),  # since the last step, evaluations included: times, time-outs, restarts
            **step_metrics(self, groups, kept, lesson, times["time/total"]),  # of this step's own samples
            **self.strategy.metrics(),
            **(self.likelihood.metrics() if self.likelihood is not None else {}),
            **self.routing_metrics,
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
            if unshared := self.learner.unshared(draft):
                raise checkpoint.CheckpointError(unshared)
            self.learner.save(draft)
            checkpoint.save_roles(draft, self.roles())
            (draft / "probe.json").write_text(json.dumps(probe_to_json(probe, logp, self.config.rollout.temperature)))

        checkpoint.write(folder, self.step, self.state_dict(), fill)
        checkpoint.retain(folder, self.config.checkpoint.keep)

    def state_dict(self) -> dict[str, Any]:
        """The driver's own state. Samples in flight are made again on resume, of the prompts that were drawn for them."""
        return {
            "step": self.step,
            "version": self.version,
            "order": self.order.state_dict(),
            "drawn": {str(step): [p.id for p in prompts] for step, prompts in self.drawn.items()},
            "watch": self.watch.state_dict(),
            "sampler": self.sampler.state_dict(),
            "base": self.base,
            "ranks": self.config.learner.ranks,
            "zero_stage": self.config.learner.zero_stage,
        }

    def roles(self) -> dict[str, Any]:
        """State of the roles, which may hold arrays: coefficients, anchors' triggers, the data strategy, rewards."""
        return {
            "credit": self.credit.state_dict(),
            "references": {name: r.state_dict() for name, r in self.references.items()},
            "strategy": self.strategy.state_dict(),
            "likelihood": self.likelihood.state_dict() if self.likelihood is not None else {},
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
        roles = checkpoint.load_roles(saved.path)
        self.credit.load_state_dict(roles["credit"])
        for name, reference in self.references.items():
            reference.load_state_dict(roles["references"][name])
        self.strategy.load_state_dict(roles["strategy"])
        if self.likelihood is not None:
            self.likelihood.load_state_dict(roles["likelihood"])
        self.order.load_state_dict(state["order"])
        by_id = {p.id: p for p in self.order.prompts}
        self.drawn = {int(step): [by_id[i] for i in ids] for step, ids in state["drawn"].items()}
        self.watch.load_state_dict(state["watch"])
        self.sampler.load_state_dict(state["sampler"])
        self.step = self.submitted = state["step"]
        self.version = state["version"]

    def kill(self) -> None:
        """The `driver.kill` failpoint."""
        os.kill(os.getpid(), signal.SIGKILL)


# Evaluation draws from its own stream of seeds, the same at every evaluation: before and after differ by the weights.
EVALUATION_SEED = 1_000_003
LAB_SEED = 2_000_003


def check_sandbox(pool: VerifierPool | ClusterPool, recorder: Recorder) -> None:
    """Say what programs run in, where a verifier runs any; the pool has refused to start where that is not safe."""
    if (found := pool.sandbox) is not None:
        recorder.console.info(f"sandbox: tier {found['tier']}; in force: {', '.join(found['layers'])}")


def check_answers_fit(config: Config, likelihood: LikelihoodReward, prompts: Sequence[Prompt]) -> None:
    """Refuse, before anything is sampled, reference answers that a micro-batch could not hold."""
    longest = likelihood.longest(prompts, config.rollout.max_tokens)
    room = config.learner.longest
    if longest > room:
        raise ConfigError(
            f"prompt, response and reference answer may come to {longest} tokens, more than learner.row_tokens or "
            f"learner.tokens_per_micro_batch ({room}): raise it"
        )


def check_same_routers(config: Config, learner: dict[str, Any] | None, engine: dict[str, Any] | None) -> None:
    """Refuse to replay between an engine and a learner that number layers or experts differently."""
    if config.routing.replay == "r3" and learner != engine:
        raise RuntimeError(
            f"routing.replay: r3, but the engine's mixture-of-experts layers are {engine} and the learner's {learner}"
        )


class RunLab:
    """What a data strategy may ask of a run (`rlpost.data.strategy.Lab`)."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.judge = run.referee
        self.tokenizer = run.tokenizer
        self.data = run.config.data
        self.held_out = run.prompts.test
        self.longest = run.config.learner.longest

    def say(self, line: str) -> None:
        self._run.recorder.console.info(line)

    def sample(self, prompts: Sequence[Prompt], samples: int) -> list[Group]:
        run = self._run
        return run.sampler.sample_all(prompts, samples, run.sampling, run.config.seed + LAB_SEED)

    def log_probs(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        return self._run.learner.log_probs(Batch.from_samples(samples))


def step_metrics(
    run: Run, groups: Sequence[Group], kept: Sequence[Group], lesson: Lesson | None, seconds: float
) -> dict[str, float]:
    """What can be said of a step from its groups alone."""
    rollouts = [r for g in groups for r in g.rollouts]
    usable = [r for r in rollouts if r.usable]
    versions = np.unique(lesson.batch.versions) if lesson is not None else []
    judged = [run.judge(g) for g in groups]
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
        "groups/dropped": len(groups) - len(kept),
        "samples/submitted": account.submitted,
        "samples/consumed": account.consumed,
        "samples/dropped": account.dropped,
        "samples/running": account.running,
        "samples/learned": 0,
        "staleness/max": max((run.version - 1 - int(v) for v in versions if v >= 0), default=0),
        "tokens_per_second": float(lengths.sum()) / max(seconds, 1e-9),
        "version": run.version,
    }
    if lesson is not None:
        counts = lesson.batch.counts()
        metrics["samples/learned"] = sum(counts[s][0] for s in SAMPLED if s in counts)
        metrics |= {f"samples/{s}": int(n) for s in SOURCES if (n := len(lesson.batch.of(s)))}
    metrics |= verdict_metrics(groups, [v.name for v in run.config.verifiers])
    if usable:
        metrics["reward/mean"] = float(np.mean([r.reward for r in usable]))
        metrics["reward/std"] = float(np.std([r.reward for r in usable]))
        metrics["train/pass@1"] = float(np.mean([r.judged(run.referee).status == "correct" for r in usable]))
    return metrics


def verdict_metrics(groups: Sequence[Group], names: Sequence[str]) -> dict[str, float]:
    """By verifier how many verdicts there are of each status, on how many rows, and what programs ran in.

    `verifier/<name>/rows_hung` of its `rows` are those on which it timed out or crashed whatever the answer, and
    `hangs_on_row`, `crashes_on_row` the unverified verdicts this gave.
    `verifier/sandbox_tier` is that of the worst sandbox used: 1 for A to 4 for D; absent when no program ran.
    """
    metrics: dict[str, float] = {}
    for name in names:
        rows = [
            [r.verdicts[name] for r in g.rollouts if name in r.verdicts and r.finish_reason != "abort"] for g in groups
        ]
        verdicts = [verdict for row in rows for verdict in row]
        hung = [any(verdict.reason in ON_ROW.values() for verdict in row) for row in rows]
        metrics |= {f"verifier/{name}/{s}": sum(v.status == s for v in verdicts) for s in get_args(Status)}
        metrics |= {
            f"verifier/{name}/{reason}": sum(v.reason == reason for v in verdicts) for reason in ON_ROW.values()
        }
        metrics |= {f"verifier/{name}/rows": sum(map(bool, rows)), f"verifier/{name}/rows_hung": sum(hung)}
    boxes = [verdict.details.get("sandbox") for g in groups for r in g.rollouts for verdict in r.verdicts.values()]
    # A user's verifier may have a detail of that name too.
    tiers = [box["tier"] for box in boxes if isinstance(box, dict) and box.get("tier") in tuple("ABCD")]
    if tiers:
        metrics["verifier/sandbox_tier"] = 1 + "ABCD".index(max(tiers))
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
        capture_routes=config.routing.replay == "r3",
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


def learner_spec(config: Config, roles: Roles, path: str, pad_id: int) -> LearnerSpec:
    return LearnerSpec(
        path=path,
        anchors=roles.anchors(path),
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
        routing=config.routing,
    )


@contextmanager
def running(config: Config, recorder: Recorder, base: str, resume: checkpoint.Checkpoint | None) -> Iterator[Run]:
    """All parts of a run, started; taken down on the way out, whatever happened.

    Args:
        base: folder or id of the weights the run started from.
        resume: continue from this checkpoint.
    """
    from rlpost.likelihood import LikelihoodReward
    from rlpost.roles import Roles

    console = recorder.console
    roles = Roles(config)
    tokenizer = load_tokenizer(base, config.model.trust_remote_code)
    prompts = load_prompts(config.data, tokenizer, config.seed, checker(config.verifiers, config.verifier_pool))
    for line in prompts.report.lines():
        console.info(line)
    likelihood = None
    if config.objective.likelihood is not None:
        likelihood = LikelihoodReward(config.objective.likelihood, tokenizer)
        check_answers_fit(config, likelihood, prompts.train)
    with ExitStack() as stack:
        console.phase("starting verifiers, engines and learner")
        placement = cluster.place(config)
        pool = open_pool(config.verifiers, config.verifier_pool, config.cluster.start_deadline)
        stack.enter_context(pool)
        check_sandbox(pool, recorder)
        fleet = start_fleet(config, base, placement)
        stack.callback(fleet.shutdown)
        learner = start_learner(config, learner_spec(config, roles, base, tokenizer.pad_token_id), placement)
        stack.callback(learner.shutdown)
        model, engine = learner.ready(), fleet.ready()
        check_same_routers(config, model["routing"], engine.get("routing"))
        fleet.connect(learner)
        console.info(
            f"learner: {model['parameters'] / 1e6:.1f} M parameters ({model['trainable'] / 1e6:.1f} M trained) on "
            f"{config.learner.ranks} rank(s), ZeRO {config.learner.zero_stage}, {config.model.dtype}; engines: "
            f"{config.rollout.engines}, {config.rollout_dtype}, {engine['kv_tokens']:,} cached tokens each"
        )
        run = Run(config, recorder, prompts, learner, fleet, pool, base, tokenizer, roles, likelihood)
        run.strategy.attach(RunLab(run))
        if resume is not None:
            run.restore(resume)
        fleet.sync(learner, run.version, config.rollout_dtype)
        if resume is None:
            run.strategy.prepare(RunLab(run))
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

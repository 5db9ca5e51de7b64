"""Checks across sections: placement fits, batch arithmetic divides, method and data agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlpost.config.names import ADVANTAGES, DIVERGENCES, F_DIVERGENCES, REFERENCES, STRATEGIES, VERIFIERS, known_name
from rlpost.user_code import nearest

if TYPE_CHECKING:
    from rlpost.config.schema import Config

# What vLLM must not do while routes are captured: sizes that must be 1, switches that must be off.
SPOILING_SIZES = {
    "pipeline_parallel_size": "a stage of a pipeline knows the experts of its own layers alone",
    "decode_context_parallel_size": "rows are found by slot of the cache, and a sequence's slots are split over workers",
    "prefill_context_parallel_size": "rows are found by slot of the cache, and a sequence's slots are split over workers",
}
SPOILING_SWITCHES = {
    "kv_transfer_config": "keys and values that come from elsewhere come without their rows, and the slot's old ones are read",
    "kv_offloading_size": "keys and values that were moved out come back without their rows, and the slot's old ones are read",
    "speculative_config": "rows of drafted tokens that are rejected stand between those of accepted ones; never tried",
    "spec_method": "the same as speculative_config",
    "spec_model": "the same as speculative_config",
    "spec_tokens": "the same as speculative_config",
    "enable_dbo": "the halves of a batch are run one after the other, and the second one's rows overwrite the first one's",
    "ubatch_size": "the parts of a batch are run one after the other, and each one's rows overwrite the last one's",
    "kv_sharing_fast_prefill": "a prompt's tokens skip the layers that share their cache, and have no rows there",
}


def check_batch(c: Config) -> None:
    le, ro = c.learner, c.rollout
    samples = le.prompts_per_step * ro.samples_per_prompt
    if le.prompts_per_step % le.optimizer_steps_per_batch:
        raise ValueError(
            f"learner.prompts_per_step {le.prompts_per_step} does not divide by learner.optimizer_steps_per_batch "
            f"{le.optimizer_steps_per_batch}: every optimizer step takes the same number of whole groups"
        )
    if samples // le.optimizer_steps_per_batch < le.ranks:
        raise ValueError(
            f"learner.ranks {le.ranks} is more than the samples of one optimizer step: prompts_per_step "
            f"{le.prompts_per_step} x samples_per_prompt {ro.samples_per_prompt} / optimizer_steps_per_batch "
            f"{le.optimizer_steps_per_batch} = {samples // le.optimizer_steps_per_batch}"
        )
    if le.tokens_per_micro_batch < c.max_sequence_tokens:
        raise ValueError(
            f"learner.tokens_per_micro_batch {le.tokens_per_micro_batch} cannot hold one sequence of "
            f"data.max_prompt_tokens + rollout.max_tokens = {c.max_sequence_tokens} tokens: raise it"
        )
    if le.row_tokens is not None and not c.max_sequence_tokens <= le.row_tokens <= le.tokens_per_micro_batch:
        raise ValueError(
            f"learner.row_tokens {le.row_tokens} must lie between the longest sequence ({c.max_sequence_tokens}) and "
            f"learner.tokens_per_micro_batch ({le.tokens_per_micro_batch})"
        )


def check_optimizer(c: Config) -> None:
    """ZeRO stage 0 hands the optimizer the weights themselves, where they are and as they are."""
    if c.learner.zero_stage > 0:
        return
    if c.model.dtype == "bfloat16":
        raise ValueError(
            "learner.zero_stage: 0 with model.dtype: bfloat16 would add up a step's gradients in bfloat16, and shorten the "
            "first update: set learner.zero_stage: 1, or leave it out"
        )
    if c.learner.offload_optimizer:
        raise ValueError(
            "learner.offload_optimizer: true leaves the weights with the optimizer, and learner.zero_stage: 0 has no others: "
            "set learner.zero_stage: 1"
        )


def check_placement(c: Config) -> None:
    cl, ro, le = c.cluster, c.rollout, c.learner
    if not c.on_gpu:
        for key, wrong in (
            ("cluster.colocate: true", cl.colocate),
            ("rollout.weight_transfer: " + ro.weight_transfer, ro.weight_transfer in ("nccl", "ipc")),
            ("rollout.tensor_parallel: " + str(ro.tensor_parallel), ro.tensor_parallel > 1),
            ("model.attention: flash_attention_2", c.model.attention == "flash_attention_2"),
        ):
            if wrong:
                raise ValueError(f"{key} needs GPUs: set cluster.gpus_per_node")
        return
    if c.model.attention in ("varlen", "flash_attention_2") and c.model.dtype == "float32":
        raise ValueError(
            f"model.attention: {c.model.attention} on GPUs has kernels for half precision alone: set model.dtype: bfloat16, "
            "or model.attention: sdpa"
        )
    have, engines, ranks = cl.nodes * cl.gpus_per_node, ro.engines * ro.tensor_parallel, le.ranks
    if ro.tensor_parallel > cl.gpus_per_node:
        raise ValueError(
            f"rollout.tensor_parallel {ro.tensor_parallel} is more than cluster.gpus_per_node {cl.gpus_per_node}: one engine "
            "cannot span nodes"
        )
    if ro.weight_transfer == ("nccl" if cl.colocate else "ipc"):
        why = (
            "takes no two processes on one GPU, as an engine and a rank are with cluster.colocate: true"
            if cl.colocate
            else "is between an engine and a rank on one GPU, which they have with cluster.colocate: true alone"
        )
        raise ValueError(f"rollout.weight_transfer: {ro.weight_transfer} {why}: leave it out")
    if cl.colocate:
        if cl.elastic:
            raise ValueError(
                "cluster.elastic: true goes on with fewer engines, but cluster.colocate pairs each with a rank: set one of "
                "them to false"
            )
        if ro.tensor_parallel != 1 or ro.engines != ranks:
            raise ValueError(
                "cluster.colocate pairs one engine with one rank on a GPU: set rollout.tensor_parallel: 1 and "
                f"rollout.engines: {ranks} (learner.ranks)"
            )
        need, what = ranks, f"learner.ranks {ranks} (shared with the engines)"
    else:
        need, what = (
            engines + ranks,
            (f"rollout.engines {ro.engines} x rollout.tensor_parallel {ro.tensor_parallel} + learner.ranks {ranks}"),
        )
    if need > have:
        raise ValueError(
            f"{what} = {need} GPUs, but cluster.nodes {cl.nodes} x cluster.gpus_per_node {cl.gpus_per_node} = {have}"
        )


def check_method(c: Config) -> None:
    _check_advantage(c)
    _check_sources(c)
    _check_weights(c)
    if c.learner.zero_stage == 3:
        for i, r in enumerate(c.objective.regularizers):
            if r.form == "full":
                raise ValueError(
                    f"objective.regularizers.{i}.form: full needs the anchor's whole head on every rank, which "
                    "learner.zero_stage: 3 shards: set form: sampled, or zero_stage: 2"
                )
    _check_likelihood(c)
    for name, reference in c.objective.references.items():
        watched = reference.params.get("metric", "pass@1")
        validated = {"patience", "max_drop"} & reference.params.keys()
        if reference.name == "hard_reset" and validated and (not c.evaluation.every or watched not in c.evaluated):
            raise ValueError(
                f"objective.references.{name}: {min(validated)} follows {watched} of evaluations on the way: set "
                f"evaluation.every (now {c.evaluation.every}) and have its k in evaluation.k (now {c.evaluation.k})"
                + (f"; evaluations give {', '.join(c.evaluated)}" if set(c.test_sets) - {""} else "")
            )
    for i, v in enumerate(c.verifiers):
        known_name(f"verifiers.{i}.name", v.name, VERIFIERS)
    labels = [v.label for v in c.verifiers]
    if len(set(labels)) != len(labels):
        raise ValueError(
            f"verifiers are known by their label, their name by default, which must be unique; got {labels}: give one of "
            "them another label"
        )
    _check_judges(c)
    if (c.evaluation.before or c.evaluation.after or c.evaluation.every) and not (c.data.test or c.data.holdout):
        raise ValueError(
            "evaluation needs held-out prompts: give data.test or data.holdout, or set evaluation.before and "
            "evaluation.after to false and evaluation.every to 0"
        )


def _check_judges(c: Config) -> None:
    """Every source is scored by verifiers that are there, get what they need, and give a reward."""
    by_label = {v.label: v for v in c.verifiers}
    for key, source in c.data.sources():
        for label in source.verifiers or ():
            if label not in by_label:
                raise ValueError(
                    f"{key}.verifiers: {label!r} is no label of verifiers{nearest(label, by_label)} "
                    f"(there are: {', '.join(by_label)})"
                )
        mine = [by_label[label] for label in source.verifiers] if source.verifiers else c.verifiers
        trained = key.startswith("data.train")
        if trained and all(v.weight == 0 for v in mine) and c.objective.likelihood is None:
            where = f" that scores {key}" if source.verifiers else ""
            raise ValueError(f"every verifier{where} has weight 0: there is no reward")
        if any(v.name == "reasoning_gym" and not v.when for v in mine) and source.source != "reasoning_gym":
            raise ValueError(
                f"the reasoning_gym verifier scores rows of a reasoning_gym source; {key} is another: name in "
                f"{key}.verifiers those that are for its rows"
            )


def check_evaluation(c: Config) -> None:
    """A test set's own k and samples agree; those of `evaluation` were checked there."""
    for name, test in c.test_sets.items():
        key = f"data.test.{name}".rstrip(".")
        if test.k and max(test.k) > test.samples_per_prompt:
            raise ValueError(
                f"{key}: pass@{max(test.k)} needs at least {max(test.k)} samples: raise {key}.samples_per_prompt "
                f"({test.samples_per_prompt}; evaluation.samples_per_prompt where it is left out) or lower {key}.k"
            )


def check_best(c: Config) -> None:
    best = c.checkpoint.best
    if best is None:
        return
    beside = ["distinct_correct", *(["nll"] if c.evaluation.temperature else [])]
    known = [*c.evaluated, *(f"{name}/{metric}".lstrip("/") for name in c.test_sets for metric in beside)]
    if not c.evaluation.every and not c.evaluation.after:
        raise ValueError(
            "checkpoint.best needs evaluations of checkpoints: set evaluation.every (now 0) or evaluation.after"
        )
    if best.metric not in known:
        raise ValueError(
            f"checkpoint.best.metric: no evaluation gives {best.metric!r}{nearest(best.metric, known)} "
            f"(given: {', '.join(known)})"
        )


def _check_advantage(c: Config) -> None:
    advantage, samples = c.objective.advantage, c.rollout.samples_per_prompt
    alone = advantage.name in ("reinforce_pp", "trice") or advantage.params.get("mean") in ("none", "batch")
    if advantage.name in ADVANTAGES and not alone and samples < 2:
        raise ValueError(
            f"objective.advantage: {advantage.name} compares the samples of a group: set "
            "rollout.samples_per_prompt >= 2"
        )
    k = advantage.params.get("k", 1)
    if advantage.name == "pass_at_k" and isinstance(k, int):
        least = k + (advantage.params.get("baseline") == "leave_one_out")
        if samples < least:
            raise ValueError(
                f"objective.advantage: pass_at_k with k {k} needs rollout.samples_per_prompt >= {least}, not {samples}"
            )


def _check_weights(c: Config) -> None:
    """Where pi_old is pi, weights pi / pi_old are 1; only their derivative, where it adds something, is not nothing."""
    if c.learner.optimizer_steps_per_batch > 1 or c.objective.proximal == "behavior":
        return
    for i, r in enumerate(c.objective.regularizers):
        weight = r.params.get("is_weight", "none")
        idle = ("detached", "differentiable") if r.divergence in F_DIVERGENCES else ("detached",)
        if r.divergence in DIVERGENCES and weight in idle:
            raise ValueError(
                f"objective.regularizers.{i}.is_weight: {weight} would do nothing: with "
                "learner.optimizer_steps_per_batch: 1 the policy is still pi_old, and pi / pi_old is 1 however stale "
                "samples are. Leave it out, or set objective.proximal: behavior, which makes it pi / mu"
            )


def _check_likelihood(c: Config) -> None:
    likelihood, advantage = c.objective.likelihood, c.objective.advantage.name
    if (likelihood is not None and likelihood.name == "jepo") != (advantage == "jepo_loo"):
        raise ValueError("objective.likelihood.name: jepo and objective.advantage: jepo_loo belong together: set both")
    if likelihood is None:
        return
    if likelihood.name in ("logprob", "avg_logprob", "jepo") and likelihood.clip is None:
        raise ValueError(
            f"objective.likelihood.clip: {likelihood.name} is a logarithm without lower bound, and a response without "
            "the marker gets that bound: set clip, for example [-20, 0]"
        )
    known = ("learner", *c.objective.references, *REFERENCES)
    if likelihood.scorer not in known:
        raise ValueError(
            f"objective.likelihood.scorer: unknown {likelihood.scorer!r}{nearest(likelihood.scorer, known)} "
            f"(known: {', '.join(known)})"
        )
    answers = any(t.loss == "reference_nll" for t in c.objective.terms)
    none_come = likelihood.answer_weight == "zero" or (
        likelihood.answer_weight is None and likelihood.name in ("avg_prob", "nover")
    )
    if answers and none_come:
        raise ValueError(
            f"objective.terms: reference_nll finds no samples: objective.likelihood {likelihood.name} gives the "
            "reference answer no weight; set objective.likelihood.answer_weight, or remove the term"
        )


def _check_sources(c: Config) -> None:
    """Every term finds samples of its source, or it would train on nothing without a word."""
    strategy = c.data.strategy.name
    known_name("data.strategy", strategy, STRATEGIES)
    if strategy not in STRATEGIES:  # a user's own says what it gives when it is built
        return
    row = c.learner.longest
    if "pair" in STRATEGIES[strategy] and row < 2 * c.max_sequence_tokens:
        raise ValueError(
            f"data.strategy: {strategy} keeps the two responses of a pair together: learner.row_tokens or "
            f"learner.tokens_per_micro_batch ({row}) must hold 2 x (data.max_prompt_tokens + rollout.max_tokens) = "
            f"{2 * c.max_sequence_tokens}"
        )
    given = [*STRATEGIES[strategy], *(["reference"] if c.objective.likelihood else [])]
    for key, summand in c.objective.summands():
        if summand.source not in given:
            fix = [name for name, sources in STRATEGIES.items() if summand.source in sources]
            how = f"data.strategy: {' or '.join(fix)}" if fix else "objective.likelihood"
            raise ValueError(
                f"objective.{key}.source: {summand.source}, but data.strategy: {strategy} gives {', '.join(given)}; "
                f"{summand.source} comes with {how}"
            )
    if c.objective.policy_loss is not None and "on_policy" not in given:
        raise ValueError(
            f"objective.policy_loss learns from on-policy samples, and data.strategy: {strategy} gives "
            f"{', '.join(given)}: set objective.policy_loss: null"
        )


def check_routing(c: Config) -> None:
    if c.routing.replay != "r3":
        return
    refuse_engine_args(c.rollout.engine_args)


def refuse_engine_args(engine_args: Mapping[str, Any]) -> None:
    """Refuse engine arguments under which rows can be missing or another token's, without a word from vLLM.

    Raises:
        ValueError: naming the key, its value and the reason.
    """
    wrong = {key: reason for key, reason in SPOILING_SIZES.items() if (engine_args.get(key) or 1) > 1}
    wrong |= {key: reason for key, reason in SPOILING_SWITCHES.items() if engine_args.get(key)}
    if not engine_args.get("enable_return_routed_experts", True):
        wrong["enable_return_routed_experts"] = "it is what routes come from"
    for key, reason in wrong.items():
        raise ValueError(
            f"rollout.engine_args.{key}: {engine_args[key]!r} does not go with captured routes: {reason}; "
            f"leave it out, or set routing.replay: off"
        )

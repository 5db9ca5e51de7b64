"""What other systems (verl, TRL, OpenRLHF) call what rlpost has under another key: a hint for whoever comes from there."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

# By the last part of their key; what it is here.
OTHER_NAMES = {
    "n": "rollout.samples_per_prompt",
    "num_generations": "rollout.samples_per_prompt",
    "n_samples_per_prompt": "rollout.samples_per_prompt",
    "train_batch_size": "learner.prompts_per_step",
    "rollout_batch_size": "learner.prompts_per_step",
    "ppo_epochs": "learner.optimizer_steps_per_batch",
    "num_iterations": "learner.optimizer_steps_per_batch",
    "learning_rate": "learner.lr",
    "actor_learning_rate": "learner.lr",
    "lr": "learner.lr",
    "lr_scheduler_type": "learner.schedule",
    "lr_warmup_steps": "learner.warmup_steps",
    "max_grad_norm": "learner.grad_clip",
    "ppo_max_token_len_per_gpu": "learner.tokens_per_micro_batch",
    "adv_estimator": "objective.advantage",
    "advantage_estimator": "objective.advantage",
    "loss_agg_mode": "objective.aggregation",
    "clip_ratio": "objective.policy_loss: {name: ppo_clip, low: ..., high: ...}",
    "epsilon": "objective.policy_loss: {name: ppo_clip, low: ..., high: ...}",
    "kl_coef": "objective.regularizers: [{divergence: k3, coef: ...}]",
    "kl_loss_coef": "objective.regularizers: [{divergence: k3, coef: ...}]",
    "init_kl_coef": "objective.regularizers: [{divergence: k3, coef: ...}]",
    "beta": "objective.regularizers: [{divergence: k3, coef: ...}]",
    "entropy_coeff": "objective.regularizers: [{divergence: entropy, coef: ...}]",
    "total_epochs": "epochs",
    "num_train_epochs": "epochs",
    "num_episodes": "epochs",
    "max_steps": "steps",
    "total_training_steps": "steps",
    "save_freq": "checkpoint.every",
    "save_steps": "checkpoint.every",
    "test_freq": "evaluation.every",
    "eval_steps": "evaluation.every",
    "logger": "observe.sinks",
    "report_to": "observe.sinks",
    "experiment_name": "name",
    "run_name": "name",
    "default_local_dir": "runs_dir",
    "output_dir": "runs_dir",
    "nnodes": "cluster.nodes",
    "n_gpus_per_node": "cluster.gpus_per_node",
    "tensor_model_parallel_size": "rollout.tensor_parallel",
    "max_completion_length": "rollout.max_tokens",
    "max_response_length": "rollout.max_tokens",
    "response_length": "rollout.max_tokens",
    "max_new_tokens": "rollout.max_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "prompt_key": "data.train.prompt",
    "input_key": "data.train.prompt",
    "label_key": "data.train.reference",
    "train_files": "data.train.path",
    "val_files": "data.test.path",
    "model_name_or_path": "model.path",
    "pretrain": "model.path",
    "reward_funcs": "verifiers",
    "custom_reward_function": "verifiers: [file.py:function]",
    "lora_rank": "model.lora.rank",
    "partial_rollout": "rollout.updates",
    "resume_mode": "the command rlpost resume",
    "resume_from_checkpoint": "the command rlpost resume",
}  # fmt: skip


def said_otherwise(key: str, value: Any) -> str:
    """`: NAME is KEY here` for each part of an unknown key and what stands under it that another system has; or nothing."""
    names = [_meant(name) for name in _names(key, value)]
    found = {name: OTHER_NAMES[name] for name in names if OTHER_NAMES.get(name, key) != key}
    return "".join(f"; {name} of other systems is {here} here" for name, here in found.items())


def _meant(name: str) -> str:
    """The name of other systems that this is, or a slip of: `lerning_rate`."""
    close = get_close_matches(name, OTHER_NAMES, n=1, cutoff=0.85)
    return close[0] if close else name


def _names(key: str, value: Any) -> Iterator[str]:
    yield key.rpartition(".")[2]
    if isinstance(value, dict):
        for name, under in value.items():
            yield from _names(str(name), under)

"""What the registries hold, so that a name can be refused without importing torch; a test keeps the two in step."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlpost.user_code import check_file, nearest

ADVANTAGES = (
    "grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline", "gpg", "normalized", "pass_at_k", "jepo_loo",
    "f_dpg", "trice",
)  # fmt: skip
TRANSFORMS = ("overlong", "stcr", "conflict_mask", "entropy_filter", "entropy_shaping", "top_entropy", "clip_cov")
CORRECTIONS = ("importance", "reject", "opsm")
SELECTORS = ("positive", "negative", "incorrect", "group_all_wrong", "top_entropy", "high_covariance")
POLICY_LOSSES = ("ppo_clip", "gspo", "gspo_token", "cispo", "reinforce", "rpg", "gmpo", "sapo", "minirl")
TERMS = ("sft", "reference_nll", "dco", "dpo", "f_dpo", "h_dpo")
F_DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha", "tv", "pearson", "neyman", "hellinger")
DIVERGENCES = ("k1", "k2", "k3", "k1_st", "k3_st", *F_DIVERGENCES, "entropy", "split_kl")
UNANCHORED = ("entropy", "sft", "reference_nll", "dco")  # terms and divergences that compare with no anchor
REFERENCES = ("frozen", "hard_reset", "ema", "soup", "teacher", "old_policy", "cached")
SCHEDULES = (
    "constant", "linear", "cosine", "exponential", "step", "adaptive_kl", "adaptive_entropy", "dads",
)  # fmt: skip
REWEIGHTERS = ("recap",)
LIKELIHOODS = ("prob", "logprob", "avg_logprob", "avg_prob", "jepo", "nover")
# Sources of samples, and which of them each strategy gives.
SOURCES = ("on_policy", "rehearsal", "success_memory", "pair", "sft", "reference")
# Of these the samples that engines of the run sampled, with log-probs and routes.
SAMPLED = ("on_policy", "pair")
STRATEGIES: dict[str, tuple[str, ...]] = {
    "uniform": ("on_policy",),
    "curriculum": ("on_policy",),
    "mastery_partition": ("on_policy", "rehearsal"),
    "replay_mixture": ("on_policy", "sft"),
    "success_memory": ("on_policy", "success_memory"),
    "pairs": ("pair",),
}
VERIFIERS = (
    *("math", "reasoning_gym", "exact", "format", "countdown", "code", "sql", "length", "overlong", "repetition"),
    *("language", "choice", "regex", "json_schema", "instructions", "ensemble", "judge"),
)


def known_name(key: str, name: str, known: Iterable[str], params: Iterable[str] = ()) -> None:
    """Accept a built-in name, or `file.py:function` / `package.module:function`.

    Args:
        params: what is set besides the name, to be compared with the arguments of a function in a file.

    Raises:
        ValueError: neither, or the file, when it is one, does not hold the function.
    """
    known = list(known)
    if name in known:
        return
    origin, colon, attribute = name.partition(":")
    if colon and attribute:
        if origin.endswith(".py"):
            try:
                check_file(Path(origin), attribute, params)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        return
    if key.startswith("verifiers") and name in _entry_points():
        return
    raise ValueError(
        f"{key}: unknown name {name!r}{nearest(name, known)} (known: {', '.join(known)}, or file.py:function)"
    )


def _entry_points() -> set[str]:
    from importlib.metadata import entry_points

    return {e.name for e in entry_points(group="rlpost.verifiers")}

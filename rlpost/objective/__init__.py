"""The objective on tensors: credit, surrogate, divergences, aggregation. Knows no Ray, vLLM or DeepSpeed.

One file per role, each a registry that a user's own file can add to. `Objective` puts them together.
"""

from rlpost.objective.advantage import ADVANTAGES, AdvantageEstimator, GroupStatistics, group_statistics
from rlpost.objective.aggregate import Denominators, token_weights
from rlpost.objective.divergence import DIVERGENCES, Divergence
from rlpost.objective.mismatch import mismatch_metrics
from rlpost.objective.objective import Objective
from rlpost.objective.policy_loss import POLICY_LOSSES, PolicyLoss
from rlpost.objective.ratio import LOG_RATIO_LIMIT, clamped_log_ratio
from rlpost.objective.registry import Registry
from rlpost.objective.types import TermInputs, TermOutputs

__all__ = [
    "ADVANTAGES",
    "DIVERGENCES",
    "LOG_RATIO_LIMIT",
    "POLICY_LOSSES",
    "AdvantageEstimator",
    "Denominators",
    "Divergence",
    "GroupStatistics",
    "Objective",
    "PolicyLoss",
    "Registry",
    "TermInputs",
    "TermOutputs",
    "clamped_log_ratio",
    "group_statistics",
    "mismatch_metrics",
    "token_weights",
]

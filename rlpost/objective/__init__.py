"""The objective on tensors: credit, surrogates, divergences, aggregation. Knows no Ray, vLLM or DeepSpeed.

One file per role, each a registry that a user's own file can add to. `Credit` is what the driver works out for the
whole batch; `Objective` is the loss of a micro-batch in a learner rank.
"""

from rlpost.objective import rpg as rpg  # registers a policy loss
from rlpost.objective.advantage import ADVANTAGES, AdvantageEstimator
from rlpost.objective.aggregate import Denominators, token_weights
from rlpost.objective.correction import CORRECTIONS, Correction
from rlpost.objective.credit import Credit, Credited
from rlpost.objective.divergence import DIVERGENCES, Divergence
from rlpost.objective.likelihood import LIKELIHOODS
from rlpost.objective.mismatch import mismatch_metrics
from rlpost.objective.objective import LossInputs, Objective
from rlpost.objective.policy_loss import POLICY_LOSSES, PolicyLoss
from rlpost.objective.ratio import LOG_RATIO_LIMIT, clamped_log_ratio
from rlpost.objective.reference import REFERENCES, Move, Reference
from rlpost.objective.reweight import REWEIGHTERS
from rlpost.objective.schedule import SCHEDULES, Moment, Schedule
from rlpost.objective.selector import SELECTORS, Selector
from rlpost.objective.terms import TERMS, Term
from rlpost.objective.transform import TRANSFORMS, Transform
from rlpost.objective.types import Corrected, CreditInputs, Reshaped, TermInputs, TermOutputs

__all__ = [
    "ADVANTAGES",
    "CORRECTIONS",
    "DIVERGENCES",
    "LIKELIHOODS",
    "LOG_RATIO_LIMIT",
    "POLICY_LOSSES",
    "REFERENCES",
    "REWEIGHTERS",
    "SCHEDULES",
    "SELECTORS",
    "TERMS",
    "TRANSFORMS",
    "AdvantageEstimator",
    "Corrected",
    "Correction",
    "Credit",
    "CreditInputs",
    "Credited",
    "Denominators",
    "Divergence",
    "LossInputs",
    "Moment",
    "Move",
    "Objective",
    "PolicyLoss",
    "Reference",
    "Reshaped",
    "Schedule",
    "Selector",
    "Term",
    "TermInputs",
    "TermOutputs",
    "Transform",
    "clamped_log_ratio",
    "mismatch_metrics",
    "token_weights",
]

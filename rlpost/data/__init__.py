"""Where prompts come from, which come next, and which groups of samples are learned from.

Importable without torch, ray or vllm; transformers, datasets, pyarrow and reasoning-gym load when first needed.
"""

from rlpost.data.errors import DataError
from rlpost.data.mixture import MixedOrder, order_of, steps_until
from rlpost.data.order import PromptOrder, fill, judge_group, still_missing
from rlpost.data.prompts import PromptSets, check_encoded, check_source, load_examples, load_prompts
from rlpost.data.report import DataReport, SourceReport
from rlpost.data.sources import Row, read_rows
from rlpost.data.strategies import Curriculum, MasteryPartition, Pairs, ReplayMixture, SuccessMemory
from rlpost.data.strategy import STRATEGIES, Lab, Strategy, Uniform
from rlpost.data.tokenizer import encode_completion, make_tokenizer

__all__ = [
    "STRATEGIES",
    "Curriculum",
    "DataError",
    "DataReport",
    "Lab",
    "MasteryPartition",
    "MixedOrder",
    "Pairs",
    "PromptOrder",
    "PromptSets",
    "ReplayMixture",
    "Row",
    "SourceReport",
    "Strategy",
    "SuccessMemory",
    "Uniform",
    "check_encoded",
    "check_source",
    "encode_completion",
    "fill",
    "judge_group",
    "load_examples",
    "load_prompts",
    "make_tokenizer",
    "order_of",
    "read_rows",
    "steps_until",
    "still_missing",
]

"""The entries of role DataStrategy beside `uniform`, one file a family; importing this registers them all."""

from rlpost.data.strategies.curriculum import Curriculum
from rlpost.data.strategies.memory import SuccessMemory
from rlpost.data.strategies.pairs import Pairs
from rlpost.data.strategies.partition import MasteryPartition
from rlpost.data.strategies.replay import ReplayMixture

__all__ = ["Curriculum", "MasteryPartition", "Pairs", "ReplayMixture", "SuccessMemory"]

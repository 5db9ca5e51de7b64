"""What a configuration takes of memory, known before anything starts: `memory_of`. Needs no GPU, Ray, vLLM or DeepSpeed."""

from rlpost.memory.holders import Holder, Memory
from rlpost.memory.plan import memory_of

__all__ = ["Holder", "Memory", "memory_of"]

"""rlpost: distributed RL post-training for LLM reasoning with verifiable rewards."""

__version__ = "0.1.0"

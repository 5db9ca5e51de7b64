"""`--restarts N`: a small parent that starts the command again when the machine, and not the user, ended it.

Nothing here imports Ray or torch: the parent has to outlive whatever takes those down.
"""

from rlpost.supervise.supervisor import supervise

__all__ = ["supervise"]

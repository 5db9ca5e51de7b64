"""Exit codes of the `rlpost` command, the same for every verb."""

DONE, BAD_USAGE, NOTHING_TO_DO, ALARM, FAULT, PREEMPTED = 0, 2, 3, 4, 5, 6

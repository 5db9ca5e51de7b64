"""Exit codes of the `rlpost` command, the same for every verb."""

DONE, BAD_USAGE, NOTHING_TO_DO, ALARM, FAULT, PREEMPTED = 0, 2, 3, 4, 5, 6
STOPPED_AT_ONCE = 130  # by a second signal; as the shell has it

"""Where a process is, read from what faulthandler writes of its threads."""

from __future__ import annotations

from rlpost.actors import place

WAITING = """
Thread 0x00007f (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
  File "/somewhere/rlpost/rollout/engine.py", line 290 in _run
"""
DECODING = """
Current thread 0x00007e (most recent call first):
  File "/site-packages/vllm/v1/engine/core.py", line 12 in step
  File "/somewhere/rlpost/rollout/engine.py", line 310 in _decode
  File "/somewhere/rlpost/rollout/engine.py", line 292 in _run
"""


def test_the_thread_that_is_deepest_in_rlpost_is_told_by_its_innermost_place_there():
    assert place(WAITING + DECODING) == "_decode (rlpost/rollout/engine.py:310)"
    assert place(DECODING + WAITING) == "_decode (rlpost/rollout/engine.py:310)"


def test_a_process_that_is_nowhere_in_rlpost_is_idle():
    own = '  File "/somewhere/rlpost/actors.py", line 3 in whereabouts'
    assert place("") == "idle"
    assert place(f"Thread 0x01 (most recent call first):\n{own}\n") == "idle"

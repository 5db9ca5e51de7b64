"""A verifier to copy. Use it as `verifiers: [{name: path/to/this_file.py:verify, weight: 1.0, tolerance: 0.1}]`.

Plain Python: nothing of rlpost is imported. It runs in a process of its own, killed when a verdict takes longer than
`timeout` seconds; what it prints goes to standard error. Try it before training:

    rlpost verify path/to/this_file.py:verify --data my_responses.jsonl --label right --contract
"""

from __future__ import annotations

from typing import Any


# Arguments are filled by name; leave out those not needed:
#   response       what the model wrote
#   reference      the row's reference (`data.train.reference`)
#   prompt, prompt_id, finish_reason ("stop" or "length"), token_count
#   any column listed in `data.train.metadata`
#   any further key of the verifier in the configuration: here `tolerance`
#   **sample       all of the above in one dict
# `async def` works as well.
def verify(response: str, reference: float | str, tolerance: float = 0.0) -> float | bool | dict[str, Any] | None:
    """Correct when the last word of the response is a number near the reference."""
    # What the model cannot cause is None, "could not be verified": the sample is then left out of the loss.
    try:
        expected = float(reference)
    except (TypeError, ValueError):
        return {"score": None, "reason": "bad_reference"}
    # What the model can cause is wrong, never an exception: it must not be able to choose to be left out.
    words = response.split()
    try:
        answer = float(words[-1])
    except (IndexError, ValueError):
        return {"score": 0.0, "reason": "no_answer"}
    # True or 1.0 is correct, False or 0.0 is wrong, between them is partial; a dict adds what is worth a look later.
    return {"score": float(abs(answer - expected) <= tolerance), "extracted": words[-1]}

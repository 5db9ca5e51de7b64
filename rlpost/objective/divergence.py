"""Role Regularizer: a divergence to an anchor, estimated on the sampled tokens.

An entry is a function `(batch: TermInputs, anchor: Tensor, **params) -> TermOutputs`, with `anchor` the (B, T)
log-probs of the sampled tokens under the anchor policy. It sees no advantages. Its metrics are named by family
("kl", "clamp"); the objective appends which regularizer it was: `kl/k3`, `clamp/k3`.

An estimator's value and its gradient are different questions (methods.md, 1.1). With d = log pi - log ref on a token
sampled from pi, k1, k2 and k3 (Schulman, "Approximating KL divergence", 2020) all have a value near KL(pi || ref), k1
and k3 without bias; but as a *loss*, where the sampling itself is not differentiated, their expected gradients are
those of three different objectives. On sequences that holds per token, with the distribution of prefixes held fixed:
it is the gradient of sum_t E_prefix[KL_t], not of the KL of whole sequences, which also moves the prefixes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rlpost.objective.ratio import clamped_log_ratio
from rlpost.objective.registry import Registry
from rlpost.objective.types import TermInputs, TermOutputs

Divergence = Callable[[TermInputs, Tensor], TermOutputs]
DIVERGENCES: Registry[Divergence] = Registry("divergence", inputs=("batch", "anchor"))


@DIVERGENCES.register("k1")
def k1(batch: TermInputs, anchor: Tensor) -> TermOutputs:
    """d. Value: KL(pi || ref), unbiased, of either sign.

    Gradient in the loss: grad log pi, which has expectation **zero** under pi. It regularizes nothing and adds
    noise; k1 belongs in the reward. It is here to be measured, and to be shown not to work.
    """
    d, clamped = clamped_log_ratio(batch.logp, anchor)
    return _outputs(d, clamped)


@DIVERGENCES.register("k2")
def k2(batch: TermInputs, anchor: Tensor) -> TermOutputs:
    """d^2 / 2. Value: biased, near KL(pi || ref) when the two are close.

    Gradient in the loss: d grad log pi, in expectation under pi exactly that of the **reverse** KL(pi || ref).
    """
    d, clamped = clamped_log_ratio(batch.logp, anchor)
    return _outputs(d.square() / 2, clamped)


@DIVERGENCES.register("k3")
def k3(batch: TermInputs, anchor: Tensor, *, max_value: Annotated[float, Field(gt=0)] | None = None) -> TermOutputs:
    """exp(-d) - 1 + d. Value: KL(pi || ref), unbiased, never negative. GRPO's choice (arXiv 2402.03300, eq. 4).

    Gradient in the loss: (1 - ref / pi) grad log pi, in expectation under pi exactly that of the **forward**
    KL(ref || pi), not of the KL its value estimates. Off policy (samples from pi_old != pi) it is neither.

    Args:
        max_value: clamp the value from above, as other systems do with 10. There the gradient is zero, which is where
            the divergence is largest; those tokens are counted in the `clamp` metric. None: no clamp.
    """
    d, clamped = clamped_log_ratio(batch.logp, anchor)
    value = torch.expm1(-d) + d
    if max_value is not None:
        clamped = clamped | (value.detach() > max_value)
        value = value.clamp(max=max_value)
    return _outputs(value, clamped)


def _outputs(value: Tensor, clamped: Tensor) -> TermOutputs:
    return TermOutputs(value, means={"kl": value.detach(), "clamp": clamped})

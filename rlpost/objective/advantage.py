"""Role AdvantageEstimator: from rewards to credit.

An entry is a function `(rewards, group, usable, **params) -> advantages`:

    rewards: (B,) float32 or float64; whatever stands at unusable samples is not read.
    group: (B,) int64, the samples of one prompt share a value; values and order are arbitrary.
    usable: (B,) bool; the others are outside every statistic and get an advantage of exactly 0.
    advantages: (B,), in the dtype of `rewards`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from rlpost.objective.registry import Registry

AdvantageEstimator = Callable[[Tensor, Tensor, Tensor], Tensor]
ADVANTAGES: Registry[AdvantageEstimator] = Registry("advantage", inputs=("rewards", "group", "usable"))


class GroupStatistics(NamedTuple):
    """Statistics of each sample's group, all (B,) float64.

    Attributes:
        count: usable samples in the group.
        deviation: value minus the group's mean; exactly 0 at unusable samples and in a group of equal values.
        std: of the group; exactly 0 in a group of equal values or of fewer than two.
    """

    count: Tensor
    deviation: Tensor
    std: Tensor


def group_statistics(values: Tensor, group: Tensor, usable: Tensor, *, ddof: int) -> GroupStatistics:
    """What every group-wise normalisation is made of; one group for all samples gives the batch-wise ones.

    Args:
        values: (B,), group: (B,) int64, usable: (B,) bool, as for an estimator.
        ddof: the variance is the sum of squares over `count - ddof`.
    """
    labels, index = torch.unique(group, return_inverse=True)
    values = values.double()

    def per_group(x: Tensor) -> Tensor:
        return values.new_zeros(len(labels)).index_add(0, index, x)

    # Measured from the group's minimum, equal values have deviation 0 to the last bit; from the mean, only nearly.
    infinity = torch.full_like(values, torch.inf)
    minimum = infinity[: len(labels)].scatter_reduce(0, index, torch.where(usable, values, infinity), "amin")
    shifted = torch.where(usable, values - minimum[index], 0.0)
    count = per_group(usable.double())
    mean = per_group(shifted) / count.clamp(min=1)
    deviation = torch.where(usable, shifted - mean[index], 0.0)
    variance = per_group(deviation.square()) / (count - ddof).clamp(min=1)
    return GroupStatistics(count[index], deviation, variance.sqrt()[index])


@ADVANTAGES.register("grpo")
def grpo(
    rewards: Tensor,
    group: Tensor,
    usable: Tensor,
    *,
    normalize_std: bool = True,
    eps: Annotated[float, Field(gt=0)] = 1e-6,
    ddof: Literal[0, 1] = 1,
) -> Tensor:
    """A_i = (r_i - mean_g) / (std_g + eps), over the usable samples of the group (GRPO, arXiv 2402.03300, 4.1.1).

    A group of equal rewards, or with fewer than two usable samples, gets exactly 0.

    Args:
        normalize_std: divide by the standard deviation; this rescales prompts by their difficulty.
        eps: added to the standard deviation.
        ddof: 1, the sample standard deviation, as in torch; 0, the population's, as in numpy.
    """
    statistics = group_statistics(rewards, group, usable, ddof=ddof)
    scale = statistics.std + eps if normalize_std else 1.0
    return (statistics.deviation / scale).to(rewards.dtype)

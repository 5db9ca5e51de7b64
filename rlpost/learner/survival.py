"""What share of an update reaches the engines, after it was rounded to what they hold.

With D what training has added to the weights since the run's base and S what the engines hold beyond theirs, both over
all compared weights as one vector: share = max(0, 1 - |S - D| / |D|). 1: all of it; 0: as well nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from rlpost.learner.masters import Masters, gathered

SAMPLED_TENSORS = 4
SAMPLED_ELEMENTS = 65536


class Survival:
    """Sums over tensors, in float64."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._trained = 0.0

    def add(self, trained: torch.Tensor, served: torch.Tensor) -> None:
        """Two updates of the same weights, of any shape."""
        difference = served.double() - trained.double()
        self._lost += float(difference.square().sum())
        self._trained += float(trained.double().square().sum())

    def add_factors(self, a: torch.Tensor, b: torch.Tensor, served_a: torch.Tensor, served_b: torch.Tensor) -> None:
        """B @ A against what is served of it, without the products.

        |L R|^2 is the sum over (L^T L) * (R R^T), both of the size of the rank.

        Args:
            a, served_a: (rank, in).
            b, served_b: (out, rank).
        """
        left = torch.cat([served_b.double(), -b.double()], dim=1)
        right = torch.cat([served_a.double(), a.double()], dim=0)
        self._lost += max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))
        b, a = b.double(), a.double()
        self._trained += max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))

    @property
    def share(self) -> float | None:
        """In [0, 1]; None where nothing has been trained yet."""
        if self._trained == 0:
            return None
        return max(0.0, 1.0 - (self._lost / self._trained) ** 0.5)


class Sample:
    """The first elements of a few matrices, as they were when the run began: to see what arrives of a full training.

    Every rank holds it, and calls its methods in step with the others.
    """

    def __init__(self, model: Any) -> None:
        matrices = [(n, p) for n, p in model.named_parameters() if p.requires_grad and len(_shape(p)) == 2]
        step = max(1, len(matrices) // SAMPLED_TENSORS)
        self._parameters = [p for _, p in matrices[step // 2 :: step][:SAMPLED_TENSORS]]
        self._start = []
        for parameter in self._parameters:
            with gathered([parameter]), torch.no_grad():
                self._start.append(_head(parameter))

    def survival(self, dtype: torch.dtype, masters: Masters) -> Survival:
        """Of what has been trained since, given to engines in `dtype`."""
        found = Survival()
        for parameter, start in zip(self._parameters, self._start, strict=True):
            with gathered([parameter]), torch.no_grad():
                held = _head(parameter)
            now = _head(masters.of(parameter))
            sent = held.to(dtype).float() - start.to(dtype).float()
            found.add(now - start, sent)
        return found


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _head(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().flatten()[:SAMPLED_ELEMENTS].to("cpu", torch.float32, copy=True)

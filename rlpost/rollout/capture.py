"""The experts an engine chose while it sampled: asked of vLLM, checked, and cut into `Routes`.

Importable without vLLM, so that a configuration can be checked with it.

What vLLM 0.30 gives, and why a row belongs to its token:

- A finished request brings one array (P + R - 1, layers, top_k) for all layers of the model; dense ones hold zeros and
  are cut away here. P rows are emitted with its first token, one with each further token. So a row is always of the
  weight version that sampled the token it led to.
- The P rows are read by slot of the key-value cache, where every forward pass writes what it chose. A prefix that came
  from the prefix cache is in the slots of the request that computed it, so its rows are those its keys and values were
  made with: the same in the next group, in the same decoding step, and when a prompt is cached whole (its last token,
  and with it the block around it, is always computed again).
- Whoever is preempted, for want of cache or by a weight update, computes keys and values anew but emits only the row
  of the token that follows. Rows that are out stay what they were when their token was sampled. A prompt that is
  interrupted before its first token starts from nothing; its rows are of the version of that token.
- A weight update empties the prefix cache, so no slot of an older version is ever read.
- Who is given up brings nothing and has no routes.

Every sample brings its own rows of the prompt, though most are the same bytes: a sample whose prefix had been evicted
and was computed again, or that waited through a weight update while its group had begun, differs from the rest, and
only its own rows say how. They are compared here: samples whose rows of the prompt are the same bytes hold one array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlpost.faults import failpoint
from rlpost.routing import Routes

TRIED_VERSIONS = ("0.30.",)


def refuse_version(version: str) -> None:
    """Refuse a vLLM whose capture was never tried: it has been wrong in ways that show nowhere but in training."""
    if not version.startswith(TRIED_VERSIONS):
        raise ValueError(
            f"vLLM {version} has never been tried with captured routes, only {TRIED_VERSIONS[0]}*: install that, set "
            f"routing.replay: off, or run tests/integration/routing on it and extend TRIED_VERSIONS"
        )


def refuse_dense(experts: int, path: str) -> None:
    """Refuse a model without experts, before its weights are loaded."""
    if experts < 1:
        raise ValueError(
            f"model {path} has no experts, so there are no routes to capture: set routing.replay: off, or take a "
            f"mixture-of-experts model"
        )


@dataclass(frozen=True)
class Layout:
    """What a model's routes look like.

    Attributes:
        layers: absolute numbers of the mixture-of-experts layers, ascending.
        top_k: experts chosen by token and layer.
        experts: of a layer.
    """

    layers: tuple[int, ...]
    top_k: int
    experts: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.experts <= 256 else np.uint16)

    def described(self) -> dict[str, Any]:
        """As `Engine.start` tells it."""
        return {"layers": list(self.layers), "top_k": self.top_k, "experts": self.experts}

    def nothing(self, rows: int) -> np.ndarray:
        return np.zeros((rows, len(self.layers), self.top_k), self.dtype)

    def select(self, captured: np.ndarray | None, rows: int) -> np.ndarray | None:
        """The rows of mixture-of-experts layers, (rows, layers, top_k).

        Args:
            captured: what vLLM gave, (rows, all layers of the model, top_k).

        Returns:
            None when nothing came or its shape is another: then no row can be told to be a token's.
        """
        if captured is None or captured.ndim != 3 or len(captured) != rows:
            return None
        if captured.shape[1] <= self.layers[-1] or captured.shape[2] != self.top_k:
            return None
        first, last = self.layers[0], self.layers[-1]
        kept = captured[:, first : last + 1]  # costs nothing where all layers have experts
        if kept.shape[1] != len(self.layers):
            kept = kept[:, [layer - first for layer in self.layers]]
        return np.ascontiguousarray(kept, self.dtype)

    def sound(self, rows: np.ndarray) -> np.ndarray:
        """bool (rows,): whether all numbers are those of experts, and in no layer one was chosen twice.

        A row that was never written is all zeros, which is the same expert chosen top_k times. With top_k = 1 it could
        be true, so there only a sequence with nothing else in any layer of any token is taken for unwritten.
        """
        chosen = np.ascontiguousarray(np.moveaxis(rows, -1, 0))  # by column: comparing whole ones is fast
        bad = np.zeros(chosen.shape[1:], bool)
        if chosen.max(initial=0) >= self.experts:
            bad |= (chosen >= self.experts).any(0)
        for first in range(self.top_k):
            for second in range(first):
                bad |= chosen[first] == chosen[second]
        good: np.ndarray = ~bad.any(1)
        if self.top_k == 1 and self.experts > 1 and not rows.any():
            good[:] = False
        return good


def find_layout(worker: Any) -> Layout:
    """Where a model's experts are. Runs inside vLLM's workers, through its `collective_rpc`.

    The layers are those that vLLM's own capture binds to.
    """
    from vllm.model_executor.layers.fused_moe.layer import MoERunner
    from vllm.model_executor.layers.fused_moe.routed_experts_capturer import RoutedExpertsCaptureSource

    sources = (MoERunner, RoutedExpertsCaptureSource)
    config = worker.model_runner.model_config
    return Layout(
        layers=tuple(sorted({m.layer_id for m in worker.model_runner.get_model().modules() if isinstance(m, sources)})),
        top_k=config.get_num_experts_per_tok(),
        experts=config.get_num_experts(),
    )


@dataclass(frozen=True)
class Captured:
    """What one finished sample brought.

    Attributes:
        rows: what vLLM gave, (P + R - 1, all layers, top_k); None when nothing came.
        length: R, of the response.
    """

    rows: np.ndarray | None
    length: int


def damaged(rows: np.ndarray | None, version: int) -> np.ndarray | None:
    """The rows, or what the failpoints `routes.*` make of them at this weight version."""
    if rows is None or failpoint("routes.drop", version):
        return None
    if failpoint("routes.zero", version):
        return np.zeros_like(rows)
    return np.roll(rows, 1, axis=0) if failpoint("routes.shift", version) else rows


def group_routes(layout: Layout, prompt: int, samples: Sequence[Captured | None]) -> list[Routes | None]:
    """Routes of a group's samples, of which those with the same rows of the prompt share one array of them.

    Args:
        prompt: tokens of the prompt.
        samples: in order; None for one that was given up.

    Returns:
        one for each sample. Where nothing usable came, zeros of the right length with no valid row.
    """
    prompts: dict[bytes, np.ndarray] = {}

    def routes(sample: Captured) -> Routes:
        count = prompt + sample.length - 1
        rows = layout.select(sample.rows, count)
        if rows is None:
            return Routes(layout.nothing(0), layout.nothing(count), np.zeros(count, bool))
        key = rows[:prompt].tobytes()
        if key not in prompts:
            prompts[key] = rows[:prompt].copy()
        return Routes(prompts[key], rows[prompt:], layout.sound(rows))

    return [None if sample is None else routes(sample) for sample in samples]

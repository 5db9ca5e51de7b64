"""What one learner rank holds on its GPU: DeepSpeed's buffers by formula, the rest counted.

Formulas are of DeepSpeed 0.19.8 as `rlpost.learner.deepspeed_config` sets it, read in `runtime/bf16_optimizer.py`,
`runtime/zero/stage_1_and_2.py` and `runtime/zero/stage3.py`, and checked against the storages of real ranks
(`tests/integration/test_memory.py`). With P parameters of w bytes of which T are trained, on N ranks:

| ZeRO | weights | gradients | float32 sums | master weights | moments |
|---|---|---|---|---|---|
| 0 (float32 alone) | wP | wT | | | 8T |
| 1, bfloat16 | wP | 2T, kept | 4T, on every rank | 4T/N | 8T/N |
| 1, float32 | wP | 4T, then 4T/N | | 4T/N | 8T/N |
| 2 | wP | a bucket | 4T/N | 4T/N | 8T/N |
| 3 | wP/N | a bucket | 4T/N | 4T/N, none of float32 weights | 8T/N |

ZeRO: Rajbhandari et al., 2020, section 3. Under ZeRO 1 in bfloat16 with float32 sums DeepSpeed takes its BF16_Optimizer,
which sums before it reduces: the sums are whole on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlpost.config import Config
from rlpost.learner.deepspeed_config import deepspeed_config
from rlpost.memory.holders import GIB
from rlpost.memory.shapes import Shapes

WIDTH = {"float32": 4, "bfloat16": 2}
SUM = MASTER = 4  # float32
MOMENTS = 8
# DeepSpeed's own (runtime/zero/config.py).
BUCKET, LIVE, SMALL, SUBGROUP = 500_000_000, 1_000_000_000, 100_000, 1_000_000_000
# CUDA's own memory of a process, cuBLAS' workspaces and NCCL's buffers: an estimate, measured on no GPU.
CONTEXT = 1.0 * GIB
# vLLM's NCCL transfer sends from two buffers by turns, its IPC transfer from one (packed_tensor.py).
BUFFERS = {"nccl": 2, "ipc": 1, "object_store": 0}


@dataclass(frozen=True)
class Zero:
    """What of DeepSpeed's configuration decides memory. Counts are of numbers, not of bytes."""

    stage: int
    ranks: int
    width: int
    offload: bool
    bucket: int
    live: int
    small: int
    subgroup: int
    overlap: bool

    @classmethod
    def of(cls, config: Config) -> Zero:
        zero = deepspeed_config(config.learner, config.model.dtype, config.learner.ranks)["zero_optimization"]

        def value(name: str, default: int) -> int:
            return int(zero.get(name, zero.get(f"stage3_{name}", default)))

        return cls(
            stage=zero["stage"],
            ranks=config.learner.ranks,
            width=WIDTH[config.model.dtype],
            offload=config.learner.offload_optimizer,
            bucket=value("reduce_bucket_size", BUCKET),
            live=value("max_live_parameters", LIVE),
            small=value("param_persistence_threshold", SMALL),
            subgroup=value("sub_group_size", SUBGROUP),
            overlap=bool(zero.get("overlap_comm") or False),
        )

    @property
    def wide(self) -> int:
        """Ranks over which weights are spread."""
        return self.ranks if self.stage == 3 else 1


def phases(config: Config, shapes: Shapes, notes: list[str]) -> dict[str, dict[str, float]]:
    """Bytes of a rank by phase and part: `logits` and `layers` of the forward and backward pass of a micro-batch, `step`
    of the optimizer, `sync`.

    Args:
        notes: told what could not be counted.
    """
    from rlpost.memory.activations import UncountedError, work_of

    zero, on_gpu = Zero.of(config), config.on_gpu
    always = {**held(config, shapes, zero), **({"context": CONTEXT} if on_gpu else {})}
    learn = {**always, **learning(shapes, zero)}
    found: dict[str, dict[str, float]] = {}
    if zero.stage == 0 and zero.ranks > 1:  # when the backward pass has ended, a copy for the collective
        flat = zero.width * min(shapes.trained, BUCKET)
        found["reduce"] = {**learn, "gradients end to end": flat}
    found |= {"step": {**always, **stepping(shapes, zero, on_gpu)}, "sync": {**always, **syncing(config, shapes, zero)}}
    if shapes.network is None:
        notes.append(
            "activations, logits, what a weight update takes and the cache are not counted: the model's shapes are not known"
        )
        return {"learn": learn, **found}
    lo = config.learner
    try:
        asked = (*grid(config), lo.logits_chunk_tokens, config.model.attention, lo.gradient_checkpointing)
        work = shapes.once((asked, zero), lambda: work_of(shapes.network, *asked, Arrivals(zero)))
    except UncountedError as error:
        notes.append(f"activations and logits are not counted: {error}")
        return {"learn": learn, **found}
    learn["activations"] = work.kept
    return {"logits": {**learn, "at work": work.head}, "layers": {**learn, "at work": work.layers}, **found}


def grid(config: Config) -> tuple[int, int]:
    """Rows and their length of the largest micro-batch (`rlpost.learner.batch.plan`)."""
    lo = config.learner
    length = lo.longest if lo.layout == "packed" else config.max_sequence_tokens
    return max(1, lo.tokens_per_micro_batch // length), length


class Arrivals:
    """What DeepSpeed takes for itself when gradients come in: made on the meta device, for `Storages` to count.

    Under ZeRO 2 and 3 they wait in a bucket (`Zero.bucket`) and are reduced when the next does not fit: as float32 copies
    where weights are narrower, and under ZeRO 3 once more end to end, for one collective (`reduce_scatter_coalesced`).
    """

    def __init__(self, zero: Zero) -> None:
        self._zero = zero
        self._waiting: list[int] = []

    def __call__(self, parameter: Any) -> None:
        if self._zero.stage < 2:
            return
        if sum(self._waiting) + parameter.numel() > self._zero.bucket:
            self._reduce()
        self._waiting.append(parameter.numel())
        if parameter.numel() > self._zero.bucket:
            self._reduce()

    def _reduce(self) -> None:
        import torch

        if not self._waiting:
            return
        count = sum(self._waiting)
        copies = torch.empty(count, device="meta") if self._zero.width < SUM else None
        flat = torch.empty(count, dtype=torch.float32, device="meta") if self._together else None
        del copies, flat
        self._waiting = []

    @property
    def _together(self) -> bool:
        return self._zero.stage == 3 and len(self._waiting) > 1


def held(config: Config, shapes: Shapes, zero: Zero) -> dict[str, float]:
    """Bytes a rank holds between steps, once there has been one."""
    trained, n = shapes.trained, zero.ranks
    weights = zero.width * shapes.parameters / zero.wide
    parts: dict[str, float] = {"weights": weights}
    if zero.stage == 3:
        parts["small weights, whole"] = zero.width * shapes.at_most(zero.small)
        parts["gradient bucket"] = zero.bucket * SUM
    shared = n if zero.stage else 1
    if not zero.offload:
        if zero.stage in (1, 2) or (
            zero.stage == 3 and zero.width < MASTER
        ):  # ZeRO 3 steps on weights that are in float32 already
            parts["master weights"] = MASTER * trained / shared
        parts["moments"] = MOMENTS * trained / shared
        if zero.stage == 3:
            parts["gradient sums"] = SUM * trained / n
        if zero.stage == 1 and zero.width < SUM:
            parts["gradient sums"] = SUM * trained
    anchors = len(config.objective.anchor_models())
    if anchors:
        parts["anchors"] = anchors * weights
    return parts


def learning(shapes: Shapes, zero: Zero) -> dict[str, float]:
    """What comes on top while a micro-batch is learned from, but for what the pass itself makes."""
    parts: dict[str, float] = {}
    if zero.stage < 2:
        parts["gradients"] = zero.width * shapes.trained
    if zero.stage == 1 and (zero.width == SUM or zero.offload):
        parts["gradient bucket"] = zero.bucket * zero.width
        if not zero.offload:
            parts["gradient sums"] = SUM * shapes.trained / zero.ranks
    if zero.stage == 2:
        parts["gradient bucket"] = (2 if zero.overlap else 1) * zero.bucket * zero.width
        if not zero.offload:
            parts["gradient sums"] = SUM * shapes.trained / zero.ranks
    if zero.stage == 3:
        whole = shapes.parameters - shapes.at_most(zero.small)
        parts["gathered weights"] = zero.width * min(whole, max(zero.live, shapes.layer))
    return parts


def stepping(shapes: Shapes, zero: Zero, on_gpu: bool) -> dict[str, float]:
    """What comes on top while the optimizer steps.

    torch's AdamW makes the root of the second moments, of all tensors at once on a GPU (foreach) and of one at a time,
    and once more, on a CPU. DeepSpeed gives it one flat tensor, under ZeRO 3 one a sub-group, with its gradient.
    """
    if zero.offload:
        return {}
    share = shapes.trained / (zero.ranks if zero.stage else 1)
    flat = min(share, zero.subgroup) if zero.stage == 3 else share if zero.stage or on_gpu else shapes.widest
    parts = {"optimizer at work": (1 if on_gpu else 2) * MASTER * flat}
    if zero.stage == 0 or (zero.stage == 1 and zero.width < SUM):
        parts["gradients"] = zero.width * shapes.trained
    elif zero.stage < 3:
        parts["gradient sums"] = SUM * share
    else:
        parts["gradients of a sub-group"] = SUM * flat
    return parts


def syncing(config: Config, shapes: Shapes, zero: Zero) -> dict[str, float]:
    """What comes on top while weights are sent (`rlpost.learner.stream`): a part, what it becomes, and buffers."""
    if shapes.network is None:
        return {}
    from rlpost.learner.model import DTYPES
    from rlpost.learner.stream import WeightStream
    from rlpost.memory.counted import Storages

    dtype = DTYPES[config.rollout_dtype]

    def passed() -> tuple[int, int, int]:
        """Bytes of a pass at most, of the largest tensor it gives, and of the largest part it gathers."""
        stream = WeightStream(shapes.network, _Narrow)  # type: ignore[arg-type]
        with Storages("meta", [*shapes.network.parameters(), *shapes.network.buffers()]) as memory:
            for name, tensor in stream.tensors(dtype):
                del name, tensor
        return memory.peak, max(tensor.nbytes for tensor in stream.described(dtype).values()), stream.largest

    converted, largest, gathered = shapes.once(("sync", dtype), passed)
    parts: dict[str, float] = {
        "converted weights": converted,
        "send buffers": BUFFERS[config.weight_transfer] * largest,
    }
    if zero.stage == 3:
        parts["gathered weights"] = gathered
    return {name: size for name, size in parts.items() if size}


class _Narrow:
    """Adapters as they are in the model, in place of the optimizer's copies (`rlpost.learner.masters.Masters`)."""

    def of(self, parameter: Any) -> Any:
        return parameter.detach().float()

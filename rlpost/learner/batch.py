"""The one place that slices, pads, packs and splits sequences.

A `Batch` is ragged: tokens of all sequences end to end, with what is aligned to the response tokens beside them. It is
what travels to a learner rank. A `Plan` says which sequences each rank takes in which micro-batch; a `Grid` is one
micro-batch as tensors for a model. Whatever the plan, the update is the same: losses are sums with global denominators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from rlpost.types import Rollout

if TYPE_CHECKING:
    import torch

Layout = Literal["packed", "padded"]


@dataclass(frozen=True)
class Batch:
    """N sequences, flat.

    Attributes:
        tokens: int32 (sum of lengths), prompt then response of each sequence, end to end.
        prompt_lengths, response_lengths: int32 (N,).
        behavior_logp: float32 (sum of response lengths).
        versions: int32 (sum of response lengths), weight version that sampled each token; -1 where none did.
        advantages: float32 (sum of response lengths).
        learn: bool (N,); False leaves a sequence out of the loss but not out of the forward pass.
    """

    tokens: np.ndarray
    prompt_lengths: np.ndarray
    response_lengths: np.ndarray
    behavior_logp: np.ndarray
    versions: np.ndarray
    advantages: np.ndarray
    learn: np.ndarray

    def __post_init__(self) -> None:
        n, response = len(self.prompt_lengths), int(self.response_lengths.sum())
        expected = {
            "tokens": int(self.prompt_lengths.sum()) + response,
            "response_lengths": n,
            "behavior_logp": response,
            "versions": response,
            "advantages": response,
            "learn": n,
        }
        for name, length in expected.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"Batch.{name} has {len(getattr(self, name))} entries, expected {length}")
        if n and int(self.prompt_lengths.min()) < 1:
            raise ValueError("every sequence needs at least one prompt token: the first response token follows it")

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> np.ndarray:
        """int32 (N,): prompt plus response tokens."""
        return self.prompt_lengths + self.response_lengths

    @property
    def learned_tokens(self) -> int:
        return int(self.response_lengths[self.learn].sum())

    @classmethod
    def from_rollouts(cls, rollouts: Sequence[Rollout], advantages: Sequence[float], learn: Sequence[bool]) -> Batch:
        """Rollouts with one advantage each."""
        return cls.build(
            prompts=[r.prompt_ids for r in rollouts],
            responses=[r.response_ids for r in rollouts],
            behavior_logp=[r.logprobs for r in rollouts],
            versions=[r.versions for r in rollouts],
            advantages=advantages,
            learn=learn,
        )

    @classmethod
    def from_examples(cls, prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray]) -> Batch:
        """Worked examples, for supervised learning: nothing was sampled, so there is no behaviour policy."""
        n = len(prompts)
        return cls.build(
            prompts=prompts,
            responses=completions,
            behavior_logp=[np.zeros(len(c), np.float32) for c in completions],
            versions=[np.full(len(c), -1, np.int32) for c in completions],
            advantages=[1.0] * n,
            learn=[True] * n,
        )

    @classmethod
    def build(
        cls,
        prompts: Sequence[np.ndarray],
        responses: Sequence[np.ndarray],
        behavior_logp: Sequence[np.ndarray],
        versions: Sequence[np.ndarray],
        advantages: Sequence[float],
        learn: Sequence[bool],
    ) -> Batch:
        response_lengths = np.array([len(r) for r in responses], np.int32)
        return cls(
            tokens=_concat([x for pair in zip(prompts, responses, strict=True) for x in pair], np.int32),
            prompt_lengths=np.array([len(p) for p in prompts], np.int32),
            response_lengths=response_lengths,
            behavior_logp=_concat(behavior_logp, np.float32),
            versions=_concat(versions, np.int32),
            advantages=np.repeat(np.asarray(advantages, np.float32), response_lengths),
            learn=np.asarray(learn, bool),
        )

    def select(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The sequences at `indices`, in that order; an index may come twice."""
        index = np.asarray(indices, np.int64)
        whole = _ragged_index(self.lengths, index)
        response = _ragged_index(self.response_lengths, index)
        return Batch(
            tokens=self.tokens[whole],
            prompt_lengths=self.prompt_lengths[index],
            response_lengths=self.response_lengths[index],
            behavior_logp=self.behavior_logp[response],
            versions=self.versions[response],
            advantages=self.advantages[response],
            learn=self.learn[index],
        )


def _concat(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(p, dtype) for p in parts]) if len(parts) else np.zeros(0, dtype)


def _ragged_index(lengths: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Flat positions of the segments `index` in an array made of segments of `lengths`."""
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if not len(index):
        return np.zeros(0, np.int64)
    return np.concatenate([np.arange(starts[i], starts[i + 1]) for i in index])


# ---------------------------------------------------------------------------------------------------- who takes what


@dataclass(frozen=True)
class MicroBatch:
    """Rows of sequence indices; each row's sequences stand one after the other."""

    rows: tuple[tuple[int, ...], ...]
    muted: bool = False

    @property
    def sequences(self) -> list[int]:
        return [i for row in self.rows for i in row]

    def renumbered(self, new: Mapping[int, int]) -> MicroBatch:
        """The same rows under other sequence indices."""
        return MicroBatch(tuple(tuple(new[i] for i in row) for row in self.rows), self.muted)


def plan(
    lengths: np.ndarray, ranks: int, layout: Layout, tokens_per_micro_batch: int, row_tokens: int | None = None
) -> list[list[MicroBatch]]:
    """Deal sequences to ranks and cut each rank's share into micro-batches.

    Every rank gets the same number of micro-batches, or a collective in one rank's forward would wait for ever for
    another's: a rank with fewer repeats the shortest sequence, muted.

    Args:
        lengths: int (N,), N >= 1.
        tokens_per_micro_batch: rows x row length of a micro-batch stay within this.
        row_tokens: length of a packed row; `tokens_per_micro_batch` when None.

    Returns:
        for each rank its micro-batches, of indices into `lengths`.
    """
    if int(lengths.max()) > (row_tokens or tokens_per_micro_batch):
        raise ValueError(
            f"a sequence of {int(lengths.max())} tokens does not fit learner.row_tokens or tokens_per_micro_batch "
            f"({row_tokens or tokens_per_micro_batch})"
        )
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load: np.ndarray = np.zeros(ranks, np.int64)
    for i in np.argsort(-lengths, kind="stable"):  # longest first to the least loaded: near-even sums
        rank = int(np.argmin(load))
        shares[rank].append(int(i))
        load[rank] += int(lengths[i])
    cut = _packed if layout == "packed" else _padded
    plans = [cut(lengths, share, tokens_per_micro_batch, row_tokens) if share else [] for share in shares]
    most = max(len(p) for p in plans)
    muted = MicroBatch(rows=((int(np.argmin(lengths)),),), muted=True)
    for micro_batches in plans:
        micro_batches += [muted] * (most - len(micro_batches))
    return plans


def _padded(lengths: np.ndarray, share: list[int], budget: int, row_tokens: int | None) -> list[MicroBatch]:
    """One sequence a row, padded to the longest of its micro-batch; `share` comes longest first."""
    micro_batches: list[MicroBatch] = []
    rows: list[tuple[int, ...]] = []
    for i in share:
        if rows and (len(rows) + 1) * int(lengths[rows[0][0]]) > budget:
            micro_batches.append(MicroBatch(tuple(rows)))
            rows = []
        rows.append((i,))
    return [*micro_batches, MicroBatch(tuple(rows))]


def _packed(lengths: np.ndarray, share: list[int], budget: int, row_tokens: int | None) -> list[MicroBatch]:
    """First-fit decreasing into rows of `row_tokens`, as many rows a micro-batch as the budget holds."""
    capacity = row_tokens or budget
    rows: list[list[int]] = []
    room: list[int] = []
    for i in share:
        length = int(lengths[i])
        row = next((r for r, left in enumerate(room) if left >= length), None)
        if row is None:
            rows.append([])
            room.append(capacity)
            row = len(rows) - 1
        rows[row].append(i)
        room[row] -= length
    per = max(1, budget // capacity)
    return [MicroBatch(tuple(tuple(r) for r in rows[k : k + per])) for k in range(0, len(rows), per)]


# ------------------------------------------------------------------------------------------------------ as tensors


@dataclass(frozen=True)
class Grid:
    """One micro-batch for the model, and where its response tokens are.

    Attributes:
        input_ids, position_ids: int64 (rows, length). Positions restart at 0 with each sequence and with the padding
            behind the last: transformers keeps attention apart where positions do not run on.
        predictors: int64 (M,), flat positions in the grid whose hidden state predicts a response token.
        targets: int64 (M,), those tokens.
        sequence, offset: int64 (M,), which sequence of the micro-batch (B of them) and which of its tokens.
        shape: (B, T), sequences and the longest response.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    sequence: torch.Tensor
    offset: torch.Tensor
    shape: tuple[int, int]

    def spread(self, flat: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """(M,) response-token values as (B, T), `fill` beyond each response's end. Differentiable."""
        grid = flat.new_full(self.shape, fill)
        return grid.index_put((self.sequence, self.offset), flat)

    def mask(self) -> torch.Tensor:
        """bool (B, T): where there is a response token."""
        import torch

        return self.spread(torch.ones_like(self.targets, dtype=torch.bool), False)


def make_grid(batch: Batch, micro: MicroBatch, pad_id: int, device: torch.device | str = "cpu") -> Grid:
    """Lay a micro-batch's sequences out in rows. Sequence b of the grid is `micro.sequences[b]`."""
    import torch

    starts = np.concatenate([[0], np.cumsum(batch.lengths, dtype=np.int64)])
    width = max(int(sum(batch.lengths[i] for i in row)) for row in micro.rows)
    input_ids: np.ndarray = np.full((len(micro.rows), width), pad_id, np.int64)
    position_ids: np.ndarray = np.zeros((len(micro.rows), width), np.int64)
    predictors: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    sequence: list[np.ndarray] = []
    offset: list[np.ndarray] = []
    b = 0
    for r, row in enumerate(micro.rows):
        at = 0
        for i in row:
            length, prompt, response = (
                int(x[i]) for x in (batch.lengths, batch.prompt_lengths, batch.response_lengths)
            )
            tokens = batch.tokens[starts[i] : starts[i + 1]]
            input_ids[r, at : at + length] = tokens
            position_ids[r, at : at + length] = np.arange(length)
            predictors.append(r * width + at + prompt - 1 + np.arange(response))
            targets.append(tokens[prompt:])
            sequence.append(np.full(response, b))
            offset.append(np.arange(response))
            at += length
            b += 1
        position_ids[r, at:] = np.arange(width - at)

    def tensor(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)

    longest = max(int(batch.response_lengths[i]) for i in micro.sequences)
    return Grid(
        input_ids=torch.from_numpy(input_ids).to(device),
        position_ids=torch.from_numpy(position_ids).to(device),
        predictors=tensor(predictors),
        targets=tensor(targets),
        sequence=tensor(sequence),
        offset=tensor(offset),
        shape=(b, longest),
    )

"""The one place that slices, pads, packs and splits sequences.

A `Batch` is ragged: tokens of all sequences end to end, with what is aligned to the response tokens beside them. It is
what travels to a learner rank. A `Plan` says which sequences each rank takes in which micro-batch; a `Grid` is one
micro-batch as tensors for a model. Whatever the plan, the update is the same: losses are sums with global denominators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from rlpost.config import SOURCES
from rlpost.types import Sample

if TYPE_CHECKING:
    import torch

    from rlpost.learner.attention import Segments
    from rlpost.learner.replay import Replay, RouteGrid

Layout = Literal["packed", "padded"]

SEQUENCE_FIELDS = ("source", "group", "empty")
TOKEN_FIELDS = ("mask", "behavior_logp", "versions", "advantages")


@dataclass(frozen=True)
class Batch:
    """N sequences, flat.

    Attributes:
        tokens: int32 (sum of lengths), prompt then response of each sequence, end to end.
        prompt_lengths, response_lengths: int32 (N,).
        source: int8 (N,), index into `rlpost.config.SOURCES`.
        group: int64 (N,), samples of one prompt, or the two of a pair, share a value.
        empty: bool (N,), sequences that count though no token of theirs is learned from.
        mask: bool (sum of response lengths), True on tokens that are learned from. The others are in the forward pass.
        behavior_logp: float32 (sum of response lengths).
        versions: int32 (sum of response lengths), weight version that sampled each token; -1 where none did.
        advantages: float32 (sum of response lengths).
        per_token: further arrays along the response tokens, by name: `weights`, `keep`, `old_logp`,
            `anchors.<anchor>`, `where.<label>`.
        per_sequence: further arrays (N,), by name: `coef.<label>`.
        routes: uint8 or uint16 (U, layers, top_k), rows of chosen experts, each once; None without any.
        route_index: int32 (sum of lengths), the row of each token, prompts included; -1 where there is none.
    """

    tokens: np.ndarray
    prompt_lengths: np.ndarray
    response_lengths: np.ndarray
    source: np.ndarray
    group: np.ndarray
    empty: np.ndarray
    mask: np.ndarray
    behavior_logp: np.ndarray
    versions: np.ndarray
    advantages: np.ndarray
    per_token: Mapping[str, np.ndarray] = field(default_factory=dict)
    per_sequence: Mapping[str, np.ndarray] = field(default_factory=dict)
    routes: np.ndarray | None = None
    route_index: np.ndarray | None = None

    def __post_init__(self) -> None:
        n, response = len(self.prompt_lengths), int(self.response_lengths.sum())
        expected = {
            "tokens": int(self.prompt_lengths.sum()) + response,
            **dict.fromkeys(("response_lengths", *SEQUENCE_FIELDS), n),
            **dict.fromkeys(TOKEN_FIELDS, response),
        }
        for name, length in expected.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"Batch.{name} has {len(getattr(self, name))} entries, expected {length}")
        for family, length in (("per_token", response), ("per_sequence", n)):
            for name, values in getattr(self, family).items():
                if len(values) != length:
                    raise ValueError(f"Batch.{family}[{name!r}] has {len(values)} entries, expected {length}")
        if (self.routes is None) != (self.route_index is None):
            raise ValueError("Batch.routes and Batch.route_index come together")
        if self.route_index is not None and len(self.route_index) != len(self.tokens):
            raise ValueError(f"Batch.route_index has {len(self.route_index)} entries, expected {len(self.tokens)}")
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
        return int(self.mask.sum())

    @property
    def units(self) -> np.ndarray:
        """int64 (N,): sequences that share a value must be in one micro-batch. The two of a pair do."""
        alone: np.ndarray = int(self.group.max(initial=0)) + 1 + np.arange(len(self), dtype=np.int64)
        return np.where(self.source == SOURCES.index("pair"), self.group, alone)

    def counts(self) -> dict[str, tuple[int, int]]:
        """(sequences with a token or `empty`, tokens) to learn from: by source, and `policy_loss`; both 0 of no token."""
        segment: np.ndarray = np.repeat(np.arange(len(self)), self.response_lengths)

        def count(source: int, kept: np.ndarray) -> tuple[int, int]:
            kept = kept & (self.source == source)[segment]
            if not kept.any():
                return 0, 0
            found = np.union1d(segment[kept], np.flatnonzero(self.empty & (self.source == source)))
            return len(found), int(kept.sum())

        counts = {name: count(i, self.mask) for i, name in enumerate(SOURCES) if i in self.source}
        kept = self.mask & self.per_token.get("keep", self.mask).astype(bool)
        return {**counts, "policy_loss": count(SOURCES.index("on_policy"), kept)}

    @classmethod
    def from_samples(cls, samples: Sequence[Sample]) -> Batch:
        """Samples end to end, each with its weight for an advantage."""
        response_lengths = np.array([len(s.response_ids) for s in samples], np.int32)
        anchors = {name for s in samples for name in s.anchors}
        routes, route_index = _routes(samples)
        return cls(
            tokens=_concat([x for s in samples for x in (s.prompt_ids, s.response_ids)], np.int32),
            prompt_lengths=np.array([len(s.prompt_ids) for s in samples], np.int32),
            response_lengths=response_lengths,
            source=np.array([SOURCES.index(s.source) for s in samples], np.int8),
            group=np.array([s.group for s in samples], np.int64),
            empty=np.array([s.empty for s in samples], bool),
            mask=_concat([np.ones(len(s.response_ids), bool) if s.mask is None else s.mask for s in samples], bool),
            behavior_logp=_concat([s.logprobs for s in samples], np.float32),
            versions=_concat([s.versions for s in samples], np.int32),
            advantages=np.repeat(np.array([s.weight for s in samples], np.float32), response_lengths),
            per_token={
                f"anchors.{name}": _concat(
                    [s.anchors.get(name, np.zeros(len(s.response_ids), np.float32)) for s in samples], np.float32
                )
                for name in sorted(anchors)
            },
            routes=routes,
            route_index=route_index,
        )

    @classmethod
    def from_examples(cls, prompts: Sequence[np.ndarray], completions: Sequence[np.ndarray]) -> Batch:
        """Worked examples, for supervised learning."""
        pairs = enumerate(zip(prompts, completions, strict=True))
        return cls.from_samples([Sample.given(p, c, "sft", i) for i, (p, c) in pairs])

    def carrying(
        self, per_token: Mapping[str, np.ndarray] | None = None, per_sequence: Mapping[str, np.ndarray] | None = None
    ) -> Batch:
        """The same with further arrays."""
        return replace(
            self,
            per_token={**self.per_token, **(per_token or {})},
            per_sequence={**self.per_sequence, **(per_sequence or {})},
        )

    def routed(self, rows: np.ndarray) -> Batch:
        """The same with a row of routes for every token, (sum of lengths, layers, top_k)."""
        return replace(self, routes=rows, route_index=np.arange(len(rows), dtype=np.int32))

    def without_routes(self) -> Batch:
        """The same without routes, which are far larger than the rest: for whoever selects and does not replay."""
        return replace(self, routes=None, route_index=None)

    def select(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The sequences at `indices`, in that order; an index may come twice."""
        index = np.asarray(indices, np.int64)
        response, whole = ragged_index(self.response_lengths, index), ragged_index(self.lengths, index)
        routes, route_index = self.routes, self.route_index
        if routes is not None and route_index is not None:
            routes, route_index = _used(routes, route_index[whole])
        return Batch(
            tokens=self.tokens[whole],
            prompt_lengths=self.prompt_lengths[index],
            response_lengths=self.response_lengths[index],
            **{name: getattr(self, name)[index] for name in SEQUENCE_FIELDS},
            **{name: getattr(self, name)[response] for name in TOKEN_FIELDS},
            per_token={name: values[response] for name, values in self.per_token.items()},
            per_sequence={name: values[index] for name, values in self.per_sequence.items()},
            routes=routes,
            route_index=route_index,
        )

    def of(self, source: str) -> np.ndarray:
        """int64: indices of the sequences of a source."""
        return np.flatnonzero(self.source == SOURCES.index(source))

    def tokens_of(self, indices: np.ndarray) -> np.ndarray:
        """int64: flat positions, in the per-token arrays, of the response tokens of these sequences."""
        return ragged_index(self.response_lengths, indices)

    def padded(self, values: np.ndarray) -> np.ndarray:
        """(sum of response lengths) values as (N, longest response), zeros beyond each response's end."""
        wide: np.ndarray = np.zeros((len(self), int(self.response_lengths.max(initial=0))), values.dtype)
        wide[np.arange(wide.shape[1]) < self.response_lengths[:, None]] = values
        return wide

    def flat(self, wide: np.ndarray) -> np.ndarray:
        """(N, longest response) values as (sum of response lengths): `padded` undone."""
        return wide[np.arange(wide.shape[1]) < self.response_lengths[:, None]]

    def response_tokens(self) -> np.ndarray:
        """int32 (sum of response lengths)."""
        starts = np.cumsum(self.lengths) - self.response_lengths
        return self.tokens[_segments(starts, self.response_lengths)]

    def shares(self, parts: int) -> list[np.ndarray]:
        """The sequences in `parts` contiguous shares, of every source alike; units stay whole."""
        shares: list[list[np.ndarray]] = [[] for _ in range(parts)]
        for source in np.unique(self.source):
            indices = np.flatnonzero(self.source == source)
            _, first = np.unique(self.units[indices], return_index=True)
            starts = indices[np.sort(first)]
            unit = np.searchsorted(starts, indices, side="right") - 1
            for share, chosen in zip(shares, np.array_split(np.arange(len(starts)), parts), strict=True):
                share.append(indices[np.isin(unit, chosen)])
        return [np.concatenate(share) for share in shares]


def _concat(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(p, dtype) for p in parts]) if len(parts) else np.zeros(0, dtype)


def _routes(samples: Sequence[Sample]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Rows and the index into them: the rows of a prompt once, however many samples share them."""
    rows: list[np.ndarray] = []
    begins: dict[int, int] = {}
    index: list[np.ndarray] = []
    count = 0
    for s in samples:
        own: np.ndarray = np.full(len(s.prompt_ids) + len(s.response_ids), -1, np.int32)
        index.append(own)
        if s.routes is None:
            continue
        if id(s.routes.shared) not in begins:
            begins[id(s.routes.shared)] = count
            rows.append(s.routes.shared)
            count += len(s.routes.shared)
        begin, shared = begins[id(s.routes.shared)], len(s.routes.shared)
        own[:shared] = np.arange(begin, begin + shared)
        own[shared:-1] = np.arange(count, count + len(s.routes.own))
        own[:-1][~s.routes.valid] = -1
        rows.append(s.routes.own)
        count += len(s.routes.own)
    if not rows:
        return None, None
    return np.concatenate(rows), np.concatenate(index)


def _used(rows: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Only the rows that are pointed at, and the index into those."""
    used, renumbered = np.unique(index, return_inverse=True)
    if len(used) and used[0] == -1:
        return rows[used[1:]], (renumbered - 1).astype(np.int32)
    return rows[used], renumbered.astype(np.int32)


def ragged_index(lengths: np.ndarray, index: np.ndarray) -> np.ndarray:
    """int64: flat positions of the segments `index` in an array made of segments of `lengths`."""
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return _segments(starts[index], lengths[index])


def _segments(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: starts[0], starts[0] + 1, ... for lengths[0] of them, then those of starts[1], ..."""
    lengths = lengths.astype(np.int64)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within


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
    lengths: np.ndarray,
    ranks: int,
    layout: Layout,
    tokens_per_micro_batch: int,
    row_tokens: int | None = None,
    units: np.ndarray | None = None,
) -> list[list[MicroBatch]]:
    """Deal sequences to ranks and cut each rank's share into micro-batches.

    Every rank gets the same number of micro-batches, or a collective in one rank's forward would wait for ever for
    another's: a rank with fewer repeats the shortest sequence, muted.

    Args:
        lengths: int (N,), N >= 1.
        tokens_per_micro_batch: rows x row length of a micro-batch stay within this.
        row_tokens: length of a packed row; `tokens_per_micro_batch` when None.
        units: int (N,), sequences that share a value stay together, in a row or in the rows of a micro-batch; None:
            each for itself.

    Returns:
        for each rank its micro-batches, of indices into `lengths`.

    Raises:
        ValueError: a sequence, or those of a unit together, are longer than what they have to fit in.
    """
    together = _together(lengths, units)
    capacity = (row_tokens or tokens_per_micro_batch) if layout == "packed" else tokens_per_micro_batch
    size = [_size(lengths, unit, layout) for unit in together]
    if max(size) > capacity:
        unit = together[int(np.argmax(size))]
        raise ValueError(
            f"{'a sequence' if len(unit) == 1 else f'{len(unit)} sequences that belong together'} of {max(size)} "
            f"tokens does not fit learner.row_tokens or tokens_per_micro_batch ({capacity})"
        )
    shares: list[list[tuple[int, ...]]] = [[] for _ in range(ranks)]
    load: np.ndarray = np.zeros(ranks, np.int64)
    for i in np.argsort([-s for s in size], kind="stable"):  # longest first to the least loaded: near-even sums
        rank = int(np.argmin(load))
        shares[rank].append(together[i])
        load[rank] += size[i]
    cut = _packed if layout == "packed" else _padded
    plans = [cut(lengths, share, tokens_per_micro_batch, row_tokens) if share else [] for share in shares]
    most = max(len(p) for p in plans)
    muted = MicroBatch(rows=((int(np.argmin(lengths)),),), muted=True)
    for micro_batches in plans:
        micro_batches += [muted] * (most - len(micro_batches))
    return plans


def _together(lengths: np.ndarray, units: np.ndarray | None) -> list[tuple[int, ...]]:
    """Indices by unit, the longest of a unit first, units in order of their first sequence."""
    if units is None:
        return [(i,) for i in range(len(lengths))]
    found: dict[int, list[int]] = {}
    for i, unit in enumerate(units.tolist()):
        found.setdefault(unit, []).append(i)
    return [tuple(sorted(unit, key=lambda i: -int(lengths[i]))) for unit in found.values()]


def _size(lengths: np.ndarray, unit: tuple[int, ...], layout: Layout) -> int:
    """Tokens a unit takes: end to end in a packed row, or padded to its longest."""
    if layout == "packed":
        return int(sum(lengths[i] for i in unit))
    return int(lengths[unit[0]]) * len(unit)


def _padded(lengths: np.ndarray, share: list[tuple[int, ...]], budget: int, row_tokens: int | None) -> list[MicroBatch]:
    """One sequence a row, padded to the longest of its micro-batch."""
    micro_batches: list[MicroBatch] = []
    rows: list[tuple[int, ...]] = []
    width = 0
    for unit in share:
        wider = max(width, int(lengths[unit[0]]))
        if rows and (len(rows) + len(unit)) * wider > budget:
            micro_batches.append(MicroBatch(tuple(rows)))
            rows, wider = [], int(lengths[unit[0]])
        rows += [(i,) for i in unit]
        width = wider
    return [*micro_batches, MicroBatch(tuple(rows))]


def _packed(lengths: np.ndarray, share: list[tuple[int, ...]], budget: int, row_tokens: int | None) -> list[MicroBatch]:
    """First-fit decreasing into rows of `row_tokens`, as many rows a micro-batch as the budget holds."""
    capacity = row_tokens or budget
    rows: list[list[int]] = []
    room: list[int] = []
    for unit in share:
        length = _size(lengths, unit, "packed")
        row = next((r for r, left in enumerate(room) if left >= length), None)
        if row is None:
            rows.append([])
            room.append(capacity)
            row = len(rows) - 1
        rows[row] += unit
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
        segments: the same for attention that is told so.
        predictors: int64 (M,), flat positions in the grid whose hidden state predicts a response token.
        targets: int64 (M,), those tokens.
        sequence, offset: int64 (M,), which sequence of the micro-batch (B of them) and which of its tokens.
        shape: (B, T), sequences and the longest response.
        real: bool (rows * length,), False on padding.
        routes: the experts to choose; None when no token of the batch has any.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: Segments
    predictors: torch.Tensor
    targets: torch.Tensor
    sequence: torch.Tensor
    offset: torch.Tensor
    shape: tuple[int, int]
    real: torch.Tensor
    routes: RouteGrid | None = None

    def spread(self, flat: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """(M,) response-token values as (B, T), `fill` beyond each response's end. Differentiable."""
        grid = flat.new_full(self.shape, fill)
        return grid.index_put((self.sequence, self.offset), flat)

    def place(self, values: np.ndarray, fill: float = 0.0) -> torch.Tensor:
        """(M,) values along the response tokens, in the order of the grid's sequences, as `spread` has them."""
        import torch

        return self.spread(torch.from_numpy(values).to(self.real.device), fill)

    def live(self, replay: Replay) -> RouteGrid:
        """Routes that tell no token what to choose, for the routers of `replay`."""
        import torch

        from rlpost.learner.replay import RouteGrid

        return RouteGrid(
            rows=torch.zeros(0, len(replay.layers), replay.top_k, dtype=torch.uint8, device=self.real.device),
            index=torch.full(self.real.shape, -1, device=self.real.device),
            real=self.real,
        )

    def mask(self) -> torch.Tensor:
        """bool (B, T): where there is a response token."""
        import torch

        return self.spread(torch.ones_like(self.targets, dtype=torch.bool), False)


def make_grid(batch: Batch, micro: MicroBatch, pad_id: int, device: torch.device | str = "cpu") -> Grid:
    """Lay a micro-batch's sequences out in rows. Sequence b of the grid is `micro.sequences[b]`."""
    import torch

    from rlpost.learner.attention import Segments

    starts = np.concatenate([[0], np.cumsum(batch.lengths, dtype=np.int64)])
    width = max(int(sum(batch.lengths[i] for i in row)) for row in micro.rows)
    input_ids: np.ndarray = np.full((len(micro.rows), width), pad_id, np.int64)
    position_ids: np.ndarray = np.zeros((len(micro.rows), width), np.int64)
    whence: np.ndarray = np.full((len(micro.rows), width), -1, np.int64)
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
            whence[r, at : at + length] = np.arange(starts[i], starts[i + 1])
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
    real = torch.from_numpy(whence.ravel() >= 0).to(device)
    positions = torch.from_numpy(position_ids)
    return Grid(
        input_ids=torch.from_numpy(input_ids).to(device),
        position_ids=positions.to(device),
        segments=Segments.of(positions, device),
        predictors=tensor(predictors),
        targets=tensor(targets),
        sequence=tensor(sequence),
        offset=tensor(offset),
        shape=(b, longest),
        real=real,
        routes=_route_grid(batch, whence.ravel(), real),
    )


def _route_grid(batch: Batch, whence: np.ndarray, real: torch.Tensor) -> RouteGrid | None:
    """The routes of a grid whose tokens are those of the batch at `whence`, int64 (tokens,); -1 on padding."""
    import torch

    from rlpost.learner.replay import RouteGrid

    if batch.routes is None or batch.route_index is None:
        return None
    rows, index = _used(batch.routes, np.where(whence >= 0, batch.route_index[whence], -1))
    wide: np.ndarray = rows.astype(np.int16 if rows.dtype == np.uint16 else rows.dtype)  # torch gathers no uint16
    return RouteGrid(
        rows=torch.from_numpy(wide).to(real.device),
        index=torch.from_numpy(index.astype(np.int64)).to(real.device),
        real=real,
    )

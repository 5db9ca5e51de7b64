"""Routing replay: a mixture-of-experts model takes the experts that somebody else chose, and weighs them itself.

What is replayed is the selection alone. The router still scores every expert, its own formula turns the scores of the
replayed experts into weights, and so gradients reach the router (R3, arXiv 2510.11370, section 3; with the routes of
the learner's own earlier forward it is the Routing Replay of GSPO, arXiv 2507.18071, section 5.3).

transformers gives routers one shape: a module with `top_k` and `num_experts` whose forward calls top-k once on
(tokens, experts) scores and returns (logits, weights, indices, ...). The hook runs that forward with this one top-k
replaced by a gather at the given indices, so that no formula of any family is written down here. A router of another
shape is refused; so is a forward in which a router, or its top-k, did not run (a fused kernel, for one).
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rlpost.learner.masters import gathered
from rlpost.meter import Meter

# What a router's class is called: Qwen3MoeTopKRouter, DeepseekV3TopkRouter, AfmoeTokenChoiceRouter, HunYuanMoEV1Gate.
ROUTER_NAME = re.compile(r"(Router|Gate|Gating)$")
SHAPE = (
    "a module named *Router, *Gate or *Gating with top_k and num_experts, whose forward calls top-k once on "
    "(tokens, experts) scores and returns (logits, weights, indices)"
)


class UnsupportedRouterError(ValueError):
    """The model is dense, or its routers have a shape in which a choice cannot be replayed."""


@dataclass(frozen=True)
class RouteGrid:
    """The routes of one micro-batch, for one forward of a model.

    Attributes:
        rows: uint8, int16 or int32 (U, layers, top_k), expert numbers, on the model's device; U may be 0.
        index: int64 (tokens,), in the grid's flat order: the row of each token; -1 where the live router decides.
        real: bool (tokens,), False on padding, which is replayed like the rest but not counted.
    """

    rows: torch.Tensor
    index: torch.Tensor
    real: torch.Tensor


def is_router(module: nn.Module) -> bool:
    """Whether a module is called, and made, as transformers' routers are."""
    named = ROUTER_NAME.search(type(module).__name__) is not None
    return named and hasattr(module, "top_k") and hasattr(module, "num_experts")


def find_routers(model: nn.Module) -> dict[int, nn.Module]:
    """The routers of a model by absolute layer number, ascending; {} for a dense model.

    Raises:
        UnsupportedRouterError: two routers in one layer: routes have one row of experts for each.
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        if not is_router(module):
            continue
        number = next((int(part) for part in name.split(".") if part.isdigit()), 0)
        if number in found:
            raise UnsupportedRouterError(
                f"{type(model).__name__} has two routers in layer {number}, {found[number][0]} and {name}, and routes "
                "hold one choice a layer: turn routing.replay off for this model"
            )
        found[number] = (name, module)
    return {number: module for number, (_, module) in sorted(found.items())}


def moe_blocks(model: nn.Module) -> list[type[nn.Module]]:
    """The classes of the layers that hold a router and its experts; [] of a dense model."""
    parents = (m for m in model.modules() if any(is_router(child) for child in m.children()))
    return list({type(m): None for m in parents})


class RouterStats:
    """Sums over the real tokens of one forward, or of several added up; on the model's device until `meter`.

    Attributes:
        totals: float64, all the sums in one tensor, so that ranks can add them in one collective; the others but
            `recorded` are views of it.
        real, replayed: (), real tokens, and those of them with a row of routes.
        agreeing: (layers,), replayed tokens for which the live router would have chosen the same set of experts.
        entropy: (layers,), entropies of the softmax over a router's logits, in nats, whatever formula makes weights.
        loads: (layers, experts), how often each expert was used.
        recorded: (tokens, layers, top_k), the experts used, uint8, or int16 beyond 256 experts; of
            `using(..., record=True)`, once it has ended, else None.
    """

    def __init__(self, layers: Sequence[int], experts: int, device: torch.device) -> None:
        """
        Args:
            layers: absolute numbers of the layers that have a router.
            experts: of a layer.
        """
        self.layers, n = tuple(layers), len(layers)
        self.totals = torch.zeros(2 + n * (2 + experts), dtype=torch.float64, device=device)
        counts, self.agreeing, self.entropy, loads = self.totals.split([2, n, n, n * experts])
        self.real, self.replayed = counts
        self.loads = loads.view(n, experts)
        self.recorded: torch.Tensor | None = None

    def add(self, other: RouterStats) -> RouterStats:
        """Fold in the sums of another forward. Loads must be added up before `meter`: small batches leave experts idle."""
        self.totals += other.totals
        return self

    def meter(self) -> Meter:
        """The metrics `routing/*` and `router/*`; nothing of what no token was counted for. Waits for the device.

        What is told by layer too has the layer's number behind its name: `routing/agreement/3`.
        """
        meter = Meter()
        real, replayed = float(self.real), float(self.replayed)
        if not real:
            return meter
        experts = self.loads.shape[1]
        meter.mean("routing/replayed", replayed, real)
        meter.mean("routing/fallback", real - replayed, real)
        shares = self.loads / self.loads.sum(-1, keepdim=True)
        evenness = (torch.special.entr(shares).sum(-1) / math.log(experts)).tolist()
        if replayed:
            agreeing = self.agreeing.tolist()
            meter.mean("routing/agreement", sum(agreeing) / len(agreeing), replayed)
            meter.min("routing/agreement_min", min(agreeing) / replayed)
            for layer, count in zip(self.layers, agreeing, strict=True):
                meter.mean(f"routing/agreement/{layer}", count, replayed)
        meter.mean("router/entropy", float(self.entropy.mean()), real)
        meter.mean("router/load_entropy", sum(evenness) / len(evenness) * real, real)
        for layer, value in zip(self.layers, evenness, strict=True):
            meter.mean(f"router/load_entropy/{layer}", value * real, real)
        meter.max("router/load_max", float(shares.max()) * experts)
        meter.max("router/dead", float((self.loads == 0).double().mean(-1).max()))
        return meter


class Replay:
    """The routers of one model, hooked once, when it is loaded. Outside `using` they run as if nothing had been done.

    Attributes:
        layers: absolute numbers of the layers that have a router, ascending: the order of a row's layers.
        top_k: experts a token.
        experts: experts a layer.
    """

    def __init__(self, model: nn.Module) -> None:
        """
        Raises:
            UnsupportedRouterError: no routers, routers that differ in size, or a router whose choice is not replaced
                in a trial call. Under ZeRO-3 all ranks try together.
        """
        self.model = type(model).__name__
        routers = find_routers(model)
        if not routers:
            names = sorted({type(m).__name__ for m in model.modules() if re.search("Router|MoE|Moe", type(m).__name__)})
            raise UnsupportedRouterError(
                f"{self.model} has no router to replay: looked for {SHAPE}; "
                + (f"found only {', '.join(names)}" if names else "the model is dense")
                + ". Turn routing.replay off"
            )
        sizes = {(int(r.top_k), int(r.num_experts)) for r in routers.values()}
        if len(sizes) > 1:
            raise UnsupportedRouterError(
                f"{self.model} has routers of different (top_k, experts), {sorted(sizes)}, and a row of routes has one "
                "size: turn routing.replay off"
            )
        self.layers = tuple(routers)
        self.top_k, self.experts = sizes.pop()
        self.device = next(next(iter(routers.values())).parameters()).device
        self.active: _Forward | None = None
        self.recomputing = False
        hooks = [_Hook(self, at, router) for at, router in enumerate(routers.values())]
        for hook in hooks:
            hook.try_out()
        for hook in hooks:
            hook.router.forward = hook

    @contextmanager
    def using(self, routes: RouteGrid | None, record: bool = False) -> Iterator[RouterStats]:
        """Replay `routes` in the one forward of the model that runs inside.

        A backward pass may come at any time: recomputation under gradient checkpointing (`checkpoint_context`) takes
        the experts that this forward took, whatever ran in between.

        Args:
            routes: None lets the live routers decide for all tokens, and counts all of them as real. A grid without
                rows does the first and not the second.
            record: keep what was used in the statistics' `recorded`.

        Raises:
            ValueError: routes for another number of layers, experts or tokens.
            UnsupportedRouterError: a router was not called, or its top-k was not replaced, exactly once.
        """
        if self.active is not None:
            raise RuntimeError("routes are in use already: one forward at a time")
        forward = _Forward(self, routes)
        self.active = forward
        try:
            yield forward.stats
            forward.finish(record)
        finally:
            self.active = None

    def checkpoint_context(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """`context_fn` of `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`."""
        return nullcontext(), _Recomputation(self, self.active)


class _Forward:
    """One forward of the model: what to replay in it, what was used in it, and its statistics."""

    def __init__(self, replay: Replay, routes: RouteGrid | None) -> None:
        self.replay, self.routes = replay, routes
        self.dtype = torch.uint8 if replay.experts <= 256 else torch.int16
        if routes is not None:
            size, wanted = tuple(routes.rows.shape[1:]), (len(replay.layers), replay.top_k)
            if size != wanted:
                raise ValueError(
                    f"rows of routes have (layers, top_k) {size}, but {replay.model} has {wanted}: the engine and the "
                    "learner do not run the same model"
                )
            if len(routes.index) != len(routes.real):
                raise ValueError(f"routes for {len(routes.index)} tokens, but {len(routes.real)} marks of padding")
            # One short wait before the forward: past it, a wrong number would bring the whole device process down.
            if len(routes.rows) and not 0 <= int(routes.rows.min()) <= int(routes.rows.max()) < replay.experts:
                raise ValueError(
                    f"rows of routes hold experts {int(routes.rows.min())} to {int(routes.rows.max())}, but "
                    f"{replay.model} has {replay.experts} of them"
                )
            self.missing = (routes.index < 0).unsqueeze(-1)
            self.row = routes.index.clamp(min=0)
            self.replayed = routes.real & (routes.index >= 0)
        device = replay.device if routes is None else routes.index.device
        self.stats = RouterStats(replay.layers, replay.experts, device)
        self.used: list[torch.Tensor | None] = [None] * len(replay.layers)

    def choose(self, at: int, live: torch.Tensor) -> torch.Tensor:
        """int64 (tokens, top_k), what the router at place `at` is to take where it would take `live`."""
        if self.routes is None:
            return live
        if len(live) != len(self.routes.index):
            raise ValueError(
                f"routes for {len(self.routes.index)} tokens, but the router of layer {self.replay.layers[at]} was "
                f"given {len(live)} hidden states"
            )
        if not len(self.routes.rows):
            return live
        given = self.routes.rows[:, at].index_select(0, self.row).long()
        return torch.where(self.missing, live, given)

    def again(self, at: int, live: torch.Tensor) -> torch.Tensor:
        """The same when the layer is computed again: what was used the first time, whatever the router says now."""
        used = self.used[at]
        if used is None:
            raise RuntimeError(f"layer {self.replay.layers[at]} is computed again but was not computed before")
        return used.long()

    @torch.no_grad()
    def count(self, at: int, logits: torch.Tensor, live: torch.Tensor, used: torch.Tensor) -> None:
        """Add the choice of one router to the statistics. Waits for nothing."""
        if self.used[at] is not None:
            raise UnsupportedRouterError(
                f"{self.replay.model} called the router of layer {self.replay.layers[at]} twice: one forward of the "
                "model for each `using`"
            )
        self.used[at] = used.to(self.dtype)
        stats, everything = self.stats, torch.ones(len(used), dtype=torch.bool, device=used.device)
        real = everything if self.routes is None else self.routes.real
        if at == 0:
            stats.real += real.sum()
        if self.routes is not None:
            agrees = (live.sort(-1).values == used.sort(-1).values).all(-1)
            stats.agreeing[at] += (agrees & self.replayed).sum()
            if at == 0:
                stats.replayed += self.replayed.sum()
        logp = torch.log_softmax(logits.flatten(0, -2).double(), -1)
        stats.entropy[at] -= ((logp.exp() * logp).sum(-1) * real).sum()
        stats.loads[at].index_add_(0, used.flatten(), real.double().repeat_interleave(used.shape[1]))

    def finish(self, record: bool) -> None:
        silent = [str(n) for n, used in zip(self.replay.layers, self.used, strict=True) if used is None]
        if silent:
            raise UnsupportedRouterError(
                f"the forward of {self.replay.model} did not call the routers of layers {', '.join(silent)}: no "
                "forward ran, or a fused kernel runs instead of them. Load the model without kernels, or turn "
                "routing.replay off"
            )
        if record:
            self.stats.recorded = torch.stack([used for used in self.used if used is not None], dim=1)


class _Recomputation(AbstractContextManager):
    """Around what checkpointing computes again in a backward pass: `forward`'s choices hold, and nothing is counted."""

    def __init__(self, replay: Replay, forward: _Forward | None) -> None:
        self.replay, self.forward = replay, forward

    def __enter__(self) -> None:
        self.before = self.replay.active, self.replay.recomputing
        self.replay.active, self.replay.recomputing = self.forward, True

    def __exit__(self, *error: object) -> None:
        self.replay.active, self.replay.recomputing = self.before


class _Hook:
    """The forward of one router. An object and not a closure, so that a copy of the model gets hooks of its own."""

    def __init__(self, replay: Replay, at: int, router: nn.Module) -> None:
        if isinstance(router.forward, _Hook):
            raise ValueError(f"the routers of {replay.model} have a Replay already: install one for each model")
        self.replay, self.at, self.router = replay, at, router
        self.forward: Callable[..., Any] = router.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        replay, forward = self.replay, self.replay.active
        if forward is None:
            if not replay.recomputing and torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    "a router runs in a backward pass that does not know the routes of its forward: enable gradient "
                    "checkpointing with use_reentrant=False and context_fn=replay.checkpoint_context"
                )
            return self.forward(*args, **kwargs)
        if replay.recomputing:
            return self._run(forward.again, *args, **kwargs)[0]
        output, live, used = self._run(forward.choose, *args, **kwargs)
        forward.count(self.at, output[0], live, used)
        return output

    def _run(
        self, choose: Callable[[int, torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """The router's output with its top-k replaced, what it would have taken, and what it took."""
        replay = self.replay
        with _TopK(replay.experts, replay.top_k, lambda live: choose(self.at, live)) as top_k:
            output = self.forward(*args, **kwargs)
        # The very tensor: the router then passes on what it was given, and asking costs no wait for the device.
        passed_on = isinstance(output, tuple) and len(output) >= 3 and output[2] is top_k.used
        if top_k.calls != 1 or not passed_on:
            raise UnsupportedRouterError(
                f"{type(self.router).__name__} of {replay.model}, layer {replay.layers[self.at]}, called top-k of "
                f"{replay.top_k} in {replay.experts} experts {top_k.calls} times"
                + ("" if passed_on else " and did not return its indices")
                + f"; needed: {SHAPE}. Turn routing.replay off for this model"
            )
        return output, top_k.live, top_k.used

    @torch.no_grad()
    def try_out(self) -> None:
        """Replay every expert in turn on random hidden states, unless the weights are elsewhere."""
        with gathered(list(self.router.parameters())):
            self._try_out()

    def _try_out(self) -> None:
        replay, name = self.replay, f"{type(self.router).__name__} of {self.replay.model}"
        weight = next((p for p in self.router.parameters() if p.ndim == 2), None)
        if weight is None or weight.is_meta or not weight.numel():
            return
        biases: dict[str, torch.Tensor] = {}
        for parameter in list(inspect.signature(self.forward).parameters.values())[1:]:
            if "bias" in parameter.name:
                biases[parameter.name] = torch.zeros(replay.experts, device=weight.device)
            elif parameter.default is parameter.empty:
                raise UnsupportedRouterError(
                    f"{name} chooses by {parameter.name}, not by hidden states alone; needed: {SHAPE}. Turn "
                    "routing.replay off for this model"
                )
        hidden = 0.1 * torch.randn(replay.experts, weight.shape[1], generator=torch.Generator().manual_seed(0))
        hidden = hidden.to(weight)
        first = torch.arange(replay.experts, device=weight.device).unsqueeze(-1)
        given = (first + torch.arange(replay.top_k, device=weight.device)) % replay.experts
        try:
            weights = self._try_shapes(hidden, given, biases)
        except UnsupportedRouterError:
            raise
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            raise UnsupportedRouterError(
                f"{name} could not be tried with hidden states alone ({error}); needed: {SHAPE}. Turn routing.replay "
                "off for this model"
            ) from error
        if not bool((torch.isfinite(weights) & (weights != 0)).all()):
            raise UnsupportedRouterError(
                f"{name} gives no weight to experts that it would not have chosen, so they cannot be replayed: turn "
                "routing.replay off for this model"
            )

    def _try_shapes(self, hidden: torch.Tensor, given: torch.Tensor, biases: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weights of the experts `given`, from a router that takes tokens, or a batch of them."""
        try:
            return self._run(lambda at, live: given, hidden, **biases)[0][1]
        except UnsupportedRouterError:
            raise
        except ValueError:
            return self._run(lambda at, live: given, hidden.unsqueeze(0), **biases)[0][1]


class _TopK(TorchFunctionMode):
    """Inside, a top-k that chooses experts gives those that `choose` names, and the scores they have.

    Grouped routers call top-k on scores of groups too; these have another number of dimensions or of columns.
    """

    def __init__(self, experts: int, top_k: int, choose: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.experts, self.top_k, self.choose = experts, top_k, choose
        self.calls = 0
        self.live = self.used = self.masked = self.unmasked = torch.empty(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.topk, torch.Tensor.topk) and self._chooses(*args, **kwargs):
            return self._replace(*args, **kwargs)
        result = func(*args, **kwargs)
        if func is torch.Tensor.masked_fill:
            self.masked, self.unmasked = result, args[0]
        return result

    def _chooses(self, input: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> bool:
        return input.ndim == 2 and input.shape[1] == self.experts and k == self.top_k and dim in (-1, 1) and largest

    def _replace(self, input: torch.Tensor, k: int, *args: Any, **kwargs: Any) -> Any:
        # Without gradient, so that a recomputation saves the same tensors although it does not need this.
        with torch.no_grad():
            self.live = input.topk(k, *args, **kwargs).indices
        self.used = self.choose(self.live)
        self.calls += 1
        # Where experts outside the best groups were masked out, a replayed one may be among them: its own score counts.
        scores = self.unmasked if input is self.masked else input
        return torch.return_types.topk((scores.gather(-1, self.used), self.used))

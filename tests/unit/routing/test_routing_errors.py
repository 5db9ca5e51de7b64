"""What does not fit, or would be replayed in silence and wrongly, is an error that says what and what to do."""

from __future__ import annotations

import pytest
import torch
from routing_cases import lay_out, own_choice, random_rows, sequences
from torch import nn

from rlpost.learner.replay import Replay, RouteGrid, UnsupportedRouterError, find_routers
from tests.moe_models import make_model


@pytest.fixture
def routed():
    model = make_model("qwen3_moe")
    return model, Replay(model)


# ------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((24, 3, 2), r"\(layers, top_k\) \(3, 2\), but Qwen3MoeForCausalLM has \(2, 2\)"),
        ((24, 2, 4), r"\(layers, top_k\) \(2, 4\), but Qwen3MoeForCausalLM has \(2, 2\)"),
        ((24, 2), r"\(layers, top_k\) \(2,\), but Qwen3MoeForCausalLM has \(2, 2\)"),
    ],
)
def test_rows_of_another_model(routed, shape, message):
    layout = lay_out(sequences(1))
    with pytest.raises(ValueError, match=message), routed[1].using(layout.grid(torch.zeros(shape, dtype=torch.uint8))):
        pass


def test_routes_for_another_number_of_tokens(routed):
    model, replay = routed
    layout, other = lay_out(sequences(1)), lay_out(sequences(1, (5, 9)))
    routes = layout.grid(random_rows(replay, 24, seed=2))
    with (
        pytest.raises(ValueError, match="routes for 36 tokens, but the router of layer 0 was given 18 hidden states"),
        replay.using(routes),
    ):
        other.forward(model)
    with (
        pytest.raises(ValueError, match="routes for 36 tokens, but 35 marks"),
        replay.using(RouteGrid(routes.rows, routes.index, routes.real[1:])),
    ):
        pass


@pytest.mark.parametrize(
    ("expert", "dtype"), [(8, torch.uint8), (200, torch.uint8), (-1, torch.int16), (300, torch.int32)]
)
def test_experts_that_the_model_does_not_have(routed, expert, dtype):
    layout, rows = lay_out(sequences(1)), random_rows(routed[1], 24, seed=2, dtype=dtype)
    rows[3, 1, 0] = expert
    with (
        pytest.raises(ValueError, match=f"experts .*{expert}.*but Qwen3MoeForCausalLM has 8"),
        routed[1].using(layout.grid(rows)),
    ):
        pass


# ------------------------------------------------------------------------------------------ forwards


def test_a_forward_that_does_not_call_a_router(routed):
    model, replay = routed
    layout = lay_out(sequences(1))
    model.model.layers[1].mlp.forward = lambda hidden: hidden
    with pytest.raises(UnsupportedRouterError, match="did not call the routers of layers 1"), replay.using(None):
        layout.forward(model)


def test_no_forward_and_two_forwards(routed):
    model, replay = routed
    layout = lay_out(sequences(1))
    with pytest.raises(UnsupportedRouterError, match="layers 0, 1"), replay.using(None):
        pass
    with replay.using(None):
        layout.forward(model)
        with pytest.raises(UnsupportedRouterError, match="router of layer 0 twice"):
            layout.forward(model)


def test_a_router_whose_top_k_is_not_called(routed):
    model, replay = routed
    router = find_routers(model)[1]

    def kernel(hidden):
        logits = hidden @ router.weight.T
        scores, chosen = logits.sort(-1, descending=True)
        return logits, scores[:, :2].softmax(-1), chosen[:, :2]

    router.forward.forward = kernel
    with (
        pytest.raises(UnsupportedRouterError, match="layer 1, called top-k of 2 in 8 experts 0 times"),
        replay.using(None),
    ):
        lay_out(sequences(1)).forward(model)


def test_routes_are_not_used_twice_at_once_and_an_error_ends_their_use(routed):
    model, replay = routed
    layout = lay_out(sequences(1))
    with replay.using(None):
        with pytest.raises(RuntimeError, match="in use already"), replay.using(None):
            pass
        layout.forward(model)
    with pytest.raises(KeyError), replay.using(None):
        raise KeyError
    live = layout.forward(model).detach()
    with replay.using(layout.grid(own_choice(model, replay, layout))):
        assert torch.equal(layout.forward(model), live)


# ------------------------------------------------------------------------------------------ installation


class Router(nn.Module):
    """Routers that break one rule each."""

    def __init__(self, fault: str, experts: int = 4, top_k: int = 2) -> None:
        super().__init__()
        self.fault, self.num_experts, self.top_k = fault, experts, top_k
        self.weight = nn.Parameter(torch.randn(experts, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, hidden):
        logits = hidden @ self.weight.T
        if self.fault == "sort":
            scores, chosen = (x[:, : self.top_k] for x in logits.sort(-1, descending=True))
            return logits, scores, chosen
        scores, chosen = torch.topk(logits, self.top_k)
        if self.fault == "twice":
            scores, chosen = torch.topk(logits.softmax(-1), self.top_k)
        if self.fault == "copied":
            chosen = logits.topk(self.top_k + 1).indices[:, : self.top_k]
        if self.fault == "masked":
            scores = scores * (scores > logits.median(-1, keepdim=True).values)
        return (logits, scores) if self.fault == "two outputs" else (logits, scores, chosen)


class Model(nn.Module):
    def __init__(self, *routers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"gate": router}) for router in routers])

    def forward(self, hidden):
        return [layer["gate"](hidden) for layer in self.layers]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("sort", "called top-k of 2 in 4 experts 0 times"),
        ("twice", "called top-k of 2 in 4 experts 2 times"),
        ("copied", "did not return its indices"),
        ("two outputs", "did not return its indices"),
        ("masked", "gives no weight to experts that it would not have chosen"),
    ],
)
def test_a_router_that_cannot_be_replayed_is_refused_when_replay_is_installed(fault, message):
    model = Model(Router(""), Router(fault))
    with pytest.raises(UnsupportedRouterError, match=f"Router of Model.*{message}|{message}"):
        Replay(model)
    assert "forward" not in vars(model.layers[0]["gate"])


def test_routers_of_different_sizes_are_refused():
    with pytest.raises(UnsupportedRouterError, match=r"different \(top_k, experts\), \[\(2, 4\), \(2, 8\)\]"):
        Replay(Model(Router(""), Router("", experts=8)))


def test_a_second_installation_is_refused(routed):
    with pytest.raises(ValueError, match="have a Replay already"):
        Replay(routed[0])


def test_routers_whose_weights_are_elsewhere_are_tried_by_the_first_forward():
    """Under ZeRO-3 a parameter is empty until its module is called."""
    model, layout = Model(Router(""), Router("sort")), lay_out(sequences(1, (5,)))
    weights = [layer["gate"].weight.data for layer in model.layers]
    for layer in model.layers:
        layer["gate"].weight.data = torch.empty(0)
    replay = Replay(model)

    def gather(router, given):
        router.weight.data = weights.pop(0)

    for layer in model.layers:
        layer["gate"].register_forward_pre_hook(gather)
    with (
        pytest.raises(UnsupportedRouterError, match="layer 1, called top-k of 2 in 4 experts 0 times"),
        replay.using(layout.grid(torch.tensor([[[0, 1], [0, 1]]] * 5))),
    ):
        model(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))


def test_installing_leaves_the_random_state_and_the_state_dict_alone():
    model = make_model("glm4_moe")
    names, state = list(model.state_dict()), torch.random.get_rng_state()
    Replay(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(model.state_dict()) == names


def test_layers_are_absolute_numbers_and_dense_layers_are_left_out():
    for family, layers in {"qwen3_moe": (0, 1), "qwen2_moe": (1, 2), "deepseek_v3": (1, 2)}.items():
        model = make_model(family)
        assert tuple(find_routers(model)) == Replay(model).layers == layers

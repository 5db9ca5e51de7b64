"""Statistics of routing are sums over real tokens alone, the same however the tokens are cut into forwards."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_cases import lay_out, own_choice, random_rows, sequences
from torch.utils._python_dispatch import TorchDispatchMode

from rlpost.learner.replay import Replay, RouterStats, find_routers
from rlpost.meter import Meter
from tests.moe_models import FAMILIES, make_model


@pytest.fixture(scope="module")
def routed():
    model = make_model("qwen2_moe")
    return model, Replay(model)


def run(model, replay, layout, routes, record=False):
    with torch.no_grad(), replay.using(routes, record=record) as stats:
        layout.forward(model)
    return stats


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_those_of_a_count_by_hand(family):
    model, layout = make_model(family), lay_out(sequences(1))
    replay = Replay(model)
    live = own_choice(model, replay, layout).tolist()
    # Rows near the model's own choice, so that some sets agree: the same experts, in another order or with one other.
    rows = torch.tensor(live, dtype=torch.uint8).flip(-1)
    rows[::3, :, 0] = random_rows(replay, 24, seed=3)[::3, :, 0]
    index = torch.arange(24)
    index[::5] = -1
    logits, chosen = {}, {}
    for number, router in find_routers(model).items():
        router.register_forward_hook(
            lambda m, g, out, n=number: (logits.update({n: out[0]}), chosen.update({n: out[2]}))[1]
        )
    stats = run(model, replay, layout, layout.grid(rows, index), record=True)

    places = [at for at in range(len(layout.token)) if layout.token[at] >= 0]
    assert len(places) < len(layout.token)
    loads = [Counter() for _ in replay.layers]
    entropies = [0.0] * len(replay.layers)
    agreeing = [0] * len(replay.layers)
    for at, number in enumerate(replay.layers):
        for place in places:
            loads[at].update(chosen[number][place].tolist())
            exponents = [math.exp(x) for x in logits[number][place].tolist()]
            shares = [e / sum(exponents) for e in exponents]
            entropies[at] -= sum(p * math.log(p) for p in shares)
            if index[layout.token[place]] >= 0:
                agreeing[at] += set(preferred(model, number, logits[number][place])) == set(
                    chosen[number][place].tolist()
                )
    assert stats.real == 24
    assert stats.replayed == 19
    assert stats.agreeing.tolist() == agreeing
    assert 0 < sum(agreeing) < 19 * len(replay.layers)
    assert stats.loads.tolist() == [[count[e] for e in range(8)] for count in loads]
    assert stats.entropy.tolist() == pytest.approx(entropies, rel=1e-5)
    assert torch.equal(stats.recorded.long(), torch.stack([chosen[n] for n in replay.layers], 1))

    values = stats.meter().values()
    assert values["routing/replayed"] == pytest.approx(19 / 24)
    assert values["routing/fallback"] == pytest.approx(5 / 24)
    assert values["routing/agreement"] == pytest.approx(sum(agreeing) / len(agreeing) / 19)
    assert values["routing/agreement_min"] == pytest.approx(min(agreeing) / 19)
    assert [values[f"routing/agreement/{n}"] for n in replay.layers] == pytest.approx([a / 19 for a in agreeing])
    assert values["router/entropy"] == pytest.approx(sum(entropies) / len(entropies) / 24, rel=1e-5)
    evenness = [-sum(c / 48 * math.log(c / 48) for c in count.values()) / math.log(8) for count in loads]
    assert values["router/load_entropy"] == pytest.approx(sum(evenness) / len(evenness))
    assert [values[f"router/load_entropy/{n}"] for n in replay.layers] == pytest.approx(evenness)
    assert values["router/load_max"] == pytest.approx(max(max(count.values()) for count in loads) / 6)
    assert values["router/dead"] == pytest.approx(max(8 - len(count) for count in loads) / 8)


def preferred(model, number: int, logits: torch.Tensor) -> list[int]:
    """The experts a live router takes on these logits, written down per family."""
    router = find_routers(model)[number]
    if not hasattr(router, "e_score_correction_bias"):
        return logits.argsort(descending=True)[:2].tolist()
    scores = logits.sigmoid() + router.e_score_correction_bias
    groups = scores.view(router.num_group, -1)
    best = groups.sort(-1, descending=True).values[:, :2].sum(-1).argsort(descending=True)[: router.topk_group]
    allowed = [e for e in range(8) if e // groups.shape[1] in best.tolist()]
    return sorted(allowed, key=lambda e: -float(scores[e]))[:2]


def test_padding_is_never_counted_whatever_stands_in_it(routed):
    model, replay = routed
    layout = lay_out(sequences(1))
    rows = torch.cat([random_rows(replay, 24, seed=2), torch.zeros(1, 2, 2, dtype=torch.uint8)])
    routes = layout.grid(rows)
    stats = run(model, replay, layout, routes)
    routes.index[~layout.real] = 24  # a row for padding: replayed, not counted
    again = run(model, replay, layout, routes)
    layout.input_ids.view(-1)[~layout.real] = 9
    other = run(model, replay, layout, routes)
    for other_stats in (again, other):  # experts that also serve padding multiply larger matrices: not bit for bit
        assert other_stats.real == stats.real == 24
        assert other_stats.replayed == stats.replayed
        assert torch.equal(other_stats.loads, stats.loads)
        torch.testing.assert_close(other_stats.totals, stats.totals, atol=1e-4, rtol=0)
    assert stats.loads.sum(-1).tolist() == [48, 48]


def test_without_routes_every_token_counts_as_real_and_nothing_as_replayed(routed):
    model, replay = routed
    layout = lay_out(sequences(1))
    stats = run(model, replay, layout, None)
    assert stats.real == layout.input_ids.numel()
    assert "routing/agreement" not in stats.meter().values()
    assert stats.meter().values()["routing/fallback"] == 1
    assert stats.recorded is None


def test_replaying_the_own_choice_agrees_in_every_layer(routed):
    model, replay = routed
    layout = lay_out(sequences(1))
    stats = run(model, replay, layout, layout.grid(own_choice(model, replay, layout)))
    values = stats.meter().values()
    assert values["routing/agreement"] == values["routing/agreement_min"] == values["routing/replayed"] == 1


def test_a_dead_expert_and_one_that_takes_all_are_seen(routed):
    model, replay = routed
    layout = lay_out(sequences(1))
    rows = torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8).expand(24, 2, 2).clone()
    rows[:12, 1] = torch.tensor([4, 5], dtype=torch.uint8)
    values = run(model, replay, layout, layout.grid(rows)).meter().values()
    assert values["router/dead"] == 6 / 8
    assert values["router/load_max"] == 4
    assert values["router/load_entropy"] == pytest.approx((math.log(2) + math.log(4)) / 2 / math.log(8))


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_sums_of_any_cut_into_forwards_are_those_of_one(routed, cuts):
    model, replay = routed
    chosen, rows = sequences(1), random_rows(replay, 24, seed=2)
    starts = [0, 5, 14, 17]
    whole = run(model, replay, layout := lay_out(chosen), layout.grid(rows))
    total = RouterStats(replay.layers, 8, torch.device("cpu"))
    for part in set(cuts):
        members = [i for i in range(4) if cuts[i] == part]
        layout = lay_out([chosen[i] for i in members])
        own = torch.cat([rows[starts[i] : starts[i] + len(chosen[i])] for i in members])
        total.add(run(model, replay, layout, layout.grid(own)))
    torch.testing.assert_close(total.totals, whole.totals, atol=1e-4, rtol=0)
    assert total.meter().values() == pytest.approx(whole.meter().values(), abs=1e-5)


def test_meters_of_ranks_add_up_to_shares_of_all_tokens(routed):
    model, replay = routed
    long, short = lay_out(sequences(1, (20,))), lay_out(sequences(2, (4,)))
    nothing = torch.full((4,), -1)
    one = run(model, replay, long, long.grid(random_rows(replay, 20, seed=2)))
    two = run(model, replay, short, short.grid(random_rows(replay, 1, seed=2), nothing))
    assert Meter.merge([one.meter(), two.meter()]).values()["routing/replayed"] == pytest.approx(20 / 24)


class NoWaiting(TorchDispatchMode):
    """Inside, an operation whose result the host must wait for is an error."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "equal", "_to_copy")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        moved = "_to_copy" not in func.name() or (kwargs or {}).get("device") is not None
        if moved and any(func.name().startswith(f"aten::{name}") for name in self.WAITING):
            raise AssertionError(f"{func.name()} waits for the device")
        return func(*args, **(kwargs or {}))


def test_a_routers_forward_does_not_wait_for_the_device(routed):
    """Routers alone: transformers' experts do wait, in their loop over the experts hit."""
    model, replay = routed
    hidden = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    layout = lay_out(sequences(1, (24,)))
    index = torch.arange(24)
    index[::5] = -1
    with replay.using(layout.grid(random_rows(replay, 24, seed=2), index)) as stats, NoWaiting():
        for router in find_routers(model).values():
            router(hidden)
    assert stats.replayed == 19
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        bool(hidden.sum() > 0)


def test_a_forward_of_padding_alone_has_no_metrics(routed):
    model, replay = routed
    layout = lay_out(sequences(1, (3,)))
    routes = layout.grid(random_rows(replay, 3, seed=2))
    routes.real[:] = False
    assert run(model, replay, layout, routes).meter().values() == {}

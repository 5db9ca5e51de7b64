"""Replay fixes which experts a token goes to, and nothing else: the model's own formula weighs them and learns."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_cases import by_token, gradients, lay_out, loss, own_choice, random_rows, sequences

from rlpost.config import Lora
from rlpost.learner.adapters import add_lora
from rlpost.learner.replay import Replay, find_routers
from tests.moe_models import FAMILIES, make_model

ALL = pytest.mark.parametrize("family", FAMILIES)


def score(model, layout, replay=None, routes=None):
    """Logits and gradients of one forward and backward, and its statistics."""
    if replay is None:
        logits = layout.forward(model)
        stats = None
    else:
        with replay.using(routes, record=True) as stats:
            logits = layout.forward(model)
    loss(logits, layout).backward()
    return logits.detach(), gradients(model), stats


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


# ------------------------------------------------------------------------------------------ selection


@ALL
def test_replaying_the_models_own_choice_changes_no_bit_of_logits_or_gradients(family):
    model, layout = make_model(family), lay_out(sequences(1))
    logits, grads, _ = score(model, layout)
    replay = Replay(model)
    rows = own_choice(model, replay, layout)
    for routes in (None, layout.grid(rows)):
        replayed, replayed_grads, _ = score(model, layout, replay, routes)
        assert torch.equal(replayed, logits)
        assert_same(replayed_grads, grads)
    assert min(grads[n].abs().max() for n in grads if n.endswith(("gate.weight", "router.weight"))) > 1e-3


def test_own_choice_changes_no_bit_in_bfloat16_either():
    for family in ("qwen3_moe", "deepseek_v3", "gpt_oss"):
        model, layout = make_model(family, dtype=torch.bfloat16), lay_out(sequences(1))
        logits, grads, _ = score(model, layout)
        replay = Replay(model)
        replayed, replayed_grads, _ = score(model, layout, replay, layout.grid(own_choice(model, replay, layout)))
        assert torch.equal(replayed, logits)
        assert_same(replayed_grads, grads)


@ALL
def test_a_foreign_choice_is_obeyed_in_its_order_and_changes_the_logits(family):
    model, layout = make_model(family), lay_out(sequences(1))
    replay = Replay(model)
    live = layout.forward(model).detach()
    rows = random_rows(replay, 24, seed=2)
    foreign, _, stats = score(model, layout, replay, layout.grid(rows))
    assert torch.equal(by_token(layout, stats), rows)
    assert (foreign - live)[layout.real].abs().max() > 0.01
    # Layers exchanged: another model.
    exchanged, _, stats = score(model, layout, replay, layout.grid(rows.flip(1)))
    assert torch.equal(by_token(layout, stats), rows.flip(1))
    assert (exchanged - foreign)[layout.real].abs().max() > 0.01


@ALL
def test_experts_are_computed_with_what_the_router_was_given(family):
    """Experts that no row names get no gradient, all named ones do."""
    model, layout = make_model(family), lay_out(sequences(1))
    replay = Replay(model)
    rows = random_rows(replay, 24, seed=2) % 4
    rows[..., 1] = (rows[..., 0] + 1) % 4
    padded = layout.grid(rows)
    padded.index[padded.index < 0] = 0
    _, grads, _ = score(model, layout, replay, padded)
    experts = {name: g.flatten(1).abs().amax(1) for name, g in grads.items() if name.endswith("experts.down_proj")}
    assert len(experts) == len(replay.layers)
    for size in experts.values():
        assert (size[:4] > 0).all()
        assert (size[4:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_rows_of_every_dtype_say_the_same(dtype):
    model, layout = make_model("qwen3_moe"), lay_out(sequences(1))
    replay = Replay(model)
    rows = random_rows(replay, 24, seed=2)
    logits, grads, _ = score(model, layout, replay, layout.grid(rows))
    again, grads_again, stats = score(model, layout, replay, layout.grid(rows.to(dtype)))
    assert torch.equal(again, logits)
    assert_same(grads_again, grads)
    assert stats.recorded.dtype == torch.uint8


def test_a_row_that_names_an_expert_twice_is_taken_at_its_word():
    model, layout = make_model("qwen3_moe"), lay_out(sequences(1))
    replay = Replay(model)
    rows = torch.full((24, 2, 2), 3, dtype=torch.uint8)
    logits, _, stats = score(model, layout, replay, layout.grid(rows))
    assert torch.equal(by_token(layout, stats), rows)
    assert torch.isfinite(logits).all()
    assert stats.agreeing.sum() == 0


# ------------------------------------------------------------------------------------------ missing rows


@ALL
def test_a_token_without_a_row_is_routed_live_and_no_other_is(family):
    model, layout = make_model(family), lay_out(sequences(1))
    replay = Replay(model)
    rows, missing = random_rows(replay, 24, seed=2), 7
    logits, _, _ = score(model, layout, replay, layout.grid(rows))
    index = torch.arange(24)
    index[missing] = -1
    partly, _, stats = score(model, layout, replay, layout.grid(rows, index))
    used, others = by_token(layout, stats), torch.arange(24) != missing
    assert torch.equal(used[others], rows[others])
    # In the first layer with a router nothing has changed before the token, so it is what a live router takes there.
    assert torch.equal(used[missing, 0], own_choice(model, replay, layout)[missing, 0])
    # Token 7 is the third of the second sequence: the other sequences and what stands before it stay as they were.
    apart = layout.real & ((layout.token < missing) | (layout.token >= 14))
    torch.testing.assert_close(partly[apart], logits[apart], atol=2e-6, rtol=0)
    at = layout.token == missing
    assert (partly - logits)[at].abs().max() > 1e-3


def test_no_rows_at_all_leave_the_model_as_it_is():
    model, layout = make_model("mixtral"), lay_out(sequences(1))
    logits, grads, _ = score(model, layout)
    replay = Replay(model)
    empty = torch.zeros(0, 2, 2, dtype=torch.uint8)
    replayed, replayed_grads, stats = score(model, layout, replay, layout.grid(empty, torch.full((24,), -1)))
    assert torch.equal(replayed, logits)
    assert_same(replayed_grads, grads)
    assert stats.meter().values()["routing/fallback"] == 1


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_used_is_the_row_where_there_is_one_and_the_live_choice_where_not(routed, data):
    model, replay = routed
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    layout = lay_out(sequences(data.draw(st.integers(0, 9)), lengths))
    count = sum(lengths)
    rows = random_rows(replay, data.draw(st.integers(1, 8)), seed=3, dtype=data.draw(st.sampled_from(DTYPES)))
    index = torch.tensor(data.draw(st.lists(st.integers(-1, len(rows) - 1), min_size=count, max_size=count)))
    with torch.no_grad(), replay.using(layout.grid(rows, index), record=True) as stats:
        layout.forward(model)
    used, has = by_token(layout, stats), index >= 0
    assert torch.equal(used[has], rows[index[has]])
    assert torch.equal(used[~has][:, 0].long(), own_choice(model, replay, layout)[~has][:, 0].long())
    assert used.long().sort(-1).values.diff(dim=-1).all()
    assert stats.replayed == has.sum()
    assert stats.real == count


DTYPES = [torch.uint8, torch.int16, torch.int32]


@pytest.fixture(scope="module")
def routed():
    model = make_model("qwen3_moe")
    return model, Replay(model)


# ------------------------------------------------------------------------------------------ weights


def by_hand(family: str, logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Each family's published formula for the weights of given experts."""
    if family == "gpt_oss":
        return logits.gather(-1, chosen).softmax(-1)
    if family in ("deepseek_v3", "glm4_moe"):
        picked = logits.sigmoid().gather(-1, chosen)
        return 1.5 * picked / picked.sum(-1, keepdim=True)
    picked = logits.softmax(-1).gather(-1, chosen)
    return picked / picked.sum(-1, keepdim=True) if family in ("qwen3_moe", "mixtral") else picked


@ALL
def test_weights_and_router_gradients_are_the_familys_formula_at_the_given_experts(family):
    model = make_model(family)
    replay = Replay(model)
    layout, rows = lay_out(sequences(1, (24,))), random_rows(replay, 24, seed=2)
    hidden = torch.randn(24, 64, generator=torch.Generator().manual_seed(3))
    pull = torch.randn(24, 2, generator=torch.Generator().manual_seed(4))
    outputs = []
    with replay.using(layout.grid(rows)):
        outputs = [router(hidden) for router in find_routers(model).values()]
    for at, (router, (_, weights, indices)) in enumerate(zip(find_routers(model).values(), outputs, strict=True)):
        (weights * pull).sum().backward()
        matrix = router.weight.detach().double().requires_grad_()
        logits = hidden.double() @ matrix.T + (router.bias.detach().double() if family == "gpt_oss" else 0)
        expected = by_hand(family, logits, rows[:, at].long())
        (expected * pull).sum().backward()
        assert torch.equal(indices, rows[:, at].long())
        torch.testing.assert_close(weights.double(), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(router.weight.grad.double(), matrix.grad, atol=1e-6, rtol=1e-5)
        assert router.weight.grad.norm() > 0.1


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_the_selection_bias_does_not_enter_the_weights(family):
    model, layout = make_model(family), lay_out(sequences(1))
    replay = Replay(model)
    routes = layout.grid(random_rows(replay, 24, seed=2))
    live = own_choice(model, replay, layout)
    logits, grads, _ = score(model, layout, replay, routes)
    for router in find_routers(model).values():
        assert router.e_score_correction_bias.abs().max() > 0.05
        router.e_score_correction_bias.neg_()
    assert not torch.equal(own_choice(model, replay, layout), live)
    routes.index[routes.index < 0] = 0  # padding is live otherwise, and would move
    with replay.using(routes):
        biased = layout.forward(model)
    loss(biased, layout).backward()
    torch.testing.assert_close(biased.detach()[layout.real], logits[layout.real], atol=2e-6, rtol=0)
    assert_same(gradients(model), grads, atol=1e-4)


def test_experts_outside_the_best_groups_keep_their_own_score():
    """DeepSeek-V2 masks scores with zeros before it takes weights from them; a replayed expert must not get zero."""
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

    config = DeepseekV2Config(
        hidden_size=16,
        num_attention_heads=2,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=1,
        topk_method="group_limited_greedy",
        routed_scaling_factor=2.0,
    )
    model = torch.nn.Sequential(DeepseekV2TopkRouter(config))
    torch.nn.init.normal_(model[0].weight, generator=torch.Generator().manual_seed(0))
    replay = Replay(model)
    layout, hidden = lay_out(sequences(1, (24,))), torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    rows = random_rows(replay, 24, seed=2)
    with replay.using(layout.grid(rows)) as stats:
        _, weights, _ = model(hidden)
    expected = 2 * (hidden @ model[0].weight.T).softmax(-1).gather(-1, rows[:, 0].long())
    torch.testing.assert_close(weights, expected)
    assert stats.agreeing[0] < 24


# ------------------------------------------------------------------------------------------ layout


@ALL
def test_packed_and_padded_rows_and_other_cuts_agree(family):
    model, chosen = make_model(family), sequences(1)
    replay = Replay(model)
    rows, count = random_rows(replay, 24, seed=2), 24
    index = torch.arange(count)
    index[::5] = -1

    def learn(layouts):
        found = torch.empty(count, model.config.vocab_size)
        used = torch.empty_like(rows)
        total = None
        for layout in layouts:
            with replay.using(layout.grid(rows, index), record=True) as stats:
                logits = layout.forward(model)
            loss(logits, layout).backward()
            found[layout.token[layout.real]] = logits.detach()[layout.real]
            used[layout.token[layout.real]] = stats.recorded[layout.real]
            total = stats if total is None else total.add(stats)
        return found, used, gradients(model), total

    padded = learn([lay_out(chosen)])
    starts = [0, 5, 14, 17]

    def alone(i):
        layout = lay_out([chosen[i]])
        return type(layout)(layout.input_ids, layout.position_ids, layout.token + starts[i])

    layouts = [[alone(i) for i in range(4)]]
    if family != "gpt_oss":  # transformers' GPT-OSS does not keep packed sequences apart, with or without replay
        layouts += [[lay_out(chosen, [[1, 0], [3, 2]])], [lay_out(chosen, [[2, 3, 0, 1]])]]
    for cut in layouts:
        logits, used, grads, stats = learn(cut)
        assert torch.equal(used, padded[1])
        torch.testing.assert_close(logits, padded[0], atol=1e-5, rtol=0)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, padded[2][name], atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(stats.totals, padded[3].totals, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------ checkpointing


@ALL
def test_gradient_checkpointing_recomputes_with_the_experts_of_its_own_forward(family):
    model, layout = make_model(family).train(), lay_out(sequences(1))
    replay = Replay(model)
    index = torch.arange(24)
    index[::5] = -1
    routes = layout.grid(random_rows(replay, 24, seed=2), index)
    logits, grads, plain = score(model, layout, replay, routes)

    asked = []

    def context():
        asked.append(replay.active)
        return replay.checkpoint_context()

    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": context}
    )
    other = lay_out(sequences(5, (4, 8)))
    with replay.using(routes) as stats:
        first = layout.forward(model)
    with replay.using(other.grid(random_rows(replay, 12, seed=6))) as between:
        second = other.forward(model)
    with torch.no_grad():
        layout.forward(model)
    counted = stats.totals.clone(), between.totals.clone()
    loss(first, layout).backward()
    assert torch.equal(first.detach(), logits)
    assert_same(gradients(model), grads)
    loss(second, other).backward()
    assert len(gradients(model)) == len(grads)
    assert len(asked) >= 2 * model.config.num_hidden_layers
    assert torch.equal(stats.totals, plain.totals)
    assert torch.equal(stats.totals, counted[0])
    assert torch.equal(between.totals, counted[1])


def test_adapters_learn_with_the_experts_they_are_given():
    model, layout = make_model("qwen3_moe"), lay_out(sequences(1))
    add_lora(model, Lora(rank=2))
    replay = Replay(model.train())
    rows = random_rows(replay, 24, seed=2)
    logits, grads, stats = score(model, layout, replay, layout.grid(rows))
    assert torch.equal(by_token(layout, stats), rows)
    assert grads
    assert all("lora_" in name for name in grads)
    model.enable_input_require_grads()
    how = {"use_reentrant": False, "context_fn": replay.checkpoint_context}
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    again, grads_again, _ = score(model, layout, replay, layout.grid(rows))
    torch.testing.assert_close(again, logits, atol=1e-6, rtol=0)
    assert_same(grads_again, grads, atol=1e-6)


def test_experts_beyond_256_keep_their_numbers_in_records_and_recomputation():
    model, layout = make_model("qwen3_moe", num_experts=300), lay_out(sequences(1))
    replay = Replay(model.train())
    live = layout.grid(torch.zeros(0, 2, 2, dtype=torch.uint8), torch.full((24,), -1))
    chosen = own_choice(model, replay, layout)
    assert chosen.max() > 255
    logits, grads, _ = score(model, layout, replay, live)
    with replay.using(live, record=True) as stats:
        layout.forward(model)
    assert torch.equal(by_token(layout, stats).long(), chosen.long())
    how = {"use_reentrant": False, "context_fn": replay.checkpoint_context}
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    again, grads_again, _ = score(model, layout, replay, live)
    torch.testing.assert_close(again, logits, atol=1e-6, rtol=0)
    assert_same(grads_again, grads, atol=1e-6)


def test_checkpointing_recomputes_live_tokens_as_they_were_even_if_the_router_has_moved():
    model, layout = make_model("qwen3_moe").train(), lay_out(sequences(1))
    replay = Replay(model)
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": replay.checkpoint_context}
    )
    with replay.using(None, record=True) as stats:
        logits = layout.forward(model)
    routers = find_routers(model).values()
    seen = []
    for router in routers:
        router.weight.data.neg_()
        router.register_forward_hook(lambda module, given, output: seen.append(output[2]))
    loss(logits, layout).backward()
    assert [s.tolist() for s in reversed(seen)] == [stats.recorded[:, at].tolist() for at in range(2)]


def test_checkpointing_outside_of_replay_recomputes_live():
    model, layout = make_model("qwen3_moe").train(), lay_out(sequences(1))
    _, grads, _ = score(model, layout)
    replay = Replay(model)
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": replay.checkpoint_context}
    )
    _, checkpointed, _ = score(model, layout)
    assert_same(checkpointed, grads)


def test_a_backward_pass_inside_another_forwards_routes_keeps_both_apart():
    model, layout = make_model("mixtral").train(), lay_out(sequences(1))
    replay = Replay(model)
    one, two = (layout.grid(random_rows(replay, 24, seed)) for seed in (2, 3))
    expected = [score(model, layout, replay, routes)[1] for routes in (one, two)]
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": replay.checkpoint_context}
    )
    with replay.using(one):
        first = layout.forward(model)
    with replay.using(two) as stats:
        second = layout.forward(model)
        loss(first, layout).backward()
        assert_same(gradients(model), expected[0])
    loss(second, layout).backward()
    assert_same(gradients(model), expected[1])
    assert stats.real == 24


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_that_does_not_know_the_routes_is_an_error(reentrant):
    model, layout = make_model("qwen3_moe").train(), lay_out(sequences(1))
    replay = Replay(model)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    with replay.using(layout.grid(random_rows(replay, 24, seed=2))):
        logits = layout.forward(model)
    with pytest.raises(RuntimeError, match=r"context_fn=replay\.checkpoint_context"):
        loss(logits, layout).backward()


# ------------------------------------------------------------------------------------------ what it is for


@ALL
def test_replay_brings_the_model_closer_to_an_engine_whose_routers_are_noisy(family):
    found = {"live": 0.0, "replayed": 0.0}
    for seed in range(3):
        model, engine = make_model(family, seed), make_model(family, seed)
        layout = lay_out(sequences(seed, (40, 40)))
        generator = torch.Generator().manual_seed(seed)
        for router in find_routers(engine).values():
            router.weight.data += 0.02 * torch.randn(router.weight.shape, generator=generator)
        replay, recorder = Replay(model), Replay(engine)
        with torch.no_grad():
            with recorder.using(None, record=True) as chosen:
                sampled = layout.forward(engine).log_softmax(-1)
            for name, routes in (("live", None), ("replayed", layout.grid(chosen.recorded))):
                with replay.using(routes) as stats:
                    logp = layout.forward(model).log_softmax(-1)
                found[name] += float((sampled.exp() * (sampled - logp)).sum(-1).mean())
        assert 0.5 < stats.meter().values()["routing/agreement"] < 1
    assert found["replayed"] < 0.7 * found["live"]


# ------------------------------------------------------------------------------------------ copies


def test_a_copy_of_a_model_has_hooks_of_its_own():
    model, layout = make_model("qwen3_moe"), lay_out(sequences(1))
    Replay(model)
    other = copy.deepcopy(model)
    for router in find_routers(other).values():
        router.weight.data.neg_()
    assert not torch.allclose(layout.forward(other), layout.forward(model))
    assert all(r.forward.router is r for r in find_routers(other).values())
    assert other.state_dict().keys() == model.state_dict().keys()

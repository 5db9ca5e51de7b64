"""Anchors in a rank: averaged when loaded, moved with the policy, kept with a checkpoint."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config

from rlpost.config import Lora
from rlpost.learner.adapters import add_lora
from rlpost.learner.batch import Batch, make_grid, plan
from rlpost.learner.logprobs import Policy
from rlpost.learner.references import AnchorSpec, References

FROZEN, MOVABLE = AnchorSpec((("base", 1.0),)), AnchorSpec((("base", 1.0),), movable=True)


def tiny(seed: int = 0, dtype: torch.dtype = torch.float32, **settings) -> nn.Module:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        **settings,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def policy(seed: int = 0, dtype: torch.dtype = torch.float32, lora: Lora | None = None) -> Policy:
    model = tiny(seed, dtype)
    if lora is not None:
        add_lora(model, lora)
    return Policy(model, 4)


@pytest.fixture(scope="module")
def grid():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 20, n).astype(np.int32) for n in (3, 1)]
    responses = [rng.integers(0, 20, n).astype(np.int32) for n in (4, 6)]
    batch = Batch.from_examples(prompts, responses)
    return make_grid(batch, plan(batch.lengths, 1, "padded", 200)[0][0], pad_id=0)


def forward(model: Policy, grid):
    with torch.no_grad():
        return model(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 0.8)


def train(model: nn.Module, steps: int = 1, seed: int = 1, scale: float = 0.1) -> None:
    """Move all that is trained, somewhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(steps):
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(scale * torch.randn(p.shape, generator=generator).to(p.dtype))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


# ------------------------------------------------------------------------------------------------------- loading


def test_anchors_are_known_by_name_and_say_what_their_weights_say(grid):
    loaded: list[tuple[str, bool]] = []

    def load(path: str, movable: bool) -> Policy:
        loaded.append((path, movable))
        return policy({"base": 0, "big": 7}[path])

    anchors = {"frozen": FROZEN, "same": FROZEN, "slow": MOVABLE, "teacher": AnchorSpec((("big", 1.0),))}
    references = References(anchors, load, policy())
    assert references.names() == ["frozen", "same", "slow", "teacher"]
    assert "slow" in references
    assert "old_policy" not in references
    assert loaded == [("base", False), ("base", True), ("big", False)], "equal anchors that stay are loaded once"
    expected = {name: forward(policy(7 if name == "teacher" else 0), grid) for name in anchors}
    for name in anchors:
        found = forward(references.policy(name), grid)
        assert torch.equal(found.logp, expected[name].logp)
        assert torch.equal(found.entropy, expected[name].entropy)
        assert not any(p.requires_grad for p in references.policy(name).parameters())
        assert not any(m.training for m in references.policy(name).modules())
    with pytest.raises(ValueError, match=r"no anchor 'old_policy' .* \(held: frozen, same, slow, teacher\)"):
        references.policy("old_policy")


def test_a_soup_of_linear_models_is_what_their_average_says():
    members = {name: nn.Linear(5, 3, dtype=torch.float64) for name in "abc"}
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    x = torch.randn(7, 5, dtype=torch.float64)
    expected = sum(share * members[name](x) for name, share in shares.items()).detach()
    references = References(
        {"soup": AnchorSpec(tuple(shares.items()))}, lambda path, movable: members[path], nn.Linear(5, 3)
    )
    torch.testing.assert_close(references.policy("soup")(x), expected, atol=1e-14, rtol=0)
    assert not references.policy("soup")(x).requires_grad


def test_a_soup_of_equal_models_is_that_model_and_one_in_bfloat16_is_rounded_once(grid):
    soup = AnchorSpec((("x", 0.25), ("x", 0.75)))
    same = References({"soup": soup}, lambda path, movable: policy(3, torch.bfloat16), policy())
    assert_equal(weights(same.policy("soup")), weights(policy(3, torch.bfloat16)))

    shares = {"x": 1 / 3, "y": 1 / 3, "z": 1 / 3}
    seeds = {"x": 1, "y": 2, "z": 3}
    mixed = References(
        {"soup": AnchorSpec(tuple(shares.items()))},
        lambda path, movable: policy(seeds[path], torch.bfloat16),
        policy(),
    )
    parts = [weights(policy(seed, torch.bfloat16)) for seed in seeds.values()]
    for name, found in weights(mixed.policy("soup")).items():
        exact = sum(part[name].double() for part in parts) / 3
        assert found.dtype == torch.bfloat16
        # Half a unit in the last of 8 places, and the rounding of float32 sums.
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all(), name


def test_buffers_that_a_checkpoint_holds_are_averaged_too():
    def load(path: str, movable: bool) -> nn.Module:
        module = nn.BatchNorm1d(2)
        module.register_buffer("scratch", torch.full((2,), float(path)), persistent=False)
        module.running_mean.fill_(float(path))
        return module

    soup = References({"soup": AnchorSpec((("1", 0.5), ("3", 0.5)))}, load, nn.Identity()).policy("soup")
    assert soup.running_mean.tolist() == [2.0, 2.0]
    assert soup.scratch.tolist() == [1.0, 1.0], "what a module works out for itself is left alone"


def test_members_and_policies_that_do_not_match_are_refused():
    def load(path: str, movable: bool) -> nn.Module:
        return {"a": nn.Linear(2, 3), "wide": nn.Linear(2, 4), "bare": nn.Linear(2, 3, bias=False)}[path]

    with pytest.raises(ValueError, match=r"weight is \(3, 2\) in one and \(4, 2\) in the other"):
        References({"soup": AnchorSpec((("a", 0.5), ("wide", 0.5)))}, load, nn.Linear(2, 3))
    with pytest.raises(ValueError, match="a and bare do not have the same weights: only one of them has bias"):
        References({"soup": AnchorSpec((("a", 0.5), ("bare", 0.5)))}, load, nn.Linear(2, 3))
    with pytest.raises(ValueError, match="anchor 'slow' and the policy do not have the same weights"):
        References({"slow": AnchorSpec((("wide", 1.0),), movable=True)}, load, nn.Linear(2, 3))
    with pytest.raises(ValueError, match="anchor 'none' has no weights to begin with"):
        References({"none": AnchorSpec(())}, load, nn.Linear(2, 3))


# --------------------------------------------------------------------------------------------------------- moves


def kl(trained: Policy, anchor: Policy, grid) -> float:
    """Mean k3 of the grid's tokens."""
    d = forward(trained, grid).logp - forward(anchor, grid).logp
    return float((torch.exp(-d) - 1 + d).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["whole", "lora"])
def test_nothing_is_left_of_the_divergence_after_a_reset(grid, dtype, lora):
    trained = policy(0, dtype, lora)
    references = References(
        {"slow": MOVABLE}, lambda path, movable: policy(0, dtype, lora if movable else None), trained
    )
    anchor = references.policy("slow")
    assert kl(trained, anchor, grid) == 0
    train(trained)
    assert kl(trained, anchor, grid) > 1e-4
    references.move("slow", 1.0, trained)
    assert kl(trained, anchor, grid) == 0
    assert_equal(weights(anchor), weights(trained))
    train(trained)
    assert kl(trained, anchor, grid) > 1e-4, "the anchor is a copy, not the policy itself"


@pytest.mark.parametrize("decay", [0.4, 0.99])
def test_an_average_has_its_closed_form(decay):
    trained = policy(0, torch.float64)
    references = References({"slow": MOVABLE}, lambda path, movable: policy(0, torch.float64), trained)
    visited = [weights(trained)]
    for seed in range(6):
        train(trained, seed=seed)
        visited.append(weights(trained))
        references.move("slow", 1 - decay, trained)
    n = len(visited) - 1
    for name, found in weights(references.policy("slow")).items():
        expected = decay**n * visited[0][name]
        for k in range(1, n + 1):
            expected = expected + (1 - decay) * decay ** (n - k) * visited[k][name]
        torch.testing.assert_close(found, expected, atol=1e-13, rtol=0)


def test_small_moves_of_bfloat16_weights_add_up():
    trained = policy(0, torch.bfloat16)
    references = References({"slow": MOVABLE}, lambda path, movable: policy(0, torch.bfloat16), trained)
    start = weights(trained)
    train(trained, scale=0.3)
    for _ in range(100):
        references.move("slow", 0.001, trained)
    target, kept = weights(trained), 0.999**100
    rounded_away = 0.0
    for name, found in weights(references.policy("slow")).items():
        expected = kept * start[name].double() + (1 - kept) * target[name].double()
        assert ((found.double() - expected).abs() <= expected.abs() * 2**-8 + 1e-5).all(), name
        naive = start[name].clone()
        for _ in range(100):
            naive.lerp_(target[name], 0.001)
        rounded_away = max(rounded_away, float((naive.double() - expected).abs().max()))
    assert rounded_away > 0.03, "in bfloat16 alone the moves would have been lost"


def test_a_reset_also_resets_the_float32_copy():
    trained = policy(0, torch.bfloat16)
    references = References({"slow": MOVABLE}, lambda path, movable: policy(0, torch.bfloat16), trained)
    train(trained, seed=1)
    references.move("slow", 0.5, trained)
    references.move("slow", 1.0, trained)
    copied = weights(trained)
    assert_equal(weights(references.policy("slow")), copied)
    train(trained, seed=2)
    references.move("slow", 0.5, trained)
    for name, found in weights(references.policy("slow")).items():
        expected = 0.5 * copied[name].double() + 0.5 * weights(trained)[name].double()
        assert ((found.double() - expected).abs() <= expected.abs() * 2**-8 + 1e-6).all(), name


def test_adapters_of_an_anchor_begin_as_the_policys():
    lora, seeds = Lora(rank=2), iter((10, 11))

    def adapted() -> Policy:
        model = tiny(0)
        torch.manual_seed(next(seeds))  # adapters are drawn at random
        add_lora(model, lora)
        return Policy(model, 4)

    trained = adapted()
    references = References({"slow": MOVABLE}, lambda path, movable: adapted(), trained)
    assert any("lora_A" in name for name in weights(trained))
    assert_equal(weights(references.policy("slow")), weights(trained))


def test_an_anchor_without_the_policys_adapters_is_refused_at_once():
    with pytest.raises(ValueError, match=r"only one of them has .*lora_"):
        References({"slow": MOVABLE}, lambda path, movable: policy(), policy(0, lora=Lora(rank=2)))


def test_what_cannot_move_does_not():
    trained = policy()
    references = References({"frozen": FROZEN, "slow": MOVABLE}, lambda path, movable: policy(), trained)
    with pytest.raises(ValueError, match="anchor 'frozen' cannot move"):
        references.move("frozen", 1.0, trained)
    for amount in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="the amount must be in"):
            references.move("slow", amount, trained)
    train(trained)
    references.move("slow", 1.0, trained)
    assert_equal(weights(references.policy("frozen")), weights(policy()))


# --------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_has_the_anchors_it_had_and_they_move_on_alike(tmp_path, dtype):
    def fresh() -> tuple[Policy, References]:
        trained = policy(0, dtype)
        anchors = {"frozen": FROZEN, "a/b": MOVABLE, "reset": MOVABLE}
        return trained, References(anchors, lambda path, movable: policy(0, dtype), trained)

    trained, references = fresh()
    for seed in range(3):
        train(trained, seed=seed)
        references.move("a/b", 0.01, trained)
    references.move("reset", 1.0, trained)
    train(trained, seed=5)
    references.save(tmp_path / "anchors", rank=0)
    assert len(list((tmp_path / "anchors").iterdir())) == 2, "what stays where it began is not written"

    again, resumed = fresh()
    again.load_state_dict(trained.state_dict())
    resumed.load(tmp_path / "anchors", rank=1)  # other ranks read what rank 0 wrote
    for name in references.names():
        assert_equal(weights(resumed.policy(name)), weights(references.policy(name)))
    reset = weights(resumed.policy("reset"))
    assert any(not torch.equal(reset[n], w) for n, w in weights(again).items()), "the reference is not the policy"
    for _ in range(20):
        references.move("a/b", 0.01, trained)
        resumed.move("a/b", 0.01, again)
    assert_equal(weights(resumed.policy("a/b")), weights(references.policy("a/b")))


def test_only_rank_0_writes_whole_weights(tmp_path):
    references = References({"slow": MOVABLE}, lambda path, movable: policy(), policy())
    references.save(tmp_path / "anchors", rank=1)
    assert not (tmp_path / "anchors").exists()


def test_missing_or_foreign_weights_are_an_error_and_not_a_fresh_start(tmp_path):
    references = References({"slow": MOVABLE}, lambda path, movable: policy(), policy())
    with pytest.raises(FileNotFoundError, match=r"no weights of anchor 'slow' in .*could not move"):
        references.load(tmp_path, rank=0)
    other = nn.Linear(2, 2)
    References({"slow": MOVABLE}, lambda path, movable: nn.Linear(2, 2), other).save(tmp_path, rank=0)
    with pytest.raises(ValueError, match="do not have the same weights"):
        references.load(tmp_path, rank=0)


# -------------------------------------------------------------------------------------------------------- shards


class Sharded(nn.Module):
    """What ZeRO-3 makes of a parameter, in one process: a rank holds its share of it, padded; one is left gathered."""

    def __init__(self, whole: torch.Tensor, rank: int, ranks: int = 2) -> None:
        super().__init__()
        self.large, self.small = nn.Parameter(torch.empty(0)), nn.Parameter(torch.empty(0))
        each = -(-len(whole) // ranks)
        padded = nn.functional.pad(whole, (0, each * ranks - len(whole)))
        buffer = torch.cat([padded, padded])  # shards are views of one buffer
        for i, p in enumerate((self.large, self.small)):
            p.ds_tensor = buffer[len(padded) * i :][: len(padded)][each * rank : each * (rank + 1)]
            p.ds_numel = len(whole)
            p.ds_status = types.SimpleNamespace(name="NOT_AVAILABLE")
        self.small.ds_status.name = "AVAILABLE"
        self.calls: list[tuple[str, list[nn.Parameter]]] = []
        self.small.partition = lambda ps: self.calls.append(("partition", ps))
        self.small.all_gather = lambda ps: self.calls.append(("all_gather", ps))


class Unsharded(nn.Module):
    """The same without ZeRO-3."""

    def __init__(self, whole: torch.Tensor) -> None:
        super().__init__()
        self.large, self.small = nn.Parameter(whole.clone()), nn.Parameter(whole.clone())


def anchored(model: nn.Module) -> References:
    return References({"slow": MOVABLE}, lambda path, movable: model, model)


@pytest.mark.parametrize("ranks", [0, 1, 2, 3, 4], ids="now{}".format)
@pytest.mark.parametrize("saved", [0, 1, 2, 3, 4], ids="saved{}".format)
def test_shards_of_any_number_of_ranks_become_those_of_any_other(tmp_path, saved, ranks):
    held, blank = torch.arange(1.0, 8.0), torch.zeros(7)
    for rank in range(max(saved, 1)):
        anchored(Sharded(held, rank, saved) if saved else Unsharded(held)).save(tmp_path, rank)
    for rank in range(max(ranks, 1)):
        mine, want = (Sharded(w, rank, ranks) if ranks else Unsharded(w) for w in (blank, held))
        anchored(mine).load(tmp_path, rank)
        for ours, theirs in zip(mine.parameters(), want.parameters(), strict=True):
            assert torch.equal(getattr(ours, "ds_tensor", ours), getattr(theirs, "ds_tensor", theirs))


def test_shards_that_are_not_all_there_are_refused(tmp_path):
    for rank in range(2):
        anchored(Sharded(torch.arange(7.0), rank, 3)).save(tmp_path, rank)
    for now in (Unsharded(torch.zeros(7)), Sharded(torch.zeros(7), 0, 2)):
        with pytest.raises(ValueError, match=r"slow.*do not have the same weights"):
            anchored(now).load(tmp_path, 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_moves_and_keeps_its_own_shards(tmp_path, rank):
    start, target = torch.arange(6.0), torch.arange(6.0) * 10 + 1

    def engine(whole: torch.Tensor) -> nn.Module:
        wrapped = nn.Module()
        wrapped.module = Sharded(whole, rank)  # as an engine has it
        return wrapped

    trained = Sharded(target, rank)
    references = References({"slow": MOVABLE}, lambda path, movable: engine(start), trained)
    shards = references.policy("slow").module
    shards.calls.clear()
    references.move("slow", 0.25, trained)
    expected = (0.75 * start + 0.25 * target).chunk(2)[rank]
    assert torch.equal(shards.large.ds_tensor, expected)
    assert torch.equal(shards.small.ds_tensor, expected)
    # The small one was gathered before the move: that copy is dropped and gathered again.
    assert [(name, [p is shards.small for p in ps]) for name, ps in shards.calls] == [
        ("partition", [True]),
        ("all_gather", [True]),
    ]
    references.save(tmp_path, rank)
    (file,) = tmp_path.iterdir()
    assert f"rank{rank}" in file.name
    assert all(t.untyped_storage().nbytes() == 3 * 4 for t in torch.load(file).values()), "no more than the shards"
    resumed = References({"slow": MOVABLE}, lambda path, movable: engine(start), trained)
    with pytest.raises((FileNotFoundError, ValueError), match="slow"):
        resumed.load(tmp_path, 1 - rank)  # a shard is missing
    references.save(tmp_path, 1 - rank)
    resumed.load(tmp_path, rank)
    assert torch.equal(resumed.policy("slow").module.large.ds_tensor, expected)
    with pytest.raises(ValueError, match=r"form: full.*zero_stage"):
        references.against("slow", None, lambda p, q: p)


# ---------------------------------------------------------------------------------------------- whole vocabulary


def test_an_anchor_is_compared_with_over_the_whole_vocabulary(grid):
    trained = policy()
    references = References({"slow": MOVABLE}, lambda path, movable: policy(), trained)
    train(trained)
    reverse = references.against("slow", grid, lambda p, q: (p.exp() * (p - q)).sum(-1))

    def divergence() -> torch.Tensor:
        out = trained(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, 0.8, full=[reverse])
        return out.full[0]

    found = divergence()
    assert found.min() > 0
    found.sum().backward()
    assert max(float(p.grad.abs().max()) for p in trained.parameters() if p.grad is not None) > 1e-3
    assert all(p.grad is None for p in references.policy("slow").parameters())
    references.move("slow", 1.0, trained)
    reverse = references.against("slow", grid, reverse.divergence)
    assert torch.equal(divergence(), torch.zeros_like(found))

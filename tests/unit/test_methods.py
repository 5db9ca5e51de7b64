"""The files of configs/methods: each is a method over any base, documented, and made of entries that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rlpost import cli, config, exit_codes
from rlpost.commands import listing
from rlpost.config import Config, load
from rlpost.data import STRATEGIES
from rlpost.objective import (
    ADVANTAGES,
    CORRECTIONS,
    DIVERGENCES,
    LIKELIHOODS,
    POLICY_LOSSES,
    REFERENCES,
    REWEIGHTERS,
    SCHEDULES,
    SELECTORS,
    TERMS,
    TRANSFORMS,
    Credit,
    Objective,
)
from rlpost.run.roles import Roles
from tests.conftest import tiny

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "methods").glob("*.yaml"))
QUICKSTART, REASONING = ROOT / "configs" / "quickstart.yaml", ROOT / "configs" / "reasoning.yaml"
LIKELIHOOD_METHODS = {"verifree", "logprob", "rlpr", "jepo", "nover"}
CORRECTION_EXAMPLES = {"tis", "icepop"}  # laid over a method, so they leave the rest as it is
PAGE = (ROOT / "docs" / "methods.md").read_text()

# A base in which everything a method might leave to its base is set otherwise.
FOREIGN: dict = {
    "data": {"strategy": {"name": "curriculum", "mastered": 0.5}, "groups": {"no_signal": "refill", "valid_fraction": 0.1}},
    "objective": {
        "advantage": {"name": "normalized", "mean": "batch", "std": "batch", "eps": 0.5},
        "transforms": [{"name": "stcr", "base": 1.5}],
        "policy_loss": {"name": "ppo_clip", "low": 0.9, "high": 0.9, "dual": 7.0},
        "terms": [{"loss": "sft", "source": "sft"}],
        "regularizers": [{"divergence": "k2", "anchor": "slow", "coef": 0.5}],
        "references": {"slow": {"name": "ema", "decay": 0.5}},
        "reweight": {"name": "recap", "window": 3},
        "aggregation": "seq_mean_token_sum_norm",
    },
}  # fmt: skip

each = pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


def base_of(file: Path) -> Path:
    return REASONING if file.stem in LIKELIHOOD_METHODS else QUICKSTART


def over_base(file: Path, *between: Path) -> Config:
    return load([base_of(file), *between, file])


# ---------------------------------------------------------------------------------------------------- the files


def test_there_is_a_file_for_every_method():
    names = {
        "grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "reinforce_pp_baseline", "gpg",
        "dph_forward_kl", "dph_js", "dph_alpha", "dph_reverse_kl", "kdrl", "prorl", "prorl_v2", "gtpo", "grpo_d", "recap",
        "apo", "f_dpg", "f_dpo", "h_dpo", "iterative_rpo", "salsa", "verifree", "logprob", "rlpr", "jepo", "nover", "trice",
        "dco", "minirl", "tis", "icepop",
        *(f"rpg_{d}{s}" for d in ("fkl", "ufkl", "rkl", "urkl") for s in ("", "_reinforce")),
    }  # fmt: skip
    assert {file.stem for file in FILES} == names


@each
def test_a_file_says_what_it_is_where_it_is_from_what_differs_when_to_use_it_and_over_what(file: Path):
    said = listing.header(file)
    assert list(said) == ["Objective", "Paper", "Differs", "When", "Published", "Base"]
    assert all(len(text) > 2 for text in said.values())
    assert re.search(r"arXiv \d{4}\.\d{5}|blog post", said["Paper"])
    assert file.read_text().startswith("# Objective: ")
    assert said["Objective"] in file.read_text().splitlines()[0], "the objective is one line, for rlpost list"
    assert max(map(len, file.read_text().splitlines())) <= 120
    if file.stem in LIKELIHOOD_METHODS:
        assert said["Base"].startswith("configs/reasoning.yaml")


@each
def test_overrides_that_a_header_proposes_can_be_typed(file: Path):
    proposed = re.findall(r"`((?:objective|data)\.[\w.]+=[^`]+)`", " ".join(listing.header(file).values()))
    for override in proposed:
        Roles(load([base_of(file), file], [override.replace("=MODEL", "=null")]))


@each
def test_every_part_of_a_method_over_its_base_can_be_built(file: Path):
    found = over_base(file)
    Roles(found)
    Objective(found.objective)
    Credit(found.objective, found.steps)
    strategy = STRATEGIES.create(found.data.strategy)
    assert set(strategy.provides) == set(config.STRATEGIES[found.data.strategy.name])


@each
def test_a_likelihood_reward_and_what_the_run_wants_of_the_learner_can_be_built(file: Path):
    from rlpost.data import make_tokenizer
    from rlpost.run.likelihood import LikelihoodReward

    found = over_base(file)
    if found.objective.likelihood is not None:
        assert found.model.create is not None
        LikelihoodReward(found.objective.likelihood, make_tokenizer(found.model.create.tokenizer))
    named = {s.anchor for _, s in found.objective.summands()} - {"frozen", "cached", "old_policy"}
    assert named <= set(Roles(found).references), "an anchor that is named is made"
    assert Roles(found).wanted <= {"old_logp", "entropy", *(f"anchors.{name}" for name in Roles(found).references)}


@each
def test_the_plan_counts_the_anchors_that_the_run_loads(file: Path):
    made = over_base(file)
    assert made.objective.anchor_models() == sorted(n for n, r in Roles(made).references.items() if r.origin())


@pytest.mark.parametrize("file", [f for f in FILES if f.stem not in LIKELIHOOD_METHODS], ids=lambda f: f.stem)
def test_a_method_for_any_base_also_fits_real_text(file: Path):
    load([ROOT / "configs" / "gsm8k_tiny_cpu.yaml", file])


@pytest.mark.parametrize("file", [f for f in FILES if f.stem not in CORRECTION_EXAMPLES], ids=lambda f: f.stem)
def test_a_method_is_the_same_whatever_its_base_had(file: Path, tmp_path: Path):
    foreign = tmp_path / "foreign.yaml"
    foreign.write_text(yaml.safe_dump(FOREIGN))
    plain, over = over_base(file), over_base(file, foreign)

    def method(found: Config) -> dict:
        values = found.objective.model_dump()
        used = {s.anchor for _, s in found.objective.summands()}
        values["references"] = {k: v for k, v in values["references"].items() if k in used}
        if found.objective.policy_loss is None:
            del values["advantage"]  # nothing asks for it
            del values["aggregation"]  # preferences are per pair, and the other terms have their own
        groups = found.data.groups.model_dump(exclude={"max_rounds"})
        if groups["no_signal"] != "refill":
            del groups["valid_fraction"]  # a matter of refilling
        return {"objective": values, "strategy": found.data.strategy, "groups": groups}

    assert method(over) == method(plain)


@pytest.mark.parametrize("name", sorted(CORRECTION_EXAMPLES))
def test_a_correction_goes_over_a_method_and_leaves_it_as_it_is(name: str):
    folder = ROOT / "configs" / "methods"
    alone, both = (
        load([QUICKSTART, folder / "dapo.yaml"]),
        load([QUICKSTART, folder / "dapo.yaml", folder / f"{name}.yaml"]),
    )
    assert both.objective.corrections
    assert both.objective.model_copy(update={"corrections": []}) == alone.objective


def test_a_likelihood_method_takes_the_verifiers_out_of_the_reward_and_not_out_of_the_run():
    for name in LIKELIHOOD_METHODS:
        found = over_base(ROOT / "configs" / "methods" / f"{name}.yaml")
        assert [v.name for v in found.verifiers] == ["exact"]
        assert [v.weight for v in found.verifiers] == [0]


def test_worked_examples_of_the_reasoning_base_are_what_its_verifier_and_its_marker_expect():
    from rewards.exact import verify
    from rlpost.data import load_examples, load_prompts, make_tokenizer

    found = load(
        [REASONING, ROOT / "configs" / "methods" / "verifree.yaml"], ["warmup.train.size=50", "data.train.size=50"]
    )
    assert found.model.create is not None
    assert found.warmup is not None
    assert found.objective.likelihood is not None
    tokenizer = make_tokenizer(found.model.create.tokenizer)
    examples, _ = load_examples(found.warmup.train, found.data, tokenizer)
    for example in examples:
        numerator, denominator = map(int, example.text.rstrip(":").split("/"))
        factor, answer = str(example.completion).split(found.objective.likelihood.marker)
        a, b = map(int, answer.removesuffix(found.objective.likelihood.close).split("/"))
        assert (a * int(factor), b * int(factor)) == (numerator, denominator)
        assert verify(str(example.completion), example.reference, **found.verifiers[0].params)["score"] == 1
    assert load_prompts(found.data, tokenizer, 0).test


# ------------------------------------------------------------------------------------------------ names and pages


def test_names_that_a_configuration_may_use_are_those_of_the_registries():
    for names, registry in (
        (config.ADVANTAGES, ADVANTAGES),
        (config.TRANSFORMS, TRANSFORMS),
        (config.CORRECTIONS, CORRECTIONS),
        (config.SELECTORS, SELECTORS),
        (config.POLICY_LOSSES, POLICY_LOSSES),
        (config.TERMS, TERMS),
        (config.DIVERGENCES, DIVERGENCES),
        (config.REFERENCES, REFERENCES),
        (config.SCHEDULES, SCHEDULES),
        (config.REWEIGHTERS, REWEIGHTERS),
        (config.LIKELIHOODS, LIKELIHOODS),
        (config.STRATEGIES, STRATEGIES),
    ):
        assert sorted(names) == registry.names(), registry.role


def test_the_page_has_every_file_and_every_name():
    rows = re.findall(r"^\| \[(\w+)\]\(\.\./configs/methods/(\w+)\.yaml\) \|", PAGE, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(file.stem for file in FILES)
    assert all(name == target for name, target in rows)
    names = [n for _, entries in listing.ROLES for n in entries]
    assert [n for n in names if f"`{n}`" not in PAGE] == []


def test_the_page_has_every_compat_switch():
    code = "".join(p.read_text() for p in (ROOT / "rlpost" / "objective").glob("*.py"))
    switches = set(re.findall(r'compat: Literal\["(\w+)"\]', code))
    assert switches
    assert [s for s in switches if f"`compat: {s}`" not in PAGE] == []


def test_entries_of_ones_own_on_the_page_work_when_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocks = re.findall(r"^```py\n# (\S+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in blocks] == ["my_method.py"]
    uses = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    settings = next(yaml.safe_load(use) for use in uses if "my_method.py" in use)
    named = set(re.findall(r"my_method\.py:(\w+)", yaml.safe_dump(settings)))
    assert named == set(re.findall(r"^(?:def|class) (\w+)", blocks[0][1], re.MULTILINE)), "each is shown and used"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_method.py").write_text(blocks[0][1])
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tiny()))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    found = load(["base.yaml", "mine.yaml"])
    Roles(found)
    _try_entries(found)


def _try_entries(found: Config) -> None:
    """One step of the driver's half and of the rank's half, on one group of two responses of three tokens."""
    import torch

    from rlpost.objective import CreditInputs, Denominators, LossInputs, TermInputs

    mask = torch.ones(2, 3, dtype=torch.bool)
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    group, source = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    batch = CreditInputs(
        rewards=torch.tensor([1.0, 0.0], dtype=torch.float64),
        group=group,
        correct=torch.tensor([True, False]),
        truncated=torch.tensor([False, True]),
        tokens=torch.tensor([[1, 2, 3], [1, 2, 4]]),
        mask=mask,
        max_tokens=3,
        old_logp=zeros - 1,
        entropy=zeros + 1,
        behavior_logp=zeros - 1,
        anchors={"frozen": zeros - 2},
    )
    credit = Credit(found.objective, found.steps)
    credited = credit.credit(batch)
    assert credited.advantages.tolist() == [[0, 1, 1], [0, -1, -1]]
    logp = (zeros - 1.1).requires_grad_()
    inputs = TermInputs(
        logp=logp,
        old_logp=zeros - 1,
        behavior_logp=zeros - 1,
        anchors={"frozen": zeros - 2},
        advantages=credited.advantages,
        weights=credited.weights if credited.weights is not None else zeros + 1,
        mask=mask,
        entropy=zeros + 1,
        group=group,
    )
    coefs = credit.coefficients(1, batch, credited.advantages)
    assert coefs == {"distance": 0.1}
    where = credit.select("on_policy", credited.advantages, batch)
    assert where["distance"].all()
    pool = dict.fromkeys(("policy_loss", "on_policy"), Denominators(sequences=2, tokens=6, max_tokens=3))
    loss, _ = Objective(found.objective).loss(LossInputs(inputs, source, credited.keep, where, coefs), pool)
    loss.backward()
    assert logp.grad is not None
    assert logp.grad.abs().sum() > 0


def test_list_shows_every_method_with_its_paper_and_where_it_is(capsys: pytest.CaptureFixture[str]):
    assert cli.run(["list", "methods"]) == exit_codes.DONE
    shown = capsys.readouterr().out
    assert "configs/methods/NAME.yaml" in shown
    for file in FILES:
        said = listing.header(file)
        assert re.search(rf"^{file.stem} +{re.escape(said['Objective'])}  \({re.escape(said['Paper'])}\)$", shown, re.M)
    for role, names in listing.ROLES:
        assert f"{role}: {', '.join(names)}\n" in shown


def test_list_says_where_the_files_are_when_they_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(listing, "METHODS", tmp_path / "configs" / "methods")
    assert cli.run(["list", "methods"]) == exit_codes.DONE
    shown = capsys.readouterr().out
    assert f"none in {tmp_path}/configs/methods; they are in the repository's configs/methods" in shown
    assert "objective.advantage: grpo" in shown


# --------------------------------------------------------------------------------- another name is another entry


def merged(tmp_path: Path, low: dict, high: dict, *overrides: str) -> Config:
    for name, values in (("low.yaml", tiny(**low)), ("high.yaml", high)):
        (tmp_path / name).write_text(yaml.safe_dump(values))
    return load([tmp_path / "low.yaml", tmp_path / "high.yaml"], overrides)


CLIP = {"objective": {"policy_loss": {"name": "ppo_clip", "low": 0.1, "high": 0.3}}}


def test_an_entry_with_another_name_takes_the_place_of_the_whole_entry(tmp_path: Path):
    found = merged(tmp_path, CLIP, {"objective": {"policy_loss": {"name": "gspo"}}})
    assert found.objective.policy_loss is not None
    assert found.objective.policy_loss.model_dump() == {"name": "gspo"}
    found = merged(tmp_path, CLIP, {}, "objective.policy_loss.name=cispo", "objective.policy_loss.high=2.0")
    assert found.objective.policy_loss is not None
    assert found.objective.policy_loss.model_dump() == {"name": "cispo", "high": 2.0}


def test_an_entry_with_the_same_name_or_none_is_merged(tmp_path: Path):
    for high in ({"name": "ppo_clip", "high": 0.4}, {"high": 0.4}):
        found = merged(tmp_path, CLIP, {"objective": {"policy_loss": high}})
        assert found.objective.policy_loss is not None
        assert found.objective.policy_loss.model_dump() == {"name": "ppo_clip", "low": 0.1, "high": 0.4}


def test_entries_in_mappings_in_lists_and_in_their_items_are_entries_too(tmp_path: Path):
    low = {
        "objective": {
            "references": {"slow": {"name": "ema", "decay": 0.9}},
            "regularizers": [{"divergence": "k3", "anchor": "slow", "coef": {"name": "linear", "start": 0, "end": 1}}],
        },
        "data": {"strategy": {"name": "curriculum", "target": 0.5}},
        "verifiers": [{"name": "format", "pattern": "a", "weight": 0.5}],
    }
    found = merged(
        tmp_path, low, {"objective": {"references": {"slow": {"name": "frozen"}}}, "data": {"strategy": {"name": "uniform"}}},
        "objective.regularizers.0.coef={name: step, values: [1, 0], at: [3]}", "verifiers.0.name=exact",
    )  # fmt: skip
    assert found.objective.references["slow"].model_dump() == {"name": "frozen"}
    assert found.data.strategy.model_dump() == {"name": "uniform"}
    assert found.verifiers[0].params == {}
    coef = found.objective.regularizers[0].coef
    assert not isinstance(coef, float)
    assert coef.model_dump() == {"name": "step", "values": [1, 0], "at": [3]}
    assert found.objective.regularizers[0].divergence == "k3"


def test_a_name_that_is_not_an_entrys_is_a_key_like_any_other(tmp_path: Path):
    source = {"source": "hf", "path": "somewhere", "name": "main", "prompt": "question"}
    low = {"name": "first", "steps": 9, "data": {"train": source}}
    found = merged(tmp_path, low, {"name": "second", "data": {"train": {"name": "other"}}})
    assert (found.name, found.steps) == ("second", 9)
    assert (found.data.train.name, found.data.train.path) == ("other", "somewhere")

"""The ready configurations, and what the schema promises of any other."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlpost import cli, cluster, exit_codes
from rlpost.cluster import placement_plan
from rlpost.config import ConfigError, dump, load, parse
from tests.conftest import merge, tiny

ROOT = Path(__file__).parents[2]
READY = sorted((ROOT / "configs").glob("*.yaml"))
GPU = {"cluster": {"nodes": 1, "gpus_per_node": 4}}

ready = pytest.mark.parametrize("path", READY, ids=lambda p: p.stem)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


def refused(values: dict) -> str:
    """Why a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        parse(values, "bad.yaml")
    return str(caught.value)


def regularized(**given: object) -> dict:
    """A change of the configuration: one regularizer."""
    return {"objective": {"regularizers": [{"divergence": "k2", "coef": 0.1, **given}]}}


# ------------------------------------------------------------------------------------------------- ready files


def test_the_ready_configurations_are_those_of_the_readme():
    listed = re.findall(r"\| \[(\S+\.yaml)\]\(configs/", (ROOT / "README.md").read_text())
    assert sorted(listed) == [path.name for path in READY]


@ready
def test_a_ready_file_says_what_it_is_for_what_it_needs_and_how_long_it_takes(path: Path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for label in ("What for:", "Needs:", "Takes:"):
        said = [line.split(label)[1].strip() for line in header if line.startswith(f"# {label}")]
        assert len(said) == 1
        assert len(said[0]) > 10


@ready
def test_a_ready_file_plans_its_batch_and_placement(path: Path, capsys: pytest.CaptureFixture[str]):
    config = load([path])
    assert cli.run(["plan", str(path)]) == exit_codes.DONE
    plan = capsys.readouterr().out
    assert f"{config.learner.prompts_per_step * config.rollout.samples_per_prompt:,}" in plan
    assert f"rank {config.learner.ranks - 1}" in plan
    assert f"engine {config.rollout.engines - 1}" in plan
    assert config.weight_transfer in plan
    if config.on_gpu:
        assert "a checkpoint, GiB" in plan, "a model that is not on disk needs model.parameters for its memory plan"
        check_needs(path, plan)


def check_needs(path: Path, plan: str) -> None:
    """What the header of a file for GPUs says that it needs is what its plan says."""
    header = " ".join(line.lstrip("# ") for line in path.read_text().split("steps:")[0].splitlines())
    room = re.search(r"GPUs? of (\d+) GB", header)
    said = re.search(r"rank takes (\S+) GiB.* holds (\d+) sequences of ([\d,]+) tokens", header)
    assert room is not None
    assert said is not None, header
    rank, engine = plan.split("a rank's GPU")[1].split("an engine's GPU")
    assert f"GiB of {float(room[1]):.2f}" in plan
    assert float(said[1]) == pytest.approx(max(map(float, rank.split("together")[1].split()[:4])), abs=0.5)
    assert f"for a sequence of {said[3]} tokens: {said[2]} at once" in engine


@ready
def test_a_ready_file_fits_its_cluster_without_splitting_a_bundle_over_nodes(path: Path):
    config = load([path])
    free = [config.cluster.gpus_per_node] * config.cluster.nodes
    for bundle in sorted(placement_plan(config)["bundles"], key=lambda b: -b.get("GPU", 0)):
        node = next((i for i, gpus in enumerate(free) if gpus >= bundle.get("GPU", 0)), None)
        assert node is not None, f"no node has room for {bundle}; free {free}"
        free[node] -= bundle.get("GPU", 0)
    assert sum(free) == 0, "a GPU that is paid for and not used"


@ready
def test_who_is_not_started_takes_no_room(path: Path):
    """An evaluation has no learner, a warm-up no engines."""
    config = load([path])
    for parts, who, each, gpus in (
        (cluster.ENGINES, "engine", config.rollout.engines, config.rollout.tensor_parallel),
        (cluster.RANKS, "rank", config.learner.ranks, 1),
    ):
        bundles = cluster.placement_plan(config, parts)["bundles"]
        assert [bundle["for"] for bundle in bundles] == [f"{who} {i}" for i in range(each)]
        assert {bundle.get("GPU", 0) for bundle in bundles} == {gpus if config.on_gpu else 0}


@ready
def test_the_resolved_file_gives_the_same_configuration(path: Path, tmp_path: Path):
    config = load([path])
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump(config))
    assert load([resolved]) == config


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "key", "nearest"),
    [
        ({"learner": {"rank": 2}}, "learner.rank", "ranks"),
        ({"rollot": {}}, "rollot", "rollout"),
        ({"data": {"train": {"promt": "x"}}}, "data.train.promt", "prompt"),
        ({"model": {"create": {"tokeniser": "x"}}}, "model.create.tokeniser", "tokenizer"),
        ({"data": {"groups": {"nosignal": "drop"}}}, "data.groups.nosignal", "no_signal"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(change: dict, key: str, nearest: str):
    message = refused(tiny(**change))
    assert f"{key}: unknown key" in message
    assert f"did you mean {nearest!r}?" in message


def test_an_unknown_key_like_no_other_is_told_with_all_that_are_known_there():
    assert (
        "checkpoint.zzz: unknown key, value 1 (known here: best, every, keep, keep_every, minutes, mirror)"
        in refused(tiny(checkpoint={"zzz": 1}))
    )


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"steps": "many"}, ("steps", "'many'", "integer")),
        ({"learner": {"lr": "fast"}}, ("learner.lr", "'fast'", "number")),
        ({"learner": {"zero_stage": 4}}, ("learner.zero_stage", "0, 1, 2 or 3")),
        ({"learner": {"lr": -1.0}}, ("learner.lr", "-1.0", "greater than 0")),
        ({"rollout": {"temperature": 0}}, ("rollout.temperature", "greater than 0")),
        ({"model": {"dtype": "fp16"}}, ("model.dtype", "'float32' or 'bfloat16'", "'fp16'")),
        ({"verifiers": []}, ("verifiers", "at least 1 item")),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_named_with_what_is_wanted(change: dict, parts: tuple[str, ...]):
    message = refused(merge(tiny(), change))
    assert all(part in message for part in parts), message


def test_all_problems_of_a_file_are_told_at_once_each_in_its_line():
    lines = refused(merge(tiny(), {"steps": "x", "learner": {"rank": 1}, "model": {"dtype": "fp8"}})).splitlines()
    assert lines[0] == "bad.yaml cannot run:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["steps", "model.dtype", "learner.rank"]


def test_a_missing_part_is_named():
    values = tiny()
    del values["verifiers"]
    assert "verifiers: missing; it has no default" in refused(values)


def test_data_that_is_not_there_is_named_with_where_it_was_looked_for():
    change = {"data": {"train": {"source": "jsonl", "path": "nowhere.jsonl"}}}
    assert "data.train.path: 'nowhere.jsonl' does not exist (relative paths start at" in refused(tiny(**change))


def test_a_configuration_file_that_is_not_there_is_named_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"configs/quickstar\.yaml' does not exist, did you mean 'quickstart.yaml'"):
        load(["configs/quickstar.yaml"])


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            {"learner": {"prompts_per_step": 8, "optimizer_steps_per_batch": 3}},
            ("learner.prompts_per_step 8", "learner.optimizer_steps_per_batch 3"),
        ),
        ({"learner": {"ranks": 100}}, ("learner.ranks 100", "8 x samples_per_prompt 4", "= 32")),
        (
            {"learner": {"tokens_per_micro_batch": 20}},
            ("learner.tokens_per_micro_batch 20", "data.max_prompt_tokens + rollout.max_tokens = 36", "raise it"),
        ),
        ({"learner": {"row_tokens": 30}}, ("learner.row_tokens 30", "36", "512")),
    ],
)
def test_an_impossible_batch_is_refused_with_its_arithmetic(change: dict, parts: tuple[str, ...]):
    message = refused(tiny(**change))
    assert all(part in message for part in parts), message


def test_weights_of_bfloat16_have_masters_unless_a_stage_is_asked_for_that_has_none():
    half = {"dtype": "bfloat16"}
    assert parse(tiny()).learner.zero_stage == 0
    assert parse(tiny(model=half)).learner.zero_stage == 1
    assert parse(tiny(model=half, learner={"zero_stage": 3})).learner.zero_stage == 3
    message = refused(tiny(model=half, learner={"zero_stage": 0}))
    assert "learner.zero_stage: 0 with model.dtype: bfloat16" in message
    assert "set learner.zero_stage: 1" in message


def test_an_optimizer_is_kept_elsewhere_only_where_it_has_weights_of_its_own():
    message = refused(tiny(learner={"offload_optimizer": True}))
    assert "learner.offload_optimizer: true" in message
    assert "set learner.zero_stage: 1" in message
    parse(tiny(learner={"offload_optimizer": True, "zero_stage": 1}))


@pytest.mark.parametrize(
    ("change", "cores", "engine", "rank"),
    [
        ({}, 2, 2, 2),
        ({"rollout": {"engines": 4, "max_staleness": 1}, "learner": {"ranks": 2}}, 16, 2, 4),
        ({"rollout": {"threads": 3}}, 64, 3, 64),
        (  # four nodes, of which one holds two engines or eight ranks
            {
                "cluster": {"nodes": 4, "gpus_per_node": 8},
                "rollout": {"engines": 4, "tensor_parallel": 4, "max_staleness": 1},
                "learner": {"ranks": 16},
            },
            128,
            32,
            8,
        ),
    ],
)
def test_threads_are_a_part_of_the_cores_where_an_actor_runs(change, cores, engine, rank, monkeypatch):
    found = cluster.threads(parse(tiny(**change)))
    monkeypatch.setattr("os.cpu_count", lambda: cores)  # of the node: the driver was asked nothing
    assert tuple(each.here() for each in found) == (engine, rank)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            {"rollout": {"engines": 3}, "learner": {"ranks": 2}},
            ("rollout.engines 3 x rollout.tensor_parallel 1 + learner.ranks 2 = 5 GPUs", "= 4"),
        ),
        ({"rollout": {"tensor_parallel": 8}}, ("rollout.tensor_parallel 8", "cluster.gpus_per_node 4")),
        (
            {"cluster": {"colocate": True}, "rollout": {"engines": 2}, "learner": {"ranks": 4}},
            ("cluster.colocate", "rollout.engines: 4"),
        ),
        (
            {
                "cluster": {"colocate": True},
                "rollout": {"engines": 2, "weight_transfer": "nccl"},
                "learner": {"ranks": 2},
            },
            ("rollout.weight_transfer: nccl takes no two processes on one GPU", "leave it out"),
        ),
        (
            {"cluster": {"colocate": True, "elastic": True}, "rollout": {"engines": 2}, "learner": {"ranks": 2}},
            ("cluster.elastic: true", "cluster.colocate"),
        ),
        (
            {"rollout": {"weight_transfer": "ipc"}},
            ("rollout.weight_transfer: ipc is between an engine and a rank on one GPU", "leave it out"),
        ),
    ],
)
def test_a_placement_that_does_not_fit_is_refused_with_its_arithmetic(change: dict, parts: tuple[str, ...]):
    message = refused(merge(merge(tiny(), GPU), change))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"cluster": {"colocate": True}}, "cluster.colocate: true"),
        ({"rollout": {"weight_transfer": "nccl"}}, "rollout.weight_transfer: nccl"),
        ({"rollout": {"tensor_parallel": 2}}, "rollout.tensor_parallel: 2"),
        ({"model": {"attention": "flash_attention_2"}}, "model.attention: flash_attention_2"),
    ],
)
def test_settings_that_need_gpus_are_refused_on_cpu(change: dict, key: str):
    assert f"{key} needs GPUs: set cluster.gpus_per_node" in refused(merge(tiny(), change))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"verifiers": ["countdwn"]}, ("verifiers.0.name", "'countdwn'", "did you mean 'countdown'?")),
        ({"verifiers": ["mine.py:score"]}, ("verifiers.0.name", "file 'mine.py' does not exist")),
        ({"objective": {"advantage": "grop"}}, ("objective.advantage", "did you mean 'grpo'?")),
        ({"objective": {"policy_loss": {"name": "ppo"}}}, ("objective.policy_loss", "'ppo'", "ppo_clip")),
        (
            {"objective": {"regularizers": [{"divergence": "k4", "coef": 0.1}]}},
            ("objective.regularizers.0.divergence", "k1, k2, k3"),
        ),
        (
            {"objective": {"regularizers": [{"divergence": "k3", "coef": 0.1, "anchor": "frosen"}]}},
            ("objective.regularizers.0.anchor", "did you mean 'frozen'?"),
        ),
    ],
)
def test_names_that_do_not_exist_are_refused_with_those_that_do(change: dict, parts: tuple[str, ...]):
    message = refused(tiny(**change))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"evaluation": {"k": [1, 8]}}, "pass@8 needs at least 8 samples: raise evaluation.samples_per_prompt (4)"),
        ({"rollout": {"samples_per_prompt": 1}}, "set rollout.samples_per_prompt >= 2"),
        ({"objective": {"policy_loss": "sft"}}, "objective.policy_loss: sft is a term"),
        ({"objective": {"policy_loss": None}}, "there is nothing to learn"),
        (regularized(divergence="js", source="rehearsal", anchor="cached"), "comes with data.strategy: mastery_part"),
        (regularized(divergence="js", form="generator"), "set source: rehearsal"),
        (
            regularized(divergence="js", source="rehearsal", anchor="hard_reset"),
            "objective.regularizers.0.anchor: hard_reset did not sample what is rehearsed",
        ),
        (
            merge(
                regularized(divergence="js", source="rehearsal", anchor="other"),
                {"objective": {"references": {"other": {"name": "frozen", "path": "elsewhere"}}}},
            ),
            "objective.regularizers.0.anchor: other did not sample what is rehearsed",
        ),
        (regularized(divergence="k3", form="full"), "full is of an f-divergence"),
        (regularized(divergence="js", form="full", anchor="old_policy"), "old_policy is log-probs alone"),
        (regularized(divergence="js", form="full", placement="reward"), "placement: reward is for on-policy samples"),
        (regularized(divergence="js", form="full") | {"learner": {"zero_stage": 3}}, "set form: sampled"),
        (regularized(placement="reward"), "k2 has the gradient of no KL in the reward: take k1"),
        (
            regularized(divergence="k1", placement="reward", where="positive"),
            "objective.regularizers.0.where: ['positive'] would do nothing with placement: reward",
        ),
        (
            regularized(divergence="k1", placement="reward", aggregation="token_mean"),
            "objective.regularizers.0.aggregation: token_mean would do nothing with placement: reward",
        ),
        (
            regularized(divergence="k1", placement="reward", is_weight="differentiable"),
            "objective.regularizers.0.is_weight: differentiable would do nothing with placement: reward",
        ),
        (
            regularized(divergence="k3", is_weight="detached"),
            "objective.regularizers.0.is_weight: detached would do nothing: with learner.optimizer_steps_per_batch: 1",
        ),
        (regularized(divergence="js", is_weight="differentiable"), "is_weight: differentiable would do nothing"),
        (
            regularized(divergence="js", source="rehearsal", anchor="cached", is_weight="detached")
            | {"data": {"strategy": "mastery_partition"}},
            "leave it out",
        ),
        (regularized(anchor="cached"), "cached log-probs come with source: rehearsal"),
        (regularized(anchor="slow"), "unknown anchor 'slow'"),
        (
            regularized(divergence="k1", coef={"name": "dads", "base": 0.1}, placement="reward"),
            "dads weighs on-policy samples",
        ),
        ({"objective": {"terms": [{"loss": "sft", "source": "sft", "coef": "adaptive_kl"}]}}, "adaptive_kl follows"),
        ({"objective": {"terms": [{"loss": "dpo", "source": "pair"}]}}, "pair comes with data.strategy: pairs"),
        ({"data": {"strategy": "pairs"}}, "set objective.policy_loss: null"),
        (
            {"data": {"strategy": "pairs"}, "learner": {"tokens_per_micro_batch": 64}},
            "keeps the two responses of a pair",
        ),
        ({"objective": {"advantage": "jepo_loo"}}, "belong together"),
        ({"objective": {"likelihood": {"name": "logprob", "marker": "["}}}, "objective.likelihood.clip: logprob is"),
        ({"objective": {"likelihood": {"name": "prob", "marker": "[", "scorer": "x"}}}, "scorer: unknown 'x'"),
        (
            {
                "objective": {
                    "likelihood": {"name": "avg_prob", "marker": "["},
                    "terms": [{"loss": "reference_nll", "source": "reference"}],
                }
            },
            "reference_nll finds no samples",
        ),
        (
            {"objective": {"references": {"anchor": {"name": "hard_reset", "patience": 2}}}},
            "patience follows pass@1 of evaluations on the way: set evaluation.every",
        ),
        ({"verifiers": ["exact", "exact"]}, "must be unique"),
        ({"verifiers": [{"name": "exact", "weight": 0}]}, "there is no reward"),
        ({"data": {"test": None}}, "evaluation needs held-out prompts: give data.test or data.holdout"),
        ({"data": {"holdout": 5}}, "give data.test or data.holdout, not both"),
        ({"model": {"path": "somewhere"}}, "either model.path"),
        ({"data": {"template": {"prompt": "no place for it"}}}, "template.prompt must contain {prompt}"),
        ({"warmup": {"train": {"completion": None}}}, "warm-up needs `completion`"),
        ({"data": {"bad_rows": "skip"}}, "data.bad_rows: skip needs data.bad_rows_budget"),
    ],
)
def test_parts_that_do_not_agree_are_refused(change: dict, why: str):
    assert why in refused(tiny(**change))


@pytest.mark.parametrize(
    "change",
    [
        regularized(divergence="k1", placement="reward", is_weight="none"),
        regularized(divergence="k3", is_weight="differentiable"),  # the derivative of a weight of 1 is not nothing
        merge(regularized(divergence="k3", is_weight="detached"), {"objective": {"proximal": "behavior"}}),
        regularized(divergence="k3", is_weight="detached") | {"learner": {"optimizer_steps_per_batch": 2}},
        regularized(divergence="js", source="rehearsal") | {"data": {"strategy": "mastery_partition"}},
    ],
)
def test_a_setting_that_acts_is_accepted(change: dict):
    parse(merge(tiny(), change), "good.yaml")


# ------------------------------------------------------------------------------------- files, overrides, merging


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path):
    path = tmp_path / "twice.yaml"
    path.write_text("steps: 1\nseed: 0\nsteps: 2\n")
    with pytest.raises(ConfigError, match=r"line 3, .*key 'steps' is given twice"):
        load([path])


def test_a_later_file_goes_over_an_earlier_one_and_overrides_go_over_both(write_config, tmp_path: Path):
    second = tmp_path / "second.yaml"
    second.write_text("steps: 7\nlearner: {lr: 3.0e-4}\n")
    config = load([write_config(), second], ["learner.lr=1e-6", "rollout.engines=2"])
    assert config.steps == 7
    assert config.learner.lr == 1e-6
    assert config.learner.prompts_per_step == 8, "what the later file does not name stays"
    assert config.rollout.engines == 2


def test_steps_and_epochs_are_two_ways_to_say_one_thing(write_config, tmp_path: Path):
    path, second = write_config(), tmp_path / "second.yaml"
    second.write_text("epochs: 2\n")
    config = load([path, second])
    assert config.length == {"steps": None, "epochs": 2, "until": "forever"}
    assert load([path, second], ["steps=5"]).length == {"steps": 5, "epochs": None, "until": "forever"}, (
        "the later one holds"
    )
    with pytest.raises(RuntimeError, match=r"epochs: 2\.0 is a number of steps once the prompts are loaded"):
        _ = config.last_step
    (tmp_path / "dumped.yaml").write_text(dump(config.ending(40)))
    assert load([tmp_path / "dumped.yaml"]) == config, "the file keeps the epochs, not what they came to"
    for given in (["steps=5", "epochs=2"], ["epochs=2", "steps=5"]):
        with pytest.raises(ConfigError, match="steps: 5 and epochs: 2 both say how long to train: give one, and null"):
            load([path], given)
    assert refused(tiny(epochs=0)).count("epochs: must be greater than 0")
    values = tiny()
    del values["steps"]
    assert parse(values).length == {"steps": 100, "epochs": None, "until": "forever"}


def test_an_override_reaches_into_a_list_by_index(write_config):
    path = write_config(verifiers=["countdown", {"name": "exact"}])
    config = load([path], ["verifiers.1.weight=0.25"])
    assert [(v.name, v.weight) for v in config.verifiers] == [("countdown", 1.0), ("exact", 0.25)]
    with pytest.raises(ConfigError, match=r"verifiers\.2: the list has 2 items"):
        load([path], ["verifiers.2.weight=1"])


@pytest.mark.parametrize(("text", "value"), [("1e-6", 1e-6), ("1E-6", 1e-6), ("2.5e-5", 2.5e-5), ("0.001", 1e-3)])
def test_numbers_are_numbers_in_files_and_overrides(write_config, tmp_path: Path, text: str, value: float):
    path = tmp_path / "lr.yaml"
    path.write_text(f"learner: {{lr: {text}}}\n")
    assert load([write_config(), path]).learner.lr == value
    assert load([write_config()], [f"learner.lr={text}"]).learner.lr == value


@pytest.mark.parametrize("text", ["steps", "=3"])
def test_an_override_must_have_a_key_and_a_value(write_config, text: str):
    with pytest.raises(ConfigError, match="must look like key=value"):
        load([write_config()], [text])


def test_a_short_name_and_a_mapping_mean_the_same():
    short = parse(tiny(verifiers=["exact"], objective={"advantage": "grpo"}))
    long = parse(tiny(verifiers=[{"name": "exact"}], objective={"advantage": {"name": "grpo"}}))
    assert short == long


def test_further_keys_of_a_verifier_are_its_parameters():
    config = parse(tiny(verifiers=[{"name": "format", "weight": 0.5, "pattern": "a+"}]))
    assert config.verifiers[0].params == {"pattern": "a+"}


# ----------------------------------------------------------------------------------------------- the command line

BAD = {
    "unknown key": ({"learner": {"rank": 2}}, ("learner.rank", "2", "did you mean 'ranks'?")),
    "missing file": (
        {"data": {"train": {"source": "jsonl", "path": "nowhere.jsonl"}}},
        ("data.train", "nowhere.jsonl", "does not exist"),
    ),
    "wrong type": ({"learner": {"lr": "fast"}}, ("learner.lr", "'fast'", "number")),
    "impossible batch": (
        {"learner": {"optimizer_steps_per_batch": 3}},
        ("learner.optimizer_steps_per_batch 3", "learner.prompts_per_step 8"),
    ),
}


@pytest.mark.parametrize("problem", BAD)
def test_train_refuses_a_bad_file_with_exit_code_2_in_under_two_seconds(problem: str, tmp_path: Path):
    change, parts = BAD[problem]
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(merge(tiny(), change)))
    before = _of_children()
    done = subprocess.run(
        [sys.executable, "-m", "rlpost.cli", "train", str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert all(part in done.stderr for part in parts), done.stderr
    assert "Traceback" not in done.stderr
    assert _of_children() - before < 2


def _of_children() -> float:
    """Seconds that ended children computed: unlike those on the clock, they do not tell how busy the machine is."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_bad_file_is_refused_before_anything_heavy_is_imported(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(merge(tiny(), {"steps": "many"})))
    program = (
        "import sys; from rlpost import cli; code = cli.run(['train', sys.argv[1]]); "
        "print(sorted({'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'datasets'} & set(sys.modules))); "
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout.strip() == "[]"


def test_train_without_a_file_says_what_to_type(capsys: pytest.CaptureFixture[str]):
    assert cli.run(["train", "steps=3"]) == exit_codes.BAD_USAGE
    assert "no configuration file given, only overrides" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ a user's own file


MINE = """
from rlpost.verify import verifier

def fancy(batch, *, sharpness: float = 1.0):
    return batch

class Slow:
    def __init__(self, rate: float):
        self.rate = rate

@verifier("score")
def checks(response):
    return 1.0

also = fancy
"""


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        ({"policy_loss": "mine.py:fanci"}, "mine.py has no 'fanci', did you mean 'fancy'?"),
        ({"policy_loss": {"name": "mine.py:fancy", "sharp": 2}}, "takes no 'sharp', did you mean 'sharpness'?"),
        ({"policy_loss": "other.py:fancy"}, "file 'other.py' does not exist"),
        ({"policy_loss": "broken.py:fancy"}, "broken.py is not Python that can be read"),
        ({"regularizers": [{"divergence": "mine.py:dist", "coef": 1.0}]}, "mine.py has no 'dist'"),
    ],
)
def test_a_file_of_the_users_is_read_before_anything_starts(objective: dict, why: str, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("def fancy(:")
    monkeypatch.chdir(tmp_path)
    assert why in refused(tiny(objective=objective))


@pytest.mark.parametrize(
    "change",
    [
        {"objective": {"policy_loss": {"name": "mine.py:fancy", "sharpness": 2}}},
        {"objective": {"policy_loss": "mine.py:also"}},
        {"verifiers": ["mine.py:score"]},
        {"objective": {"policy_loss": "star.py:anything"}},
    ],
)
def test_what_a_file_of_the_users_may_hold_is_accepted(change: dict, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "star.py").write_text("from somewhere import *")
    monkeypatch.chdir(tmp_path)
    parse(tiny(**change))

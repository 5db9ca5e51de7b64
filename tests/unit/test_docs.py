"""What a user reads is true: every command parses, every file is there, every piece of configuration loads."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import click
import pytest
import typer
import yaml

from rlpost import cli, config
from rlpost.config import Config, load, split_arguments
from rlpost.faults import FAILPOINTS
from rlpost.verify import resolve, to_verdict

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "launchers" / "README.md",
    ROOT / "tests" / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]+")  # RUN_DIR, CONFIG, N: for the reader to fill in
READS_CONFIG = ("train", "sft", "plan", "rehearse", "submit")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if match[1] == language:
                found.append(Block(page, text.count("\n", 0, match.start()) + 1, language, match[2]))
    return found


def commands(block: Block) -> list[list[str]]:
    """The command lines of a bash block, as words, without assignments of variables before them."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


COMMANDS = [(block, words) for block in blocks("bash") for words in commands(block)]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a reader's: the repository's files, and files of their own with the names the pages use."""
    for name in ("configs", "tests", "rewards"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("my_problems.jsonl", "my_test.jsonl"):
        shutil.copy(ROOT / "tests" / "data" / "gsm8k_sample.jsonl", tmp_path / name)
    (tmp_path / "my_rewards.py").write_text("def score(response, reference):\n    return response == reference\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=[f"{b}-{' '.join(w[:2])}" for b, w in COMMANDS])
def test_every_command_of_the_pages_can_be_typed(block: Block, words: list[str], workspace: Path):
    program, arguments = words[0], words[1:]
    if program == "rlpost":
        check_rlpost(arguments)
    elif program == "make":
        check_make(arguments)
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), f"{block}: {arguments[0]} is not there"
    elif program == "docker":
        assert (ROOT / arguments[arguments.index("-f") + 1]).is_file()
    elif program == "ray":
        check_ray(arguments)
    elif program == "export":
        assert all(re.fullmatch(r"[A-Z_]+=\S+", word) for word in arguments)
    else:
        assert (ROOT / program).is_file(), f"{block}: this test does not know what {program!r} is: teach it"
        assert (ROOT / program).stat().st_mode & 0o111


def check_rlpost(arguments: list[str]) -> None:
    """The verb and its options parse as the command itself parses them; files and overrides make a configuration."""
    verbs = typer.main.get_command(cli.app)
    verb, rest = arguments[0], arguments[1:]
    assert verb in verbs.commands, f"rlpost has no verb {verb!r}"
    given = verbs.commands[verb].make_context(verb, list(rest)).params
    if verb in READS_CONFIG:
        files, overrides = split_arguments(given["arguments"])
        if not any(PLACEHOLDER.fullmatch(file) for file in files):
            load(files, overrides)


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, assigned, _ = argument.partition("=")
        pattern = rf"^{name} \?=" if assigned else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no {argument}"


def check_ray(arguments: list[str]) -> None:
    from ray.scripts.scripts import cli as ray

    command = ray
    while isinstance(command, click.Group):
        assert arguments[0] in command.commands, f"ray has no {arguments[0]!r}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context("ray", list(arguments))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_in_the_text_of_a_page_names_a_verb_or_a_target_that_exists(page: Path):
    verbs = typer.main.get_command(cli.app).commands
    for code in re.findall(r"`((?:rlpost|make) [^`]+)`", page.read_text()):
        program, name, *rest = shlex.split(code.replace("\\|", "|"))
        if program == "make":
            check_make([name, *rest])
            continue
        assert name in verbs, f"{page.name}: {code}"
        options = {option for parameter in verbs[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, f"{page.name}: {code}"


def test_the_readme_lists_every_verb_and_shows_both_commands():
    readme = (ROOT / "README.md").read_text()
    assert set(typer.main.get_command(cli.app).commands) == set(re.findall(r"^\| `rlpost (\w+)", readme, re.MULTILINE))
    assert "\nmake quickstart\nmake test\n" in readme


# -------------------------------------------------------------------------------------------- configuration and code


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_every_piece_of_configuration_loads_over_the_quickstart(block: Block, workspace: Path):
    assert isinstance(yaml.safe_load(block.text), dict)
    piece = workspace / "piece.yaml"
    piece.write_text(block.text)
    load(["configs/quickstart.yaml", piece])


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_every_verifier_of_the_pages_works_when_copied(block: Block, workspace: Path):
    file = re.match(r"# (\S+\.py)\n", block.text)
    assert file is not None, "the first line says which file it is"
    (workspace / file[1]).write_text(block.text)
    score = resolve(f"{workspace / file[1]}:score")
    assert to_verdict(score(response="I think it is 72", reference="72")).status == "correct"
    assert to_verdict(score(response="I think it is 71", reference="72")).status == "wrong"
    assert to_verdict(score(response="", reference="72")).status == "wrong"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_options_is_what_the_schema_says(generate: ModuleType):
    committed = (ROOT / "docs" / "configuration.md").read_text()
    assert committed == generate.render(), "the schema has changed: run python docs/generate.py and commit the page"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_key_of_the_configuration_that_a_page_names_exists(page: Path, generate: ModuleType):
    sections = dict(generate.sections("", Config))
    known = {f"{path}.{key}" for path, section in sections.items() for key in section.model_fields} | set(sections)
    roots = "|".join(Config.model_fields)
    for key in re.findall(rf"`((?:{roots})(?:\[\]|\.\d+)?\.[a-z_.\[\]]+)[`:=]", page.read_text()):
        if not key.endswith((".py", ".yaml", ".jsonl", ".json", ".html")):
            named = re.sub(r"\.\d+", "[]", key).replace("data.test", "data.train")
            assert named in known, f"{page.name} names {key}, which the schema does not have"


# --------------------------------------------------------------------------------------------- names and links


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("methods.md", (*config.ADVANTAGES, *config.POLICY_LOSSES, *config.DIVERGENCES, *config.REFERENCES)),
        ("verifiers.md", config.VERIFIERS),
        ("failures.md", tuple(FAILPOINTS)),
        ("failures.md", tuple(str(code) for code in (0, 2, 3, 4, 5, 6))),
    ],
)
def test_pages_name_everything_that_exists(page: str, names: tuple[str, ...]):
    text = (ROOT / "docs" / page).read_text()
    missing = [name for name in names if f"`{name}`" not in text and f"| {name} |" not in text]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file) if file else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]


def test_every_page_is_reached_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    unreached = [p.name for p in (ROOT / "docs").glob("*.md") if f"(docs/{p.name})" not in readme]
    assert not unreached

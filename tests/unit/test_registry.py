"""Entries by name and by import path, and what a wrong one says."""

from typing import Annotated

import pytest
from pydantic import Field

from rlpost import config
from rlpost.config import Component, ConfigError
from rlpost.objective import ADVANTAGES, DIVERGENCES, POLICY_LOSSES
from rlpost.registry import Registry


@pytest.fixture
def registry():
    registry = Registry("sauce", inputs=("pasta",))

    @registry.register("pesto")
    def pesto(pasta, *, basil: Annotated[float, Field(gt=0)] = 1.0, cheese="pecorino"):
        return pasta, basil, cheese

    @registry.register("ragu")
    class Ragu:
        def __init__(self, hours: int):
            self.hours = hours

        def __call__(self, pasta):
            return pasta, self.hours

    return registry


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes the user's file into the current directory."""
    monkeypatch.chdir(tmp_path)
    return lambda text, name="sauces.py": (tmp_path / name).write_text(text)


def test_the_schema_knows_exactly_the_names_that_are_registered():
    assert ADVANTAGES.names() == sorted(config.ADVANTAGES)
    assert POLICY_LOSSES.names() == sorted(config.POLICY_LOSSES)
    assert DIVERGENCES.names() == sorted(config.DIVERGENCES)


def test_a_function_gets_its_parameters_bound_and_its_inputs_at_run_time(registry):
    assert registry.create(Component(name="pesto", basil=2))("penne") == ("penne", 2.0, "pecorino")


def test_a_class_gets_its_parameters_in_the_constructor(registry):
    assert registry.create(Component(name="ragu", hours=3))("penne") == ("penne", 3)


def test_a_name_cannot_be_registered_twice(registry):
    with pytest.raises(ValueError, match="sauce 'pesto' is already registered, by test_registry"):
        registry.register("pesto")(lambda pasta: pasta)


def test_an_entry_in_a_file_is_treated_like_a_built_in_one(registry, file):
    file("def aglio(pasta, cloves: int, *, chili=False):\n    return pasta, cloves, chili\n")
    assert registry.create(Component(name="sauces.py:aglio", cloves=3))("penne") == ("penne", 3, False)


def test_an_entry_in_a_package_is_found(registry):
    assert registry.create(Component(name="posixpath:basename"))("a/b") == "b"


def test_a_file_is_imported_once_and_may_define_dataclasses(registry, file):
    file(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Olive:\n    n: int\n    def __call__(self, pasta): return type(self)\n"
    )
    first, second = (registry.create(Component(name="sauces.py:Olive", n=1))("penne") for _ in range(2))
    assert first is second


def test_two_files_of_the_same_name_are_two_modules(registry, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sauces.py").write_text(f"def plain(pasta):\n    return pasta + {folder!r}\n")
    entries = [registry.create(Component(name=f"{tmp_path / f / 'sauces.py'}:plain")) for f in ("a", "b")]
    assert [entry("x") for entry in entries] == ["xa", "xb"]


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ({"name": "pesta"}, r"unknown sauce 'pesta', did you mean 'pesto'\? \(known: pesto, ragu, or file.py:function"),
        ({"name": "pesto", "basill": 2}, "sauce 'pesto': unknown parameter 'basill', value 2, did you mean 'basil'"),
        ({"name": "pesto", "pasta": 2}, r"sauce 'pesto': unknown parameter 'pasta', value 2 \(known: basil, cheese"),
        ({"name": "pesto", "basil": "lots"}, "sauce 'pesto': parameter 'basil', value 'lots': .*valid number"),
        ({"name": "pesto", "basil": 0}, "sauce 'pesto': parameter 'basil', value 0: .*greater than 0"),
        ({"name": "ragu"}, "sauce 'ragu': missing hours, which has no default"),
        ({"name": "nowhere.py:f"}, r"sauce: cannot import nowhere.py: FileNotFoundError: .*nowhere.py"),
        ({"name": "no_such_package:f"}, "sauce: cannot import no_such_package: ModuleNotFoundError"),
    ],
)
def test_a_wrong_component_names_role_entry_parameter_value_and_fix(registry, component, message, file):
    with pytest.raises(ConfigError, match=message):
        registry.create(Component(**component))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def arrabiata(pasta: pass", r"sauce: cannot import sauces.py: SyntaxError: .*sauces.py, line 1"),
        ("1 / 0", "sauce: cannot import sauces.py: ZeroDivisionError: division by zero"),
        ("def arrabbiata(pasta): ...", "sauce: sauces.py has no 'arrabiata', did you mean 'arrabbiata'"),
        ("arrabiata = 3", "sauce: sauces.py:arrabiata is a int, not a function or class"),
        ("def arrabiata(): ...", r"sauce 'sauces.py:arrabiata': must take \(pasta\) and then"),
        ("class arrabiata: ...", "sauce 'sauces.py:arrabiata': instances of the class must be callable"),
        (
            "from __future__ import annotations\ndef arrabiata(pasta: Pasta): ...",
            "sauce 'sauces.py:arrabiata': an annotation names .* 'Pasta' is not defined",
        ),
    ],
)
def test_a_wrong_file_is_named_with_the_reason(registry, file, text, message):
    file(text)
    with pytest.raises(ConfigError, match=message):
        registry.create(Component(name="sauces.py:arrabiata"))


def test_a_file_that_failed_can_be_mended_and_imported(registry, file):
    file("1 / 0")
    with pytest.raises(ConfigError):
        registry.create(Component(name="sauces.py:plain"))
    file("def plain(pasta):\n    return pasta\n")
    assert registry.create(Component(name="sauces.py:plain"))("penne") == "penne"

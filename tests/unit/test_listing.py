"""`rlpost list verifiers --long` says what the verifiers' own docstrings and signatures say."""

from __future__ import annotations

import inspect

import pytest

from rlpost import config
from rlpost.commands.verifiers import FIELDS, described
from rlpost.verify.registry import resolve


@pytest.mark.parametrize("name", config.VERIFIERS)
def test_a_verifier_is_described_whole(name):
    text = described(name)
    function = resolve(name)
    words = " ".join(text.split())
    rules = inspect.getdoc(function).partition("\nArgs:\n")[0]
    assert text.startswith(f"{name}\n")
    assert all(word in words for word in rules.split())
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for parameter in parameters:
        if parameter.name not in FIELDS:
            assert f"\n    {parameter.name}" in text
            assert parameter.default is parameter.empty or f"{parameter.name} = " in words
    assert "\n  unverified: " in text
    assert "\n  cost: " in text


def test_costs_are_told_apart():
    def cost(name: str) -> str:
        return described(name).rpartition("cost: ")[2].split()[0]

    assert [cost(name) for name in ("exact", "code", "sql", "judge")] == ["text", "sandbox", "sandbox", "service"]

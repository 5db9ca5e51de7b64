"""Installed packages with what they need, by the names they are imported by."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Mapping, Sequence

NAME = re.compile(r"[A-Za-z0-9._-]+")


def with_requirements(packages: Sequence[str]) -> tuple[str, ...]:
    """Top-level names of these packages and of all that their distributions require here; unknown ones as they are."""
    found: dict[str, None] = {}
    left = list(packages)
    while left:
        name = left.pop()
        if name not in found:
            found[name] = None
            left += _required(name)
    return tuple(sorted(found))


def _required(package: str) -> list[str]:
    distributions, modules = _installed()
    needed: list[str] = []
    for distribution in distributions.get(package, ()):
        for requirement in importlib.metadata.requires(distribution) or ():
            match = NAME.match(requirement)
            if match and "extra ==" not in requirement:
                needed += modules.get(_normal(match[0]), ())
    return needed


@functools.cache
def _installed() -> tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]]:
    """Distributions by the module, and modules by the distribution."""
    distributions = importlib.metadata.packages_distributions()
    modules: dict[str, list[str]] = {}
    for module, names in distributions.items():
        for name in names:
            modules.setdefault(_normal(name), []).append(module)
    return distributions, modules


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

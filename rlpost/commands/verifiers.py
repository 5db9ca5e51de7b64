"""`rlpost list verifiers --long`: what each verifier is, out of its own docstrings and signature."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from rlpost.verify.protocol import BATCH_FIELDS, GROUP_FIELDS, SAMPLE_FIELDS, Traits, traits_of
from rlpost.verify.registry import resolve

WIDTH = 118
# Filled from each sample, so no parameter.
FIELDS = {*SAMPLE_FIELDS, *GROUP_FIELDS, *BATCH_FIELDS, "verdicts"}
ARGUMENT = re.compile(r"^    (\w+(?:, \w+)*): ", re.MULTILINE)


def described(name: str) -> str:
    """Its rules, parameters with their defaults, what it leaves unverified, and where it runs, which is what it costs.

    Raises:
        VerifierError: there is no such verifier.
    """
    function = resolve(name)
    module = inspect.getdoc(sys.modules[function.__module__]) or ""
    rules, _, rest = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    arguments, _, behind = rest.partition("\n\n")
    behind, *_ = behind.partition("Raises:\n")
    lines = [name, *_filled(module), "", *_filled(rules)]
    if parameters := list(_parameters(function, arguments)):
        lines += ["", "  parameters:", *parameters]
    if behind.strip():
        lines += ["", *_filled(behind)]
    unverified = [
        s
        for s in re.split(r"(?<=\.)\s+", f"{module} {rules} {arguments}")
        if re.search("unverified|cannot be verified", s)
    ]
    checks = hasattr(function, "check") or hasattr(sys.modules[function.__module__], "check")
    checked = "a row that its check objects to when the data is loaded" if checks else ""
    said = (
        "; ".join(filter(None, [checked, *(" ".join(s.split()) for s in unverified)]))
        or "nothing but an error of its own"
    )
    return "\n".join([*lines, "", *_filled(f"unverified: {said}"), f"  cost: {_cost(traits_of(function))}"])


def _filled(text: str) -> Iterator[str]:
    """Paragraphs to the width of the page; lists and code as they stand."""
    for paragraph in text.strip().split("\n\n"):
        if re.search(r"^(?: {2,}|- )", paragraph, re.MULTILINE):
            yield textwrap.indent(paragraph, "  ")
        else:
            yield textwrap.fill(" ".join(paragraph.split()), WIDTH, initial_indent="  ", subsequent_indent="  ")


def _parameters(function: Callable[..., Any], documented: str) -> Iterator[str]:
    """Each with its default, and what the docstring says of it; columns of the data may give them, too."""
    starts = [*ARGUMENT.finditer(documented)]
    ends = [*(match.start() for match in starts[1:]), len(documented)]
    said = {
        name: " ".join(documented[match.end() : end].split())
        for match, end in zip(starts, ends, strict=True)
        for name in match[1].split(", ")
    }
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD or (parameter.name in FIELDS and parameter.name not in said):
            continue
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        yield textwrap.fill(
            f"{parameter.name}{default}: {said.get(parameter.name, '')}".rstrip(": "),
            WIDTH,
            initial_indent="    ",
            subsequent_indent="      ",
        )


def _cost(traits: Traits) -> str:
    if traits.service:
        return "service (waits for an answer over the network)"
    if traits.programs:
        return "sandbox (runs programs in processes of their own)"
    if traits.isolate:
        return "isolated (runs in a sandbox, in a process of its own for each answer)"
    return "text (runs in the verifier's own process)"

"""What is made of the results of `benchmarks/families.py`: a page for people, and what `rlpost train` refuses by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "families.md"
KNOWN = ROOT / "rlpost" / "models" / "known_families.py"
# What the largest difference of a log-prob between engine and learner may be, in nats, over some 40 tokens.
AGREE = {"float32": 2e-3, "bfloat16": 0.25}
TIPPED = 4  # times as much in bfloat16 where experts choose live: rounding tips some choices

HEAD = """# Families of models

Made by `python benchmarks/families.py`; not to be edited. {count} families of causal language models of transformers were
built with small sizes and random weights, and asked on a CPU, with {versions}, on {day}. {full} of them hold in all columns.

- **layout**: `packed` keeps the sequences of a row apart, in one row and in several, and what follows and pads a row out of
  it, bit for bit in float32 and bfloat16; `padded` does so for one sequence a row; `refused` for neither.
- **float32, bfloat16**: the largest difference of a log-prob between engine and learner, in nats, over some 40 sampled
  tokens, and after / the same once weights have moved and were synced. Experts choose live, and
  rounding tips some choices in bfloat16; **R3** has it with routes replayed, in float32.
- **LoRA**: `served` where vLLM's model takes adapters, `merged` where the learner has linear layers to adapt and the engine
  gets merged weights.

`rlpost train`, `resume` and `plan` refuse by this table, before anything starts, a layout that a family does not keep apart
and a family that cannot be learned. Every model is asked again when the learner starts: the same comparison of bits, in the
shapes, dtype and attention of the run. What is not served was tried with small sizes and on a CPU; real ones may be.

| family | layout | float32 | bfloat16 | LoRA | R3 |
|---|---|---|---|---|---|
"""


def layout_of(learner: Mapping[str, Any]) -> tuple[str, str]:
    """packed, padded or refused, and why not the better one."""
    moved = {name: learner.get(f"{name} {dtype}") for name in ("packed", "packed rows", "padded") for dtype in AGREE}
    worst = {name: max((learner[f"{name} {dtype}"] or 0.0 for dtype in AGREE), default=0.0) for name in moved}
    if learner.get("head", 0.0) > AGREE["float32"]:
        return "refused", f"the model makes more of its logits than the learner knows (by {learner['head']:.2g})"
    if worst["padded"]:
        return "refused", f"a sequence reads what follows it (log-probs move by {worst['padded']:.2g})"
    if worst["packed"]:
        return "padded", f"packed sequences read the one before (log-probs move by {worst['packed']:.2g})"
    if worst["packed rows"]:
        return "padded", f"packed sequences of several rows read each other (by {worst['packed rows']:.2g})"
    return "packed", ""


def differs(row: Mapping[str, Any]) -> str:
    """Where engine and learner disagree."""
    for dtype, limit in AGREE.items():
        part = row.get(dtype, {})
        if dtype == "bfloat16" and row["learner"].get("moe"):
            limit *= TIPPED
        for when in ("before", "after"):
            if when in part and not part[when] <= limit:
                return f"engine and learner differ by {part[when]:.2g} in {dtype}, {when} a sync"
    return ""


def full(row: Mapping[str, Any]) -> bool:
    """Whether a family was asked everything and failed nothing."""
    known = all("failed" not in row.get(part, {"failed": ""}) for part in ("learner", *AGREE))
    return known and layout_of(row["learner"])[0] != "refused" and not differs(row)


def write(results: Mapping[str, Any], versions: Mapping[str, str]) -> None:
    """The page and the table of what is known, from all results so far."""
    tried = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines, failures = [], []
    known: dict[str, tuple[str, str]] = {}
    for family, row in sorted(results.items()):
        learner = row.get("learner", {"failed": "not tried"})
        if "failed" in learner:
            failures.append(f"| {family} | not learned | {_plain(learner['failed'])} |")
            continue
        layout, why = layout_of(learner)
        known[family] = (layout, why)
        cells = [_agreement(row.get(dtype)) for dtype in AGREE]
        lines.append(f"| {family} | {layout} | {' | '.join(cells)} | {_lora(row)} | {_replay(row)} |")
        if why:
            failures.append(f"| {family} | {layout} | {why} |")
        for dtype in AGREE:
            if "failed" in row.get(dtype, {}):
                failures.append(f"| {family} | not served in {dtype} | {_plain(row[dtype]['failed'])} |")
        if found := differs(row):
            failures.append(f"| {family} | disagrees | {found} |")
    count = sum(map(full, results.values()))
    text = HEAD.format(count=len(results), versions=tried, day=date.today().isoformat(), full=count)
    text += (
        "\n".join(lines)
        + "\n\n## What fails, and why\n\n| family | what | why |\n|---|---|---|\n"
        + "\n".join(failures)
    )
    PAGE.write_text(text + "\n")
    rows = "\n".join(f"    {json.dumps(family)}: {_tuple(values)}," for family, values in known.items())
    KNOWN.write_text(
        '"""What `python benchmarks/families.py` found of each family. Made by it; not to be edited."""\n\n'
        f"# The versions it was found with: (distribution, version).\nTRIED = {_tuple(('transformers', versions['transformers']))}\n\n"
        "# model_type: (layout, why no better one).\n"
        f"FAMILIES: dict[str, tuple[str, str]] = {{\n{rows}\n}}\n"
    )


def _tuple(values: tuple[str, ...]) -> str:
    return "(" + ", ".join(json.dumps(v) for v in values) + ")"


def _agreement(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return "not tried"
    if "failed" in part:
        return "not served"
    return f"{part['before']:.1g} / {part['after']:.1g}"


def _lora(row: Mapping[str, Any]) -> str:
    if row["learner"].get("lora") is not True:
        return "none" if "lora" in row["learner"] else "not tried"
    served = [row[dtype]["serves_lora"] for dtype in AGREE if "serves_lora" in row.get(dtype, {})]
    return ("served" if any(served) else "merged") if served else "not tried"


def _replay(row: Mapping[str, Any]) -> str:
    if "replay" not in row["learner"]:
        return ""
    if row["learner"]["replay"] is not True:
        return "no: another shape of router"
    found = row.get("float32", {})
    return f"{found['replayed']:.1g}" if "replayed" in found else "not captured" if "before" in found else "not tried"


def _plain(text: str) -> str:
    """An error as a cell of a table."""
    return " ".join(text.replace("|", "/").replace("`", "'").split())[:140]

"""What is made of the results of `benchmarks/families.py`: a page for people, and what `rlpost train` refuses by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "families.md"
KNOWN = ROOT / "rlpost" / "models" / "known_families.py"
# What the largest difference of a log-prob between engine and learner may be, in nats, over some 40 tokens.
AGREE = {"float32": 2e-3, "bfloat16": 0.25}
# What vLLM says of a model that it has no class for, and that transformers' own cannot stand in for.
NO_CLASS = ("no vLLM implementation", "not supported for now", "not supported anymore", "vLLM has no other way")
# Failures that may be of the small sizes, or of what a hub model's configuration has besides: no reason to refuse one.
OF_SIZES = re.compile(
    r"AssertionError: ?$|AttributeError: '\w+Config' object|RuntimeError: (mat1|shape)|ValueError: too many|more than"
)
TIPPED = 4  # times as much in bfloat16 where experts choose live: rounding tips some choices

HEAD = """# Families of models

Made by `python benchmarks/families.py`; not to be edited. {count} families of causal language models of transformers were
built with small sizes and random weights, and asked on a CPU, with {versions}, on {day}. {full} of them hold in all columns.

- **layout**: `packed` keeps the sequences of a row apart, in one row and in several, and what follows and pads a row out of
  it, bit for bit in float32 and bfloat16; `padded` does so for one sequence a row; `refused` for neither.
- **float32, bfloat16**: the largest difference of a log-prob between engine and learner, in nats, over some 40 sampled
  tokens, and after / the same once weights have moved and were synced. Experts choose live, and
  rounding tips some choices in bfloat16; **R3** has it with routes replayed, in float32 and in bfloat16 after the sync.
- **LoRA**: `served` where vLLM's model takes adapters, `merged` where the learner has linear layers to adapt and the engine
  gets merged weights.

`rlpost train`, `resume` and `plan` refuse by this table, before anything starts, a layout that a family does not keep apart,
a family that reads ahead, and one that the engine does not serve or serves as another model: what vLLM has no class for
anywhere, all else on a CPU, where it was tried. What may have failed by the small sizes alone is not refused. Every model is asked again when the learner starts: the same comparison of
bits, in the shapes, dtype and attention of the run.

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


def differs(row: Mapping[str, Any], dtype: str) -> str:
    """Where engine and learner disagree in this dtype.

    Of experts in bfloat16 it is asked with routes replayed, where they can be: rounding tips some live choices.
    """
    part, limit = row.get(dtype, {}), AGREE[dtype]
    replayed = "replayed after" in part
    if dtype == "bfloat16" and row["learner"].get("moe") and not replayed:
        limit *= TIPPED
    for when, key in (("before", "replayed"), ("after", "replayed after")):
        difference = part.get(key if replayed and dtype == "bfloat16" else when, 0.0)
        if not difference <= limit:
            return f"engine and learner differ by {difference:.2g} in {dtype}, {when} a sync"
    return ""


def unserved(row: Mapping[str, Any]) -> dict[str, str]:
    """Why the engine does not serve a family, by the dtype that was asked for on CPU; by "" what no platform changes."""
    failed = {dtype: row[dtype]["failed"] for dtype in AGREE if "failed" in row.get(dtype, {})}
    nowhere = [why for why in failed.values() if any(word in why for word in NO_CLASS)]
    if nowhere:
        return {"": _plain(nowhere[0])}
    failed = {dtype: "" if OF_SIZES.match(why) else _plain(why) for dtype, why in failed.items()}
    found = {dtype: failed[dtype] if dtype in failed else differs(row, dtype) for dtype in AGREE}
    if "float32" not in failed and found["float32"]:  # another model, which rounding hides in bfloat16
        found["bfloat16"] = found["bfloat16"] or found["float32"]
    return {dtype: why for dtype, why in found.items() if why}


def full(row: Mapping[str, Any]) -> bool:
    """Whether a family was asked everything and failed nothing."""
    known = all("failed" not in row.get(part, {"failed": ""}) for part in ("learner", *AGREE))
    return known and layout_of(row["learner"])[0] != "refused" and not unserved(row)


def write(results: Mapping[str, Any], versions: Mapping[str, str]) -> None:
    """The page and the table of what is known, from all results so far."""
    tried = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines, failures = [], []
    known: dict[str, tuple[str, str]] = {}
    engine: dict[str, dict[str, str]] = {}
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
            elif found := differs(row, dtype):
                failures.append(f"| {family} | disagrees | {found} |")
        if found := unserved(row):
            engine[family] = found
    count = sum(map(full, results.values()))
    text = HEAD.format(count=len(results), versions=tried, day=date.today().isoformat(), full=count)
    text += (
        "\n".join(lines)
        + "\n\n## What fails, and why\n\n| family | what | why |\n|---|---|---|\n"
        + "\n".join(failures)
    )
    PAGE.write_text(text + "\n")
    rows = "\n".join(f"    {json.dumps(family)}: {_tuple(values)}," for family, values in known.items())
    rows_unserved = "\n".join(f"    {json.dumps(family)}: {json.dumps(why)}," for family, why in engine.items())
    KNOWN.write_text(
        '"""What `python benchmarks/families.py` found of each family. Made by it; not to be edited."""\n\n'
        f"# The versions it was found with.\nTRIED = {json.dumps({n: versions[n] for n in ('transformers', 'vllm')})}\n\n"
        "# model_type: (layout, why no better one).\n"
        f"FAMILIES: dict[str, tuple[str, str]] = {{\n{rows}\n}}\n\n"
        '# model_type: why the engine does not serve it, by the dtype that was tried on CPU; by "" what holds anywhere.\n'
        f"UNSERVED: dict[str, dict[str, str]] = {{\n{rows_unserved}\n}}\n"
    )
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", KNOWN], check=True)


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
    wide, narrow = row.get("float32", {}), row.get("bfloat16", {})
    found = [part[key] for part, key in ((wide, "replayed"), (narrow, "replayed after")) if key in part]
    captured = "before" in wide or "before" in narrow
    return " / ".join(f"{value:.1g}" for value in found) or ("not captured" if captured else "not tried")


def _plain(text: str) -> str:
    """An error as a cell of a table."""
    text = re.split(r"\. (?=[A-Z])", text)[0]  # the first sentence
    return " ".join(text.replace("|", "/").replace("`", "'").split())[:140]

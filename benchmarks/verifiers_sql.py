"""The verifier `sql` against queries one step from the reference, and against the reference put in other words.

    python benchmarks/verifiers_sql.py --data DIR

DIR has `defog_sqlite.jsonl` with the scripts `databases/*.sql`, and `spider_dev_questions.jsonl` with the schemas
`spider_dev_schemas.json`, to which rows are made up: keys and foreign keys kept, texts and numbers from the examples and
from the constants of that database's references.

Wrong: one-step mutants, each proved different from its reference on random databases. The mutants, the random databases
and the comparison are this file's own and share no code with the verifier, which makes mutants too in order to choose
its databases; the classes that have no like among the verifier's are counted apart as held out, and theirs is the figure
to believe. A difference that needs NULL in a column that holds none, or two rows of one name where the data have none, is
no proof.

Right: the reference in other words, by rules that hold on every database; checked on the same random databases, and what
differs there is dropped and counted.

Verdicts are compared in this process, where the verifier runs queries without its sandbox, under the same limits; the
milliseconds are of `verify` itself, sandbox and all, for queries on databases that are made already: by the clock, and of
processor time, in this process and in the query's.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import sqlite3
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlglot
from sqlglot import exp
from verifiers_sql_data import Sampler, different, readable, references, returned
from verifiers_sql_queries import HELD_OUT, right_queries, wrong_queries

from rewards import _sql_run, sql
from rlpost.verify.sandbox import Outcome, Sandbox


def in_process(query: str, images: Any, seconds: float, most: Any, service: str | None = None) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for image, rows in zip(images, most, strict=True):
        results.append(_sql_run.run(image, query, seconds, rows))
        if "error" in results[-1]:
            break
    return results


def with_less(sampler: Sampler, reference: str) -> str | None:
    """The same database with some rows gone, drawn so that the reference returns something else: what was done before."""
    before = returned(sampler.base, reference)
    for seed in range(12):
        draw = random.Random(seed)
        copy = sqlite3.connect(":memory:")
        sampler.base.backup(copy)
        for table in sampler.database.tables:
            if draw.random() < 0.6:
                copy.execute(
                    f'DELETE FROM "{table}" WHERE abs((rowid * 7919 + {seed} * 104729) % 100) < {draw.choice((15, 30, 50))}'
                )
        for table, column, parent, key in sampler.database.foreign * 2:
            copy.execute(
                f'DELETE FROM "{table}" WHERE "{column}" IS NOT NULL AND "{column}" NOT IN (SELECT "{key}" FROM "{parent}")'
            )
        copy.commit()
        after = returned(copy, reference)
        if after and after != before:
            return "\n".join(copy.iterdump())
    return None


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="folder of the questions and databases")
    made.add_argument("--queries", type=int, default=300, help="references, spread over the databases")
    made.add_argument("--each", type=int, default=12, help="mutants tried of a reference, spread over the classes")
    made.add_argument("--samples", type=int, default=200, help="random databases for a proof")
    made.add_argument("--timed", type=int, default=150, help="verdicts timed")
    made.add_argument("--show", type=int, default=30, help="wrong verdicts listed")
    made.add_argument("--out", type=Path, help="file for the JSON")
    arguments = made.parse_args()
    begun = time.perf_counter()
    chosen = references(arguments.data, arguments.queries)
    whole = sql.run_sandboxed
    sql.run_sandboxed = in_process
    tally: dict[str, collections.Counter[str]] = {side: collections.Counter() for side in ("one", "less", "now", "all")}
    rights, refused, bad, spoilt = 0, [], [], 0
    accepted: list[tuple[str, str, str, str]] = []
    setup, told, timed = [], [], []
    for sampler, reference in chosen:
        script = sampler.database.script
        start = time.process_time()
        own = verdict(reference, reference, script)
        setup.append((time.process_time() - start) * 1e3)
        if own["score"] is None:
            bad.append((reference, own["details"]["error"]))
            continue
        told.append(own["details"].get("measures", {}).get("told_apart", 0.0))
        if own["score"] != 1.0:
            refused.append(("itself", sampler.database.name, reference, reference))
        tree = sqlglot.parse_one(readable(reference, sampler), read="sqlite")
        assert isinstance(tree, exp.Query)
        less = with_less(sampler, reference)
        for kind, query in spread(wrong_queries(tree, sampler), arguments.each):
            if returned(sampler.base, query) is None or not different(sampler, reference, query, arguments.samples):
                continue
            tally["all"][kind] += 1
            tally["one"][kind] += verdict(query, reference, script, perturbed=None)["score"] == 1.0
            tally["less"][kind] += verdict(query, reference, script, perturbed=less)["score"] == 1.0
            if verdict(query, reference, script)["score"] == 1.0:
                tally["now"][kind] += 1
                accepted.append((kind, sampler.database.name, query, reference))
        for kind, query in right_queries(tree):
            if different(sampler, reference, query, 30) or returned(sampler.base, query) is None:
                spoilt += 1
                continue
            rights += 1
            if verdict(query, reference, script)["score"] != 1.0:
                refused.append((kind, sampler.database.name, query, reference))
        if len(timed) < arguments.timed:
            timed.append((reference, script))
    sql.run_sandboxed = whole
    milliseconds, worked = timings(timed)
    known = {side: sum(n for kind, n in of.items() if kind not in HELD_OUT) for side, of in tally.items()}
    held = {side: sum(n for kind, n in of.items() if kind in HELD_OUT) for side, of in tally.items()}
    print(
        f"{len(chosen)} references, {len(bad)} of them refused as bad; {sum(tally['all'].values())} mutants proved different"
    )
    print(f"{'wrong accepted':20} {'mutants':>8} {'one database':>13} {'rows deleted':>13} {'now':>8}")
    rows = [
        (kind, {side: of[kind] for side, of in tally.items()})
        for kind in sorted(tally["all"], key=lambda k: (k in HELD_OUT, k))
    ]
    total = {side: known[side] + held[side] for side in known}
    for kind, count in [*rows, ("KNOWN", known), ("HELD OUT", held), ("ALL", total)]:
        shares = [f"{100 * count[side] / max(1, count['all']):.1f} %" for side in ("one", "less", "now")]
        print(
            f"{kind + (' *' if kind in HELD_OUT else ''):20} {count['all']:8} {shares[0]:>13} {shares[1]:>13} {shares[2]:>8}"
        )
    print("* held out: no like among the verifier's own mutants")
    print(f"right refused: {len(refused)} of {rights} ({spoilt} rewritings dropped, which were none)")
    print(
        f"told apart, mean of references: {100 * statistics.mean(told):.1f} %; below half: {sum(t < 0.5 for t in told)}"
    )
    print(f"set-up, CPU ms a row: p50 {quantile(setup, 0.5):.0f}, p99 {quantile(setup, 0.99):.0f}")
    print(
        f"verdict, ms warm: fastest {min(milliseconds):.1f}, p50 {quantile(milliseconds, 0.5):.1f}, p99 {quantile(milliseconds, 0.99):.1f}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    )
    print(
        f"the same, CPU ms: fastest {min(worked):.1f}, p50 {quantile(worked, 0.5):.1f}, p99 {quantile(worked, 0.99):.1f}"
    )
    print(f"{time.perf_counter() - begun:.0f} s in all")
    for title, some in (("refused", refused), ("accepted", accepted)):
        for one in some[: arguments.show]:
            print(title, *one, sep=" | ")
    for one in bad[: arguments.show]:
        print("bad", *one, sep=" | ")
    if arguments.out:
        result = {"command": sys.argv, "wrong": tally, "right": rights, "refused": refused, "accepted": accepted, "bad": bad,
                  "setup_ms": setup, "verdict_ms": milliseconds, "verdict_cpu_ms": worked, "told": told}  # fmt: skip
        arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


def spread(queries: Iterator[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """So many, of each class in turn."""
    by_kind: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for kind, query in dict.fromkeys(queries):
        by_kind[kind].append((kind, query))
    queues = [random.Random(kind).sample(some, len(some)) for kind, some in by_kind.items()]
    random.Random(len(queues)).shuffle(queues)
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop() for queue in queues if queue]
    return chosen[:count]


def verdict(query: str, reference: str, script: str, **parameters: Any) -> dict[str, Any]:
    return sql.verify(f"```sql\n{query}\n```", reference, script, allow_constant=True, **parameters)


def timings(rows: list[tuple[str, str]]) -> tuple[list[float], list[float]]:
    outcomes = []
    ask = Sandbox.ask

    def noted(*arguments: Any, **limits: Any) -> Outcome:
        outcomes.append(ask(*arguments, **limits))
        return outcomes[-1]

    Sandbox.ask = noted  # type: ignore[method-assign]
    clock, worked = [], []
    for reference, script in rows:
        verdict(reference, reference, script)
        start, own = time.perf_counter(), time.process_time()
        verdict(reference, reference, script)
        clock.append((time.perf_counter() - start) * 1e3)
        worked.append((time.process_time() - own + outcomes[-1].cpu) * 1e3)
    Sandbox.ask = ask  # type: ignore[method-assign]
    return clock, worked


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    main()

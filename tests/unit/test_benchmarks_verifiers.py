"""The parts of the verifiers' benchmark that make programs and tables."""

from __future__ import annotations

import ast
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import verifiers_code as bench  # noqa: E402

SOURCE = """
def largest(items, low=0):
    if not items:
        return low
    best = items[0]
    for item in items[1:]:
        if item > best and item != low:
            best = max(item, best + 0)
    return best
"""


@pytest.fixture(scope="module")
def made():
    return bench.mutants(SOURCE)


def test_every_kind_of_fault_is_made(made):
    assert {mutant.kind for mutant in made} == set(bench.KINDS)


def test_mutants_parse_differ_from_the_original_and_from_each_other(made):
    original = ast.unparse(ast.parse(SOURCE))
    sources = [ast.unparse(ast.parse(mutant.source)) for mutant in made]
    assert original not in sources
    assert len(set(sources)) == len(sources)


@pytest.mark.parametrize(
    ("source", "kind", "mutated"),
    [
        ("x = a + b", "operator", {"x = a - b"}),
        ("x += y", "operator", {"x -= y"}),
        ("x = a and b", "operator", {"x = a or b"}),
        ("x = a < b", "comparison", {"x = a <= b"}),
        ("x = a[3]", "constant", {"x = a[4]", "x = a[2]"}),
        ("def f(a):\n    return a", "return", {"def f(a):\n    a"}),
        ("while a:\n    f()", "condition", {"while not a:\n    f()"}),
        ("x = f(a, b, c)", "arguments", {"x = f(b, a, c)"}),
    ],
)
def test_a_fault_changes_one_place_in_one_way(source, kind, mutated):
    found = bench.mutants(source)
    assert {mutant.kind for mutant in found} == {kind}
    assert {mutant.source for mutant in found} == mutated


@pytest.mark.parametrize("source", ["x = True", "x = 'a'", "def f():\n    return", "x = f(*a, b)", "x = f(a, a)"])
def test_what_cannot_be_made_faulty_has_no_mutants(source):
    assert bench.mutants(source) == []


def test_a_sample_takes_kinds_in_turn_and_is_the_same_each_time(made):
    chosen = bench.sampled(made, len(bench.KINDS), "seed")
    assert {mutant.kind for mutant in chosen} == set(bench.KINDS)
    assert chosen == bench.sampled(made, len(bench.KINDS), "seed")
    assert len(bench.sampled(made, 10**6, "seed")) == len(made)


@pytest.mark.parametrize(
    ("passes", "score", "outcome"),
    [
        (True, 1.0, "agrees"),
        (False, 0.0, "agrees"),
        (True, 0.0, "false negative"),
        (False, 1.0, "false positive"),
        (False, None, "unverified"),
    ],
)
def test_a_verdict_beside_the_oracles(passes, score, outcome):
    assert bench.judged(passes, score) == outcome


def test_the_table_adds_the_kinds_up():
    counts = {"operator": Counter(made=5, killed=3, agrees=5), "return": Counter(made=2, killed=2, agrees=1)}
    table, total = bench.mutation_table(counts)
    assert total == Counter(made=7, killed=5, agrees=6)
    assert table.row_count == 3
    assert list(table.columns[-1].cells) == ["2", "0", "2"]


def test_there_are_twelve_hacks_and_none_of_them_is_the_solution():
    assert len(bench.HACKS) == 12
    for source in bench.HACKS.values():
        compile(source, "hack.py", "exec")
        assert "7919" not in source


def test_tests_in_a_form_of_two_sandboxes_say_the_same():
    row = {"task_id": 1, "code": "def f(x): return x", "test_list": ["assert f(1) == 1", "assert f(2) == 2"]}
    (test,) = bench.in_two_sandboxes(row)["test_list"]
    exec(test, {"f": lambda x: x})
    with pytest.raises(AssertionError):
        exec(test, {"f": lambda x: 1})


def test_rows_are_spread_over_the_file_and_others_left_out(tmp_path):
    rows = [{"task_id": k, "code": "x", "test_list": ["assert x"]} for k in range(10)] + [{"task_id": 10}]
    (tmp_path / "mbpp.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(bench.load(tmp_path, None)) == 10
    assert [row["task_id"] for row in bench.load(tmp_path, 5)] == [0, 2, 4, 6, 8]


def test_a_folder_without_problems_is_refused_by_name(tmp_path):
    with pytest.raises(SystemExit, match=r"mbpp\.jsonl"):
        bench.load(tmp_path, None)


def test_the_fresh_interpreter_runs_under_the_layers_it_is_compared_by():
    outcome = bench.Fresh(True).run("print(6 * 7)")
    assert (outcome.status, outcome.stdout) == ("ok", b"42\n"), outcome

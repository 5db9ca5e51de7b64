"""Where things stand: imports run one way, the room of a run is the only one, and the loop can be read in one sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted((ROOT / "rlpost").rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """What a module imports when it runs, at the top or later; names for type checkers alone are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)
        else:
            yield from imported(node)


def graph() -> dict[str, set[str]]:
    found = {}
    for name, path in MODULES.items():
        targets = {t for t in imported(ast.parse(path.read_text())) if t in MODULES and t != name}
        # `rlpost.data` as seen from inside of it is only the door its own files are behind.
        found[name] = {t for t in targets if not (name.startswith(t + ".") and t != "rlpost")} - {"rlpost"}
    return found


def test_no_module_imports_itself_by_way_of_others():
    edges, done, path = graph(), set(), []

    def visit(name: str) -> None:
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name in done:
            return
        path.append(name)
        for target in sorted(edges[name]):
            visit(target)
        path.pop()
        done.add(name)

    for name in edges:
        visit(name)


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


# What a room may never know of. Each room's own third parties are a matter of its tests.
ABOVE = {
    "rlpost.config": {"data", "rollout", "verify", "objective", "learner", "checkpoint", "observe", "run", "commands"},
    "rlpost.objective": {"data", "rollout", "verify", "learner", "checkpoint", "observe", "run", "commands"},
    "rlpost.models": {"rollout", "verify", "learner", "checkpoint", "observe", "run", "commands"},
    "rlpost.data": {"rollout", "verify", "learner", "checkpoint", "observe", "run", "commands"},
    "rlpost.rollout": {"learner", "checkpoint", "run", "supervise", "commands"},
    "rlpost.learner": {"rollout", "verify", "checkpoint", "observe", "run", "commands"},
    "rlpost.verify": {"rollout", "learner", "checkpoint", "observe", "run", "commands"},
    "rlpost.memory": {"rollout", "verify", "checkpoint", "observe", "run", "commands"},
    "rlpost.run": {"commands"},
}


def test_a_room_knows_only_what_lies_below_it():
    wrong = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in sorted(targets)
        if room(target).removeprefix("rlpost.") in ABOVE.get(room(name), set()) | {"cli"} - {room(name)[7:]}
        and name != "rlpost.cli"
    ]
    assert not wrong, "\n".join(wrong)


def test_the_assembly_of_a_run_is_one_room_and_the_loop_is_short():
    loose = {path.stem for path in (ROOT / "rlpost").glob("*.py")}
    assert not loose & {"run", "prepare", "evaluation", "roles", "credit", "likelihood"}
    code = [line for line in (ROOT / "rlpost" / "loop.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 150


def test_what_only_a_gpu_can_do_is_behind_one_module():
    """So that all that is left can be run on a machine without."""
    apart = {"rlpost.device"}
    asks = [name for name, path in MODULES.items() if "torch.cuda" in path.read_text()]
    assert set(asks) <= apart | {n for n in MODULES if n.startswith("rlpost.rehearsal")}

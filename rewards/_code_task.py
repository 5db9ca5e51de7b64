"""What a row's tests are, read from whatever shape its data set has."""

from __future__ import annotations

import ast
import builtins
import functools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards._code_codec import dumps

# What an import of it that a test forgets is usually called.
ALIASES = {"np": "numpy", "pd": "pandas"}


class BadTask(ValueError):
    """The row cannot be verified, whatever the response; says why."""


@dataclass(frozen=True)
class Task:
    """The tests of a row.

    Args:
        setup: trusted sources run before the tests: the prompt when it is code, imports, set-up code.
        tests: sources of tests; empty where `examples` are given.
        names: what the tests use of the candidate.
        classes: those of the names that the tests use as classes.
        modules: what the tests import the candidate as.
        pytest: whether the tests import it.
        examples: input and expected output as text; with `function` the codec's text of a call, and the values that
            are accepted as a list in JSON.
    """

    setup: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    entry_point: str | None = None
    stub: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    function: str | None = None
    classes: tuple[str, ...] = ()
    modules: tuple[str, ...] = ("solution",)
    pytest: bool = False

    @property
    def answer_bytes(self) -> int:
        """How long a right answer is, about, as far as the row shows it: of all examples where one process has them."""
        if self.function is None and self.examples:
            return max(len(expected.encode("utf-8", "replace")) for _, expected in self.examples)
        # Calls count too, for the arguments come back where they are changed.
        return sum(map(len, self.tests)) + sum(len(call) + len(expected) for call, expected in self.examples)


def task_of(
    cases: Mapping[str, Any],
    reference: Any,
    prompt: str,
    tests: Sequence[str],
    setup: Sequence[str],
    entry_point: str | None,
    pairs: tuple[Any, Any],
    fn_name: str | None,
) -> Task:
    """`cases`: tests by the name of their column, which says what conventions they keep."""
    tests = list(tests)
    examples: list[tuple[str, str]] = []
    if pairs[0] is not None or pairs[1] is not None:
        cases = {**cases, "inputs": {"inputs": pairs[0], "outputs": pairs[1]}}
    if not cases and not tests and reference is not None:
        cases = {"reference": reference}
    for name, case in cases.items():
        if isinstance(case, str) and case.lstrip()[:1] in ("{", "["):
            try:
                case = json.loads(case)
            except ValueError as error:
                raise BadTask(f"the tests are not JSON: {error}") from None
        if isinstance(case, str):
            tests.append(case)
        elif isinstance(case, Mapping):
            fn_name = fn_name or case.get("fn_name")
            given, expected = case.get("inputs", case.get("input")), case.get("outputs", case.get("output"))
            examples += _pairs(given, expected, fn_name, name == "input_output")
        elif isinstance(case, Sequence) and all(isinstance(item, str) for item in case):
            tests += case
        elif isinstance(case, Sequence) and all(isinstance(item, Mapping) for item in case):
            examples += _pairs([item.get("input") for item in case], [item.get("output") for item in case], fn_name)
        else:
            raise BadTask(f"tests of type {type(case).__name__}: give sources, or inputs and outputs")
    if examples and tests:
        raise BadTask("the row has both test code and inputs with outputs; name the columns of one of them")
    if examples:
        return Task(examples=tuple(examples), function=fn_name)
    if not tests:
        raise BadTask("the row has no tests: name its columns in data.train.metadata")
    return code_task(tuple(tests), tuple(setup), prompt, entry_point)


def _pairs(inputs: Any, outputs: Any, function: str | None, apps: bool = False) -> list[tuple[str, str]]:
    """`apps`: APPS puts the value of a function into a list of its own, in some rows; these do not say which."""
    if not isinstance(inputs, Sequence) or not isinstance(outputs, Sequence) or len(inputs) != len(outputs):
        raise BadTask("inputs and outputs must be lists of the same length")
    if function is None:
        return [(_as_text(given), _as_text(expected)) for given, expected in zip(inputs, outputs, strict=True)]
    pairs = []
    wrapped = apps and all(isinstance(expected, list) and len(expected) == 1 for expected in outputs)
    for given, expected in zip(inputs, outputs, strict=True):
        try:
            # LiveCodeBench: text, with an argument on each line.
            arguments = [json.loads(line) for line in given.split("\n") if line] if isinstance(given, str) else given
            value = json.loads(expected) if isinstance(given, str) and isinstance(expected, str) else expected
            if not isinstance(arguments, list):
                raise BadTask(f"the arguments of {function} must be a list, not {type(arguments).__name__}")
            dumps(value)  # raises for what is too large for any answer to be read as it
            accepted = [value, *value] if wrapped else [value]
            pairs.append((dumps(["call", function, arguments, {}]), json.dumps(accepted)))
        except (ValueError, TypeError) as error:
            raise BadTask(f"an example of {function} cannot be used: {error}") from None
    return pairs


def _as_text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(map(_as_text, value))
    if value is None:
        raise BadTask("an input or output is missing")
    return str(value)


@functools.lru_cache(4096)
def code_task(tests: tuple[str, ...], setup: tuple[str, ...], prompt: str, entry_point: str | None) -> Task:
    try:
        trees = [ast.parse(source) for source in (*setup, *tests)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadTask(f"the tests do not parse: {error}") from None
    if shared := _shared(trees):
        raise BadTask(f"the tests use {shared}, but the program runs in a process and a folder of its own")
    stub = _stub(prompt, entry_point)
    head = ast.parse(stub)
    used, called, bound = _names([head, *trees])
    known = bound | set(vars(builtins)) | {"candidate"}
    held = used - called - known
    modules = {name for name in held if name in (*sys.stdlib_module_names, "pytest")}
    aliases = {name: module for name, module in ALIASES.items() if name in held}
    names = {name for name in called | held - modules - set(aliases) if name not in known}
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.ImportFrom(module="solution"):
                names |= {alias.name for alias in node.names}
            case ast.Attribute(value=ast.Name(id="solution"), attr=name) if "solution" in bound:
                names.add(name)
            case ast.Import(names=imported) | ast.ImportFrom(names=imported):
                module = getattr(node, "module", None)
                modules |= {"pytest"} & {module, *(alias.name for alias in imported)}
    if entry_point:
        names.add(entry_point)
    elif not names:
        # A function named like a built-in one: what every test calls.
        calls = [_names([tree])[1] for tree in trees[len(setup) :]]
        names = set.intersection(*calls) - bound
        if len(names) > 1:
            raise BadTask(f"which of {', '.join(sorted(names))} do the tests test? Give entry_point")
    if not names:
        raise BadTask("the tests call nothing that the response could define; is entry_point missing?")
    unknown = _unknown(names, called, entry_point, prompt, trees)
    if unknown:
        raise BadTask(f"the tests use {', '.join(unknown)}, which neither they nor the prompt define")
    imports = [f"import {name}" for name in sorted(modules)]
    imports += [f"import {module} as {name}" for name, module in sorted(aliases.items())]
    return Task(
        (*((stub,) if stub else ()), *imports, *setup),
        tests,
        tuple(sorted(names)),
        entry_point,
        stub,
        classes=tuple(sorted(names & _classes(trees))),
        pytest="pytest" in modules,
    )


def _shared(trees: Sequence[ast.AST]) -> str | None:
    """What tests can do only to a program in their own process: patch it, look at what it prints, leave it files."""
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.ImportFrom(module="unittest.mock" | "mock", names=names) if any(n.name == "patch" for n in names):
                return "patch"
            case ast.Attribute(value=ast.Name(id="mock"), attr="patch"):
                return "patch"
            case ast.Attribute(attr="redirect_stdout" | "redirect_stderr" as name):
                return name
            case ast.Name(id="redirect_stdout" | "redirect_stderr" as name):
                return name
            case ast.Assign(
                targets=[ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr" | "stdin" as name)]
            ):
                return f"sys.{name}"
            case ast.Attribute(value=ast.Name(id="tempfile")):
                return "tempfile"
    return None


def _unknown(
    names: set[str], called: set[str], entry_point: str | None, prompt: str, trees: Sequence[ast.AST]
) -> list[str]:
    """Names that no response can be expected to define: read as a value, never called, and not in the prompt."""
    if not prompt:
        return []
    functions = {
        node.func.id
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    values = names & called - functions - _classes(trees) - {entry_point}
    return sorted(name for name in values if not re.search(rf"\b{re.escape(name)}\b", prompt))


def _classes(trees: Sequence[ast.AST]) -> set[str]:
    """Names that the tests use as those of classes: by how they are written, or by what is done with what they make."""
    found: set[str] = set()
    made: dict[str, set[str]] = {}  # variable: what it may be an instance of
    seen: set[str] = set()  # variables with an attribute
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.Name(id=name) if name[:1].isupper():
                found.add(name)
            case ast.alias(name=name) if name[:1].isupper():
                found.add(name)
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kinds]):
                found |= {part.id for part in ast.walk(kinds) if isinstance(part, ast.Name)}
            case ast.ExceptHandler(type=ast.expr() as kinds):
                found |= {part.id for part in ast.walk(kinds) if isinstance(part, ast.Name)}
            case ast.Attribute(value=ast.Call(func=ast.Name(id=name))):
                found.add(name)
            case ast.Attribute(value=ast.Name(id=name)):
                seen.add(name)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id=kind))):
                made.setdefault(name, set()).add(kind)
    return found | {kind for name, kinds in made.items() if name in seen for kind in kinds}


def _stub(prompt: str, entry_point: str | None) -> str:
    """The prompt, when it is the head of the program rather than words about it."""
    if not entry_point or entry_point not in prompt:
        return ""
    try:
        tree = ast.parse(prompt)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    defined = any(isinstance(node, ast.FunctionDef) and node.name == entry_point for node in tree.body)
    return prompt if defined else ""


def _names(trees: Sequence[ast.AST]) -> tuple[set[str], set[str], set[str]]:
    """The names read, those of them called or passed on (anything but the holder of an attribute), and those bound."""
    used, held, called, bound = set(), set(), set(), set()
    for tree in trees:
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(value=ast.Name(id=name)):
                    held.add(id(node.value))
                    used.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    bound.add(name)
                case ast.arg(arg=name):
                    bound.add(name)
                case ast.alias(name=name, asname=other):
                    bound.add((other or name).partition(".")[0])
                case ast.ExceptHandler(name=str(name)):
                    bound.add(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                if isinstance(node.ctx, ast.Store):
                    bound.add(node.id)
                else:
                    used.add(node.id)
                    if id(node) not in held:
                        called.add(node.id)
    return used, called, bound


class _Distances(ast.NodeTransformer):
    """`abs(a - b)` asks how far a number is from the one that is expected: see `distance` of the harness."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Name(id="abs"), args=[ast.BinOp(left=a, op=ast.Sub(), right=b)], keywords=[]):
                return ast.copy_location(ast.Call(ast.Name("__distance__", ast.Load()), [a, b], []), node)
        return node


class _Assertions(_Distances):
    """Each assertion under `with __state__`, so that those after one that fails are run too."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST | None:
        self.generic_visit(node)
        return None if isinstance(node.test, ast.Constant) and node.test.value else self._watched(node)

    def visit_Try(self, node: ast.Try) -> ast.AST:
        # Its handlers may be waiting for the assertion's failure.
        node = _Distances().visit(node)
        return self._watched(node) if any(isinstance(part, ast.Assert) for part in ast.walk(node)) else node

    def visit_With(self, node: ast.With) -> ast.AST:
        """`with raises(...)` is a test, and so is an assertion in it that has its error."""
        if any(_asks_for_error(item.context_expr) for item in node.items):
            return self._watched(_Distances().visit(node))
        return self.generic_visit(node)

    def _watched(self, node: ast.stmt) -> ast.AST:
        state = ast.Name("__state__", ast.Load())
        return ast.copy_location(ast.With([ast.withitem(state)], [node]), node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == [] and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node


def _asks_for_error(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
            return name in ("raises", "assertRaises", "assertRaisesRegex")
    return False


@functools.lru_cache(4096)
def watched(tests: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(ast.unparse(ast.fix_missing_locations(_Assertions().visit(ast.parse(source)))) for source in tests)


@functools.lru_cache(4096)
def assertions(tests: tuple[str, ...]) -> int:
    """How many assertions the sources hold, however often each is run."""
    nodes = (node for source in watched(tests) for node in ast.walk(ast.parse(source)))
    return sum(isinstance(node, ast.Name) and node.id == "__state__" for node in nodes)

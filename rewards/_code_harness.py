"""Running the tests of a data set in their own process, and what came of each; whatever stands for the candidate.

For `_code_tests` and `_code_talk`. A test is an assertion, one of pytest's or unittest's test functions, or what else
fails. Classes of `unittest.TestCase`, functions and classes named as pytest wants them, and `check(candidate)` are called.
"""

from __future__ import annotations

import json
import os
import sys
import types
from typing import Any, NoReturn

from rewards._code_codec import shown
from rewards._code_pytest import Skipped, arguments_of, calls_of, pytest_module

REPORT = 60
CO_COROUTINE = 0x80


class Record:
    """What came of the tests until now. As a context it is around an assertion, or around what else is a test."""

    def __init__(self) -> None:
        self.asked = 0  # operations asked of the candidate
        self.tests: list[list[Any]] = []
        self.cut = False
        self._counted = 0  # operations that some test has been recorded for

    def record(self, error: BaseException | None) -> None:
        """A test has ended; one that asked nothing of the candidate says nothing about it unless it fails."""
        asked, self._counted = self.asked > self._counted, self.asked
        if asked or error is not None:
            kind = None if error is None else getattr(error, "name_there", type(error).__name__)
            self.tests.append([error is None, kind, "" if error is None else shown(error, 500), self.asked])

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, Skipped):
            return False
        self.record(error)
        return isinstance(error, Exception | SystemExit)


class _Outside:
    """Around statements that are no assertion: only their failure counts, and what they keep from being reached."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is not None and not isinstance(error, Skipped):
            self._record.record(error)
            self._record.cut = True
        return isinstance(error, Exception | SystemExit | Skipped)


def report(told: dict[str, Any]) -> NoReturn:
    """Say what came of this run, and end the process."""
    line = memoryview(json.dumps(told).encode())
    while line:
        line = line[os.write(REPORT, line) :]
    os._exit(0)


def silence() -> None:
    """Keep standard output for the report; there is nothing to read."""
    os.dup2(1, REPORT)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)


def run_tests(request: dict[str, Any], names: dict[str, Any], record: Record) -> str | None:
    """Run all tests of the request; why they fail whatever the candidate does, if that is known."""
    # `__state__` is the context that assertions stand in.
    space: dict[str, Any] = {"__name__": "tests", "__state__": record, "__distance__": distance, **names}
    solution = types.ModuleType("solution")
    solution.__dict__.update(names)
    for name in request["modules"]:  # for tests that begin with `from solution import f`
        sys.modules[name] = solution
    module = sys.modules["tests"] = types.ModuleType("tests")
    module.__dict__.update(space)
    space = module.__dict__
    if request["pytest"]:
        sys.modules["pytest"] = pytest_module()
    try:
        codes = [compile(source, "tests.py", "exec", dont_inherit=True) for source in request["tests"]]
        for source in request["setup"]:
            exec(compile(source, "setup.py", "exec", dont_inherit=True), space)
            space.update(names)  # the prompt of a row may hold the function's head
    except Exception as error:  # noqa: BLE001
        if record.asked or hasattr(error, "name_there"):  # it may be the candidate's doing, whatever it looks like
            record.record(error)
            return None
        return f"{type(error).__name__}: {shown(error)}"
    entry_point = request["entry_point"]
    for code in codes:
        with _Outside(record):
            exec(code, space)
    check = space.get("check")
    if isinstance(check, types.FunctionType) and entry_point:
        with _Outside(record):
            check(names[entry_point])
    for name, value in list(space.items()):
        if isinstance(value, types.FunctionType) and name.startswith("test"):
            if request["pytest"] or not value.__code__.co_argcount:
                _function(value, space, record)
        elif type(value) is type and value.__module__ == "tests" and not _is_unittest(value):
            if name.startswith("Test"):
                _class(value, space, record)
        elif isinstance(value, type) and _is_unittest(value):
            _unittest(value, record)
    return None


def _is_unittest(kind: type) -> bool:
    unittest = sys.modules.get("unittest")
    return unittest is not None and issubclass(kind, unittest.TestCase)


def _function(function: Any, space: dict[str, Any], record: Record, owner: Any = None) -> None:
    """A function that pytest would run: once for each set of its parameters."""
    for given in calls_of(function, owner):
        with _Outside(record):
            arguments, after = arguments_of(function, given, space, owner)
            try:
                before, cut = record.asked, len(record.tests)
                value = function(*([owner] if owner is not None else []), **arguments)
                if isinstance(value, types.CoroutineType):
                    import asyncio

                    asyncio.run(value)
                if record.asked > before and len(record.tests) == cut:
                    record.record(None)  # with `pytest.raises` alone
            finally:
                for end in after:
                    next(end, None)


def _class(kind: type, space: dict[str, Any], record: Record) -> None:
    for name in [name for name in dir(kind) if name.startswith("test")]:
        with _Outside(record):
            instance = kind()
            getattr(instance, "setup_method", getattr(instance, "setUp", lambda *_: None))(
                *([None] if _takes_one(getattr(instance, "setup_method", None)) else [])
            )
            _function(getattr(kind, name), space, record, instance)
            getattr(instance, "teardown_method", lambda *_: None)(
                *([None] if _takes_one(getattr(instance, "teardown_method", None)) else [])
            )


def _takes_one(method: Any) -> bool:
    return method is not None and method.__code__.co_argcount == 2


def _unittest(kind: Any, record: Record) -> None:
    """Each of its methods is a test."""
    import unittest

    kind.assertAlmostEqual = _numbers_only(kind.assertAlmostEqual, record)
    for name in unittest.defaultTestLoader.getTestCaseNames(kind):
        result = unittest.TestResult()
        case = kind(name)
        before = record.asked
        method = getattr(case, name)
        failed: list[BaseException] = []

        def kept(method: Any = method, failed: list[BaseException] = failed) -> Any:
            try:
                return method()
            except unittest.SkipTest:
                raise
            except Exception as error:
                failed.append(error)
                raise

        if not getattr(method, "__code__", None) or not method.__code__.co_flags & CO_COROUTINE:
            setattr(case, name, kept)
        before_tests = len(record.tests)
        case.run(result)
        bad = [*result.failures, *result.errors]
        if bad:
            record.record(failed[0] if failed else AssertionError(bad[0][1][-300:]))
        elif record.asked > before and len(record.tests) == before_tests:
            record.record(None)
    with _Outside(record):
        kind.doClassCleanups()


def _numbers_only(method: Any, record: Record) -> Any:
    def assert_almost_equal(self: Any, first: Any, second: Any, *rest: Any, **named: Any) -> Any:
        distance(first, second)
        return method(self, first, second, *rest, **named)

    return assert_almost_equal


def distance(first: Any, second: Any) -> Any:
    """`abs(first - second)` of two that are both plain, or both the candidate's.

    An object's own subtraction must not see, and must not decide about, what a number is expected to be.
    """
    if getattr(type(type(first)), "is_kind", False) != getattr(type(type(second)), "is_kind", False):
        raise TypeError("a number is expected here, not an object of the program")
    return abs(first - second)

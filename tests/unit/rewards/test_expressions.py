"""What a scorer of others may evaluate of an answer: expressions, with nothing in them that does anything."""

from __future__ import annotations

import pytest
import sympy

from rlpost.verify import expressions

PLAIN = (
    *("1 + 2*(3 - 4)", "[[1, 2], [3, None]]", "{'a': (1, 2)}", "  -3.5e2 ", "max(1, 2) < 3 and not 4", "'a' in ['a']"),
    *("Integer(3)*Symbol('x')**2", "Add(Integer(1), evaluate=False)", "sum([1, 2])", "x"),
)
MORE = (
    *(
        "open('x', 'w')",
        "__import__('os')",
        "exec('1')",
        "eval('1')",
        "().__class__",
        "'{0.x}'.format(1)",
        "getattr(1, 'x')",
    ),
    *(
        "(lambda: 1)()",
        "[open for x in [1]]",
        "[x for x in (1, 2)]",
        "f'{1}'",
        "x[0]",
        "(x := 1)",
        "(1)(2)",
        "print",
        "_x",
    ),
    *(
        "import os",
        "x = 1",
        "1; 2",
        "a.b",
        "breakpoint()",
        "compile('1', '', 'eval')",
        "(" * 300,
        "1" + "+1" * 100_000,
        "1\0",
    ),
    *(
        "vars()",
        "type('X', (), {})",
        "map(exec, ['1'])",
        "setattr(x, 'y', 1)",
        "globals()",
        "super()",
        "await x",
        "(yield)",
    ),
)


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_expression_may_be_evaluated(text: str):
    expressions.refuse(text)
    expressions.refuse(text.encode())


@pytest.mark.parametrize("text", MORE, ids=lambda text: text[:20])
def test_more_than_an_expression_may_not(text: str):
    with pytest.raises(expressions.NoExpressionError):
        expressions.refuse(text)


def test_it_holds_for_all_that_is_compiled_meanwhile_and_for_nothing_after(tmp_path):
    made = tmp_path / "x"
    with expressions.only():
        assert eval("[1, (2, 3)]") == [1, (2, 3)]
        assert sympy.parse_expr("2*x + sin(x)").free_symbols == {sympy.Symbol("x")}
        for text in (f"open({str(made)!r}, 'w')", "sympify('open(1)')", "S('a.b')"):
            with pytest.raises(Exception, match=r"."):
                sympy.parse_expr(text)
        with pytest.raises(expressions.NoExpressionError):
            exec("x = 1")
        with pytest.raises(expressions.NoExpressionError):
            eval("(lambda: 1)()")
    assert eval("(lambda: 1)()") == 1
    assert not made.exists()

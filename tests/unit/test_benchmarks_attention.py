"""The benchmark of attention runs, and compares what is the same."""

from __future__ import annotations

import re
import sys

import pytest

from benchmarks import attention


def test_implementations_are_compared_in_every_layout_and_say_the_same(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["attention.py", "--tokens", "120", "--lengths", "5,20", "--runs", "1"])
    attention.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split("  ")[0].strip() for line in lines] == list(attention.LAYOUTS)
    for line in lines:
        assert re.search(r"sdpa [\d.]+ s, varlen [\d.]+ s; sdpa over varlen [\d.]+", line)
        assert float(line.rpartition(" ")[2]) == pytest.approx(0, abs=1e-5)

"""events.jsonl: every line is an event, whoever writes it and whatever became of who wrote before."""

from __future__ import annotations

import json
import re
import threading
from typing import get_args

import pytest
from pydantic import ValidationError

from rlpost import events
from tests.conftest import ROOT


def test_a_line_says_when_where_what_and_who(tmp_path):
    path = tmp_path / "events.jsonl"
    events.append(path, "engine", "engine 1 was killed", step=3, phase="sampling", who="engine 1", signal="SIGKILL")
    row = json.loads(path.read_text())
    assert row.pop("time").endswith("+00:00")
    assert row == {
        "kind": "engine",
        "what": "engine 1 was killed",
        "step": 3,
        "phase": "sampling",
        "who": "engine 1",
        "signal": "SIGKILL",
    }
    (event,) = events.read(path)
    assert (event.kind, event.who, event.step, event.model_extra) == ("engine", "engine 1", 3, {"signal": "SIGKILL"})


def test_a_kind_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="kind"):
        events.append(tmp_path / "events.jsonl", "surprise", "what")
    assert events.read(tmp_path / "events.jsonl") == []


def test_what_is_no_number_is_null_and_named(tmp_path):
    path = tmp_path / "events.jsonl"
    events.append(path, "alarm", "loss is nan", value=float("nan"))
    assert events.read(path)[0].model_extra == {"value": None, "nonfinite": ["value"]}


def test_a_line_after_one_that_its_writer_died_of_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    events.append(path, "started", "a")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    events.append(path, "restart", "b")
    assert [e.kind for e in events.read(path)] == ["started", "restart"]
    assert path.read_bytes().startswith(whole + whole[:20])


def test_many_write_at_once_and_no_line_is_torn(tmp_path):
    path = tmp_path / "events.jsonl"

    def write(number: int) -> None:
        for _ in range(20):
            events.append(path, "verifier", f"{number} " * 500)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(events.read(path)) == len(path.read_text().splitlines()) == 80


def test_the_page_names_every_kind():
    page = (ROOT / "docs" / "failures.md").read_text()
    assert [kind for kind in get_args(events.Kind) if not re.search(rf"\| `{kind}` \|", page)] == []

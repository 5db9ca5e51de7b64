"""The command's exit codes and messages, without starting anything heavy."""

from __future__ import annotations

import pytest
import yaml

import rlpost.commands.train as train
from rlpost.cli import run
from rlpost.exit_codes import ALARM, BAD_USAGE, DONE, FAULT
from rlpost.observe import Alarm
from tests.conftest import tiny


def test_help_and_version_are_done(capsys):
    assert run(["--help"]) == DONE
    assert "train" in capsys.readouterr().out
    assert run(["--version"]) == DONE


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "trian"),
        (["train"], "Missing argument"),
        (["train", "nowhere.yaml"], "'nowhere.yaml' does not exist"),
        (["train", "steps=3"], "no configuration file given"),
        (["resume", "nowhere"], "nowhere is not a folder"),
        (["eval", "nowhere"], "is not a run: say on what to evaluate it"),
        (["eval", "nowhere", "--k", "1,x"], "must be whole numbers"),
        (["eval", "nowhere", "--k", "4", "--samples", "2"], "must be at least the largest --k 4"),
        (["export", "nowhere", "--to", "somewhere", "--check", "maybe"], "--check 'maybe' must be"),
        (["list", "everything"], "must be methods, verifiers or tasks"),
        (["list", "tasks", "--long"], "only verifiers have a long list"),
    ],
)
def test_wrong_usage_is_exit_2_with_the_reason(capsys, arguments, says):
    assert run(arguments) == BAD_USAGE
    captured = capsys.readouterr()
    assert says in " ".join((captured.err + captured.out).split())


def test_an_alarm_and_a_fault_have_exit_codes_of_their_own(monkeypatch, capsys, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(tiny()))
    for error, code in (
        (Alarm(3, "grad_norm", float("nan"), "not finite", "Look at it"), ALARM),
        (RuntimeError("broken"), FAULT),
    ):

        def fail(*_: object, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr(train, "start", fail)
        assert run(["train", str(config)]) == code
        assert str(error) in capsys.readouterr().err

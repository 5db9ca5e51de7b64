"""What does not start says which part it is, which keys it was given and what the library said, before any traceback."""

from __future__ import annotations

import pytest

from rlpost import cli
from rlpost.config import ConfigError, parse
from rlpost.run.failed import StartError, starting
from tests.conftest import tiny

CONFIG = parse(tiny(rollout={"engine_args": {"block_size": 7}}))


def test_a_part_that_does_not_start_is_named_with_its_keys_and_the_last_words_of_the_library(tmp_path, capsys):
    with pytest.raises(StartError) as failed, starting("the engines", CONFIG, "rollout", log=tmp_path):
        raise ValueError("no kernel\n   for block_size 7")
    (log,) = tmp_path.glob("start_*.txt")
    assert "Traceback" in log.read_text()
    assert cli._explain(failed.value) == 5
    said = capsys.readouterr().err
    assert said.startswith("rlpost: the engines did not start: ValueError: no kernel for block_size 7. Set were ")
    assert "Set were rollout.engine_args.block_size: 7, " in said  # first, as the library names it
    assert str(log) in said
    assert "Traceback" not in said


def test_a_refusal_is_left_as_it_is(tmp_path):
    with pytest.raises(ConfigError, match="mend it"), starting("the learner", CONFIG, "learner", log=tmp_path):
        raise ConfigError("learner.layout: mend it")
    assert not list(tmp_path.iterdir())

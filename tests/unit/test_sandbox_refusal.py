"""Programs of the model's are not run where nothing keeps them from the machine's files, unless that is spelled out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rlpost.config import Config, ConfigError, parse
from rlpost.run import check_sandbox
from rlpost.verify import sandbox
from tests.conftest import tiny


def config(allow_unsafe: bool, verifier: str = "code") -> Config:
    return parse(tiny(verifiers=[verifier], verifier_pool={"allow_unsafe": allow_unsafe}))


@pytest.fixture
def recorder(monkeypatch):
    """A recorder whose lines can be read, on a machine where the probe finds next to nothing."""
    monkeypatch.setattr(sandbox, "probe", lambda: sandbox.Probe("D", ("rlimits",), {}, "no Landlock"))
    said: list[str] = []
    return SimpleNamespace(console=SimpleNamespace(info=said.append), said=said)


def test_a_verifier_of_programs_is_refused_with_the_reason_and_the_key(recorder):
    with pytest.raises(ConfigError, match=r"verifier_pool.allow_unsafe: sandbox tier D: no Landlock"):
        check_sandbox(config(allow_unsafe=False), recorder)


def test_it_runs_when_that_is_spelled_out_and_what_is_in_force_is_said(recorder):
    check_sandbox(config(allow_unsafe=True), recorder)
    assert recorder.said == ["sandbox: tier D; in force: rlimits"]


def test_other_verifiers_need_no_sandbox(recorder):
    check_sandbox(config(allow_unsafe=False, verifier="exact"), recorder)
    assert recorder.said == []

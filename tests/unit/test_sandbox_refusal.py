"""Programs of the model's are not run where nothing keeps them from the machine's files, unless that is spelled out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rlpost import config
from rlpost.run.start import check_sandbox
from rlpost.verify import VerifierError, VerifierPool, isolation
from rlpost.verify import sandbox as sandboxes
from rlpost.verify.sandbox import Probe, SandboxError, core, sandbox

# A user's own verifier, in whose process the probe finds next to nothing.
OURS = """
from rlpost.verify.sandbox import Probe, Sandbox

Sandbox._choose = lambda self: Probe("D", ("rlimits",), {}, "no Landlock")


def runs(response, sandbox=None):
    return True


runs.programs = True


def reads(response):
    return True
"""


@pytest.fixture
def ours(tmp_path: Path) -> str:
    (tmp_path / "ours.py").write_text(OURS)
    return f"{tmp_path}/ours.py"


def pool_of(name: str, allow_unsafe: bool, **params: object) -> VerifierPool:
    spec = config.VerifierSpec.model_validate({"name": name, **params})
    return VerifierPool([spec], config.VerifierPool(workers=1, allow_unsafe=allow_unsafe))


def said(pool: VerifierPool) -> list[str]:
    lines: list[str] = []
    check_sandbox(pool, SimpleNamespace(console=SimpleNamespace(info=lines.append)))  # type: ignore[arg-type]
    return lines


def test_any_verifier_that_runs_programs_is_refused_with_the_reason_and_the_key(ours):
    with pytest.raises(VerifierError, match=r"ours.py:runs' runs programs: sandbox tier D: no Landlock") as caught:
        pool_of(f"{ours}:runs", allow_unsafe=False).start()
    assert "verifier_pool.allow_unsafe: true" in str(caught.value)


def test_it_runs_when_that_is_spelled_out_and_what_is_in_force_is_said(ours):
    with pool_of(f"{ours}:runs", allow_unsafe=True) as pool:
        assert said(pool) == ["sandbox: tier D; in force: rlimits"]


def test_other_verifiers_need_no_sandbox(ours):
    with pool_of(f"{ours}:reads", allow_unsafe=False) as pool:
        assert said(pool) == []


def test_the_verifiers_of_programs_that_ship_say_so():
    from rewards import code, sql

    assert code.verify.programs
    assert sql.verify.programs


def test_the_sandbox_itself_refuses_a_verifier_that_does_not_say_that_it_runs_programs(monkeypatch):
    monkeypatch.setattr(sandboxes.Sandbox, "_choose", lambda _: Probe("D", ("rlimits",), {}, "no Landlock"))
    monkeypatch.setattr(core, "_shared", {})
    with pytest.raises(SandboxError, match=r"tier D: no Landlock.*verifier_pool.allow_unsafe: true"):
        sandbox()
    isolation.permit_unsafe(True)
    try:
        assert sandbox().tier == "D"
    finally:
        isolation.permit_unsafe(False)


def test_a_service_runs_them_where_this_machine_could_not(ours):
    with pool_of(f"{ours}:runs", allow_unsafe=False, sandbox="http://127.0.0.1:9") as pool:
        assert said(pool) == ["sandbox: tier C; in force: remote"]

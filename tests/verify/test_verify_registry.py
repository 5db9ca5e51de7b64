from __future__ import annotations

import sys

import pytest

from rlpost import config
from rlpost.verify import VerifierError, resolve
from rlpost.verify.registry import BUILT_IN


def test_the_built_in_names_are_those_the_schema_knows():
    assert set(BUILT_IN) == set(config.VERIFIERS)


@pytest.mark.parametrize("name", config.VERIFIERS)
def test_every_built_in_name_leads_to_a_function(name):
    assert callable(resolve(name))


def test_a_file_of_the_users_that_imports_nothing_from_rlpost(verifiers):
    assert resolve(f"{verifiers}:ordinary")("a", "a") is True


def test_a_file_is_run_once_for_all_its_functions(tmp_path):
    path = tmp_path / "counted.py"
    path.write_text("runs = [0]\nruns[0] += 1\ndef a(): return runs\ndef b(): return runs\n")
    assert resolve(f"{path}:a")() is resolve(f"{path}:b")()


def test_a_file_may_import_its_neighbours_and_hide_no_library(tmp_path):
    (tmp_path / "neighbour_of_verifier.py").write_text("ANSWER = 42\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('not this one')\n")
    path = tmp_path / "with_neighbour.py"
    path.write_text("import json\nfrom neighbour_of_verifier import ANSWER\ndef verify(response): return ANSWER\n")
    try:
        assert resolve(f"{path}:verify")("") == 42
    finally:
        sys.path.remove(str(tmp_path))


def test_a_name_given_by_the_decorator_is_found_in_its_file(tmp_path):
    path = tmp_path / "decorated.py"
    path.write_text("from rlpost.verify import verifier\n@verifier('short-name')\ndef _v(response): return True\n")
    assert resolve(f"{path}:short-name")("") is True


def test_a_function_of_a_package():
    assert resolve("rewards.exact:verify")("a", "a")["score"] == 1.0


def test_an_entry_point_of_an_installed_package(tmp_path, monkeypatch):
    info = tmp_path / "plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[rlpost.verifiers]\nplugged = rewards.exact:verify\nbroken = rewards.gone:x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("plugged") is resolve("exact")
    with pytest.raises(VerifierError, match=r"'broken': its entry point 'rewards\.gone:x' fails"):
        resolve("broken")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "no verifier 'maths': the built-in ones are math, "),
        ("{folder}/gone.py:verify", r"gone\.py does not exist \(python files in that folder: my_verifiers\.py\)"),
        ("{folder}/my_verifiers.py:verify", "has no 'verify'; its functions: ordinary, obeys"),
        ("{folder}/my_verifiers.py:os", "is a module, not a function"),
        ("{folder}/my_verifiers.py:", "must look like"),
        ("no_such_package.module:verify", "importing module 'no_such_package.module' fails: ModuleNotFoundError"),
    ],
)
def test_a_wrong_name_says_what_was_looked_for_and_what_is_there(verifiers, name, message):
    with pytest.raises(VerifierError, match=message):
        resolve(name.format(folder=verifiers.parent))


def test_a_file_that_fails_says_why(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import no_such_library\n")
    with pytest.raises(VerifierError, match=r"running .*broken\.py fails: ModuleNotFoundError.*no_such_library"):
        resolve(f"{path}:verify")

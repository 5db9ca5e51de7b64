"""Scripts and images that no test can run to the end: what can be said of them by reading."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([ROOT / ".ci" / "run", *(ROOT / "launchers").glob("*.sh")])
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
INSTRUCTIONS = {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_stop_at_the_first_error_and_can_be_executed(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert script.stat().st_mode & 0o111 == 0o111


def test_continuous_integration_runs_the_test_command_of_the_readme():
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"
    assert "\nmake test\n" in (ROOT / "README.md").read_text()


def test_the_local_cluster_keeps_token_authentication_on_and_its_dashboard_on_loopback():
    script = (ROOT / "launchers" / "local_cluster.sh").read_text()
    assert "export RAY_AUTH_MODE=token" in script
    assert "--dashboard-host 127.0.0.1" in script
    assert "get-auth-token --generate >/dev/null" in script, "the token must never be printed"
    assert not re.search(r"^\s*ray stop", script, re.MULTILINE), "it would end every other Ray of the user"


def test_the_local_cluster_refuses_a_port_that_is_taken(tmp_path: Path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        fake = tmp_path / "ray"
        fake.write_text("#!/bin/sh\nexit 99\n")
        fake.chmod(0o755)
        done = subprocess.run(
            ["bash", str(ROOT / "launchers" / "local_cluster.sh")],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_PORT": port},
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert done.returncode == 2
    assert f"port {port} is in use" in done.stderr
    assert "RAY_PORT" in done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_images_are_made_of_known_instructions_and_of_files_that_exist_and_may_be_copied(path: Path):
    steps = instructions(path)
    assert {name for name, _ in steps} <= INSTRUCTIONS
    assert steps[0][0] == "FROM"
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, value in steps:
        if name == "COPY":
            sources = [word for word in value.split()[:-1] if not word.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists(), f"{path.name} copies {source}, which is not there"
                assert source in allowed, f".dockerignore keeps {source} out of the image"
        if name in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(value))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_images_install_by_the_makefile_so_that_versions_stand_in_one_place(path: Path):
    runs = [value for name, value in instructions(path) if name == "RUN"]
    extra = {"cpu": "cpu", "cuda": "gpu"}[path.suffix[1:]]
    assert f"make setup EXTRA={extra} VENV=/opt/venv" in runs
    assert (ROOT / "requirements" / f"{extra}.lock").is_file()
    assert not any("pip install" in run for run in runs)
    assert "PATH=/opt/venv/bin:$PATH" in " ".join(value for name, value in instructions(path) if name == "ENV")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_images_bring_the_python_of_the_makefile(path: Path):
    wanted = re.search(
        r"^PYTHON \?= \$\(shell command -v python(\d+\.\d+) ", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert wanted is not None
    python = wanted[1]
    steps = instructions(path)
    from_base = steps[0][1].startswith(f"python:{python}-")
    from_packages = any(name == "RUN" and f" python{python}-venv" in value for name, value in steps)
    assert from_base or from_packages


def test_the_cuda_image_has_the_cuda_of_the_lock():
    base = instructions(ROOT / "docker" / "Dockerfile.cuda")[0][1]
    image = re.fullmatch(r"nvidia/cuda:(\d+)\.\d+\.\d+-runtime-ubuntu\d+\.\d+", base)
    assert image is not None, "a full version, so that the image is the same tomorrow"
    lock = (ROOT / "requirements" / "gpu.lock").read_text()
    runtime = re.search(r"^nvidia-cuda-runtime==(\d+)\.", lock, re.MULTILINE)
    assert runtime is not None
    assert image[1] == runtime[1]


def test_the_cuda_image_is_built_only_of_packages_that_agree_with_each_other():
    runs = [value for name, value in instructions(ROOT / "docker" / "Dockerfile.cuda") if name == "RUN"]
    assert runs.index("python -m pip check") > runs.index("make setup EXTRA=gpu VENV=/opt/venv")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_images_end_as_a_user_without_privileges_and_hold_no_secrets(path: Path):
    steps = instructions(path)
    users = [value for name, value in steps if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    after = [name for name, _ in steps[[name for name, _ in steps].index("USER") :]]
    assert "RUN" not in after, "what runs as the user cannot be installed for all"
    assert not re.search(r"(?i)token|secret|password|api_?key", path.read_text())


def test_the_build_context_is_a_list_of_what_goes_in():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, comments dropped and continued lines joined."""
    kept = "\n".join(line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", kept)
    return [(name, value.strip()) for name, _, value in (line.partition(" ") for line in joined.splitlines())]

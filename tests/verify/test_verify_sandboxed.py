"""Where a program ran stands in its verdict, and that may be a service which speaks SandboxFusion's `/run_code`."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from rlpost import config
from rlpost.types import Prompt, Rollout
from rlpost.verify import VerifierPool

WAIT = 120.0
IDS = np.arange(2, dtype=np.int32)
DOUBLE = {"test_list": ["assert double(2) == 4", "assert double(-1) == -2"]}
RIGHT = "```python\ndef double(x):\n    return 2 * x\n```"


def score(spec, *texts, reference=None, **columns):
    """The verdicts of a verifier on several answers to one prompt."""
    prompt = Prompt("p", "", IDS, reference, None, columns)
    zeros = np.zeros(2, np.float32)
    rollouts = [Rollout("p", 0, i, IDS, IDS, zeros, IDS, "stop", text, i) for i, text in enumerate(texts)]
    found = config.VerifierSpec.model_validate(spec)
    with VerifierPool([found], config.VerifierPool(workers=1, retries=0)) as pool:
        assert pool.sandbox is not None
        return [f.result(WAIT).verdicts[found.name] for f in pool.submit_group(rollouts, prompt)]


def test_a_verdict_says_in_what_its_program_ran_and_one_without_a_program_does_not(tmp_path):
    right, empty = score({"name": "code"}, RIGHT, "", **DOUBLE)
    assert right.status == "correct"
    assert right.details["sandbox"]["tier"] in "AB"
    assert {"seccomp", "landlock"} <= set(right.details["sandbox"]["layers"])
    assert (empty.reason, "sandbox" in empty.details) == ("no_answer", False)
    json.dumps(right.details)


def test_the_metric_of_a_step_is_the_worst_tier_of_its_verdicts():
    from rlpost.run.metrics import verdict_metrics
    from rlpost.types import Group, Verdict

    def rollout(number, *tiers):
        zeros = np.zeros(2, np.float32)
        verdicts = {
            f"v{i}": Verdict("correct", 1.0, details={"sandbox": {"tier": tier}} if tier else {})
            for i, tier in enumerate(tiers)
        }
        return Rollout("p", 0, number, IDS, IDS, zeros, IDS, "stop", "", 0, verdicts=verdicts, reward=1.0)

    def metrics(*rollouts):
        return verdict_metrics([Group(0, 1, Prompt("p", "", IDS), rollouts)], ["v0", "v1"])

    assert metrics(rollout(0, "A", None), rollout(1, "A", "C"))["verifier/sandbox_tier"] == 3
    assert "verifier/sandbox_tier" not in metrics(rollout(0, None, None))
    hung = replace(rollout(0), verdicts={"v0": Verdict("unverified", None, "hangs_on_row")}, reward=None)
    found = metrics(hung, hung)
    assert (found["verifier/v0/hangs_on_row"], found["verifier/v0/rows_hung"]) == (2, 1)
    assert (found["verifier/v0/unverified"], found["verifier/v1/rows_hung"]) == (2, 0)


class Service(BaseHTTPRequestHandler):
    """SandboxFusion as far as it is needed: the program is run, here without any protection."""

    asked: list[dict]
    folder: Path
    broken = False

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(asked)
        folder = self.folder / str(len(self.asked))
        folder.mkdir()
        for name, content in asked["files"].items():
            (folder / name).write_bytes(base64.b64decode(content))
        result = {"status": "SandboxError", "message": "no room"} if self.broken else self.ran(asked, folder)
        body = json.dumps(result).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def ran(self, asked, folder):
        (folder / "main.py").write_text(asked["code"])
        command = [sys.executable, "-I", "main.py"]
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdin=-1, stdout=-1, stderr=-1, text=True, errors="replace")
        try:
            # The program's own limit is short in these tests; this one is for a busy machine.
            out, err = process.communicate(asked["stdin"], timeout=10 * asked["run_timeout"])
            status = "Finished"
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            status = "TimeLimitExceeded"
        code = None if status == "TimeLimitExceeded" else process.returncode
        seconds = time.monotonic() - started
        run = {"status": status, "execution_time": seconds, "return_code": code, "stdout": out, "stderr": err}
        return {"status": "Success" if code == 0 else "Failed", "message": "", "run_result": run, "files": {}}

    def log_message(self, *_):
        pass


@pytest.fixture
def service(tmp_path):
    class Mine(Service):
        folder = tmp_path

    Mine.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Mine.url = f"http://127.0.0.1:{server.server_port}"
    yield Mine
    server.shutdown()
    thread.join(WAIT)
    server.server_close()


def test_programs_are_run_by_the_service_that_the_configuration_names(service):
    spec = {"name": "code", "sandbox": service.url, "timeout": 100}
    wrong = RIGHT.replace("2 * x", "x")
    verdicts = score(spec, RIGHT, wrong, "```python\ndef double(x:\n```", **DOUBLE)
    assert [(v.status, v.reason) for v in verdicts] == [
        ("correct", ""),
        ("wrong", "mismatch"),
        ("wrong", "syntax_error"),
    ]
    assert verdicts[0].details["sandbox"] == {"tier": "C", "layers": ["remote"]}
    assert service.asked
    assert not any("== 4" in asked["code"] + asked["stdin"] for asked in service.asked), "no test goes with the program"


def test_test_code_that_is_no_literal_goes_there_too(service):
    test = "def check(candidate):\n    for x in range(3):\n        assert candidate(x) == x + x\n"
    spec = {"name": "code", "sandbox": service.url, "timeout": 100}
    columns = {"test": test, "entry_point": "double"}
    wrong = RIGHT.replace("2 * x", "x")
    assert [v.status for v in score(spec, RIGHT, wrong, **columns)] == ["correct", "wrong"]


def test_a_program_without_end_is_the_programs_fault_and_a_service_that_fails_is_not(service):
    spec = {"name": "code", "sandbox": service.url, "timeout": 100, "seconds": 0.2}
    endless = "```python\nwhile True:\n    pass\n```"
    (verdict,) = score(spec, endless, tests={"inputs": [""], "outputs": ["1"]})
    assert (verdict.status, verdict.reason) == ("wrong", "candidate_timeout")
    service.broken = True
    (verdict,) = score(spec, endless, tests={"inputs": [""], "outputs": ["1"]})
    assert (verdict.status, verdict.reason) == ("unverified", "exception")
    assert "no room" in verdict.details["error"]


def test_a_compiled_program_comes_back_from_the_service_and_runs_there(service):
    spec = {"name": "code", "sandbox": service.url, "timeout": 200, "language": "cpp", "seconds": 20}
    source = '```cpp\n#include <cstdio>\nint main() { int x; scanf("%d", &x); printf("%d\\n", 2 * x); }\n```'
    examples = {"inputs": ["2", "5"], "outputs": ["4", "10"]}
    right, wrong = score(spec, source, source.replace("2 * x", "x"), tests=examples)
    assert (right.status, right.reason) == ("correct", "")
    assert (wrong.status, wrong.reason) == ("wrong", "mismatch")


def test_queries_are_run_by_the_service_too(service):
    spec = {"name": "sql", "sandbox": service.url, "timeout": 100, "seconds": 5.0}
    database = "CREATE TABLE t (a, b); " + "".join(f"INSERT INTO t VALUES ({i}, 'n{i}');" for i in range(9))
    columns = {"database": database}
    verdicts = score(
        spec, "SELECT b FROM t WHERE a > 3", "SELECT b FROM t", reference="SELECT b FROM t WHERE a > 3", **columns
    )
    assert [v.status for v in verdicts] == ["correct", "wrong"]
    assert len(service.asked) == 2


def test_an_address_that_is_none_is_refused_at_the_start():
    from rlpost.verify import VerifierError

    with pytest.raises(VerifierError, match=r"'code' runs programs: sandbox url 'ftp://x'"):
        score({"name": "code", "sandbox": "ftp://x"}, RIGHT, **DOUBLE)

"""When a run is started again and when not, what a dead driver leaves, and who hears of a signal. A script drives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from rlpost.checkpoint.manifest import Manifest
from rlpost.exit_codes import ALARM, BAD_USAGE, DONE, FAULT, PREEMPTED, STOPPED_AT_ONCE
from rlpost.stop import SIGNALS
from tests.conftest import ROOT, tiny

pytestmark = pytest.mark.usefixtures("hang_ups_heard")

# What is started: takes the next of its starts from plan.json, says how it was called, does so many steps, ends so.
DRIVER = """
import json, os, signal, subprocess, sys, tempfile, time
from pathlib import Path
work = Path(sys.argv[1]); run = work / "run"
starts = json.loads((work / "plan.json").read_text())
told, rest = starts[0], starts[1:]
(work / "plan.json").write_text(json.dumps(rest))
with (work / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[2:]) + "\\n")
if told.get("run", True):
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "manifest.json").write_text(json.dumps({"run_id": "r", "command": ["rlpost", "train"]}))
with (run / "metrics.jsonl").open("a") if run.is_dir() else open(os.devnull, "w") as metrics:
    metrics.write("\\n")
    for step in told.get("steps", []):
        metrics.write(json.dumps({"step": step}) + "\\n")
    metrics.write('{"step": 99')
for step in told.get("saves", []):
    folder = run / "checkpoints" / f"step_{step:06d}"
    folder.mkdir()
    (folder / "manifest.json").write_text(told["manifest"].replace("STEP", str(step)))
if told.get("orphan"):
    made = Path(tempfile.mkdtemp(prefix=f"rlpost-{os.getpid()}-"))
    inner = "import subprocess, sys; subprocess.Popen(['sleep', '1000'], start_new_session=True)"
    subprocess.run([sys.executable, "-c", inner], check=True)
    (work / "made").write_text(str(made))
if told.get("listen"):
    from rlpost.stop import STOP
    with STOP.listening(to_the_end=True):
        try:
            with STOP.deferred():
                print("ready", flush=True)
                while not STOP.requested:
                    time.sleep(0.01)
                print("asked", flush=True)
                time.sleep(told["listen"])
        except KeyboardInterrupt:
            sys.exit(130 if STOP.insisted else 6)
    sys.exit(6)
if told.get("deaf"):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    print("ready", flush=True)
    time.sleep(1000)
if told["end"] < 0:
    os.kill(os.getpid(), -told["end"])
sys.exit(told["end"])
"""

PARENT = """
import sys
from pathlib import Path
from rlpost.supervise import driver, supervisor
script, work, restarts, *command = sys.argv[1:]
driver.program = lambda: [sys.executable, script, work]
driver.PATIENCE = 1
supervisor.BACKOFF = (0.0, 0.0)
code = supervisor.supervise(command, Path(work, "run"), int(restarts))
heavy = {"ray", "torch", "vllm", "deepspeed", "transformers", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


class Supervised:
    """A supervisor in a process of its own, and what it started."""

    def __init__(self, work: Path) -> None:
        self.work, self.run = work, work / "run"
        (work / "driver.py").write_text(DRIVER)

    def start(self, starts: list[dict], restarts: int = 3, command: tuple[str, ...] = ("train", "c.yaml")) -> None:
        files: dict = {}
        manifest = Manifest(format=1, id="0" * 32, run="r", name="step", step=7, files=files).model_dump_json()
        for told in starts:
            told["manifest"] = manifest.replace('"step":7', '"step":STEP')
        (self.work / "plan.json").write_text(json.dumps(starts))
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(self.work / "driver.py"), str(self.work), str(restarts), *command],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": "", "TMPDIR": str(self.work)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self) -> tuple[int, str]:
        out, error = self.process.communicate(timeout=60)
        return self.process.returncode, out + error

    def heard(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == line

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.work / "calls").read_text().splitlines()]


@pytest.fixture
def supervised(tmp_path):
    made = Supervised(tmp_path)
    yield made
    made.process.kill()
    made.process.communicate()


def test_a_run_that_dies_goes_on_and_its_events_say_so(supervised):
    supervised.start(
        [{"steps": [1, 2, 3], "saves": [2], "end": -9}, {"steps": [3, 4], "saves": [4], "end": 5}, {"end": 0}]
    )
    code, said = supervised.end()
    assert code == DONE, said
    assert supervised.calls == [["train", "c.yaml"], ["resume", str(supervised.run)], ["resume", str(supervised.run)]]
    assert "restart 1 of 3: the driver was killed by SIGKILL after step 3; resuming from step 2" in said
    assert "restart 2 of 3: the driver ended with a fault (exit code 5) after step 4; resuming from step 4" in said
    events = [json.loads(line) for line in (supervised.run / "events.jsonl").read_text().splitlines()]
    assert [(e["kind"], e["step"], e["checkpoint"]) for e in events] == [("restart", 3, 2), ("restart", 4, 4)]


@pytest.mark.parametrize("code", [DONE, BAD_USAGE, ALARM, PREEMPTED, 1])
def test_what_is_no_fault_is_not_started_again(supervised, code):
    supervised.start([{"end": code}])
    assert supervised.end()[0] == code
    assert len(supervised.calls) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_was_asked_to_stop_before_it_could_listen_is_not_started_again(supervised, number):
    supervised.start([{"end": -number}])
    assert supervised.end()[0] == PREEMPTED
    assert len(supervised.calls) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_two_restarts_in_a_row_that_come_no_further_are_enough(supervised, number):
    again = [{"steps": [3], "end": -number} for _ in range(3)]
    supervised.start([{"steps": [1, 2, 3], "saves": [2], "end": -number}, {"steps": [4], "end": -number}, *again], 100)
    code, said = supervised.end()
    assert code == FAULT
    assert len(supervised.calls) == 4
    last = f"the driver was killed by {number.name} after step 3; 2 restarts in a row came no further."
    assert f"{last} Go on with: rlpost resume {supervised.run}" in said


def test_a_run_that_gets_further_each_time_ends_with_its_restarts(supervised):
    supervised.start([{"steps": [n], "end": 5} for n in (1, 2, 3)], restarts=2)
    code, said = supervised.end()
    assert code == FAULT
    assert "all 2 restarts are used" in said


def test_a_restart_that_cannot_be_written_down_is_made_all_the_same(supervised):
    (supervised.run / "events.jsonl").mkdir(parents=True)
    supervised.start([{"steps": [1], "end": 5}, {"end": 0}])
    code, said = supervised.end()
    assert code == DONE, said
    assert "events.jsonl lacks this event" in said


def test_before_there_is_a_run_the_same_command_is_given_again(supervised):
    """Somebody else's run of that name is not taken for ours: the command itself has to refuse it."""
    supervised.start([{"run": False, "end": -9}, {"steps": [1], "end": -9}, {"end": 0}])
    assert supervised.end()[0] == DONE
    assert supervised.calls == [["train", "c.yaml"], ["train", "c.yaml"], ["resume", str(supervised.run)]]


def test_overrides_of_a_resume_are_given_again_until_a_checkpoint_holds_what_came_of_them(supervised):
    supervised.start([{"steps": [2], "saves": [2], "end": -9}, {"end": 0}])
    assert supervised.end()[0] == DONE
    (supervised.work / "calls").unlink()
    command = ("resume", "run", "resume.only=[model]")
    supervised.start([{"end": -9}, {"steps": [3, 4], "saves": [4], "end": -9}, {"end": 0}], command=command)
    assert supervised.end()[0] == DONE
    assert supervised.calls == [[*command], [*command], ["resume", str(supervised.run)]]


def test_what_a_dead_driver_started_is_ended_with_its_folders(supervised):
    supervised.start([{"orphan": True, "end": -9}, {"end": 0}])
    code, said = supervised.end()
    assert code == DONE, said
    event = json.loads((supervised.run / "events.jsonl").read_text())
    assert [line.split(" (")[0] for line in event["left"]] == ["sleep"]
    pid = int(event["left"][0].split("(")[1].split(")")[0])
    assert not Path(f"/proc/{pid}").exists()
    assert not Path((supervised.work / "made").read_text()).exists()


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("whom", ["supervisor", "both"])
def test_one_signal_is_one_wish_whoever_is_told_of_it(supervised, number, whom):
    supervised.start([{"listen": 0.2}])
    supervised.heard("ready")
    (os.kill if whom == "supervisor" else os.killpg)(supervised.process.pid, number)
    assert supervised.end()[0] == PREEMPTED
    assert len(supervised.calls) == 1


@pytest.mark.parametrize("whom", ["supervisor", "both"])
def test_the_second_signal_is_passed_on_too(supervised, whom):
    supervised.start([{"listen": 1000}])
    send = os.kill if whom == "supervisor" else os.killpg
    supervised.heard("ready")
    send(supervised.process.pid, signal.SIGTERM)
    supervised.heard("asked")
    send(supervised.process.pid, signal.SIGTERM)
    assert supervised.end()[0] == STOPPED_AT_ONCE


def test_a_driver_that_hears_nothing_is_killed_after_the_second(supervised):
    supervised.start([{"deaf": True}])
    supervised.heard("ready")
    for _ in range(2):
        os.kill(supervised.process.pid, signal.SIGTERM)
        time.sleep(0.1)
    assert supervised.end()[0] == STOPPED_AT_ONCE
    assert len(supervised.calls) == 1


def test_a_supervisor_that_is_killed_takes_its_driver_along_in_good_order(supervised):
    supervised.start([{"listen": 0.1}])
    supervised.heard("ready")
    supervised.process.kill()
    supervised.heard("asked")


def test_a_cluster_that_does_not_come_back_is_waited_for_and_named(supervised):
    config = {"cluster": {"address": "127.0.0.1:1", "start_deadline": 0.5}}
    supervised.run.mkdir()
    (supervised.run / "config.yaml").write_text(yaml.safe_dump(tiny(**config)))
    supervised.start([{"end": -9}])
    code, said = supervised.end()
    assert code == FAULT
    assert "the Ray cluster at 127.0.0.1:1 did not come back" in said


def test_what_the_supervisor_starts_is_what_it_was_started_as():
    told = textwrap.dedent("""
        import sys
        from rlpost.supervise.driver import program
        print(program()[1:])
    """)
    done = subprocess.run([sys.executable, "-c", told, "train", "x"], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(["-c", told]), done.stderr

"""What a person and other tools see of a run: its folder, metrics, rollouts, evaluations, console and alarms.

Importable without torch, ray or vllm.
"""

from rlpost.observe.alarms import Alarm, Watch
from rlpost.observe.console import Console
from rlpost.observe.passk import bootstrap, pass_at_k, summarize
from rlpost.observe.recorder import Recorder
from rlpost.observe.rollouts import read_rollouts, write_rollouts
from rlpost.observe.run_folder import RunFolder, RunFolderError
from rlpost.observe.sinks import MetricsFile, MlflowSink, Sink, TensorBoardSink, WandbSink, make_sinks, read_metrics

__all__ = [
    "Alarm",
    "Console",
    "MetricsFile",
    "MlflowSink",
    "Recorder",
    "RunFolder",
    "RunFolderError",
    "Sink",
    "TensorBoardSink",
    "WandbSink",
    "Watch",
    "bootstrap",
    "make_sinks",
    "pass_at_k",
    "read_metrics",
    "read_rollouts",
    "summarize",
    "write_rollouts",
]

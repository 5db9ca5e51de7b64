"""The `rlpost` command. Nothing heavy is imported until a verb needs it: a bad file is refused within two seconds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from rlpost import __version__
from rlpost.config import Config, ConfigError, load_arguments, split_arguments
from rlpost.exit_codes import BAD_USAGE, DONE, FAULT, PREEMPTED, STOPPED_AT_ONCE
from rlpost.stop import STOP

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="RL post-training for reasoning models with verifiable rewards, on Ray, vLLM and DeepSpeed.",
    epilog="Exit codes: 0 done, 2 bad configuration or usage, 3 nothing to do, 4 stopped by an alarm, 5 fault, "
    "6 stopped on request.",
)

Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG [key=value ...]",
        help="YAML file(s), later over earlier, then overrides such as learner.lr=1e-6 or rollout.engines=2.",
        show_default=False,
    ),
]
OptionalArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [key=value ...]",
        help="A configuration whose cluster's nodes are looked at, too.",
        show_default=False,
    ),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run's folder, such as runs/quickstart.")]
Restarts = Annotated[
    int,
    typer.Option(
        min=0,
        max=1000,
        help="How often a run that a fault or the machine ended (exit code 5, SIGKILL, out of memory) is started again from "
        "its newest checkpoint, by a small process that watches it.",
    ),
]


@app.command()
def train(arguments: Arguments, restarts: Restarts = 0) -> None:
    """Train: one file, one command. With `warmup`, a supervised start first."""
    config = _load(arguments)
    if restarts:
        from rlpost.commands.supervise import new_run

        raise typer.Exit(new_run("train", arguments, config, restarts))
    from rlpost.commands.train import start

    raise typer.Exit(start(config, _command()))


@app.command()
def resume(
    run: RunDir,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]", show_default=False)] = None,
    restarts: Restarts = 0,
    step: Annotated[
        int | None,
        typer.Option(help="Take the checkpoint of this step, which an alarm left; else the newest ordinary one."),
    ] = None,
) -> None:
    """Continue a run from its newest checkpoint that can be believed; from the start where there is none yet."""
    if restarts and step is not None:
        raise ConfigError("--step is for one start: leave --restarts out, and give it to the next `rlpost resume`")
    if restarts:
        from rlpost.commands.supervise import old_run

        raise typer.Exit(old_run(run, overrides or [], restarts))
    from rlpost.commands.train import proceed

    raise typer.Exit(proceed(run, overrides or [], step))


@app.command()
def fork(
    run: RunDir,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new run, beside the old one.")],
    step: Annotated[
        str | None, typer.Option(help="Which checkpoint: a step, or `best`; the newest by default.")
    ] = None,
) -> None:
    """Begin a new run where another one was: `rlpost resume` goes on with it, and the old one stays as it is."""
    from rlpost.commands.fork import fork as make

    raise typer.Exit(make(run, name, _checkpoint_step(step), _command()))


@app.command()
def sft(arguments: Arguments, restarts: Restarts = 0) -> None:
    """Only the supervised warm-up of a configuration; the model goes to RUN/model."""
    config = _load(arguments)
    if restarts:
        from rlpost.commands.supervise import new_run

        raise typer.Exit(new_run("sft", arguments, config, restarts))
    from rlpost.commands.train import warm_up

    raise typer.Exit(warm_up(config, _command()))


@app.command()
def eval(
    target: Annotated[str, typer.Argument(metavar="RUN_DIR|MODEL", help="A run's folder, or a model's folder or id.")],
    step: Annotated[
        str | None, typer.Option(help="Which checkpoint of the run: a step, or `best`; the newest by default.")
    ] = None,
    k: Annotated[str, typer.Option(help="Values of k for pass@k, separated by commas.")] = "1",
    data: Annotated[
        Path | None, typer.Option(help="JSONL or Parquet file of problems; by default the run's held-out prompts.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="Column or template of the prompt, with --data.")] = "prompt",
    reference: Annotated[str, typer.Option(help="Column or template of the reference, with --data.")] = "reference",
    verifier: Annotated[str | None, typer.Option(help="Verifier: a name or file.py:function.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a MODEL that is an id of the hub.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with MODEL.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Configuration to take data, template and verifier from.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Samples a prompt; the largest k by default.")] = None,
    seeds: Annotated[str, typer.Option(help="Sampling seeds, separated by commas.")] = "0",
    temperature: Annotated[float, typer.Option(min=0)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1)] = 1.0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest response.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many prompts.")] = None,
    on: Annotated[str, typer.Option(help="Which of the run's prompts: test (held out) or train.")] = "test",
    set_name: Annotated[
        str | None, typer.Option("--set", help="Of several test sets or sources by name: this one alone.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the results as JSON.")] = None,
) -> None:
    """pass@k with bootstrap intervals over prompts, several seeds, decoding settings recorded."""
    from rlpost.commands.evaluate import Request, run

    request = Request(
        target=target,
        step=_checkpoint_step(step),
        k=_integers("--k", k),
        data=data,
        prompt=prompt,
        reference=reference,
        verifier=verifier,
        config=config,
        samples=samples,
        seeds=_integers("--seeds", seeds),
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        limit=limit,
        out=out,
        on=on,
        set_name=set_name,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    raise typer.Exit(run(request))


@app.command()
def verify(
    verifier: Annotated[
        str, typer.Argument(metavar="VERIFIER", help="A name, file.py:function or package.module:function.")
    ],
    data: Annotated[
        Path, typer.Option(help="JSONL or Parquet file of responses, a run's folder, or a file of its rollouts.")
    ],
    response: Annotated[
        str | None, typer.Option(help="Column or template of the response.", show_default="response")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Column or template of the reference.", show_default="reference")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column that says whether the response is right; a run has its own verdicts.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column that says which rows are responses to one prompt, for group verifiers.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A parameter of the verifier; may be repeated.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(help="Environment variable the verifier may see; may be repeated.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Verifier processes.")] = 2,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, help="Seconds a verdict may take.", show_default="10, or the run's")
    ] = None,
    raw: Annotated[
        bool | None,
        typer.Option("--raw/--no-raw", help="Responses with special tokens.", show_default="as the run or it says"),
    ] = None,
    contract: Annotated[
        bool, typer.Option("--contract", help="Also check determinism, time-out, bad input, concurrency and results.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows.")] = None,
    show: Annotated[int, typer.Option(min=0, help="At most this many rows in each list.")] = 10,
    max_unverified: Annotated[
        float, typer.Option(min=0, max=1, help="Exit code 4 when a larger share of the rows is unverified.")
    ] = 0.05,
    max_errors: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit code 4 when a larger share of the labels disagrees.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write everything found as JSON.")] = None,
) -> None:
    """Score responses offline: verdicts, confusion against labels, latency, slow and failing rows."""
    from rlpost.commands.verify import Request, run

    request = Request(
        verifier=verifier,
        data=data,
        response=response,
        reference=reference,
        label=label,
        group=group,
        params=tuple(param or ()),
        env=tuple(env or ()),
        workers=workers,
        timeout=timeout,
        raw=raw,
        contract=contract,
        limit=limit,
        show=show,
        max_unverified=max_unverified,
        max_errors=max_errors,
        out=out,
    )
    raise typer.Exit(run(request))


@app.command()
def export(
    run: RunDir,
    to: Annotated[Path, typer.Option(help="New folder for the model.")],
    step: Annotated[
        str | None, typer.Option(help="Which checkpoint: a step, or `best`; the newest by default.")
    ] = None,
    check: Annotated[str, typer.Option(help="What reloads and compares it: transformers, vllm or both.")] = "both",
    adapter: Annotated[bool, typer.Option("--adapter", help="Only the adapters of a run with model.lora.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; the run's by default.")] = None,
) -> None:
    """Write a checkpoint's weights in the Hugging Face format, reloaded and compared before it is called done.

    Adapters are merged, or written as they are, in PEFT's format, with --adapter.
    """
    from rlpost.commands.export import run as run_export

    raise typer.Exit(run_export(run, to, _checkpoint_step(step), check, adapter, dtype))


@app.command()
def submit(
    arguments: Arguments,
    address: Annotated[str, typer.Option(help="The cluster's dashboard, such as http://127.0.0.1:8265.")],
    working_dir: Annotated[
        Path, typer.Option(help="Folder that travels with the job: your verifiers, small data.")
    ] = Path(),
    detach: Annotated[bool, typer.Option(help="Do not wait and stream the log.")] = False,
    deadline: Annotated[float, typer.Option(min=1, help="Seconds the cluster may take to accept the job.")] = 120.0,
    restarts: Restarts = 0,
) -> None:
    """Run a configuration as a job of an existing Ray cluster. Tokens: RAY_AUTH_MODE=token, as for `ray job submit`."""
    from rlpost.commands.submit import run

    raise typer.Exit(run(arguments, address, working_dir, detach, deadline, restarts))


@app.command()
def plan(
    arguments: Arguments,
    gpu_memory: Annotated[
        float | None, typer.Option(min=1, help="GiB of a GPU, in place of cluster.gpu_memory_gb.")
    ] = None,
) -> None:
    """What a configuration asks for: batch arithmetic, placement, memory. Starts nothing."""
    config = _load(arguments)
    from rlpost.commands.plan import show

    raise typer.Exit(show(config, gpu_memory))


@app.command()
def rehearse(
    arguments: Arguments,
    gpu_memory: Annotated[
        float | None, typer.Option(min=1, help="GiB of a GPU, against which the real sizes are held.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="New folder for all that is made.", show_default="taken away when all went well")
    ] = None,
) -> None:
    """Run a configuration for GPUs on a CPU, made small: the same architecture, placement, transports and objective.

    Two steps, a save, a resume and an export, on nodes that declare GPUs. Ends as the real run would.
    """
    config = _load(arguments)
    from rlpost.commands.rehearse import rehearse as run

    raise typer.Exit(run(config, _command(), gpu_memory, to))


@app.command()
def doctor(arguments: OptionalArguments = None) -> None:
    """Is this machine, and with a CONFIG its cluster, what a run needs: versions, driver, limits, shared folders."""
    config = _load(arguments) if arguments else None
    from rlpost.commands.doctor import show

    raise typer.Exit(show(config))


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(metavar="methods|verifiers|tasks")],
    long: Annotated[bool, typer.Option(help="Of verifiers: rules, parameters, what is unverified, and cost.")] = False,
) -> None:
    """Names that a configuration may use."""
    from rlpost.commands.listing import show

    raise typer.Exit(show(what, long))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rlpost {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the verb."""


def _load(arguments: list[str]) -> Config:
    return load_arguments(*split_arguments(arguments))


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r} must be whole numbers separated by commas, such as 1,8,64") from None


def _checkpoint_step(text: str | None) -> int | Literal["best"] | None:
    if text is None or text == "best":
        return text  # type: ignore[return-value]
    if not text.isdecimal():
        raise ConfigError(f"--step {text!r} must be a step's number, such as 100, or best")
    return int(text)


def _command() -> list[str]:
    return ["rlpost", *sys.argv[1:]]


def main(arguments: list[str] | None = None) -> None:
    """Run the command and turn what went wrong into a message and an exit code."""
    sys.exit(run(arguments, to_the_end=True))


def run(arguments: list[str] | None = None, to_the_end: bool = False) -> int:
    """The command's exit code.

    Args:
        to_the_end: the process ends with it, and hears no signal any more.
    """
    code = DONE
    with STOP.listening(to_the_end):
        try:
            app(args=arguments, prog_name="rlpost")
        except SystemExit as done:
            code = int(done.code or 0)
        except Exception as error:  # noqa: BLE001 - the last place that can name it; unknown ones keep their traceback
            code = _explain(error)
        except KeyboardInterrupt:
            code = STOPPED_AT_ONCE
        if code != STOPPED_AT_ONCE:  # as typer has it, too
            return code
        if STOP.insisted:
            print("rlpost: stopped at once; the newest checkpoint is what is left", file=sys.stderr)
            return code
        print("rlpost: stopped on request, with nothing to go on with", file=sys.stderr)
        return PREEMPTED


def _explain(error: Exception) -> int:
    """Print an error for a person; exit code by what it is."""
    code = getattr(error, "exit_code", BAD_USAGE if isinstance(error, ConfigError) else None)
    if code is None and _is_user_error(error):
        code = BAD_USAGE
    if code is None:
        import traceback

        traceback.print_exception(error)
        code = FAULT
    print(f"rlpost: {getattr(error, 'cause', None) or error}", file=sys.stderr)
    return int(code)


def _is_user_error(error: Exception) -> bool:
    """Errors of data and verifiers are the user's to mend; their modules are loaded by whoever raised them."""
    names = {("rlpost.data.errors", "DataError"), ("rlpost.verify.protocol", "VerifierError")}
    return any(
        module in sys.modules and isinstance(error, getattr(sys.modules[module], name)) for module, name in names
    )


if __name__ == "__main__":
    main()

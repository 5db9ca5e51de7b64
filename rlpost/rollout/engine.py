"""One vLLM engine in a Ray actor.

A single thread owns the engine: between two decoding steps it takes jobs (new requests, weight updates) from a queue.
So a weight update falls between two tokens of what is running, and every token knows the version that sampled it.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlpost import rehearsal
from rlpost.actors import Reachable
from rlpost.cluster import set_thread_environment
from rlpost.config.checks import refuse_engine_args
from rlpost.faults import failpoint, reach, strike
from rlpost.models.load import eos_token_ids, load_tokenizer
from rlpost.rollout import adapters, capture
from rlpost.rollout import probes as read_back
from rlpost.rollout.decode import Decoder
from rlpost.rollout.remains import Process, processes
from rlpost.rollout.request import EngineSpec, SampleRequest
from rlpost.routing import Routes
from rlpost.types import FinishReason, Rollout
from rlpost.weights import WHOLE, Held, Probe


class EngineDownError(RuntimeError):
    """The engine's thread has ended by an error and does nothing any more; another process could."""


class StaleEngineError(RuntimeError):
    """The engine missed a weight update and serves nothing until it has taken one whole."""


@dataclass(frozen=True)
class Beat:
    """What an engine's thread does.

    Attributes:
        doing: `waiting` for a job, `sampling`, or `working` on a job, such as a part of a weight update.
        since: seconds this turn has taken so far.
        broken: the error that ended the thread.
    """

    doing: str
    since: float
    broken: str | None


@dataclass
class _Sample:
    """One running request: what it has produced so far."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    routes: np.ndarray | None = None
    finish_reason: FinishReason | None = None


@dataclass
class _Group:
    request: SampleRequest
    future: Future[list[Rollout]]
    samples: list[_Sample]
    expires: float


class Engine(Reachable):
    """A Ray actor around `vllm.v1.engine.llm_engine.LLMEngine`, run inside this process."""

    def __init__(self, spec: EngineSpec, number: int = 0) -> None:
        set_thread_environment(spec.threads.here())
        self.spec = spec
        self.number = number
        self.version = 0
        self.stale = False  # from an update's start until it has been closed and checked
        self.missed = False
        self._jobs: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._groups: dict[int, _Group] = {}
        self._requests: dict[str, tuple[int, int]] = {}
        self._broken: BaseException | None = None
        self._generated_tokens = 0
        self._busy_seconds = 0.0
        self._layout: capture.Layout | None = None
        self._lora_request: Any = None
        self._joining = "was not reached"
        self._turn = ("waiting", time.monotonic())
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    async def start(self) -> dict[str, Any]:
        """Load the model.

        Returns:
            {"kv_tokens": capacity of the cache in tokens, "node": id of the machine,
            "routing": {"layers": [absolute number of each mixture-of-experts layer], "top_k": experts a token,
            "experts": experts a layer}, or None when routes are not captured}.
        """
        import ray

        self._thread.start()
        started: dict[str, Any] = await self._do(self._load)
        return {**started, "node": ray.get_runtime_context().get_node_id()}

    async def beat(self) -> Beat:
        """The heartbeat: answered beside the thread, whatever that does, and by no process that is stopped."""
        doing, began = self._turn
        return Beat(doing, time.monotonic() - began, repr(self._broken) if self._broken is not None else None)

    async def processes(self) -> list[Process]:
        """This process and those of vLLM's workers, once the engine is ready."""
        return processes()

    async def generate(self, request: SampleRequest) -> list[Rollout]:
        """Sample a group. Returns one rollout for each seed, in order; given-up ones end in "abort"."""
        self.refuse_stale()
        future: Future[list[Rollout]] = Future()
        await self._do(lambda: self._submit(request, future))
        return await asyncio.wrap_future(future)

    def refuse_stale(self) -> None:
        """Refuse what is asked for after an update was missed. While one is under way what is asked for waits for it.

        Raises:
            StaleEngineError: it was.
        """
        if self.missed:
            raise StaleEngineError(f"engine missed the update after version {self.version} and serves nothing")

    async def statistics(self) -> dict[str, float]:
        """Totals since the start: tokens generated, and seconds spent decoding."""
        return {"tokens": self._generated_tokens, "seconds": self._busy_seconds}

    # ------------------------------------------------------------------------------------------------ weights
    # The four calls of vLLM's weight-sync protocol (`VLLMWeightSyncClient`), so that its own trainer engines can
    # drive this actor, and one that closes an update by version.

    async def init_weight_transfer_engine(self, request: Any, deadline: float) -> None:
        self._joining = "is at work, and has not begun to join"

        def join() -> None:
            info = request.init_info
            if "master_address" in info:
                self._joining = f"finds nobody at {info['master_address']}:{info['master_port']}"
                reach(info["master_address"], info["master_port"], deadline)
            self._joining = "waits for the others"
            self._rpc("init_weight_transfer_engine", info)
            self._joining = "has joined"

        await self._do(join)

    async def joining(self) -> str:
        """How far this engine has come in joining a weight transfer."""
        return self._joining

    async def start_weight_update(self) -> None:
        await self._update(self._begin_update)

    async def update_weights(self, request: Any) -> None:
        def update() -> None:
            self._rpc("update_weights", request.update_info)
            strike("engine.update", self.version + 1, self.number)

        await self._update(update)

    async def finish_weight_update(self) -> None:
        await self._update(self._end_update)

    async def load_weights(self, version: int, *parts: dict[str, np.ndarray]) -> None:
        """A whole update from the object store, between two decoding steps; `parts` have no name in common."""

        def load() -> None:
            if failpoint("engine.drop_update", version):
                return
            self._begin_update()
            for part in parts:
                self._rpc("update_weights", {"arrays": part})
                strike("engine.update", version, self.number)
            self._end_update()

        await self._update(load)

    async def load_adapters(self, arrays: dict[str, np.ndarray], version: int) -> None:
        """Adapters from the object store, in place of those before, between two decoding steps."""
        assert self.spec.adapters is not None
        rank = self.spec.adapters.rank

        def load() -> None:
            if not failpoint("engine.drop_update", version):
                self._rpc("synchronize_device")
                self._engine.collective_rpc(adapters.put, args=(arrays, rank))
                strike("engine.update", version, self.number)

        await self._update(load)

    async def readable(self) -> dict[str, Held]:
        """Names, shapes and dtypes of the tensors whose bits can be read back: see `rlpost.rollout.probes.readable`."""
        return await self._do(lambda: self._engine.collective_rpc(read_back.readable)[0])

    async def accept_version(self, version: int, probes: dict[str, Probe] | None) -> None:
        """Serve as `version`, if the tensors held are the learner's. None skips that check: only a failpoint may.

        What is running goes on under the new weights: its keys and values are computed anew, so that a token's
        log-prob is always that of its own version given the whole prefix.

        Raises:
            StaleEngineError: a tensor differs; the engine stays stale.
        """

        look = read_back.wrong_probes if self.spec.adapters is None else adapters.wrong_probes

        def accept() -> None:
            strike("engine.accept", version, self.number)
            found = self._engine.collective_rpc(look, args=(probes,)) if probes is not None else []
            wrong = sorted({name for worker in found for name in worker})
            if wrong:
                raise StaleEngineError(
                    f"weights of version {version} are not what the engine holds: {len(wrong)} of {len(probes or ())} "
                    f"probed tensors differ: {', '.join(wrong[:3])}"
                )
            if not self._engine.reset_prefix_cache(reset_running_requests=True):
                raise StaleEngineError(f"vLLM could not reset its prefix cache for version {version}")
            self.version, self.stale = version, False

        await self._update(accept)

    async def _update(self, job: Callable[[], Any]) -> None:
        """Do a part of an update, which is missed when that fails."""
        self.stale, self.missed = True, False
        try:
            await self._do(job)
        except BaseException:
            self.missed = True
            raise

    # ------------------------------------------------------------------------------------------- engine thread

    async def _do(self, job: Callable[[], Any]) -> Any:
        """Run `job` on the engine thread, between two decoding steps."""
        if self._broken is not None:
            raise EngineDownError(f"engine is down: {self._broken!r}") from self._broken
        future: Future[Any] = Future()
        self._jobs.put((job, future))
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        try:
            while True:
                # Between a weight update's start and its acceptance no token is sampled: it would have no version.
                idle = not self._requests or self.stale
                self._take_jobs(wait=idle)
                if self._requests and not self.stale:
                    self._turns_to("sampling")
                    strike("engine.sample", self.version + 1, self.number)
                    began = time.perf_counter()
                    for output in self._engine.step():
                        self._collect(output)
                    self._give_up_expired()
                    self._busy_seconds += time.perf_counter() - began
        except BaseException as error:  # noqa: BLE001 - handed to everyone who waits; the actor is unusable
            self._broken = error
            for group in self._groups.values():
                group.future.set_exception(EngineDownError(f"engine failed while sampling: {error!r}"))
            while not self._jobs.empty():
                self._jobs.get()[1].set_exception(EngineDownError(f"engine is down: {error!r}"))

    def _turns_to(self, doing: str) -> None:
        self._turn = (doing, time.monotonic())

    def _take_jobs(self, wait: bool) -> None:
        """Do all jobs that are there, waiting for the first when there is nothing else to do."""
        while wait or not self._jobs.empty():
            self._turns_to("waiting")
            job, future = self._jobs.get()
            self._turns_to("working")
            wait = False
            try:
                future.set_result(job())
            except Exception as error:  # noqa: BLE001 - belongs to the caller, not to this thread
                future.set_exception(error)

    def _begin_update(self) -> None:
        """Open an update when no forward is reading the weights any more.

        vLLM schedules a step ahead on GPUs: the output of a batch in flight will be dropped, but it still reads.
        """
        self._rpc("synchronize_device")
        self._rpc("start_weight_update")

    def _end_update(self) -> None:
        """Close an update that is whole.

        Raises:
            RuntimeError: it is not; another may follow.
        """
        self._rpc("update_weights", WHOLE)
        self._rpc("finish_weight_update")

    def _rpc(self, method: str, *args: Any) -> None:
        self._engine.collective_rpc(method, args=args)

    def _load(self) -> dict[str, Any]:
        s = self.spec
        os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        if not s.on_gpu:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(s.kv_cache_gb)))
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            if s.enforce_eager:
                # Else vLLM still compiles how it ranks log-probs: 6 s of every start and a compiler for one comparison.
                os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        import torch
        import vllm
        from vllm.engine.arg_utils import EngineArgs
        from vllm.plugins import load_general_plugins
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        rehearsal.tell(s.stand_in)
        load_general_plugins()
        folder = str(s.source.folder())
        arguments = s.arguments(folder)
        if s.capture_routes:
            capture.refuse_version(vllm.__version__)
            refuse_engine_args(s.engine_args)
            arguments["enable_return_routed_experts"] = True
        if s.adapters is not None:
            arguments |= self._adapter_arguments(vllm.__version__, EngineArgs(**{**arguments, **s.engine_args}))
        engine_args = EngineArgs(**{**arguments, **s.engine_args})
        if s.capture_routes:
            capture.refuse_dense(engine_args.create_model_config().get_num_experts(), s.source.path)
        try:
            # As vLLM's own batch inference has it: how many tokens and sequences a step takes follows the GPU's memory.
            self._engine = LLMEngine.from_engine_args(engine_args, UsageContext.LLM_CLASS)
        except ValueError as error:
            if s.adapters is not None and "LoRA target module" in str(error):
                raise adapters.AdaptersRefusedError(str(error)) from error
            raise
        if s.adapters is not None:
            self._refuse_unknown(s.adapters)
        if not s.on_gpu:
            torch.set_num_threads(s.threads.here())
        self._decode = Decoder(load_tokenizer(s.source))
        self._stop_ids = eos_token_ids(s.source)
        if s.capture_routes:
            self._layout = self._engine.collective_rpc(capture.find_layout)[0]
        cache = self._engine.vllm_config.cache_config
        return {
            "kv_tokens": int((cache.num_gpu_blocks or 0) * cache.block_size),
            "routing": self._layout.described() if self._layout else None,
        }

    def _adapter_arguments(self, version: str, engine_args: Any) -> dict[str, Any]:
        from vllm.model_executor.model_loader.utils import get_model_architecture

        assert self.spec.adapters is not None
        model_class, _ = get_model_architecture(engine_args.create_model_config())
        self._lora_request = adapters.request()
        return adapters.engine_arguments(self.spec.adapters, version, model_class)

    def _refuse_unknown(self, spec: adapters.AdapterSpec) -> None:
        found = self._engine.collective_rpc(adapters.unknown, args=(spec.modules,))
        if unknown := sorted({name for worker in found for name in worker}):
            raise adapters.AdaptersRefusedError(
                f"vLLM's model has no layer for the adapters of {len(unknown)} modules, such as {unknown[0]}"
            )

    def _submit(self, request: SampleRequest, future: Future[list[Rollout]]) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if request.group in self._groups:
            raise ValueError(f"group {request.group} is already running on this engine")
        room = self.spec.max_model_len - len(request.prompt_ids)
        if room < 1:
            raise ValueError(
                f"prompt {request.prompt_id} has {len(request.prompt_ids)} tokens; the engine holds {self.spec.max_model_len}"
            )
        how = request.sampling
        prompt = {"prompt_token_ids": [int(t) for t in request.prompt_ids]}
        for sample, seed in enumerate(request.seeds):
            name = f"{request.group}/{sample}"
            parameters = SamplingParams(
                temperature=how.temperature,
                top_p=how.top_p,
                max_tokens=min(how.max_tokens, room),
                seed=seed,
                stop=list(how.stop) or None,
                stop_token_ids=self._stop_ids,
                logprobs=0,  # only the sampled token's
                detokenize=bool(how.stop),
                output_kind=RequestOutputKind.DELTA,
            )
            self._engine.add_request(name, prompt, parameters, lora_request=self._lora_request)
            self._requests[name] = (request.group, sample)
        self._groups[request.group] = _Group(
            request, future, [_Sample() for _ in request.seeds], time.monotonic() + request.deadline
        )

    def _collect(self, output: Any) -> None:
        """Take what one decoding step gave one request."""
        group_id, index = self._requests[output.request_id]
        group = self._groups[group_id]
        sample, step = group.samples[index], output.outputs[0]
        for token, logprobs in zip(step.token_ids, step.logprobs, strict=True):
            sample.tokens.append(token)
            sample.logprobs.append(logprobs[token].logprob)
            sample.versions.append(self.version)
        self._generated_tokens += len(step.token_ids)
        if output.finished:
            if step.finish_reason not in ("stop", "length"):
                raise RuntimeError(f"vLLM ended request {output.request_id} with {step.finish_reason!r}")
            if group.request.routes:
                sample.routes = capture.damaged(step.routed_experts, self.version)
            self._finish(output.request_id, step.finish_reason)

    def _give_up_expired(self) -> None:
        now = time.monotonic()
        for group_id in [g for g, group in self._groups.items() if group.expires < now]:
            names = [name for name, (g, _) in self._requests.items() if g == group_id]
            self._engine.abort_request(names, internal=False)
            for name in names:
                self._finish(name, "abort")

    def _finish(self, name: str, reason: FinishReason) -> None:
        group_id, index = self._requests.pop(name)
        group = self._groups[group_id]
        group.samples[index].finish_reason = reason
        if all(s.finish_reason is not None for s in group.samples):
            del self._groups[group_id]
            group.future.set_result(self._rollouts(group))

    def _rollouts(self, group: _Group) -> list[Rollout]:
        texts = self._decode([s.tokens for s in group.samples])
        found: list[Routes | None] = [None] * len(group.samples)
        if self._layout is not None and group.request.routes:
            captured = [
                None if s.finish_reason == "abort" or not s.tokens else capture.Captured(s.routes, len(s.tokens))
                for s in group.samples
            ]
            found = capture.group_routes(self._layout, len(group.request.prompt_ids), captured)
        return [
            Rollout(
                prompt_id=group.request.prompt_id,
                group=group.request.group,
                sample=index,
                prompt_ids=group.request.prompt_ids,
                response_ids=np.array(sample.tokens, np.int32),
                logprobs=np.array(sample.logprobs, np.float32),
                versions=np.array(sample.versions, np.int32),
                finish_reason=sample.finish_reason or "abort",
                text=text,
                raw=raw,
                seed=group.request.seeds[index],
                routes=found[index],
            )
            for index, (sample, (text, raw)) in enumerate(zip(group.samples, texts, strict=True))
        ]

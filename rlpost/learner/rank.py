"""One DeepSpeed rank: what runs inside a learner actor. The driver's side is `rlpost.learner.group`."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlpost.cluster import set_thread_environment
from rlpost.config import DType, Learner, Model, Objective
from rlpost.learner.batch import Batch, MicroBatch
from rlpost.meter import Meter


@dataclass(frozen=True)
class LearnerSpec:
    """Everything a rank needs to know, decided by the driver.

    Attributes:
        path: folder or id of the weights to start from.
        reference_path: weights of the frozen reference; None when no term asks for one.
        total_steps: optimizer steps of the whole run, for the learning-rate schedule.
        temperature: what the engine samples at; log-probs are of that distribution.
        response_limit: the longest response there can be (the constant of seq_mean_token_sum_norm).
    """

    path: str
    reference_path: str | None
    model: Model
    learner: Learner
    objective: Objective
    total_steps: int
    temperature: float
    response_limit: int
    pad_id: int
    seed: int
    on_gpu: bool
    threads: int


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step of one rank, with denominators that are global over all ranks and micro-batches."""

    micro_batches: list[MicroBatch]
    sequences: int
    tokens: int


class LearnerRank:
    """A Ray actor. Methods that hold a collective must be called on all ranks at once."""

    def __init__(self, rank: int, world: int, threads: int, on_gpu: bool) -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0")
        set_thread_environment(threads)
        if not on_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        self.rank, self.world = rank, world

    def address(self) -> tuple[str, int]:
        """A host and free port where rank 0 will listen for the others."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as s:
            s.bind((host, 0))
            return host, s.getsockname()[1]

    def start(self, spec: LearnerSpec, master: tuple[str, int]) -> dict[str, Any]:
        """Join the group, load the model, build the DeepSpeed engine.

        Returns:
            {"parameters": count, "trainable": count, "node": id of the machine}.
        """
        os.environ.update(MASTER_ADDR=master[0], MASTER_PORT=str(master[1]))
        import deepspeed
        import ray
        import torch
        from transformers.integrations import HfDeepSpeedConfig

        from rlpost.learner.deepspeed_config import deepspeed_config
        from rlpost.learner.logprobs import Policy, TokenLogProbs
        from rlpost.learner.model import load_model
        from rlpost.objective import Objective as Terms

        torch.set_num_threads(spec.threads)
        torch.manual_seed(spec.seed)
        if spec.on_gpu:
            torch.cuda.set_device(0)
        deepspeed.init_distributed(dist_backend="nccl" if spec.on_gpu else "gloo", verbose=False)

        self.spec = spec
        self.device = torch.device("cuda:0" if spec.on_gpu else "cpu")
        config = deepspeed_config(spec.learner, spec.model.dtype, self.world)
        # Must stay alive: transformers shards parameters as it makes them while this object exists.
        self._zero3 = HfDeepSpeedConfig(config) if spec.learner.zero_stage == 3 else None

        model = load_model(spec.path, spec.model, trainable=True)
        if spec.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if spec.model.lora is not None:
                model.enable_input_require_grads()
        policy = Policy(model, spec.learner.logits_chunk_tokens)
        if spec.learner.zero_stage == 3:
            deepspeed.utils.set_z3_leaf_modules(policy, [TokenLogProbs])
        self.engine, *_ = deepspeed.initialize(
            model=policy, optimizer=self._optimizer(policy), config=config, dist_init_required=False
        )
        self.reference = self._load_reference(config) if spec.reference_path else None
        self.terms = Terms.from_config(spec.objective)
        self.optimizer_steps = 0

        def size(p: Any) -> int:
            return int(getattr(p, "ds_numel", p.numel()))

        return {
            "parameters": sum(size(p) for p in model.parameters()),
            "trainable": sum(size(p) for p in model.parameters() if p.requires_grad),
            "node": ray.get_runtime_context().get_node_id(),
        }

    def _optimizer(self, policy: Any) -> Any:
        import torch

        lo = self.spec.learner
        parameters = [p for p in policy.parameters() if p.requires_grad]
        settings: dict[str, Any] = dict(lr=lo.lr, betas=lo.betas, eps=lo.eps, weight_decay=lo.weight_decay)
        if lo.offload_optimizer:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            return DeepSpeedCPUAdam(parameters, adamw_mode=True, **settings)
        return torch.optim.AdamW(parameters, **settings)

    def _load_reference(self, config: dict[str, Any]) -> Any:
        """The frozen anchor, sharded like the policy under ZeRO-3. It never trains and never replays routes."""
        import deepspeed

        from rlpost.learner.logprobs import Policy, TokenLogProbs
        from rlpost.learner.model import load_model

        assert self.spec.reference_path is not None
        model = load_model(self.spec.reference_path, self.spec.model, trainable=False)
        reference = Policy(model, self.spec.learner.logits_chunk_tokens)
        if self.spec.learner.zero_stage != 3:
            return reference.to(self.device)
        deepspeed.utils.set_z3_leaf_modules(reference, [TokenLogProbs])
        engine, *_ = deepspeed.initialize(model=reference, config=config, dist_init_required=False)
        return engine

    @property
    def model(self) -> Any:
        """The Hugging Face model inside the engine."""
        return self.engine.module.model

    # ----------------------------------------------------------------------------------------------- learning

    def update(self, batch: Batch, steps: list[StepPlan], version: int) -> Meter:
        """Learn from this rank's share of a batch: one optimizer step for each plan.

        Args:
            batch: this rank's sequences; the plans' indices point into it.
            version: the weight version the learner holds now, to know which sampled tokens are fresh.

        Returns:
            metrics of this rank; `Meter.merge` over ranks gives those of the batch.
        """
        meter = Meter()
        before = [self._log_probs(batch, plan) for plan in steps] if len(steps) > 1 else [None]
        for plan, old in zip(steps, before, strict=True):
            meter.update(self._optimizer_step(batch, plan, old, version))
        return meter

    def _log_probs(self, batch: Batch, plan: StepPlan) -> list[Any]:
        """Log-probs under the weights as they are now, for every micro-batch: the proximal policy."""
        import torch

        with torch.no_grad():
            return [self._forward(self.engine, batch, micro)[1] for micro in plan.micro_batches]

    def _forward(self, policy: Any, batch: Batch, micro: MicroBatch) -> tuple[Any, Any, Any]:
        """(grid, log-probs (B, T), entropies (B, T))."""
        from rlpost.learner.batch import make_grid

        grid = make_grid(batch, micro, self.spec.pad_id, self.device)
        logp, entropy = policy(grid.input_ids, grid.position_ids, grid.predictors, grid.targets, self.spec.temperature)
        return grid, grid.spread(logp), grid.spread(entropy)

    def _optimizer_step(self, batch: Batch, plan: StepPlan, old: list[Any] | None, version: int) -> Meter:
        import torch

        from rlpost.learner.deepspeed_config import learning_rate
        from rlpost.objective import Denominators, TermInputs

        meter = Meter()
        denominators = Denominators(plan.sequences, plan.tokens, self.spec.response_limit)
        norm: float | None = None
        lr = learning_rate(self.spec.learner, self.optimizer_steps, self.spec.total_steps)
        for k, micro in enumerate(plan.micro_batches):
            grid, logp, entropy = self._forward(self.engine, batch, micro)
            rows = batch.select(micro.sequences)
            learn = torch.from_numpy(rows.learn & (not micro.muted)).to(self.device)
            mask = grid.mask() & learn[:, None]

            def spread(values: np.ndarray, fill: float = 0, grid: Any = grid) -> Any:
                return grid.spread(torch.from_numpy(values).to(self.device), fill)

            old_logp = old[k] if old is not None else logp.detach()
            behavior = spread(rows.behavior_logp)
            anchors = {}
            if self.reference is not None:
                with torch.no_grad():
                    anchors["frozen"] = self._forward(self.reference, batch, micro)[1]
            loss, metrics = self.terms.loss(
                TermInputs(
                    logp=logp,
                    old_logp=old_logp,
                    behavior_logp=behavior,
                    anchors=anchors,
                    advantages=spread(rows.advantages),
                    weights=torch.ones_like(behavior),
                    mask=mask,
                    entropy=entropy,
                ),
                denominators,
            )
            meter.update(metrics)
            versions = spread(rows.versions, fill=-1)
            meter.update(_mismatch(old_logp, behavior, mask & (versions >= 0), versions == version))
            # DeepSpeed averages gradients over ranks; our loss is already one share of a global sum.
            self.engine.set_gradient_accumulation_boundary(k == len(plan.micro_batches) - 1)
            self.engine.backward(loss * self.world)
            if k == len(plan.micro_batches) - 1:
                for group in self.engine.optimizer.param_groups:
                    group["lr"] = lr
                norm = self._grad_norm()
            self.engine.step()
        norm = self.engine.get_global_grad_norm() if norm is None else norm
        meter.max("grad_norm", float(norm))
        meter.max("lr", lr)
        self.optimizer_steps += 1
        return meter

    def _grad_norm(self) -> float | None:
        """Norm of the reduced gradient before clipping, where DeepSpeed does not keep it: plain float32 optimizers."""
        import torch

        if hasattr(self.engine.optimizer, "_global_grad_norm"):
            return None
        grads = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    # ------------------------------------------------------------------------------------------------ weights

    def weights(self, dtype: DType, readable: dict[str, tuple[int, ...]], version: int) -> tuple[Any, Any]:
        """All weights as numpy arrays by checkpoint name, and probes of a few; (None, None) but from rank 0.

        Args:
            dtype: the engine's.
            readable: names and shapes the engines can be asked for.
        """
        from rlpost.learner.model import DTYPES, checkpoint_tensors
        from rlpost.weights import make_probes, to_numpy

        tensors = checkpoint_tensors(self.model, keep=self.rank == 0)
        if self.rank != 0:
            return None, None
        arrays = {name: to_numpy(tensor.to(DTYPES[dtype])) for name, tensor in tensors.items()}
        return arrays, make_probes(arrays, readable, version)

    def connect(self, backend: str, engines: list[Any], world_size: int, master: tuple[str, int]) -> None:
        """Join vLLM's own weight transfer, as its trainer side. GPUs only."""
        from vllm.distributed.weight_transfer.clients import RayVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        from rlpost.learner.source import LearnerWeights

        info: Any = (
            NCCLTrainerInitInfo(rank=self.rank, master_address=master[0], master_port=master[1], world_size=world_size)
            if backend == "nccl"
            else IPCTrainerInitInfo(rank=self.rank)
        )
        self._source = LearnerWeights(self.model, self.spec.model.dtype)
        self._sender = WeightTransferTrainerFactory.trainer_init(
            info, client=RayVLLMWeightSyncClient(engines), source=self._source
        )

    def send_weights(self, dtype: DType, readable: dict[str, tuple[int, ...]], version: int) -> Any:
        """Send all weights to the connected engines. Returns probes from rank 0. All ranks."""
        self._source.begin(dtype, readable, version)
        self._sender.send_weights()
        return self._source.probes

    def log_probs(self, batch: Batch, micro_batches: list[MicroBatch]) -> list[np.ndarray]:
        """float32 (response length,) log-probs of each sequence, in the order of the micro-batches. All ranks."""
        import torch

        found = []
        with torch.no_grad():
            for micro in micro_batches:
                _, logp, _ = self._forward(self.engine, batch, micro)
                for b, i in enumerate(micro.sequences):
                    found.append(logp[b, : int(batch.response_lengths[i])].float().cpu().numpy())
        return found

    # --------------------------------------------------------------------------------------------- checkpoints

    def save(self, folder: str) -> None:
        """Write this rank's DeepSpeed state, and from rank 0 the weights in the Hugging Face format."""
        from rlpost.learner.model import DTYPES, checkpoint_tensors, save_pretrained

        self.engine.save_checkpoint(
            str(Path(folder) / "deepspeed"),
            tag="state",
            client_state={"optimizer_steps": self.optimizer_steps},
            save_latest=False,
        )
        tensors = checkpoint_tensors(self.model, keep=self.rank == 0)
        if self.rank == 0:
            save_pretrained(Path(folder) / "model", self.spec.path, tensors, DTYPES[self.spec.model.dtype])

    def load(self, folder: str) -> dict[str, int]:
        """Restore what `save` wrote. A checkpoint that is not there is an error, not a fresh start."""
        shards = Path(folder) / "deepspeed" / "state"
        # DeepSpeed only warns, and starts afresh, when it finds nothing.
        path, state = None, {}
        if shards.is_dir():
            path, state = self.engine.load_checkpoint(str(shards.parent), tag=shards.name)
        if path is None:
            raise FileNotFoundError(f"no DeepSpeed state for rank {self.rank} of {self.world} in {shards}")
        self.optimizer_steps = state["optimizer_steps"]
        return {"optimizer_steps": self.optimizer_steps}

    def save_model(self, folder: str) -> None:
        """Write only the weights, in the Hugging Face format."""
        from rlpost.learner.model import DTYPES, checkpoint_tensors, save_pretrained

        tensors = checkpoint_tensors(self.model, keep=self.rank == 0)
        if self.rank == 0:
            save_pretrained(Path(folder), self.spec.path, tensors, DTYPES[self.spec.model.dtype])


def _mismatch(learner_logp: Any, behavior_logp: Any, sampled: Any, fresh: Any) -> Meter:
    """Engine against learner over all sampled tokens, and over those the learner's own weights sampled.

    Only the second is pure numerics: stale tokens differ because the policy has moved since.
    """
    from rlpost.objective import mismatch_metrics

    fresh_only = mismatch_metrics(learner_logp, behavior_logp, sampled & fresh)
    names = {f"mismatch/{name}": f"mismatch/{name}_fresh" for name in ("logp_abs_max", "kl")}
    return mismatch_metrics(learner_logp, behavior_logp, sampled).update(fresh_only.renamed(names))

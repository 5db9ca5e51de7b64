"""One DeepSpeed rank: started, saved and resumed. The driver's side is `rlpost.learner.group`."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rlpost import device
from rlpost.actors import Reachable
from rlpost.cluster import Threads, set_thread_environment
from rlpost.faults import strike
from rlpost.learner.delivery import Delivery
from rlpost.learner.learning_rate import course_state, fresh_course, learning_rate, resumed_course
from rlpost.learner.spec import LearnerSpec
from rlpost.learner.steps import Steps
from rlpost.models.source import ModelSource


class LearnerRank(Reachable, Steps, Delivery):
    """A Ray actor. Methods that hold a collective must be called on all ranks at once."""

    def __init__(self, rank: int, world: int, threads: Threads, on_gpu: bool) -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0")
        set_thread_environment(threads.here())
        if not on_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        self.rank, self.world = rank, world

    def rendezvous(self) -> tuple[str, int]:
        """Open the store where the ranks find each other. Returns its host and port. Rank 0 alone.

        It listens from here on: a port that is only chosen now and opened later may be somebody else's by then.
        """
        import ray
        import torch

        host = ray.util.get_node_ip_address()
        self._store = torch.distributed.TCPStore(host, 0, self.world, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def start(self, spec: LearnerSpec, master: tuple[str, int], patience: float) -> dict[str, Any]:
        """Join the group, load the model, build the DeepSpeed engine.

        Args:
            patience: seconds a rank waits for another in a collective; the driver's deadlines are to end a wait first.

        Returns:
            {"parameters": count, "trainable": count, "node": id of the machine, "routing": {"layers": numbers of the
            mixture-of-experts layers, "top_k": count, "experts": count}, or None where nothing can be replayed}.
        """
        os.environ.update(MASTER_ADDR=master[0], MASTER_PORT=str(master[1]))
        # Rank 0 too is a client of the store that is open already, as it would be under torchrun.
        os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
        import deepspeed
        import ray
        import torch
        from transformers.integrations import HfDeepSpeedConfig

        from rlpost.learner.adapters import load_adapter
        from rlpost.learner.deepspeed_config import deepspeed_config
        from rlpost.learner.logprobs import Policy, TokenLogProbs
        from rlpost.learner.references import References
        from rlpost.learner.replay import moe_blocks
        from rlpost.learner.shards import Shards
        from rlpost.learner.survival import Sample
        from rlpost.objective import Objective as Terms

        torch.set_num_threads(spec.threads.here())
        torch.manual_seed(spec.seed)
        self.device = device.take(spec.on_gpu)
        if spec.stand_in and spec.model.attention == "flash_attention_2":
            from rlpost.rehearsal import flash

            flash.install()
        # DeepSpeed would compile a collective that only its inference calls: half a minute of a first start, and behind a
        # lock that a run killed meanwhile leaves for ever.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(
            dist_backend=device.collectives(spec.on_gpu), timeout=timedelta(seconds=patience), verbose=False
        )

        self.spec = spec
        config = deepspeed_config(spec.learner, spec.model.dtype, self.world)
        # Must stay alive: transformers shards parameters as it makes them while this object exists.
        self._zero3 = HfDeepSpeedConfig(config) if spec.learner.zero_stage == 3 else None

        model = self._load(spec.source, trainable=True)
        if spec.adapter is not None:
            load_adapter(model, spec.adapter)
        replay = self._replay(model)
        if spec.learner.gradient_checkpointing:
            how: dict[str, Any] = {"use_reentrant": False}
            if replay is not None:
                how["context_fn"] = replay.checkpoint_context
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
            if spec.model.lora is not None:
                model.enable_input_require_grads()
        policy = Policy(model, spec.learner.logits_chunk_tokens, replay)
        if spec.learner.zero_stage == 3:
            # Which experts get tokens differs from rank to rank, so a layer of them is gathered whole.
            deepspeed.utils.set_z3_leaf_modules(policy, [TokenLogProbs, *moe_blocks(model)])
        self.engine, *_ = deepspeed.initialize(
            model=policy, optimizer=self._optimizer(policy), config=config, dist_init_required=False
        )
        self.engine.checkpoint_engine = Shards()
        self._config = config
        self.anchors = References(spec.anchors, self._load_anchor, self.engine.module)
        self.terms = Terms(spec.objective)
        self.optimizer_steps = 0
        self.begin = 0
        self.course = fresh_course(spec.learner, spec.total_steps)
        # With adapters the base stays, and all of an update is in them.
        self._sample = None if spec.model.lora is not None else Sample(self.model)
        self._survived: float | None = None
        self._check_isolation()

        def size(p: Any) -> int:
            return int(getattr(p, "ds_numel", p.numel()))

        return {
            "parameters": sum(size(p) for p in model.parameters()),
            "trainable": sum(size(p) for p in model.parameters() if p.requires_grad),
            "node": ray.get_runtime_context().get_node_id(),
            "routing": replay and {"layers": list(replay.layers), "top_k": replay.top_k, "experts": replay.experts},
        }

    def _load(self, source: ModelSource, trainable: bool) -> Any:
        """A model of the policy's configuration, whose positions mean what they mean to the engines."""
        from rlpost.learner.model import load_model
        from rlpost.learner.rope import fix_rope

        model = load_model(source, self.spec.model, trainable)
        if self.spec.longest is not None:
            fix_rope(model, self.spec.longest)
        return model

    def _replay(self, model: Any) -> Any:
        """The model's routers, under our hand; None for a dense model.

        Raises:
            UnsupportedRouterError: replay is asked for and cannot be had.
        """
        from rlpost.learner.replay import Replay, UnsupportedRouterError, is_router

        wanted = self.spec.routing.replay != "off"
        if not wanted and not any(is_router(m) for m in model.modules()):
            return None
        try:
            return Replay(model)
        except UnsupportedRouterError:
            if wanted:
                raise
            return None  # trains all the same; nothing is measured of its routers

    def _check_isolation(self) -> None:
        """Refuse a layout in which the policy, or an anchor, lets sequences read each other. All ranks.

        Raises:
            ConfigError: log-probs of a sequence depend on what shares a micro-batch with it.
        """
        from rlpost.config import ConfigError
        from rlpost.learner.isolation import find_leak
        from rlpost.learner.replay import is_router
        from rlpost.models.architecture import is_moe

        def logp(grid: Any, policy: Any) -> Any:
            return self._forward(policy, self._routed_grid(grid)).logp

        lo, checked = self.spec.learner, set()
        for policy in (self.engine, *map(self.anchors.policy, self.anchors.names())):
            model = getattr(policy, "module", policy).model
            if type(model) in checked:  # one architecture is one answer
                continue
            checked.add(type(model))
            leak = find_leak(
                partial(logp, policy=policy),
                model.get_input_embeddings(),
                lo.layout,
                lo.tokens_per_micro_batch,
                lo.row_tokens,
                self.spec.pad_id,
                self.device,
                experts=is_moe(model.config.to_dict()) or any(map(is_router, model.modules())),
            )
            if leak is None:
                continue
            what = f"learner.layout: {lo.layout}, but {type(model).__name__}"
            moved = f"with model.attention: {self.spec.model.attention} log-probs move by {leak.moved:.2g} with others around"
            if lo.layout == "padded":
                raise ConfigError(
                    f"{what} reads other sequences of a micro-batch, or tokens that follow: {moved}, so that nothing true "
                    "can be learned: take another model"
                )
            if leak.rows > 1:
                raise ConfigError(
                    f"{what} keeps the sequences of one row apart and not those of {leak.rows}: {moved}: leave "
                    "learner.row_tokens out, or set learner.layout: padded"
                )
            raise ConfigError(f"{what} does not keep the sequences of a row apart: {moved}: set learner.layout: padded")

    def _optimizer(self, policy: Any) -> Any:
        import torch

        lo = self.spec.learner
        parameters = [p for p in policy.parameters() if p.requires_grad]
        settings: dict[str, Any] = dict(lr=lo.lr, **self._constants())
        # On CPU the fused one is the vectorised one. DeepSpeed's own would be compiled at the first use, which needs nvcc.
        return torch.optim.AdamW(parameters, fused=lo.offload_optimizer or None, **settings)

    def _constants(self) -> dict[str, Any]:
        """What the optimizer is told once; the learning rate it is told at every step."""
        lo = self.spec.learner
        return dict(betas=lo.betas, eps=lo.eps, weight_decay=lo.weight_decay)

    def _load_anchor(self, source: ModelSource, movable: bool) -> Any:
        """A model that terms compare with: sharded like the policy under ZeRO-3, and with adapters if it is to move.

        It never trains and never replays routes.
        """
        import deepspeed

        from rlpost.learner.logprobs import Policy, TokenLogProbs
        from rlpost.learner.replay import moe_blocks

        model = self._load(source, trainable=movable).eval().requires_grad_(False)
        anchor = Policy(model, self.spec.learner.logits_chunk_tokens)
        if self.spec.learner.zero_stage != 3:
            return anchor.to(self.device)
        deepspeed.utils.set_z3_leaf_modules(anchor, [TokenLogProbs, *moe_blocks(model)])
        engine, *_ = deepspeed.initialize(model=anchor, config=self._config, dist_init_required=False)
        return engine

    # --------------------------------------------------------------------------------------------- checkpoints

    def sees(self, folder: str) -> tuple[bool, str]:
        """Whether a folder the driver has made is here too, and the name of this machine."""
        return Path(folder).is_dir(), socket.gethostname()

    def save(self, folder: str, step: int = 0) -> None:
        """Write this rank's DeepSpeed state, and from rank 0 what was trained: adapters in PEFT's format, else weights.

        The weights below adapters are not written: they are those of the run's base.
        """
        from rlpost.learner.adapters import save_adapter, trained

        strike("rank.save", step, self.rank)
        lora = self.spec.model.lora is not None
        self.engine.save_checkpoint(
            str(Path(folder) / "deepspeed"),
            tag="state",
            client_state={
                "optimizer_steps": self.optimizer_steps,
                "course": course_state(self.spec.learner, self.course, self.begin),
            },
            save_latest=False,
            exclude_frozen_parameters=lora,
        )
        self.anchors.save(Path(folder) / "anchors", self.rank)
        strike("save.shard", step, self.rank)
        if not lora:
            self.save_model(str(Path(folder) / "model"))
        else:
            exact = trained(self.model, self._masters(), self.rank == 0)
            if self.rank == 0:
                save_adapter(Path(folder) / "model", self.spec.source, self.model, exact)
        if self.rank == 0:
            strike("save.model", step)

    def load(self, folder: str, anchors: bool = True) -> dict[str, float]:
        """Restore what `save` wrote, of other ranks, another ZeRO stage or dtype too. A checkpoint that is not there is
        an error, not a fresh start. All ranks.

        Args:
            anchors: those that moved too.

        Returns:
            {"optimizer_steps": that were taken, "last_lr": of the latest of them, "lr": of the next}.
        """
        state = self._load_state(Path(folder) / "deepspeed" / "state")
        last_lr = self.engine.optimizer.param_groups[0]["lr"]
        for group in self.engine.optimizer.param_groups:
            group.update(self._constants())  # the saved ones came with the state; those asked for now hold
        if anchors:
            self.anchors.load(Path(folder) / "anchors", self.rank)
        self.optimizer_steps = taken = state["optimizer_steps"]
        self.begin = state["course"]["begin"]
        self.course = resumed_course(state["course"], self.spec.learner, taken, self.spec.total_steps)
        lr = learning_rate(self.spec.learner, taken, self.course, self.begin)
        return {"optimizer_steps": taken, "last_lr": last_lr, "lr": lr}

    def _load_state(self, shards: Path) -> dict[str, Any]:
        """Restore weights and the optimizer. Returns what `save` kept beside them."""
        from rlpost.learner import convert

        saved = convert.Saved(shards)
        if not saved.holds(self.world, self.spec.learner.zero_stage, self.spec.model.dtype):
            convert.restore(self.engine, saved)
            return saved.client
        # DeepSpeed only warns, and starts afresh, when it finds nothing.
        load = self._load_trained if self.spec.model.lora is not None else None
        path, state = self.engine.load_checkpoint(str(shards.parent), tag=shards.name, custom_load_fn=load)
        if path is None:
            raise FileNotFoundError(f"no DeepSpeed state for rank {self.rank} of {self.world} in {shards}")
        found: dict[str, Any] = state
        return found

    def load_weights(self, folder: str, taken: int, anchors: bool = True) -> None:
        """Go on from the weights of a checkpoint with an optimizer that begins anew, as its learning rate does. All ranks.

        They are those this rank was started from, adapters included (`LearnerSpec.adapter`).

        Args:
            taken: optimizer steps of the run until here.
            anchors: those that moved too.
        """
        if anchors:
            self.anchors.load(Path(folder) / "anchors", self.rank)
        self.optimizer_steps = self.begin = taken
        self.course = fresh_course(self.spec.learner, self.spec.total_steps, taken)

    def _load_trained(self, src: dict[str, Any], dst: Any) -> None:
        """Take what `save` kept of a model with adapters: all that is trained, and buffers.

        Raises:
            ValueError: the checkpoint is of other adapters.
        """
        found = dst.load_state_dict(src, strict=False)
        frozen = {name for name, parameter in dst.named_parameters() if not parameter.requires_grad}
        # Names of one tensor under which only some are parameters (a head in a module of its own, tied weights).
        held = {id(parameter) for parameter in dst.parameters() if not parameter.requires_grad}
        frozen |= {name for name, tensor in dst.state_dict(keep_vars=True).items() if id(tensor) in held}
        if wrong := sorted((set(found.missing_keys) - frozen) | set(found.unexpected_keys)):
            raise ValueError(
                f"the checkpoint's adapters are not those of model.lora now: {len(wrong)} tensors differ, such as "
                f"{wrong[0]}: resume with the model.lora the run began with"
            )

"""TRL's side: GRPOTrainer with its own generation by transformers, on one process."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workload import Step, Workload, run_side

from rewards import countdown

HOW = (
    "TRL: generate is GRPOTrainer._generate (transformers' generate, tokenizing and decoding), verify is "
    "_calculate_rewards, learn is the rest between on_step_begin and on_step_end, total is from on_step_end to "
    "on_step_end. There is no second copy of the weights to sync."
)


def measure(workload: Workload) -> tuple[str, list[Step]]:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlpost.models.load import load_tokenizer
    from rlpost.models.source import ModelSource

    torch.set_num_threads(workload.threads())
    tokenizer = load_tokenizer(ModelSource(str(workload.model)))
    prompts = [prompt for batch in workload.batches() for prompt in batch]
    for prompt in prompts:
        if (seen := tokenizer(text=prompt.text)["input_ids"]) != prompt.token_ids.tolist():
            raise RuntimeError(f"TRL reads prompt {prompt.text!r} as {seen}, rlpost as {prompt.token_ids.tolist()}")

    def reward(completions: list[str], row: list[int], **_: Any) -> list[float]:
        return [
            countdown.verify(text, entry=prompts[i].metadata["entry"])["score"]
            for text, i in zip(completions, row, strict=True)
        ]

    now: Step = defaultdict(float)
    steps: list[Step] = []

    @contextmanager
    def clock(phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        now[phase] += time.perf_counter() - began

    class Trainer(GRPOTrainer):
        def _generate(self, prompts: list[Any]) -> Any:
            with clock("generate"):
                generated = super()._generate(prompts)
            completion_ids = generated[1]
            now["length"] = sum(map(len, completion_ids)) / len(completion_ids)
            return generated

        def _calculate_rewards(self, *args: Any) -> Any:
            with clock("verify"):
                return super()._calculate_rewards(*args)

    class Clock(TrainerCallback):
        ended: float | None = None

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            now.clear()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            end = time.perf_counter()
            if self.ended is not None:
                learn = end - self.began - now["generate"] - now["verify"]
                steps.append({**now, "learn": learn, "total": end - self.ended})
            self.ended = end

    config = workload.config()
    learner, loss = config.learner, config.objective.policy_loss.params
    trainer = Trainer(
        model=str(workload.model),
        reward_funcs=reward,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": p.text, "row": i} for i, p in enumerate(prompts)]),
        callbacks=[Clock()],
        args=GRPOConfig(
            output_dir=str(workload.folder / "trl"),
            model_init_kwargs={"dtype": config.model.dtype},
            use_cpu=True,
            bf16=False,
            # TRL's default recomputes activations, which rlpost's does not; this model has no need of it.
            gradient_checkpointing=False,
            seed=config.seed,
            shuffle_dataset=False,
            max_steps=workload.total_steps,
            per_device_train_batch_size=workload.prompts * workload.samples,
            num_generations=workload.samples,
            max_completion_length=workload.tokens,
            temperature=config.rollout.temperature,
            use_vllm=False,
            # `token_mean` of rlpost: one mean over all tokens of the optimizer step.
            loss_type="dapo",
            beta=0.0,
            epsilon=loss["low"],
            epsilon_high=loss["high"],
            learning_rate=learner.lr,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=learner.warmup_steps,
            weight_decay=learner.weight_decay,
            max_grad_norm=learner.grad_clip,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return HOW, steps


if __name__ == "__main__":
    run_side("TRL", Path(sys.argv[1]), measure)

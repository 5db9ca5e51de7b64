"""A bandit learned through the whole objective: what a divergence on stored samples keeps, and plain GRPO does not."""

import torch

from rlpost.config import Objective as Settings
from rlpost.learner.batch import Batch
from rlpost.objective import Credit, Denominators, LossInputs, Objective, TermInputs
from rlpost.run.credit import credited
from rlpost.types import Sample

ARMS, RIGHT = 5, (0, 1, 2)
START = torch.tensor([1.0, 0.5, 0.0, 0.5, 0.5], dtype=torch.float64)
GROUPS, SAMPLES, STEPS = 4, 8, 200


def train(settings: dict, seed: int, rehearsal: bool) -> torch.Tensor:
    """Probabilities of the arms after plain gradient descent on sampled batches."""
    settings = Settings.model_validate(settings)
    credit, objective = Credit(settings, STEPS), Objective(settings)
    generator = torch.Generator().manual_seed(seed)
    start = START.log_softmax(-1)
    stored = [arm for arm in RIGHT for _ in range(4)]
    theta = START.clone().requires_grad_()
    for step in range(1, STEPS + 1):
        drawn = torch.multinomial(theta.detach().softmax(-1), GROUPS * SAMPLES, True, generator=generator).tolist()
        samples = [on_policy(arm, i, theta) for i, arm in enumerate(drawn)]
        if rehearsal:
            samples += [given(arm, float(start[arm])) for arm in stored]
        batch = Batch.from_samples(samples)
        lesson = credited(batch, samples, credit, step=step, seed=step, max_tokens=1)
        loss, _ = objective.loss(inputs(lesson.batch, theta, lesson.coefs), denominators(lesson.batch))
        (gradient,) = torch.autograd.grad(loss, theta)
        with torch.no_grad():
            theta -= 0.3 * gradient
    return theta.detach().softmax(-1)


def on_policy(arm: int, i: int, theta: torch.Tensor) -> Sample:
    logp = float(theta.detach().log_softmax(-1)[arm])
    right = arm in RIGHT
    return Sample([0], [arm], "on_policy", i // SAMPLES, [logp], [0], i % SAMPLES, reward=float(right), correct=right)


def given(arm: int, logp: float) -> Sample:
    return Sample.given([0], [arm], "rehearsal", -1 - arm, anchors={"cached": [logp]})


def inputs(batch: Batch, theta: torch.Tensor, coefs: dict[str, float]) -> LossInputs:
    arms = torch.from_numpy(batch.response_tokens()).long()[:, None]
    logp = theta.log_softmax(-1)[arms]

    def column(values) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float64)[:, None]

    terms = TermInputs(
        logp=logp,
        old_logp=logp.detach(),
        behavior_logp=column(batch.behavior_logp),
        anchors={"cached": column(batch.per_token["anchors.cached"])} if "anchors.cached" in batch.per_token else {},
        advantages=column(batch.advantages),
        weights=torch.ones_like(logp.detach()),
        mask=torch.ones_like(arms, dtype=torch.bool),
        entropy=torch.zeros_like(logp.detach()),
        group=torch.from_numpy(batch.group),
    )
    return LossInputs(terms, torch.from_numpy(batch.source).long(), coefs=coefs)


def denominators(batch: Batch) -> dict[str, Denominators]:
    return {name: Denominators(*count, max_tokens=1) for name, count in batch.counts().items()}


DPH = {"regularizers": [{"divergence": "forward_kl", "source": "rehearsal", "anchor": "cached", "coef": 0.5}]}


def test_grpo_forgets_ways_to_be_right_that_a_forward_kl_on_stored_samples_keeps():
    grpo, dph = train({}, seed=0, rehearsal=False), train(DPH, seed=0, rehearsal=True)
    right = list(RIGHT)
    assert grpo[right].sum() > 0.9, "both learn what is right"
    assert dph[right].sum() > 0.9
    assert grpo[right].min() < 0.03, "what was likelier at the start drives the others out"
    assert dph[right].min() > 0.1

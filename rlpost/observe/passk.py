"""pass@k without bias, and how sure of it the prompts make us."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Bounds the memory of one block of the bootstrap: about this many float64 at once.
_BLOCK = 1 << 22


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of `k` samples is correct, estimated from `n` samples of which `c` are.

    1 - C(n-c, k) / C(n, k), unbiased (Chen et al. 2021, "Evaluating Large Language Models Trained on Code",
    section 2.1), as the product 1 - prod_{i=n-c+1..n} (1 - k/i), whose factors stay in [0, 1].

    Raises:
        ValueError: unless 1 <= k <= n and 0 <= c <= n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= n, got n = {n} samples: draw more samples or lower k")
    if not 0 <= c <= n:
        raise ValueError(f"{c} of {n} samples cannot be correct")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def summarize(
    correct: Sequence[Sequence[bool]],
    ks: Sequence[int],
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, tuple[float, float, float]]:
    """Mean pass@k over prompts with a percentile bootstrap interval; prompts are what is resampled.

    Args:
        correct: for each prompt, whether each of its samples is correct; prompts may have different numbers.
        ks: the values of k; each at most the smallest number of samples.
        level: the share of resampled means inside the interval.

    Returns:
        {"pass@k": (value, low, high)}. One prompt, or prompts that all agree, give an interval of no width.

    Raises:
        ValueError: without prompts, or naming a prompt that has fewer samples than k.
    """
    if len(correct) == 0:
        raise ValueError("pass@k of no prompts: the evaluation set is empty")
    counts = [(len(samples), sum(map(bool, samples))) for samples in correct]
    for prompt, (n, _) in enumerate(counts):
        if ks and n < max(ks):
            raise ValueError(f"pass@{max(ks)}: prompt {prompt} has only {n} samples; draw more or lower k")
    values = np.array([[pass_at_k(n, c, k) for k in ks] for n, c in counts])  # (prompts, ks)

    intervals = bootstrap(values, seed, resamples, level)
    return {f"pass@{k}": interval for k, interval in zip(ks, intervals, strict=True)}


def bootstrap(
    values: np.ndarray, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> list[tuple[float, float, float]]:
    """Mean of each column over prompts, with the percentile bootstrap interval of that mean.

    Args:
        values: (prompts, columns); prompts are what is resampled.
        level: the share of resampled means inside the interval.

    Returns:
        (value, low, high) for each column.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // max(1, values.size))
    blocks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    means = np.concatenate(
        [values[rng.integers(len(values), size=(block, len(values)))].mean(axis=1) for block in blocks]
    )  # (resamples, columns)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [(float(m), float(lo), float(hi)) for m, lo, hi in zip(values.mean(axis=0), low, high, strict=True)]

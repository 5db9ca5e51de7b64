"""How good several weak verifiers are, without labels, and how their scores combine into one probability.

After Weaver (Saad-Falcon et al. 2025, arXiv 2506.18203). For a response with truth y in {0, 1}, Pr(y=1) = p, and
verifiers whose scores s_j are independent given y, with d_j = E[s_j | y=1] - E[s_j | y=0] and w_j = sqrt(p (1-p)) d_j:

    Cov(s_i, s_j)                                  = w_i w_j                                  hence the triplets
    w_i^2                                          = Cov(i,j) Cov(i,k) / Cov(j,k)
    E[(s_i - m_i)(s_j - m_j)(s_k - m_k)]           = (1 - 2p) / sqrt(p (1-p))  w_i w_j w_k    which gives p

so that the agreement of three or more verifiers says how good each of them is. What it cannot say is which of the two
classes is the right one: that most verifiers, or the anchor, are better than chance is assumed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

FORMAT = 1
KINDS = ("binary", "continuous")
NORMALISE = ("minmax", "per_problem", "quantile", "none")
MARGINALS = ("none", "all", "small", "large", "adaptive")
KNOTS = 101  # of a quantile normalisation
MIN_VERIFIERS = 3  # two that agree may both be right or both be wrong
MIN_ROWS = 200  # with five verifiers of 0.65 to 0.9, fewer gave a model worse than a majority vote
MIN_MINORITY = 10  # yes votes, and no votes, of a verifier: a single outlier is no agreement
MIN_SHARED = 30  # rows that two verifiers must both have scored
RATE_FLOOR = 0.01  # no rate and no balance is estimated closer to 0 or 1: a vote must never be a proof
EM_STEPS, EM_TOLERANCE = 500, 1e-7


@dataclass(frozen=True)
class Settings:
    """How a label model is fitted.

    Attributes:
        kind: "binary" turns scores into votes at `threshold`; "continuous" takes normalised scores as normal variables
            with one variance in both classes, which ranks as Weaver's Sigma_yS Sigma_SS^-1 s does.
        normalise: to [0, 1] by the smallest and largest score over all problems ("minmax") or of each problem
            ("per_problem", which can score only whole groups), by rank ("quantile"), or not ("none").
        winsorize: share of each tail that "minmax" cuts off first.
        threshold: the normalised score from which on a vote is yes.
        marginals: which verifiers stay, by their share of yes: "all" 0.1 to 0.9, "small" over 0.5, "large" under 0.5,
            "adaptive" large / small / all as the class balance is under 0.2 / over 0.8 / between. When fewer than three
            would stay, all stay.
        max_dependence: largest correlation of two verifiers given the truth; of a pair above it one is dropped (which
            ones belong together can be seen from four verifiers on). None drops none.
        min_correlation: smallest correlation with the truth, as estimated; what is under it, or worse than chance,
            is dropped.
        max_weight: largest log-likelihood ratio (nats) that one verifier may bring, so that a policy that has learned
            to please one verifier has not won.
        anchor: a verifier that checks (a test, a comparison) rather than judges: it is taken to be better than chance,
            never dropped from scoring, and
        anchor_threshold, anchor_cap: where its own, not normalised, score is below the threshold, the posterior is at
            most the cap; where it has none there is no posterior.
        refine: for "binary", go from the moments to the maximum of the likelihood (expectation maximisation).
    """

    kind: str = "binary"
    normalise: str = "minmax"
    winsorize: float = 0.0
    threshold: float = 0.5
    marginals: str = "none"
    max_dependence: float | None = 0.5
    min_correlation: float = 0.05
    max_weight: float = 4.0
    anchor: str | None = None
    anchor_threshold: float = 0.5
    anchor_cap: float = 0.1
    refine: bool = True

    def __post_init__(self) -> None:
        for key, known in (("kind", KINDS), ("normalise", NORMALISE), ("marginals", MARGINALS)):
            if getattr(self, key) not in known:
                raise ValueError(f"{key}: unknown {getattr(self, key)!r}; known: {', '.join(known)}")
        ranges = {"winsorize": (0, 0.49), "min_correlation": (0, 1), "anchor_cap": (0, 1)}
        for key, (low, high) in ranges.items():
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key}: {getattr(self, key)} is not in {low} to {high}")
        if not self.max_weight > 0:
            raise ValueError(f"max_weight: {self.max_weight} is not above 0")
        if self.max_dependence is not None and not self.max_dependence > 0:
            raise ValueError(f"max_dependence: {self.max_dependence} is not above 0; null drops none")


@dataclass(frozen=True)
class LabelModel:
    """What `fit` learned; immutable, and named by a hash of its content.

    Attributes:
        names: the verifiers, in the order of the columns of the scores; all of them, dropped ones too.
        settings: as it was fitted.
        scales: for each verifier what its normalisation needs: (low, high), or the quantiles.
        kept: the verifiers that count.
        dropped: why each other one does not.
        class_balance: Pr(y = 1), given or estimated.
        high, low: for each of `kept`, E[score | y = 1] and E[score | y = 0] after normalising; for votes these are the
            true and the false positive rate.
        variance: for each of `kept`, of the normalised score given y.
        rows: how many responses it was fitted on.
        balance_given: whether `class_balance` was given.
    """

    names: tuple[str, ...]
    settings: Settings
    scales: tuple[tuple[float, ...], ...]
    kept: tuple[str, ...]
    dropped: Mapping[str, str]
    class_balance: float
    high: tuple[float, ...]
    low: tuple[float, ...]
    variance: tuple[float, ...]
    rows: int
    balance_given: bool = field(default=False)

    @property
    def tpr(self) -> dict[str, float]:
        """Pr(vote yes | right) of each kept verifier."""
        return dict(zip(self.kept, self.high, strict=True))

    @property
    def fpr(self) -> dict[str, float]:
        """Pr(vote yes | wrong) of each kept verifier."""
        return dict(zip(self.kept, self.low, strict=True))

    @functools.cached_property
    def version(self) -> str:
        """12 hexadecimal digits of the SHA-256 of the content."""
        content = json.dumps(self._content(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def predict(self, scores: Any, problem_ids: Sequence[Any] | None = None) -> np.ndarray:
        """Pr(y = 1 | scores) of each response, float64 (n,).

        Args:
            scores: (n, m), columns in the order of `names`, NaN where there is no verdict.
            problem_ids: (n,), for `normalise: per_problem` only.

        A missing score is no vote. NaN where no kept verifier has one, or the anchor has none.

        Raises:
            ValueError: the wrong shape, or problems that are needed and not given.
        """
        scores = _matrix(scores, len(self.names))
        log_odds, votes = self.log_odds(scores, problem_ids)
        posterior = 1 / (1 + np.exp(-(math.log(self.class_balance / (1 - self.class_balance)) + log_odds.sum(axis=1))))
        posterior[votes == 0] = np.nan
        if self.settings.anchor is not None:
            anchor = scores[:, self.names.index(self.settings.anchor)]
            posterior[np.isnan(anchor)] = np.nan
            refused = anchor < self.settings.anchor_threshold
            posterior[refused] = np.minimum(posterior[refused], self.settings.anchor_cap)
        return posterior

    def log_odds(self, scores: Any, problem_ids: Sequence[Any] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """What each kept verifier adds to the log odds, (n, kept), 0 without a vote; and the number of votes, (n,)."""
        scores = _matrix(scores, len(self.names))
        values = _normalised(scores, self.scales, self.settings, problem_ids)
        values = values[:, [self.names.index(name) for name in self.kept]]
        high, low, variance = np.array(self.high), np.array(self.low), np.array(self.variance)
        if self.settings.kind == "binary":
            ratio = np.where(_votes(values, self.settings) == 1, np.log(high / low), np.log((1 - high) / (1 - low)))
        else:
            ratio = (high - low) / variance * (values - (high + low) / 2)
        present = ~np.isnan(values)
        ratio = np.clip(np.where(present, ratio, 0.0), -self.settings.max_weight, self.settings.max_weight)
        return ratio, present.sum(axis=1)

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain JSON, with `format` and `version`."""
        return {"format": FORMAT, "version": self.version, **self._content()}

    @classmethod
    def load(cls, state: Any) -> LabelModel:
        """The model of a `state_dict`.

        Raises:
            ValueError: another format, keys that do not fit, or a content that is not the one its version names.
        """
        if not isinstance(state, Mapping) or "version" not in state:
            raise ValueError("this is not the state of a label model")
        if state.get("format") != FORMAT:
            raise ValueError(f"a label model of format {state.get('format')!r}; this code reads {FORMAT}: fit it anew")
        try:
            model = cls(
                names=tuple(state["names"]),
                settings=Settings(**state["settings"]),
                scales=tuple(tuple(map(float, scale)) for scale in state["scales"]),
                kept=tuple(state["kept"]),
                dropped=dict(state["dropped"]),
                class_balance=float(state["class_balance"]),
                high=tuple(map(float, state["high"])),
                low=tuple(map(float, state["low"])),
                variance=tuple(map(float, state["variance"])),
                rows=int(state["rows"]),
                balance_given=bool(state["balance_given"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is not the state of a label model: {error!r}") from error
        if model.version != state["version"]:
            raise ValueError(
                f"the label model says version {state['version']!r} but its content is {model.version!r}: it was "
                "changed after it was fitted; fit it anew"
            )
        return model

    def _content(self) -> dict[str, Any]:
        return asdict(self)


def fit(
    scores: Any,
    problem_ids: Sequence[Any],
    class_balance: float | None = None,
    *,
    names: Sequence[str] | None = None,
    **settings: Any,
) -> LabelModel:
    """Estimate from scores alone how good each verifier is.

    Args:
        scores: (n, m), one row a response, one column a verifier, NaN where it gave no verdict.
        problem_ids: (n,), which problem each row answers.
        class_balance: the share of right responses when it is known, e.g. from a few labelled ones; None estimates it.
        names: of the verifiers; "0", "1", ... by default.
        settings: the attributes of `Settings`.

    Raises:
        ValueError: arguments that do not fit, or fewer than three verifiers that can be used, with the reason for each.
    """
    options = Settings(**settings)
    scores = _matrix(scores)
    rows, columns = scores.shape
    names = tuple(names) if names is not None else tuple(str(j) for j in range(columns))
    if len(names) != columns or len(set(names)) != columns:
        raise ValueError(f"names: {len(set(names))} different names for {columns} columns of scores")
    if len(problem_ids) != rows:
        raise ValueError(f"problem_ids: {len(problem_ids)} for {rows} rows of scores")
    if rows < MIN_ROWS:
        raise ValueError(f"scores: {rows} responses; at least {MIN_ROWS} are needed, and a thousand are better")
    if class_balance is not None and not 0 < class_balance < 1:
        raise ValueError(f"class_balance: {class_balance} is not between 0 and 1")
    if options.anchor is not None and options.anchor not in names:
        raise ValueError(f"anchor: {options.anchor!r} is none of the verifiers {', '.join(names)}")

    scales = tuple(_scale(column[~np.isnan(column)], options) for column in scores.T)
    values = _normalised(scores, scales, options, problem_ids)
    if options.kind == "binary":
        values = _votes(values, options)

    dropped: dict[str, str] = {}
    kept = _usable(scores, values, names, dropped)
    kept = _informative(values, names, kept, dropped, options)
    kept = _by_marginals(values, names, kept, dropped, class_balance, options)
    kept = _independent(values, names, kept, dropped, options)
    kept = _informative(values, names, kept, dropped, options)
    chosen = values[:, kept]
    factor = _Moments(chosen).factor(_anchor_in(names, kept, options))
    balance = class_balance if class_balance is not None else _Moments(chosen).balance(factor)
    high, low = _rates(chosen, factor, balance)
    if options.kind == "binary":
        high, low = _inside(high), _inside(low)
        if options.refine:
            balance, high, low = _maximum_likelihood(chosen, balance, high, low, fixed=class_balance is not None)
    total = np.nanvar(chosen, axis=0)
    variance = np.maximum(total - balance * (1 - balance) * (high - low) ** 2, RATE_FLOOR * total)
    return LabelModel(
        names=names,
        settings=options,
        scales=scales,
        kept=tuple(names[j] for j in kept),
        dropped=dropped,
        class_balance=float(balance),
        high=tuple(map(float, high)),
        low=tuple(map(float, low)),
        variance=tuple(map(float, variance)),
        rows=rows,
        balance_given=class_balance is not None,
    )


# ------------------------------------------------------------------------------------------------ scores and votes


def _matrix(scores: Any, columns: int | None = None) -> np.ndarray:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or (columns is not None and array.shape[1] != columns):
        raise ValueError(f"scores: shape {array.shape}, not (responses, {columns or 'verifiers'})")
    if np.isinf(array).any():
        raise ValueError("scores: infinite; a missing score is NaN")
    return array


def _scale(column: np.ndarray, options: Settings) -> tuple[float, ...]:
    """What it takes to normalise a verifier's scores; empty when it has none."""
    if not len(column):
        return ()
    if options.normalise == "quantile":
        return tuple(np.asarray(np.quantile(column, np.linspace(0, 1, KNOTS))).tolist())
    if options.normalise in ("none", "per_problem"):
        return (0.0, 1.0)
    low = float(np.quantile(column, options.winsorize))
    high = float(np.quantile(column, 1 - options.winsorize))
    if low == high:  # both tails hold one value, as with a rare yes
        low, high = float(column.min()), float(column.max())
    return (low, high)


def _normalised(
    scores: np.ndarray, scales: Sequence[Sequence[float]], options: Settings, problem_ids: Sequence[Any] | None
) -> np.ndarray:
    if options.normalise == "none":
        return scores
    if options.normalise == "per_problem":
        if problem_ids is None or len(problem_ids) != len(scores):
            raise ValueError("normalise: per_problem needs the problem of every row")
        values = np.full(scores.shape, np.nan)
        _, group_of = np.unique([str(problem) for problem in problem_ids], return_inverse=True)
        order = np.argsort(group_of, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1):
            values[rows] = np.column_stack([_between(c, c[~np.isnan(c)]) for c in scores[rows].T])
        return values
    values = np.full(scores.shape, np.nan)
    for j, scale in enumerate(scales):
        if options.normalise == "quantile" and scale:
            knots = np.array(scale)
            ranks = np.searchsorted(knots, scores[:, j], "left") + np.searchsorted(knots, scores[:, j], "right")
            values[:, j] = np.where(np.isnan(scores[:, j]), np.nan, ranks / (2 * len(knots)))
        else:
            values[:, j] = _between(scores[:, j], np.array(scale))
    return values


def _between(column: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Where a score lies between the smallest and the largest seen; no vote where these are the same."""
    if not len(seen) or seen.min() == seen.max():
        return np.full(len(column), np.nan)
    return np.clip((column - seen.min()) / (seen.max() - seen.min()), 0, 1)


def _votes(values: np.ndarray, options: Settings) -> np.ndarray:
    return np.where(np.isnan(values), np.nan, values >= options.threshold)


# ------------------------------------------------------------------------------------------------ which verifiers count


def _usable(scores: np.ndarray, values: np.ndarray, names: Sequence[str], dropped: dict[str, str]) -> list[int]:
    """The columns that vary, every two of which have rows in common."""
    given, present = ~np.isnan(scores), ~np.isnan(values)
    kept = []
    for j, name in enumerate(names):
        if given[:, j].sum() < MIN_SHARED:
            dropped[name] = f"scored {given[:, j].sum()} responses; at least {MIN_SHARED} are needed"
        elif present[:, j].sum() < MIN_SHARED or _minority(values[present[:, j], j]) < MIN_MINORITY:
            dropped[name] = "always or nearly always says the same"
        else:
            kept.append(j)
    shared = present.T.astype(np.float64) @ present
    np.fill_diagonal(shared, np.inf)
    while len(kept) > 1 and (few := shared[np.ix_(kept, kept)] < MIN_SHARED).any():
        # The one with most such partners; then the one with fewest scores.
        worst = max(range(len(kept)), key=lambda i: (few[i].sum(), -present[:, kept[i]].sum(), names[kept[i]]))
        dropped[names[kept.pop(worst)]] = f"fewer than {MIN_SHARED} responses scored together with another verifier"
    return _enough(kept, dropped)


def _minority(values: np.ndarray) -> int:
    """How many values are not the most frequent one."""
    return len(values) - int(np.unique(values, return_counts=True)[1].max())


def _by_marginals(
    values: np.ndarray,
    names: Sequence[str],
    kept: list[int],
    dropped: dict[str, str],
    balance: float | None,
    options: Settings,
) -> list[int]:
    which = options.marginals
    if which == "none":
        return kept
    if which == "adaptive":
        if balance is None:
            moments = _Moments(values[:, kept])
            balance = moments.balance(moments.factor(_anchor_in(names, kept, options)))
        which = "large" if balance < 0.2 else "small" if balance > 0.8 else "all"
    low, high = {"all": (0.1, 0.9), "small": (0.5, 1.0), "large": (0.0, 0.5)}[which]
    share = {j: float(np.nanmean(values[:, j])) for j in kept}
    staying = [j for j in kept if low < share[j] < high]
    if len(staying) < MIN_VERIFIERS:
        return kept
    dropped |= {names[j]: f"says yes to {share[j]:.3f} of all" for j in kept if j not in staying}
    return staying


def _independent(
    values: np.ndarray, names: Sequence[str], kept: list[int], dropped: dict[str, str], options: Settings
) -> list[int]:
    """Drop one of each pair of verifiers that agree by more than the truth explains."""
    if options.max_dependence is None:
        return kept
    while len(kept) > MIN_VERIFIERS:
        moments = _Moments(values[:, kept])
        dependence = moments.dependence()
        largest = dependence.max()
        if largest <= options.max_dependence:
            break
        pair = np.argwhere(dependence == largest)[0]
        # Of the two, the one more entangled with the others; the anchor never. The name only breaks ties.
        worst = max(
            (int(i) for i in pair),
            key=lambda i: (names[kept[i]] != options.anchor, round(dependence[i].sum(), 9), names[kept[i]]),
        )
        other = next(names[kept[i]] for i in pair if i != worst)
        dropped[names[kept.pop(worst)]] = f"depends on {other!r}: correlation {largest:.2f} given the truth"
    return kept


def _informative(
    values: np.ndarray, names: Sequence[str], kept: list[int], dropped: dict[str, str], options: Settings
) -> list[int]:
    while True:
        factor = _Moments(values[:, kept]).factor(_anchor_in(names, kept, options))
        weakest = min(range(len(kept)), key=lambda i: (factor[i], names[kept[i]]))
        if factor[weakest] >= options.min_correlation:
            return kept
        dropped[names[kept.pop(weakest)]] = f"correlation {factor[weakest]:.3f} with the truth, as estimated"
        kept = _enough(kept, dropped)


def _enough(kept: list[int], dropped: Mapping[str, str]) -> list[int]:
    if len(kept) < MIN_VERIFIERS:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped.items()) or "no more were given"
        raise ValueError(
            f"{len(kept)} verifiers can be used and at least {MIN_VERIFIERS} are needed, or their agreement says "
            f"nothing ({reasons}); add a verifier or score more responses"
        )
    return kept


def _anchor_in(names: Sequence[str], kept: Sequence[int], options: Settings) -> int | None:
    return next((i for i, j in enumerate(kept) if names[j] == options.anchor), None)


# ------------------------------------------------------------------------------------------------------------ estimates


class _Moments:
    """Correlations of the columns, each over the rows that both have, and what follows from them."""

    def __init__(self, values: np.ndarray) -> None:
        present = ~np.isnan(values)
        standard = (values - np.nanmean(values, axis=0)) / np.nanstd(values, axis=0)
        self.standard = np.where(present, standard, 0.0)
        self.present = present.astype(np.float64)
        self.correlation = self.standard.T @ self.standard / np.maximum(self.present.T @ self.present, 1)
        self.columns = values.shape[1]

    def factor(self, anchor: int | None = None) -> np.ndarray:
        """Each column's correlation with the truth: the vector whose outer product the correlations are.

        The triplets' medians, then the least-squares fit off the diagonal (a principal factor).
        """
        size = np.array([self._triplet(i) for i in range(self.columns)])
        off_diagonal = self.correlation - np.diag(np.diag(self.correlation))
        for _ in range(200):
            eigenvalues, vectors = np.linalg.eigh(off_diagonal + np.diag(size))
            factor = vectors[:, -1] * math.sqrt(max(eigenvalues[-1], 0.0))
            updated = np.minimum(factor**2, 1 - RATE_FLOOR)
            if np.abs(updated - size).max() < 1e-10:
                break
            size = updated
        towards = factor[anchor] if anchor is not None else factor.sum()
        return np.clip(factor if towards >= 0 else -factor, RATE_FLOOR - 1, 1 - RATE_FLOOR)

    def balance(self, factor: np.ndarray) -> float:
        """Pr(y = 1), from how skewed the agreement of three is."""
        over = under = 0.0
        for i, j, k, third, rows in self._thirds():
            product = factor[i] * factor[j] * factor[k]
            over += rows * third * product
            under += rows * product**2
        if under == 0:
            raise ValueError(
                "class_balance: cannot be estimated, as no three verifiers scored the same responses; give it"
            )
        skew = over / under
        return float(_inside((1 - skew / math.sqrt(skew**2 + 4)) / 2))

    def dependence(self) -> np.ndarray:
        """(m, m): by how much every two columns agree beyond the truth, as their correlation given it; 0 if less.

        A pair's own correlation does not enter the estimate that it is compared with.
        """
        result = np.zeros((self.columns, self.columns))
        for i in range(self.columns):
            for j in range(i):
                one, two = self._triplet(i, without=j), self._triplet(j, without=i)
                excess = max(abs(self.correlation[i, j]) - math.sqrt(one * two), 0.0)
                # Two verifiers that are nearly always right leave nothing to correlate: noise is not divided by it.
                result[i, j] = result[j, i] = excess / max(math.sqrt((1 - one) * (1 - two)), 0.1)
        return result

    def _triplet(self, i: int, without: int | None = None) -> float:
        """The squared correlation of a column with the truth: the median over all pairs of others, in [0, 0.99]."""
        others = [j for j in range(self.columns) if j not in (i, without)]
        found = [
            self.correlation[i, j] * self.correlation[i, k] / self.correlation[j, k]
            for a, j in enumerate(others)
            for k in others[:a]
            if self.correlation[j, k] != 0
        ]
        return float(np.clip(np.median(found), 0.0, 1 - RATE_FLOOR)) if found else 0.0

    def _thirds(self) -> Iterator[tuple[int, int, int, float, float]]:
        """The third moment of every three different columns that have rows in common, and how many rows."""
        for i in range(self.columns):
            sums = (self.standard * self.standard[:, [i]]).T @ self.standard
            counts = (self.present * self.present[:, [i]]).T @ self.present
            for j in range(i):
                for k in range(j):
                    if counts[j, k] > 0:
                        yield i, j, k, sums[j, k] / counts[j, k], counts[j, k]


def _rates(values: np.ndarray, factor: np.ndarray, balance: float) -> tuple[np.ndarray, np.ndarray]:
    """E[score | y = 1] and E[score | y = 0] of each column."""
    difference = factor * np.nanstd(values, axis=0) / math.sqrt(balance * (1 - balance))
    mean = np.nanmean(values, axis=0)
    return mean + (1 - balance) * difference, mean - balance * difference


def _inside(rates: Any) -> np.ndarray:
    return np.clip(rates, RATE_FLOOR, 1 - RATE_FLOOR)


def _maximum_likelihood(
    votes: np.ndarray, balance: float, tpr: np.ndarray, fpr: np.ndarray, fixed: bool
) -> tuple[float, np.ndarray, np.ndarray]:
    """Expectation maximisation from the moments' estimate (Dawid and Skene 1979; Zhang et al. 2014, arXiv 1406.3824).

    Args:
        fixed: the balance was given and stays.
    """
    present = ~np.isnan(votes)
    yes = np.where(present, votes, 0.0)
    no = np.where(present, 1 - votes, 0.0)
    scored = present.any(axis=1)
    for _ in range(EM_STEPS):
        odds = yes @ np.log(tpr / fpr) + no @ np.log((1 - tpr) / (1 - fpr)) + math.log(balance / (1 - balance))
        right = np.where(scored, 1 / (1 + np.exp(-odds)), 0.0)
        wrong = np.where(scored, 1 - right, 0.0)
        before = np.concatenate([tpr, fpr, [balance]])
        tpr = _inside(right @ yes / np.maximum(right @ present, 1e-9))
        fpr = _inside(wrong @ yes / np.maximum(wrong @ present, 1e-9))
        if not fixed:
            balance = float(_inside(right.sum() / scored.sum()))
        if np.abs(np.concatenate([tpr, fpr, [balance]]) - before).max() < EM_TOLERANCE:
            break
    return balance, tpr, fpr

"""Several weak verifiers as one: the probability that a response is right, given what each of them says (Weaver).

    from rewards.ensemble import fit_from_rollouts
    fit_from_rollouts("runs/mine/rollouts/step_*.parquet", ["judge", "reward_model", "math"], "ensemble.json")

then `{name: ensemble, of: [judge, reward_model, math], model: ensemble.json}` beside these with `weight: 0`.

What a policy is trained on it learns to exploit: the rates hold for responses like those the model was fitted on. So
fit again on fresh rollouts, keep `max_weight`, and name a verifier that checks as the `anchor`.
"""

from __future__ import annotations

import functools
import glob
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards._label_model import LabelModel, Settings, fit

__all__ = ["LabelModel", "Settings", "fit", "fit_from_rollouts", "read", "verify", "write"]


def verify(
    verdicts: Mapping[str, float | None],
    model: str,
    of: Sequence[str],
    threshold: float | None = None,
    version: str | None = None,
) -> dict[str, Any]:
    """The posterior that the response is right, or with `threshold` correct from that posterior on and else wrong.

    Args:
        verdicts: the score of each verifier in `of`, None where it is unverified: then it has no vote. When none has
            one, or the model's anchor has none, the response is unverified.
        model: a file that `fit_from_rollouts` or `write` wrote. It is read again when it is replaced.
        of: the verifiers, the same as the model was fitted on.
        version: the only version of the model to score with; any by default.

    The verdict's `reason` names the version, its `components` what each verifier added to the log odds (nats).

    Raises:
        ValueError: a model that cannot score this; nothing the response could have caused.
    """
    file = os.stat(model)
    label_model = _cached(model, file.st_mtime_ns, file.st_ino)
    if version is not None and label_model.version != version:
        raise ValueError(f"model: {model} is version {label_model.version}, not {version} as `version` asks for")
    if set(of) != set(label_model.names):
        raise ValueError(f"of: {', '.join(of)}, but {model} was fitted on {', '.join(label_model.names)}")
    if label_model.settings.normalise == "per_problem":
        raise ValueError(f"model: {model} normalises each problem's scores, which one response does not show")
    missing = [name for name in of if name not in verdicts]
    if missing:
        raise ValueError(f"of: no verdict of {', '.join(missing)} was given (given: {', '.join(verdicts) or 'none'})")
    given = [verdicts[name] for name in label_model.names]
    scores = np.array([[np.nan if score is None else score for score in given]], dtype=np.float64)
    posterior = float(label_model.predict(scores)[0])
    unverified = [name for name in label_model.names if verdicts[name] is None]
    details = {"model": label_model.version, "posterior": None, "unverified": unverified}
    if np.isnan(posterior):
        return {"score": None, "reason": "no_votes", "details": details}
    added, _ = label_model.log_odds(scores)
    return {
        "score": posterior if threshold is None else float(posterior >= threshold),
        "reason": f"model {label_model.version}",
        "components": dict(zip(label_model.kept, added[0].tolist(), strict=True)),
        "details": {**details, "posterior": posterior},
    }


def fit_from_rollouts(
    path_glob: str,
    verifiers: Sequence[str],
    out: str | Path,
    class_balance: float | None = None,
    last: int | None = None,
    **settings: Any,
) -> LabelModel:
    """Fit a label model on a run's rollouts and write it to `out`.

    Args:
        path_glob: the Parquet files, e.g. "runs/mine/rollouts/step_*.parquet".
        verifiers: their names in the run's configuration; what is unverified counts as missing.
        last: only this many files, the last by name.
        class_balance, settings: as in `fit`.

    Raises:
        ValueError: no file, a verifier that is in none of them, or scores that `fit` refuses.
    """
    import pyarrow.parquet as pq

    paths = sorted(glob.glob(path_glob))
    if not paths:
        raise ValueError(f"path_glob: no file matches {path_glob!r}")
    rows, problems = [], []
    seen: set[str] = set()
    for path in paths[-last:] if last else paths:
        table = pq.read_table(path, columns=["prompt_id", "finish_reason", "verdicts"])
        for row in table.to_pylist():
            if row["finish_reason"] == "abort":
                continue
            said = json.loads(row["verdicts"])
            seen.update(said)
            scores = [said.get(name, {}).get("score") for name in verifiers]
            rows.append([np.nan if score is None else score for score in scores])
            problems.append(row["prompt_id"])
    if unknown := [name for name in verifiers if name not in seen]:
        raise ValueError(
            f"verifiers: {', '.join(unknown)} scored no rollout in {path_glob!r} (there: {', '.join(sorted(seen))})"
        )
    model = fit(np.array(rows, dtype=np.float64), problems, class_balance, names=verifiers, **settings)
    write(model, out)
    return model


def write(model: LabelModel, path: str | Path) -> None:
    """Write a model as JSON; a reader sees the old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(model.state_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read(path: str | Path) -> LabelModel:
    """The model in a file.

    Raises:
        ValueError: the file is no label model, or was changed after it was fitted.
    """
    try:
        return LabelModel.load(json.loads(Path(path).read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@functools.lru_cache(maxsize=8)
def _cached(path: str, modified: int, inode: int) -> LabelModel:
    return read(path)

"""Which transforms, and whether predictions are averaged: chosen by cross-validation over groups of training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mdaug.augment import COPIES, RICHER, TODAY, Policy
from mdaug.recipe.figures import hits_of, interval, mean_recall
from mdaug.recipe.trials import Images, Trial

# Time goes round in a periodic motion; an event is moved by less, and what moves in is the floor.
EVENT: dict[str, Any] = {"circular": False, "shift": 0.25}
MASKS: dict[str, Any] = {"time_mask": 0.1, "doppler_mask": 0.1}
HALF = replace(RICHER, stretch=0.08, doppler_scale=0.05, contrast=0.1, gain=0.05)
STRONG = replace(RICHER, stretch=0.3, doppler_scale=0.2, doppler_shift=0.04, contrast=0.4, gain=0.2, noise=0.08)
CANDIDATES = {
    "today": TODAY,
    "richer": RICHER,
    "richer, event": replace(RICHER, **EVENT),
    "today, event": replace(TODAY, **EVENT),
    "half": HALF,
    "half, event": replace(HALF, **EVENT),
    "strong": STRONG,
    "strong, event": replace(STRONG, **EVENT),
    "richer + masks": replace(RICHER, **MASKS),
    "richer + masks, event": replace(RICHER, **MASKS, **EVENT),
    "richer + mix": replace(RICHER, mix=0.3),
    "richer + mix, event": replace(RICHER, mix=0.3, **EVENT),
}
FINALISTS = 4  # of the first round, which has one seed


@dataclass(frozen=True)
class Chosen:
    """The outcome of a search.

    Attributes:
        name: of the candidate.
        policy: with its test-time copies, 0 where averaging does not help.
        recall, low, high: cross-validated mean recall and its 95 % interval. The best of several: a little optimistic.
        table: [{"name", "copies", "recall", "low", "high", "seeds"}], best first.
    """

    name: str
    policy: Policy
    recall: float
    low: float
    high: float
    table: list[dict[str, Any]]


def search(
    train: Images,
    folds: np.ndarray,
    run: Callable[[Sequence[Trial]], list[dict[str, Any]]],
    candidates: dict[str, Policy] = CANDIDATES,
    seeds: int = 3,
    per_class: int = 0,
    subset: int = 0,
) -> Chosen:
    """Choose a policy on training images alone.

    All candidates with one seed; the best four with the other seeds. The one with the best mean recall over all images,
    each judged by a classifier of other groups, wins, with or without averaging over transformed copies.

    Args:
        train: the training images.
        folds: int64 (n,), their folds, see `trials.make_folds`.
        run: returns the results of trials.
        candidates: name -> policy.
        seeds: classifiers per candidate and fold in the second round.
        per_class, subset: as in `trials.Trial`.
    """

    def trials(name: str, chosen: range) -> list[Trial]:
        options = {"per_class": per_class, "subset": subset}
        return [
            Trial(name, candidates[name], fold=int(fold), seed=seed, **options)  # type: ignore[arg-type]
            for seed in chosen
            for fold in np.unique(folds)
        ]

    results: dict[str, list[dict[str, Any]]] = {name: [] for name in candidates}
    chosen = list(candidates)
    for round_seeds in (range(1), range(1, seeds)):
        planned = [trial for name in chosen for trial in trials(name, round_seeds)]
        for trial, result in zip(planned, run(planned), strict=True):
            results[trial.arm].append(result)
        chosen = sorted(chosen, key=lambda name: -max(_recalls(results[name], train).values()))[:FINALISTS]
    rows: list[dict[str, Any]] = []
    for name, own in results.items():
        for key, copies in (("plain", 0), ("averaged", COPIES)):
            hits = hits_of(own, train.labels, key)
            recall, low, high = interval(hits, train.labels, train.groups)
            row = {"name": name, "copies": copies, "recall": recall, "low": low, "high": high, "seeds": len(hits)}
            rows.append(row)
    rows.sort(key=lambda row: -row["recall"])
    best = next(row for row in rows if row["name"] in chosen)
    policy = replace(candidates[best["name"]], copies=best["copies"])
    return Chosen(best["name"], policy, best["recall"], best["low"], best["high"], rows)


def _recalls(results: list[dict[str, Any]], train: Images) -> dict[str, float]:
    return {key: mean_recall(hits_of(results, train.labels, key), train.labels) for key in ("plain", "averaged")}

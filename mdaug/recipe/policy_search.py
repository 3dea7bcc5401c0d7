"""Which transforms, and whether predictions are averaged: chosen by cross-validation over groups of training images.

A few dozen images choose by luck, so recordings of other people choose in their place where there are enough of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mdaug.augment import COPIES, RICHER, TODAY, Policy
from mdaug.recipe.figures import hits_of, interval, mean_recall
from mdaug.recipe.trials import Images, Material, Trial, make_folds
from shards.errors import UserError

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
        per_class: images of each class to train on, another subset for each seed; 0: all.
    """

    def trials(name: str, chosen: range) -> list[Trial]:
        return _trials(name, candidates[name], folds, chosen, per_class)

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


def prove(
    train: Images,
    folds: np.ndarray,
    run: Callable[[Sequence[Trial]], list[dict[str, Any]]],
    policy: Policy,
    seeds: range,
    per_class: int = 0,
) -> tuple[float, float, float]:
    """Return the cross-validated gain of a policy over today's transforms, and its 95 % interval.

    The arguments are those of `search`; `seeds` are others than those that chose the policy.
    """
    hits = []
    for each in (policy, TODAY):
        results = run(_trials("", each, folds, seeds, per_class))
        hits.append(hits_of(results, train.labels, "averaged" if each.copies else "plain"))
    return interval(hits[0], train.labels, train.groups, hits[1])


def task_of(auxiliary: Images | None, classes: Sequence[str], few: int, most_folds: int) -> Material | None:
    """Return auxiliary images as a task on which a policy can be chosen; None where they are no better than few images.

    They need two classes, two groups of each, and more images.

    Args:
        auxiliary: the images.
        classes: names of their labels.
        few: number of the training images that would choose otherwise.
        most_folds: as in `make_folds`.
    """
    if auxiliary is None or len(auxiliary) <= few:
        return None
    present, labels = np.unique(auxiliary.labels, return_inverse=True)
    groups = np.asarray(auxiliary.groups)
    if len(present) < 2 or min(len(set(groups[labels == label])) for label in range(len(present))) < 2:
        return None
    try:
        folds = make_folds(labels, auxiliary.groups, most_folds, [classes[label] for label in present])
    except UserError:  # groups that cannot be dealt out
        return None
    return Material([classes[label] for label in present], replace(auxiliary, labels=labels), folds)


def _trials(name: str, policy: Policy, folds: np.ndarray, seeds: range, per_class: int) -> list[Trial]:
    return [
        Trial(name, policy, fold=int(fold), seed=seed, per_class=per_class, subset=seed if per_class else 0)
        for seed in seeds
        for fold in np.unique(folds)
    ]


def _recalls(results: list[dict[str, Any]], train: Images) -> dict[str, float]:
    return {key: mean_recall(hits_of(results, train.labels, key), train.labels) for key in ("plain", "averaged")}

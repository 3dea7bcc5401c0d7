"""Which transforms, and whether predictions are averaged: chosen by cross-validation over groups of training images.

A few dozen images choose by luck, so recordings of other people choose in their place where there are enough of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mdaug.augment import COPIES, RICHER, TODAY, Policy
from mdaug.recipe.figures import hits_of, interval, mean_recall
from mdaug.recipe.trials import Images, Material, Trial, make_folds
from shards.errors import UserError

# Time goes round in a periodic motion; an event is moved by less, and what moves in is the floor.
CANDIDATES = {
    "today": TODAY,
    "today, event": replace(TODAY, circular=False, shift=0.25),
    "richer": RICHER,
    "richer, periodic": replace(RICHER, circular=True, shift=0.5),
}


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
    """Choose a policy on training images alone, by successive halving (Karnin et al., ICML 2013).

    All candidates with one seed, the better half of them with the next, until one is left or the seeds are used up. The
    one with the best mean recall over all images, each judged by a classifier of other groups, wins, with or without
    averaging over transformed copies.

    Args:
        train: the training images.
        folds: int64 (n,), their folds, see `trials.make_folds`.
        run: returns the results of trials.
        candidates: name -> policy.
        seeds: most classifiers per candidate and fold.
        per_class: images of each class to train on, another subset for each seed; 0: all.
    """

    results: dict[str, list[dict[str, Any]]] = {name: [] for name in candidates}
    chosen = list(candidates)
    for seed in range(seeds):
        planned = [t for name in chosen for t in _trials(name, candidates[name], folds, seed, per_class)]
        for trial, result in zip(planned, run(planned), strict=True):
            results[trial.arm].append(result)
        chosen = sorted(chosen, key=lambda name: -max(_recalls(results[name], train).values()))
        chosen = chosen[: math.ceil(len(chosen) / 2)]
        if len(chosen) == 1:
            break
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


def task_of(auxiliary: Images | None, classes: Sequence[str], few: int) -> Material | None:
    """Return auxiliary images as a task on which a policy can be chosen; None where they are no better than few images.

    They need two classes, two groups of each, and more images. Two folds: classifiers see a few of the images anyway.

    Args:
        auxiliary: the images.
        classes: names of their labels.
        few: number of the training images that would choose otherwise.
    """
    if auxiliary is None or len(auxiliary) <= few:
        return None
    present, labels = np.unique(auxiliary.labels, return_inverse=True)
    groups = np.asarray(auxiliary.groups)
    if len(present) < 2 or min(len(set(groups[labels == label])) for label in range(len(present))) < 2:
        return None
    try:
        folds = make_folds(labels, auxiliary.groups, 2, [classes[label] for label in present])
    except UserError:  # groups that cannot be dealt out
        return None
    return Material([classes[label] for label in present], replace(auxiliary, labels=labels), folds)


def _trials(name: str, policy: Policy, folds: np.ndarray, seed: int, per_class: int) -> list[Trial]:
    subset = seed if per_class else 0
    return [
        Trial(name, policy, fold=int(fold), seed=seed, per_class=per_class, subset=subset) for fold in np.unique(folds)
    ]


def _recalls(results: list[dict[str, Any]], train: Images) -> dict[str, float]:
    return {key: mean_recall(hits_of(results, train.labels, key), train.labels) for key in ("plain", "averaged")}

"""The tables of the experiment: accuracies of the arms, their differences with intervals, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from mdaug.evaluation.usefulness import AUXILIARY, DUPLICATED, GENERATED, LIKE, RANDOM, REAL, TRANSFORMS, UNSIFTED
from mdaug.measures import worth
from mdaug.measures.image_set import ImageSet, class_weights

RESAMPLES, AT_ONCE = 2000, 100
FEWEST_GROUPS = 8  # with fewer a bootstrap over groups says little, and images are resampled instead


def summarize(results: list[dict], held_out: ImageSet, synthetic: ImageSet) -> dict:
    """Return the tables of the experiment from the results of all jobs.

    Returns:
        "arms" and "comparisons" of the classifier that the verdict goes by, see `tables`; "further_classifiers": the
        same of others, with the "classifier"; "real_to_synthetic": the figures of `judge` for synthetic images, by
        classifiers trained on all real ones; "chance": accuracy of guessing; "majority": plain accuracy of naming the
        largest held-out class always.
    """
    classes, counts = held_out.dataset.classes, np.array(held_out.counts())
    judged = judge(
        [r["on_synthetic"] for r in results if "on_synthetic" in r],
        synthetic.labels,
        len(classes),
        among=np.flatnonzero(counts),
    )
    of_network: dict[str, list[dict]] = {}
    for result in results:
        of_network.setdefault(result["network"], []).append(result)
    return {
        "chance": float(1 / np.count_nonzero(counts)),
        "majority": {"class": classes[int(counts.argmax())], "share": float(counts.max() / counts.sum())},
        **tables(of_network.pop(""), held_out),
        "further_classifiers": [{"classifier": name, **tables(own, held_out)} for name, own in of_network.items()],
        "real_to_synthetic": judged,
    }


def tables(results: list[dict], held_out: ImageSet) -> dict:
    """Return the figures of the arms of one kind of classifier.

    Returns:
        "arms": what was used ("name" and "n_used", see `as_used`) and the figures of `judge`, with the 95 % interval of
        the accuracy, the mean accuracy on the training images themselves ("learnt"), what images the generator of its
        synthetic ones saw ("generator": "", "same" or "more") and, of arms with real images, what it is worth in real
        images of the free baseline ("worth", see `worth.with_interval`, else None); "comparisons": differences with
        95 % intervals against the arms "real" and "real + transforms", of the sifted arms also against those without
        sifting, of auxiliary images also against random labels.
    """
    classes = held_out.dataset.classes
    by_arm: dict[tuple[str, int | str, int | str], list[dict]] = {}
    for result in results:
        by_arm.setdefault((result["arm"], result["n_real"], result["ratio"]), []).append(result)
    # The learning curve of the free baseline: mean over seeds and classes.
    curve: list[tuple[float, float]] = []
    for (arm, *_), group in by_arm.items():
        if arm == TRANSFORMS:
            curve.append((float(np.mean(group[0]["real_per_class"])), _recall(group, held_out.labels)))
    arms, comparisons = [], []
    for (arm, n_real, ratio), group in by_arm.items():
        # The arm by itself.
        figures = judge([result["predictions"] for result in group], held_out.labels, len(classes))
        learnt = float(np.mean([result["learnt"] for result in group]))
        hits = _hits(group, held_out.labels)
        _, low, high = paired_interval(hits, np.zeros_like(hits), held_out.labels, held_out.groups)
        case = {"arm": arm, "n_real": n_real, "ratio": ratio, **as_used(group[0], classes)}
        row: dict[str, Any] = {**case, "learnt": learnt, "low": max(low, 0.0), "high": high, **figures}
        arms.append({**row, "generator": _generator(arm, n_real), "worth": None})
        # The arm against its baselines, of the same number of real images and the same seeds.
        seeds = {result["seed"] for result in group}
        for baseline in _baselines(arm) if n_real != 0 else ():
            baseline_ratio = ratio if baseline in UNSIFTED.values() else 0
            others = by_arm.get((baseline, n_real, baseline_ratio), [])
            if not others:  # a number that only the curve has
                continue
            paired = _hits([result for result in others if result["seed"] in seeds], held_out.labels)
            gain = paired_interval(hits, paired, held_out.labels, held_out.groups)
            if baseline == TRANSFORMS:
                arms[-1]["worth"] = worth.with_interval(_recall(others, held_out.labels), gain, curve)
            if arm != REAL and (arm, baseline) != (DUPLICATED, TRANSFORMS):
                difference, low, high = gain
                comparisons.append({**case, "baseline": baseline, "difference": difference, "low": low, "high": high})
    return {"arms": arms, "comparisons": comparisons}


def _baselines(arm: str) -> list[str]:
    """Return what an arm is compared with, apart from itself."""
    baselines = [REAL, TRANSFORMS]
    if arm in UNSIFTED:
        baselines.append(UNSIFTED[arm])
    if arm in AUXILIARY:
        baselines.append(RANDOM)
    return [baseline for baseline in baselines if baseline != arm]


def _generator(arm: str, n_real: int | str) -> str:
    """Return what the generator of synthetic images saw: the "same" real images as the classifier, or "more"."""
    if arm == LIKE:
        return "same"
    return "" if arm not in GENERATED else "same" if n_real == "all" else "more"


def _recall(results: list[dict], labels: np.ndarray) -> float:
    return float(np.mean(_hits(results, labels) @ class_weights(labels)))


def as_used(result: dict, classes: Sequence[str]) -> dict:
    """Return how a result of `run_job` is to be named after the images that it used, whatever was asked for.

    Returns:
        "real" and "further" images; "n_used": real ones per class, such as "50", "50 (only 3 of fall)" or
        "150 (all there are)"; "name": the arm, such as "real + synthetic ×5" or "real + synthetic ×0.5 (only 24 of 240
        there)".
    """
    real, further, wanted, per_class = (result[key] for key in ("real", "further", "wanted", "real_per_class"))
    n_real, name = result["n_real"], result["arm"]
    fewer = [(count, name) for count, name in zip(per_class, classes, strict=True) if count != n_real]
    if n_real == "all":
        least, most = min(per_class), max(per_class)
        n_used = f"{most if least == most else f'{least} to {most}'} (all there are)"
    elif n_real and fewer:
        n_used = f"{n_real} (only {min(fewer)[0]} of {min(fewer)[1]}{', fewer of others too' * (len(fewer) > 1)})"
    else:
        n_used = str(n_real or "–")
    if result["ratio"] not in (0, "all"):
        name += f" ×{further / real:.2g}" + f" (only {further} of {wanted} there)" * (further < wanted)
    return {"real": real, "further": further, "n_used": n_used, "name": name}


def judge(predictions: list[list[int]], labels: np.ndarray, num_classes: int, among: np.ndarray | None = None) -> dict:
    """Return how well several classifiers see the classes of images; classes without images do not count.

    Args:
        predictions: per classifier, the predicted class of each image.
        labels: int64 (n,), the true classes.
        num_classes: K.
        among: labels of the classes that count for the accuracy; all classes by default, or where none of these has an
            image.

    Returns:
        "accuracy": mean recall per class (balanced accuracy), mean over the classifiers; "std" of it, "accuracies" of
        each; "plain_accuracy": share of all images; "recall" per class, None for a class without images; "confusion":
        K x K, rows are true classes, columns predicted ones, the sum over classifiers.
    """
    hits = np.array([np.asarray(predicted) == labels for predicted in predictions])
    accuracies = (hits @ class_weights(labels, among)).tolist()
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    for predicted in predictions:
        np.add.at(confusion, (labels, np.asarray(predicted)), 1)
    totals = confusion.sum(axis=1)
    return {
        "accuracy": float(np.mean(accuracies)),
        "std": spread(accuracies),
        "accuracies": accuracies,
        "plain_accuracy": float(hits.mean()),
        "recall": [float(confusion[k, k] / totals[k]) if totals[k] else None for k in range(num_classes)],
        "confusion": confusion.tolist(),
    }


def paired_interval(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, groups: Sequence[str]
) -> tuple[float, float, float]:
    """Return the difference of the mean recalls of two arms and its 95 % interval, for hits (seeds, images).

    A paired bootstrap over held-out images (Efron and Tibshirani, 1993, chapters 8 and 13). Images of one recording
    are not independent, so whole groups are drawn where there are at least 8 of them; of a class that has one group
    only, images. A draw weighs the groups with exponential numbers (Bayesian bootstrap: Rubin, Ann. Statist. 9, 1981):
    within a class these are Dirichlet weights, no class is ever without images, and a group of several classes counts
    for all of them alike. With m groups a weighted mean varies (m - 1) / (m + 1) times as much as the mean of m groups
    does; the deviations of each class are widened by the root of the inverse. The recalls of a draw are averaged over
    the classes.

    The spread over seeds adds to each draw a multiple of its standard error from Student's distribution, since a
    bootstrap over three seeds is far too narrow. With a single seed it is unknown and left out.

    Args:
        first: whether each classifier of an arm is right, bool (seeds, n).
        second: likewise of the other arm, by the same seeds on the same images.
        labels: int64 (n,), the classes.
        groups: n names.
    """
    names, unit_of = np.unique(np.asarray(groups), return_inverse=True)
    _, label_of = np.unique(labels, return_inverse=True)
    images, alone = np.arange(len(labels)), np.full(len(labels), len(names) < FEWEST_GROUPS)
    for label in range(label_of.max() + 1):
        own = label_of == label
        alone |= own & (len(np.unique(unit_of[own])) == 1)
    _, unit_of = np.unique(np.where(alone, len(names) + images, unit_of), return_inverse=True)
    # Differences and images of each unit and class, and recalls of all.
    difference = first.astype(np.float64) - second
    cells = (unit_of, label_of)
    sums = sparse.csr_array((difference.mean(axis=0), cells))
    sizes = sparse.csr_array((np.ones(len(labels)), cells))
    recall = sums.sum(axis=0) / sizes.sum(axis=0)
    units = np.bincount(sizes.tocoo().coords[1])
    # The draws: of units, and of seeds.
    rng, widen = np.random.default_rng(0), np.sqrt((units + 1) / np.maximum(units - 1, 1))
    draws = []
    for _ in range(RESAMPLES // AT_ONCE):
        weights = rng.standard_exponential((AT_ONCE, len(np.unique(unit_of))))
        draws.append(recall + widen * ((weights @ sums) / (weights @ sizes) - recall))
    per_seed = difference @ class_weights(labels)
    error = spread(per_seed.tolist()) / np.sqrt(len(per_seed))
    means = np.concatenate(draws).mean(axis=1)
    means += error * rng.standard_t(max(len(per_seed) - 1, 1), size=RESAMPLES)
    low, high = np.quantile(means.clip(-1, 1), [0.025, 0.975])
    return float(recall.mean()), float(low), float(high)


def spread(values: Sequence[float]) -> float:
    """Return the sample standard deviation, 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _hits(results: list[dict], labels: np.ndarray) -> np.ndarray:
    ordered = sorted(results, key=lambda result: result["seed"])
    return np.array([result["predictions"] for result in ordered]) == labels

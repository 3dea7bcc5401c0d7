"""Does the synthetic data help a classifier? Arms that differ in their training images only, judged on held-out ones.

Every arm takes the same number of optimizer steps. An arm of one seed is one job with one result file: jobs are
independent of each other, of their order and of the process that runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse

from mdaug.augment import TODAY
from mdaug.measures import classifier, fidelity
from mdaug.measures.image_set import ImageSet, class_weights, take_per_class

REAL, DUPLICATED, TRANSFORMS, BOTH, BOTH_TRANSFORMS, SYNTHETIC = (
    "real",
    "real, duplicated",
    "real + transforms",
    "real + synthetic",
    "real + synthetic + transforms",
    "synthetic",
)
WITH_SIFTED, WITH_SIFTED_TRANSFORMS, SIFTED = "real + sifted", "real + sifted + transforms", "sifted"
WITH_SIMULATED, SIMULATED = "real + simulated", "simulated"
TRANSFORMED = (TRANSFORMS, BOTH_TRANSFORMS, WITH_SIFTED_TRANSFORMS)
UNSIFTED = {WITH_SIFTED: BOTH, WITH_SIFTED_TRANSFORMS: BOTH_TRANSFORMS}
RESAMPLES, AT_ONCE = 2000, 100
LEARNT_FROM = 512  # training images, as many of each class, on which it is measured how well they have been learnt
FEWEST_GROUPS = 8  # with fewer a bootstrap over groups says little, and images are resampled instead


@dataclass(frozen=True)
class Job:
    """One classifier to train.

    Attributes:
        arm: one of the names above.
        n_real: real images per class, a number or "all"; 0 for the arms without real images.
        ratio: further images per real one, a number or "all"; 0 for the arms without further images.
        seed: decides the subsets, the initial weights and the order.
        reference: whether this classifier, trained on all real images, also judges the synthetic ones.
    """

    arm: str
    n_real: int | str
    ratio: int | str
    seed: int
    reference: bool = False

    @property
    def name(self) -> str:
        """The name of the result file, without ending."""
        arm = self.arm.replace(" + ", "-").replace(", ", "-")
        return f"{arm}_n-{self.n_real}_ratio-{self.ratio}_seed-{self.seed}"


def plan_jobs(
    n_real_per_class: Sequence[int | str],
    ratios: Sequence[int | str],
    seeds: int,
    train: ImageSet,
    synthetic: ImageSet,
    sifted: ImageSet | None = None,
    simulated: ImageSet | None = None,
) -> list[Job]:
    """Return the jobs: every arm with every number of real images, every ratio and every seed.

    A number of real images that no class exceeds is "all". Jobs that would repeat another are left out, as is a ratio
    that finds no more synthetic images than the one before it. Sifted, simulated and duplicated images are tried at the
    largest ratio only.
    """
    # Numbers of real images that differ.
    most = max(train.counts())
    numbers = list(dict.fromkeys("all" if n == "all" or int(n) >= most else n for n in n_real_per_class))
    # Arms with real images: at ratios that differ.
    arms: list[tuple[str, int | str, int | str]] = []
    for n_real in numbers:
        used: list[int | str] = []
        for ratio in ratios:
            counts = [_further(train, n_real, value, synthetic) for value in (*used[-1:], ratio)]
            if ratio != 0 and (not used or counts[0] != counts[1]):
                used.append(ratio)
        arms += [(REAL, n_real, 0), (TRANSFORMS, n_real, 0)]
        for ratio in used:
            arms += [(BOTH, n_real, ratio), (BOTH_TRANSFORMS, n_real, ratio)]
        if used:
            arms.append((DUPLICATED, n_real, used[-1]))
            if sifted:
                arms += [(WITH_SIFTED, n_real, used[-1]), (WITH_SIFTED_TRANSFORMS, n_real, used[-1])]
            if simulated:
                arms.append((WITH_SIMULATED, n_real, used[-1]))
    # Arms without.
    arms.append((SYNTHETIC, 0, "all"))
    arms += [(arm, 0, "all") for arm, source in ((SIFTED, sifted), (SIMULATED, simulated)) if source]
    return [
        Job(arm, n_real, ratio, seed, reference=(arm, n_real) == (REAL, numbers[-1]))
        for seed in range(seeds)
        for arm, n_real, ratio in arms
    ]


def run_job(
    job: Job,
    train: ImageSet,
    held_out: ImageSet,
    synthetic: ImageSet,
    sifted: ImageSet | None = None,
    simulated: ImageSet | None = None,
    *,
    steps: int | Literal["settled"],
    batch_size: int,
    learning_rate: float,
    network: str,
) -> dict:
    """Train the classifier of a job and return its result as plain JSON values.

    Returns:
        {"arm", "n_real", "ratio", "seed", "real", "further": training images of each kind, "real_per_class": the former
        of each class, "wanted": further images that the ratio asks for, "learnt": mean recall on (up to 512 of) its
        training images, "predictions": class of each held-out image} and, of a reference, "on_synthetic": class of
        each synthetic image, and "fidelity": what `fidelity.with_floor` finds in its features.
    """
    # Train.
    parts, labels_of_parts = training_images(job, train, synthetic, sifted, simulated)
    images, labels = np.concatenate(parts), np.concatenate(labels_of_parts)
    model = classifier.train(
        images,
        labels,
        len(train.dataset.classes),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=job.seed,
        policy=TODAY if job.arm in TRANSFORMED else None,
        network=network,
    )
    # Judge held-out images, and some that it was trained on.
    predictions, features = classifier.outputs(model, held_out.images)
    some = _spread_per_class(labels, LEARNT_FROM)
    learnt = class_weights(labels[some]) @ (classifier.outputs(model, images[some])[0] == labels[some])
    further = sum(len(part) for part in parts[1:])
    result = {
        "arm": job.arm,
        "n_real": job.n_real,
        "ratio": job.ratio,
        "seed": job.seed,
        "real": len(parts[0]),
        "further": further,
        "real_per_class": np.bincount(labels_of_parts[0], minlength=len(train.dataset.classes)).tolist(),
        "wanted": further if job.arm == DUPLICATED or job.ratio == "all" else int(job.ratio) * len(parts[0]),
        "learnt": float(learnt),
        "predictions": predictions.tolist(),
    }
    # Judge synthetic images, and lend the features to the distances between sets.
    if job.reference:
        on_synthetic, synthetic_features = classifier.outputs(model, synthetic.images)
        _, train_features = classifier.outputs(model, train.images)
        result["on_synthetic"] = on_synthetic.tolist()
        result["fidelity"] = fidelity.with_floor(
            train_features, train.labels, features, held_out.labels, synthetic_features, synthetic.labels
        )
    return result


def _spread_per_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Return sorted indices of about `count` samples, evenly spread over those of each class, and as many of each."""
    of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    each = max(1, count // len(of_class))
    spread = [own[np.unique(np.linspace(0, len(own) - 1, each).astype(int))] for own in of_class]
    return np.sort(np.concatenate(spread))


def training_images(
    job: Job,
    train: ImageSet,
    synthetic: ImageSet,
    sifted: ImageSet | None = None,
    simulated: ImageSet | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return images and labels of a job, [real, further] each; subsets depend on the seed alone, so arms are paired."""
    if job.n_real == 0:
        real = np.arange(0)
    elif job.n_real == "all":
        real = np.arange(len(train))
    else:
        real = take_per_class(train.labels, int(job.n_real), seed=job.seed)
    images, labels = [train.images[real]], [train.labels[real]]
    if job.arm == DUPLICATED:
        # Copies until the set is at least as large as the one with synthetic images.
        times = -(-sum(_further(train, job.n_real, job.ratio, synthetic)) // len(real))
        return [*images, *images * times], [*labels, *labels * times]
    further = {WITH_SIMULATED: simulated, SIMULATED: simulated, SIFTED: sifted} | dict.fromkeys(UNSIFTED, sifted)
    source = further.get(job.arm, synthetic)
    if job.ratio != 0 and source is not None:
        chosen = take_per_class(source.labels, _further(train, job.n_real, job.ratio, source), seed=job.seed)
        images.append(source.images[chosen])
        labels.append(source.labels[chosen])
    return images, labels


def _further(train: ImageSet, n_real: int | str, ratio: int | str, source: ImageSet) -> list[int]:
    """Return how many images of each class a ratio takes from `source`, which may hold fewer."""
    if ratio == "all":
        return source.counts()
    real = [count if n_real == "all" else min(int(n_real), count) for count in train.counts()]
    return [min(int(ratio) * count, available) for count, available in zip(real, source.counts(), strict=True)]


def summarize(results: list[dict], held_out: ImageSet, synthetic: ImageSet) -> dict:
    """Return the tables of the experiment from the results of all jobs.

    Returns:
        "arms": what was used ("name" and "n_used", see `as_used`) and the figures of `judge`, with the 95 % interval of
        the accuracy and the mean accuracy on the training images themselves ("learnt"); "comparisons": differences with
        95 % intervals against the arms "real" and "real + transforms", of the sifted arms also against those without
        sifting; "real_to_synthetic": the figures of `judge` for synthetic images, by classifiers trained on all real
        ones; "chance": accuracy of guessing; "majority": plain accuracy of naming the largest held-out class always.
    """
    classes, counts = held_out.dataset.classes, np.array(held_out.counts())
    num_classes = len(classes)
    by_arm: dict[tuple[str, int | str, int | str], list[dict]] = {}
    for result in results:
        by_arm.setdefault((result["arm"], result["n_real"], result["ratio"]), []).append(result)
    arms, comparisons = [], []
    for (arm, n_real, ratio), group in by_arm.items():
        # The arm by itself.
        figures = judge([result["predictions"] for result in group], held_out.labels, num_classes)
        learnt = float(np.mean([result["learnt"] for result in group]))
        hits = _hits(group, held_out.labels)
        _, low, high = paired_interval(hits, np.zeros_like(hits), held_out.labels, held_out.groups)
        case = {"arm": arm, "n_real": n_real, "ratio": ratio, **as_used(group[0], classes)}
        arms.append({**case, "learnt": learnt, "low": max(low, 0.0), "high": high, **figures})
        # The arm against its baselines, of the same number of real images.
        if n_real == 0 or arm == REAL:
            continue
        for baseline in (REAL, TRANSFORMS, *([UNSIFTED[arm]] if arm in UNSIFTED else [])):
            if arm == baseline or (arm, baseline) == (DUPLICATED, TRANSFORMS):
                continue
            baseline_ratio = ratio if baseline in UNSIFTED.values() else 0
            baseline_hits = _hits(by_arm[baseline, n_real, baseline_ratio], held_out.labels)
            difference, low, high = paired_interval(hits, baseline_hits, held_out.labels, held_out.groups)
            comparisons.append({**case, "baseline": baseline, "difference": difference, "low": low, "high": high})
    judged = judge(
        [r["on_synthetic"] for r in results if "on_synthetic" in r],
        synthetic.labels,
        num_classes,
        among=np.flatnonzero(counts),
    )
    return {
        "chance": float(1 / np.count_nonzero(counts)),
        "majority": {"class": classes[int(counts.argmax())], "share": float(counts.max() / counts.sum())},
        "arms": arms,
        "comparisons": comparisons,
        "real_to_synthetic": judged,
    }


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
        among: labels of the classes that count for the accuracy (default: all); all if there is no image of them.

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

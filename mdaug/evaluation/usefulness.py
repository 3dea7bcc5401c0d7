"""Does the synthetic data help a classifier? Arms that differ in their training images only, judged on held-out ones.

Every arm takes the same number of optimizer steps, so "real images repeated more often" is what the arm "real"
already is. An arm of one seed is one job with one result file: jobs are independent of each other and of their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from mdaug.evaluation import classifier
from mdaug.evaluation.data import ImageSet, take_per_class
from mdaug.evaluation.fidelity import frechet_with_floor

REAL, TRANSFORMS, BOTH, BOTH_TRANSFORMS, SYNTHETIC = (
    "real",
    "real + transforms",
    "real + synthetic",
    "real + synthetic + transforms",
    "synthetic",
)
COMPARISONS = ((BOTH, REAL), (BOTH, TRANSFORMS), (BOTH_TRANSFORMS, TRANSFORMS), (TRANSFORMS, REAL))
RESAMPLES = 2000
FEWEST_GROUPS = 8  # below it a bootstrap over groups says little, and images are resampled instead


@dataclass(frozen=True)
class Job:
    """One classifier to train.

    Attributes:
        arm: one of the names above.
        n_real: real images per class, a number or "all"; 0 for the arm "synthetic".
        seed: decides the real subset, the initial weights and the order.
        reference: whether this classifier, trained on all real images there are, also judges the synthetic ones.
    """

    arm: str
    n_real: int | str
    seed: int
    reference: bool = False

    @property
    def name(self) -> str:
        """The name of the result file, without ending."""
        return f"{self.arm.replace(' + ', '-')}_n-{self.n_real}_seed-{self.seed}"


def plan(n_real_per_class: Sequence[int | str], seeds: int) -> list[Job]:
    """Return the jobs: every arm with every number of real images and every seed; "synthetic" has no such number."""
    largest = n_real_per_class[-1]
    arms = [*product(n_real_per_class, (REAL, TRANSFORMS, BOTH, BOTH_TRANSFORMS)), (0, SYNTHETIC)]
    return [
        Job(arm, n_real, seed, reference=(arm, n_real) == (REAL, largest))
        for seed in range(seeds)
        for n_real, arm in arms
    ]


def run(
    job: Job,
    train: ImageSet,
    held_out: ImageSet,
    synthetic: ImageSet,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> dict:
    """Train the classifier of a job and return its result as plain JSON values.

    Returns:
        {"arm", "n_real", "seed", "real", "synthetic": training images, "predictions": class of each held-out image}
        and, of a reference, "on_synthetic": class of each synthetic image, and "frechet".
    """
    # The subset depends on the seed alone, so the arms of one seed are paired.
    chosen = np.arange(len(train))
    if job.n_real != "all":
        chosen = take_per_class(train.labels, int(job.n_real), seed=job.seed)
    images, labels = [train.images[chosen]], [train.labels[chosen]]
    uses_synthetic = job.arm in (BOTH, BOTH_TRANSFORMS, SYNTHETIC)
    if uses_synthetic:
        images.append(synthetic.images)
        labels.append(synthetic.labels)
    model = classifier.train(
        np.concatenate(images),
        np.concatenate(labels),
        len(train.dataset.classes),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=job.seed,
        transforms=job.arm in (TRANSFORMS, BOTH_TRANSFORMS),
    )
    predictions, features = classifier.outputs(model, held_out.images)
    result = {
        "arm": job.arm,
        "n_real": job.n_real,
        "seed": job.seed,
        "real": len(chosen),
        "synthetic": len(synthetic) if uses_synthetic else 0,
        "predictions": predictions.tolist(),
    }
    if job.reference:
        on_synthetic, synthetic_features = classifier.outputs(model, synthetic.images)
        _, train_features = classifier.outputs(model, train.images)
        result["on_synthetic"] = on_synthetic.tolist()
        result["frechet"] = frechet_with_floor(
            train_features, features, held_out.labels, synthetic_features, synthetic.labels
        )
    return result


def summarize(results: list[dict], held_out: ImageSet, synthetic: ImageSet) -> dict:
    """Return the tables of the experiment from the results of all jobs.

    Returns:
        "arms": accuracy mean and standard deviation over seeds, recall per class and the confusion matrix (rows: true
        class, columns: predicted, summed over seeds); "comparisons": differences with 95 % intervals;
        "real_to_synthetic": the same figures for synthetic images judged by classifiers trained on all real ones;
        "frechet": distances and floor, mean and standard deviation over these classifiers; "chance".
    """
    num_classes = len(held_out.dataset.classes)
    by_arm: dict[tuple[str, int | str], list[dict]] = {}
    for result in results:
        by_arm.setdefault((result["arm"], result["n_real"]), []).append(result)
    arms = []
    for (arm, n_real), group in by_arm.items():
        figures = judge([result["predictions"] for result in group], held_out.labels, num_classes)
        counts = {"real": group[0]["real"], "synthetic": group[0]["synthetic"]}
        arms.append({"arm": arm, "n_real": n_real, **counts, **figures})
    comparisons = []
    for n_real, (arm, baseline) in product(dict.fromkeys(n for _, n in by_arm if n != 0), COMPARISONS):
        first, second = (_hits(by_arm[name, n_real], held_out.labels) for name in (arm, baseline))
        difference, low, high = paired_interval(first, second, held_out.groups)
        comparisons.append(
            {"arm": arm, "baseline": baseline, "n_real": n_real, "difference": difference, "low": low, "high": high}
        )
    references = [result for result in results if "on_synthetic" in result]
    judged = judge([result["on_synthetic"] for result in references], synthetic.labels, num_classes)
    return {
        "chance": 1 / num_classes,
        "arms": arms,
        "comparisons": comparisons,
        "real_to_synthetic": judged,
        "frechet": _frechet(references),
    }


def judge(predictions: list[list[int]], labels: np.ndarray, num_classes: int) -> dict:
    """Return accuracy, recall per class (None for a class without images) and confusion of several classifiers.

    Args:
        predictions: per classifier, the predicted class of each image.
        labels: int64 (n,), the true classes.
        num_classes: K; the confusion matrix is K x K.
    """
    accuracies = [float((np.asarray(predicted) == labels).mean()) for predicted in predictions]
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    for predicted in predictions:
        np.add.at(confusion, (labels, np.asarray(predicted)), 1)
    totals = confusion.sum(axis=1)
    return {
        "accuracy": float(np.mean(accuracies)),
        "std": spread(accuracies),
        "accuracies": accuracies,
        "recall": [float(confusion[k, k] / totals[k]) if totals[k] else None for k in range(num_classes)],
        "confusion": confusion.tolist(),
    }


def paired_interval(first: np.ndarray, second: np.ndarray, groups: Sequence[str]) -> tuple[float, float, float]:
    """Return mean(first - second) and its 95 % bootstrap interval, for hits (seeds, images) on the same images.

    Images of one recording stand or fall together, so whole groups are drawn with replacement where there are at
    least 8 of them, and images otherwise; seeds are drawn too. Efron and Tibshirani, 1993, chapters 8 and 13.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < FEWEST_GROUPS:
        group_of = np.arange(len(groups))
    difference = first.astype(np.float64) - second
    seeds, units = len(difference), int(group_of.max()) + 1
    sums = np.stack([np.bincount(group_of, weights=row, minlength=units) for row in difference])
    sizes = np.bincount(group_of, minlength=units)
    rng = np.random.default_rng(0)
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    unit_weights = rng.multinomial(units, np.full(units, 1 / units), size=RESAMPLES)
    means = ((seed_weights @ sums) * unit_weights).sum(axis=1) / (seeds * (unit_weights @ sizes))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)


def spread(values: Sequence[float]) -> float:
    """Return the sample standard deviation, 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _hits(results: list[dict], labels: np.ndarray) -> np.ndarray:
    ordered = sorted(results, key=lambda result: result["seed"])
    return np.array([result["predictions"] for result in ordered]) == labels


def _frechet(references: list[dict]) -> dict:
    size = references[0]["frechet"]["size"]
    table: dict = {"size": size}
    for name in ("synthetic", "floor"):
        values = [result["frechet"][name] for result in references]
        known = values[0] is not None
        table[name] = float(np.mean(values)) if known else None
        table[f"{name}_std"] = spread(values) if known else None
    return table

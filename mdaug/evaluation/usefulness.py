"""Does the synthetic data help a classifier? Arms that differ in their training images only, judged on held-out ones.

Every arm takes the same number of optimizer steps. An arm of one seed is one job with one result file: jobs are
independent of each other, of their order and of the process that runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse

from mdaug.augment import TODAY, Policy
from mdaug.measures import classifier, fidelity, worth
from mdaug.measures.auxiliary import Auxiliary, Use, source
from mdaug.measures.image_set import ImageSet, class_weights
from shards.subset import take_per_class

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
LIKE = "like with like + transforms"  # the generator saw the same images
# Images of other classes, on top of the free baseline; the last is the control.
AUXILIARY: dict[str, Use] = {
    "auxiliary, own labels": "labels",
    "auxiliary, uniform labels": "uniform",
    "auxiliary, further classes": "classes",
    "auxiliary, random labels": "random",
}
RANDOM = "auxiliary, random labels"
TRANSFORMED = (TRANSFORMS, BOTH_TRANSFORMS, WITH_SIFTED_TRANSFORMS, LIKE, *AUXILIARY)
GENERATED = (BOTH, BOTH_TRANSFORMS, SYNTHETIC, WITH_SIFTED, WITH_SIFTED_TRANSFORMS, SIFTED)
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
        network: the kind of classifier, as in `classifier.build`; "": the one that the verdict goes by.
    """

    arm: str
    n_real: int | str
    ratio: int | str
    seed: int
    reference: bool = False
    network: str = ""

    @property
    def name(self) -> str:
        """The name of the result file, without ending."""
        arm = self.arm.replace(" + ", "-").replace(", ", "-").replace(" ", "-")
        kind = f"_{self.network}" if self.network else ""
        return f"{arm}_n-{self.n_real}_ratio-{self.ratio}_seed-{self.seed}{kind}"


def plan_jobs(
    n_real_per_class: Sequence[int | str],
    ratios: Sequence[int | str],
    seeds: int,
    train: ImageSet,
    synthetic: ImageSet,
    sifted: ImageSet | None = None,
    simulated: ImageSet | None = None,
    auxiliary: Auxiliary | None = None,
    like: Mapping[tuple[int | str, int], ImageSet] | None = None,
) -> list[Job]:
    """Return the jobs: every arm with every number of real images, every ratio and every seed.

    A number of real images that no class exceeds is "all". Jobs that would repeat another are left out, as is a ratio
    that finds no more synthetic images than the one before it. Sifted, simulated and duplicated images, and those of
    generators that saw the same images (`like`), are tried at the largest ratio only. The free baseline, "real +
    transforms", is trained at twice each number, too, where there are so many images: what arms are worth is read off
    its curve.
    """
    # Numbers of real images that differ.
    most = max(train.counts())

    def number(n: int | str) -> int | str:
        return "all" if n == "all" or int(n) >= most else n

    numbers = list(dict.fromkeys(number(n) for n in n_real_per_class))
    doubled = [number(2 * int(n)) for n in numbers if n != "all" and 2 * int(n) <= most]
    curve = sorted({*numbers, *doubled}, key=lambda n: most if n == "all" else int(n))
    uses = [] if auxiliary is None else [arm for arm, use in AUXILIARY.items() if _fits(use, auxiliary)]
    # Arms with real images: at ratios that differ.
    arms: list[tuple[str, int | str, int | str]] = []
    for n_real in curve:
        if n_real not in numbers:
            arms.append((TRANSFORMS, n_real, 0))
            continue
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
        arms.append((LIKE, n_real, ratios[-1]))
        arms += [(arm, n_real, 0) for arm in uses]
    # Arms without.
    arms.append((SYNTHETIC, 0, "all"))
    arms += [(arm, 0, "all") for arm, source in ((SIFTED, sifted), (SIMULATED, simulated)) if source]
    return [
        Job(arm, n_real, ratio, seed, reference=(arm, n_real) == (REAL, numbers[-1]))
        for seed in range(seeds)
        for arm, n_real, ratio in arms
        if arm != LIKE or (n_real, seed) in (like or {})
    ]


def _fits(use: Use, auxiliary: Auxiliary) -> bool:
    """Return whether auxiliary images can be used so: their own labels where they are of the target classes."""
    return use == "random" or auxiliary.same == (use == "labels")


def run_job(
    job: Job,
    train: ImageSet,
    held_out: ImageSet,
    synthetic: ImageSet,
    sifted: ImageSet | None = None,
    simulated: ImageSet | None = None,
    auxiliary: Auxiliary | None = None,
    like: Mapping[tuple[int | str, int], ImageSet] | None = None,
    *,
    steps: int | Literal["settled"],
    batch_size: int,
    learning_rate: float,
    network: str,
    policy: Policy = TODAY,
    aux_share: float = 0.25,
) -> dict:
    """Train the classifier of a job and return its result as plain JSON values.

    The transforms of arms that have them are those of `policy`, over whose copies their predictions are averaged.
    Auxiliary images take `aux_share` of each batch.

    Returns:
        {"arm", "n_real", "ratio", "seed", "network", "real", "further": training images of each kind, "real_per_class":
        the former of each class, "wanted": further images that the ratio asks for, "learnt": mean recall on (up to 512
        of) its real and synthetic training images, "predictions": class of each held-out image} and, of a reference,
        "on_synthetic": class of each synthetic image, and "fidelity": what `fidelity.with_floor` finds in its features.
    """
    # Train.
    parts, labels_of_parts = training_images(job, train, synthetic, sifted, simulated, like)
    images, labels = np.concatenate(parts), np.concatenate(labels_of_parts)
    count = outputs = len(train.dataset.classes)
    others = []
    if job.arm in AUXILIARY:
        assert auxiliary is not None  # whoever plans such a job has them
        use = AUXILIARY[job.arm]
        extra, outputs = source(auxiliary.pixels, auxiliary.labels, use, count, aux_share, job.seed)
        others.append(extra)
    transforms = policy if job.arm in TRANSFORMED else None
    floor = classifier.floor_of(parts[0]) if transforms else None
    model = classifier.train(
        images,
        labels,
        outputs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=job.seed,
        policy=transforms,
        others=others,
        floor=floor,
        network=job.network or network,
    )

    # Judge held-out images, and some that it was trained on.
    def predict(shown: np.ndarray, copies: Policy | None = None) -> np.ndarray:
        return classifier.predict(model, shown, copies, num_classes=count, floor=floor).argmax(1)

    predictions = predict(held_out.images, transforms)
    some = _spread_per_class(labels, LEARNT_FROM)
    learnt = class_weights(labels[some]) @ (predict(images[some]) == labels[some])
    further = sum(len(part) for part in (*parts[1:], *(extra.images for extra in others)))
    result = {
        "arm": job.arm,
        "n_real": job.n_real,
        "ratio": job.ratio,
        "seed": job.seed,
        "network": job.network,
        "real": len(parts[0]),
        "further": further,
        "real_per_class": np.bincount(labels_of_parts[0], minlength=len(train.dataset.classes)).tolist(),
        "wanted": further if job.arm == DUPLICATED or job.ratio in (0, "all") else int(job.ratio) * len(parts[0]),
        "learnt": float(learnt),
        "predictions": predictions.tolist(),
    }
    # Judge synthetic images, and lend the features to the distances between sets.
    if job.reference:
        on_synthetic, synthetic_features = classifier.outputs(model, synthetic.images)
        (_, features), (_, train_features) = (classifier.outputs(model, s.images) for s in (held_out, train))
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
    like: Mapping[tuple[int | str, int], ImageSet] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return images and labels of a job, [real, further] each, without auxiliary images.

    Subsets depend on the seed alone, so arms are paired, and the images of n lie in those of every larger number.
    """
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
    added = further.get(job.arm, synthetic)
    if job.arm == LIKE:
        assert like is not None  # whoever plans such a job has them
        added = like[job.n_real, job.seed]
    if job.ratio != 0 and added is not None:
        chosen = take_per_class(added.labels, _further(train, job.n_real, job.ratio, added), seed=job.seed)
        images.append(added.images[chosen])
        labels.append(added.labels[chosen])
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

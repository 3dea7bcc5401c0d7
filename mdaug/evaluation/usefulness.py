"""Does the synthetic data help a classifier? Arms that differ in their training images only, judged on held-out ones.

Every arm takes the same number of optimizer steps. An arm of one seed is one job with one result file: jobs are
independent of each other, of their order and of the process that runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from mdaug.augment import TODAY, Policy
from mdaug.measures import classifier, fidelity
from mdaug.measures.auxiliary import Auxiliary, Use, source
from mdaug.measures.classifier import Source
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
# Auxiliary images, on top of the free baseline, and how those that take a share of each batch are labelled.
PRETRAINED, RANDOM = "auxiliary, pretraining", "auxiliary, random labels"  # the latter is the control
SHARES: dict[str, Use] = {
    "auxiliary, own labels": "labels",
    "auxiliary, uniform labels": "uniform",
    "auxiliary, further classes": "classes",
    RANDOM: "random",
}
AUXILIARY = (PRETRAINED, *SHARES)
TRANSFORMED = (TRANSFORMS, BOTH_TRANSFORMS, WITH_SIFTED_TRANSFORMS, LIKE, *AUXILIARY)
GENERATED = (BOTH, BOTH_TRANSFORMS, SYNTHETIC, WITH_SIFTED, WITH_SIFTED_TRANSFORMS, SIFTED)
UNSIFTED = {WITH_SIFTED: BOTH, WITH_SIFTED_TRANSFORMS: BOTH_TRANSFORMS}
LEARNT_FROM = 512  # training images, as many of each class, on which it is measured how well they have been learnt


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
    uses = [] if auxiliary is None else [PRETRAINED, *(arm for arm, use in SHARES.items() if _fits(use, auxiliary))]
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
    Auxiliary images take `aux_share` of each batch, or are trained on first, alone, with their own labels.

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
    added: list[Source] = []
    if job.arm in AUXILIARY:
        assert auxiliary is not None  # whoever plans such a job has them
        use = SHARES.get(job.arm, "labels" if auxiliary.same else "classes")
        extra, outputs = source(auxiliary.pixels, auxiliary.labels, use, count, aux_share, job.seed)
        added.append(extra)
    transforms = policy if job.arm in TRANSFORMED else None
    floor = classifier.floor_of(parts[0]) if transforms else None
    train_classifier = partial(
        classifier.train,
        num_classes=outputs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=job.seed,
        policy=transforms,
        network=job.network or network,
    )
    if job.arm == PRETRAINED:
        first = train_classifier(extra.images, extra.labels, floor=classifier.floor_of(extra.images))
        model = train_classifier(images, labels, floor=floor, start=first)
    else:
        model = train_classifier(images, labels, floor=floor, others=added)

    # Judge held-out images, and some that it was trained on.
    def predict(shown: np.ndarray, copies: Policy | None = None) -> np.ndarray:
        return classifier.predict(model, shown, copies, num_classes=count, floor=floor).argmax(1)

    predictions = predict(held_out.images, transforms)
    some = _spread_per_class(labels, LEARNT_FROM)
    learnt = class_weights(labels[some]) @ (predict(images[some]) == labels[some])
    further = sum(len(part) for part in (*parts[1:], *(extra.images for extra in added)))
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

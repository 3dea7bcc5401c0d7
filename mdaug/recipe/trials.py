"""A trial: one classifier trained one way on some of the training images, judged on others. One JSON result each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.torch import load_file, save

from mdaug.augment import COPIES, Policy
from mdaug.measures import auxiliary, classifier
from mdaug.measures.classifier import Classifier, Source, one_thread
from shards import atomic
from shards.errors import UserError
from shards.pool import Pool, cores
from shards.progress import Progress

ATTEMPTS = 200  # to deal groups out
MOST_WORKERS = 8  # each holds its own copy of the images and of torch
Use = Literal["", "uniform", "classes", "labels"]
GIVEN = "given"  # kind of the generated images of --synthetic_dir
CONFIDENT = 0.8  # probability from which a pseudo-label is taken
PRETRAINED = "pretrained"  # folder of the weights with which trials begin


@dataclass(frozen=True)
class Images:
    """Labelled images in memory.

    Attributes:
        pixels: uint8 (n, S, S, C).
        labels: int64 (n,).
        groups: n names; images of one group are not independent of each other.
    """

    pixels: np.ndarray
    labels: np.ndarray
    groups: Sequence[str]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, chosen: np.ndarray) -> Images:
        """Return the images at the given positions."""
        return Images(self.pixels[chosen], self.labels[chosen], [self.groups[int(i)] for i in chosen])


@dataclass(frozen=True)
class Material:
    """What trials are made of, the same for all of them.

    Attributes:
        classes: names of the target classes.
        train: their training images.
        folds: int64 (n,), the fold of each of these.
        held_out: images that trials without a fold are judged on.
        auxiliary: images of other classes, labels from 0 on; or of the target classes, for the use "labels".
        synthetic: (kind, fold) -> generated images of the target classes, by a generator that has not seen the fold.
        unlabelled: images whose class is not known, uint8 (n, S, S, C).
        auxiliary_folds: int64 (m,), the fold of each auxiliary image that is of a group of the training images, else
            -1; a trial that is judged on the fold does not see it. None: all are of other groups.
        steps, batch_size, learning_rate: see `classifier.train`.
    """

    classes: Sequence[str]
    train: Images
    folds: np.ndarray
    held_out: Images | None = None
    auxiliary: Images | None = None
    synthetic: Mapping[tuple[str, int | None], Images] = field(default_factory=dict)
    unlabelled: np.ndarray | None = None
    auxiliary_folds: np.ndarray | None = None
    steps: int | Literal["settled"] = classifier.SETTLED
    batch_size: int = 32
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Trial:
    """One classifier.

    Attributes:
        arm: its name in tables.
        policy: its transforms, at training and, over `copies` transformed copies, at test time.
        use: what the auxiliary images are: "uniform" labels over the target classes, further "classes" of the same
            network, images with the "labels" of the target classes; "": not used.
        share: of each batch that they take.
        pretrain: instead of that they are what the classifier is trained on first, alone.
        synthetic: share of each batch that generated images take.
        kind: of these images.
        pseudo: share of each batch of unlabelled images, with the labels that the same classifier, trained without
            them, is confident of.
        fold: judged on this fold and trained on the others; None: trained on all, judged on the held-out images.
        seed: of weights, order and transforms.
        per_class: training images of each class, nested in those of larger numbers; 0: all.
        num_groups: groups of each class that these come from, likewise nested; 0: all.
        subset: which of the random subsets.
    """

    arm: str
    policy: Policy
    use: Use = ""
    share: float = 0.25
    pretrain: bool = False
    synthetic: float = 0.0
    kind: str = GIVEN
    pseudo: float = 0.0
    fold: int | None = None
    seed: int = 0
    per_class: int = 0
    num_groups: int = 0
    subset: int = 0

    @property
    def name(self) -> str:
        """Name of the result file, the same for arms that differ in their names, or in averaging, only."""
        what = {**asdict(self), "arm": "", "policy": asdict(_averaging(self.policy))}
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        return f"fold-{self.fold}_seed-{self.seed}_{digest}"


def _averaging(policy: Policy) -> Policy:
    return replace(policy, copies=policy.copies or COPIES)


def make_folds(labels: np.ndarray, groups: Sequence[str], most: int, classes: Sequence[str]) -> np.ndarray:
    """Return the fold of each image, int64 (n,): whole groups, and of every class some in at least two folds.

    Groups are dealt out from the largest on, each to the fold that then has the least of its classes.

    Raises:
        UserError: a class has images of one group only.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    table = np.zeros((len(names), len(classes)), dtype=np.int64)  # images of each group and class
    np.add.at(table, (group_of, labels), 1)
    groups_of_class = (table > 0).sum(axis=0)
    if (groups_of_class < 2).any():
        name = classes[int(groups_of_class.argmin())]
        raise UserError(
            f"class '{name}' has training images of {int(groups_of_class.min())} group(s), and cross-validation needs "
            "2 of every class: name smaller groups when packing (--group_by), such as recordings instead of persons, "
            "give val a smaller share (--val_fraction), or record the class once more"
        )
    count = min(most, int(groups_of_class.min()))
    share = table / table.sum(axis=0)
    order = np.argsort(-share.sum(axis=1), kind="stable")
    for attempt in range(ATTEMPTS):
        load = np.zeros((count, len(classes)))
        fold_of_group = np.zeros(len(names), dtype=np.int64)
        for group in order if attempt == 0 else np.random.default_rng(attempt).permutation(len(names)):
            fold = int((load @ (share[group] > 0)).argmin())
            fold_of_group[group] = fold
            load[fold] += share[group]
        if ((load > 0).sum(axis=0) >= 2).all():
            return fold_of_group[group_of]
    raise UserError(
        "the groups cannot be dealt out so that every class is in two parts: they hold several classes, and some class "
        "is in too few of them; name smaller groups when packing (--group_by)"
    )


def members(trial: Trial, material: Material) -> np.ndarray:
    """Return the sorted positions of the training images of a trial."""
    train = material.train
    chosen = np.arange(len(train))
    if trial.fold is not None:
        chosen = chosen[material.folds != trial.fold]
    groups = np.asarray(train.groups)[chosen]
    order = np.random.default_rng([trial.subset, 1]).permutation(np.unique(groups)).tolist()
    parts = []
    for label in np.unique(train.labels[chosen]):
        of_class = train.labels[chosen] == label
        own, own_groups = chosen[of_class], groups[of_class]
        if trial.num_groups:  # the first of the order that have this class
            kept = [name for name in order if name in set(own_groups)][: trial.num_groups]
            own = own[np.isin(own_groups, kept)]
        shuffled = np.random.default_rng([trial.subset, int(label)]).permutation(own)
        parts.append(shuffled[: trial.per_class or len(own)])
    return np.sort(np.concatenate(parts))


def fit(
    trial: Trial, material: Material, losses: list[float] | None = None, start: Classifier | None = None
) -> Classifier:
    """Return the classifier of a trial.

    Args:
        trial, material: what it is trained on.
        losses: as in `classifier.train`.
        start: what `pretrain` returns for the trial, if that has been called.
    """
    used = material.train.take(members(trial, material))
    outputs, others = len(material.classes), []
    if trial.use:
        source, outputs = _auxiliary(trial, material)
        if trial.pretrain:
            start = start or pretrain(trial, material)
        else:
            others.append(source)
    if trial.synthetic:
        generated = material.synthetic[trial.kind, trial.fold]
        others.append(Source(generated.pixels, generated.labels, trial.synthetic))
    if trial.pseudo:
        chosen, labels = pseudo_labels(trial, material, start)
        assert material.unlabelled is not None
        if len(chosen):
            others.append(Source(material.unlabelled[chosen], labels, trial.pseudo))
    return _train(trial, material, used.pixels, used.labels, outputs, others=others, losses=losses, start=start)


def pretrain(trial: Trial, material: Material) -> Classifier:
    """Return a classifier of the auxiliary images alone, with the outputs and the policy of a trial.

    Whatever of a trial does not concern them has no influence, see `_pretraining`.
    """
    trial = _pretraining(trial, material)
    source, outputs = _auxiliary(trial, material)
    return _train(trial, material, source.images, source.labels, outputs)


def _train(
    trial: Trial, material: Material, images: np.ndarray, labels: np.ndarray, outputs: int, **further: Any
) -> Classifier:
    return classifier.train(
        images,
        labels,
        outputs,
        steps=material.steps,
        batch_size=material.batch_size,
        learning_rate=material.learning_rate,
        seed=1000 * trial.subset + trial.seed,
        policy=trial.policy,
        floor=classifier.floor_of(images),
        **further,
    )


def _pretraining(trial: Trial, material: Material) -> Trial:
    """Return what trials with the same pretraining have in common; the fold only if it leaves auxiliary images out."""
    shared = material.auxiliary_folds is not None and (material.auxiliary_folds == trial.fold).any()
    common = Trial("", trial.policy, trial.use, pretrain=True, seed=trial.seed)
    return replace(common, fold=trial.fold if shared else None)


def _auxiliary(trial: Trial, material: Material) -> tuple[Source, int]:
    """Return the auxiliary images of a trial, and the number of outputs of its network."""
    assert material.auxiliary is not None  # a trial with a use is planned only where there are some
    extra = material.auxiliary
    if trial.fold is not None and material.auxiliary_folds is not None:
        extra = extra.take(np.flatnonzero(material.auxiliary_folds != trial.fold))
    assert trial.use
    return auxiliary.source(extra.pixels, extra.labels, trial.use, len(material.classes), trial.share)


def pseudo_labels(trial: Trial, material: Material, start: Classifier | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (positions, classes), int64, of the unlabelled images that the classifier of a trial is confident of.

    It is trained without them, and its probabilities are averaged over the transformed copies of the policy; `start` as
    in `fit`.
    """
    assert material.unlabelled is not None  # whoever plans such a trial has them
    teacher = fit(replace(trial, pseudo=0.0), material, start=start)
    floor = classifier.floor_of(material.train.take(members(trial, material)).pixels)
    count, policy = len(material.classes), trial.policy
    probabilities = classifier.predict(teacher, material.unlabelled, policy, num_classes=count, floor=floor)
    chosen = np.flatnonzero(probabilities.max(1) >= CONFIDENT)
    return chosen, probabilities[chosen].argmax(1)


def run_trial(trial: Trial, material: Material, start: Classifier | None = None) -> dict[str, Any]:
    """Train the classifier of a trial, see `fit`, and return its result as plain JSON values.

    Returns:
        {"trial", "images": number of training images, "judged": positions of the images it was judged on, in the
        training images or (without a fold) the held-out ones, "plain": predicted classes of these as they are,
        "averaged": the same from probabilities averaged over transformed copies, "learnt": mean recall on the training
        images, "steps"}.
    """
    losses: list[float] = []
    model = fit(trial, material, losses, start)
    chosen = members(trial, material)
    used = material.train.take(chosen)
    if trial.fold is None:
        assert material.held_out is not None
        judged, images = np.arange(len(material.held_out)), material.held_out
    else:
        judged = np.flatnonzero(material.folds == trial.fold)
        images = material.train.take(judged)
    count, floor = len(material.classes), classifier.floor_of(used.pixels)
    predicted = {
        name: classifier.predict(model, images.pixels, policy, num_classes=count, floor=floor).argmax(1)
        for name, policy in (("plain", None), ("averaged", _averaging(trial.policy)))
    }
    learnt = classifier.predict(model, used.pixels, num_classes=count).argmax(1) == used.labels
    return {
        "trial": asdict(trial),
        "images": len(chosen),
        "judged": judged.tolist(),
        **{name: classes.tolist() for name, classes in predicted.items()},
        "learnt": float(np.mean([learnt[used.labels == label].mean() for label in np.unique(used.labels)])),
        "steps": len(losses),
    }


def run_all(
    trials: Sequence[Trial],
    material: Material,
    folder: Path,
    workers: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> list[dict[str, Any]]:
    """Return the results of all trials in their order; a result that `folder` already holds is read, not made again.

    Args:
        trials: what to train.
        material: on what.
        folder: where each trial keeps its result, `<name>.json`.
        workers: processes of one thread each; 0: one per core.
        progress: called after each trial with the number of results in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {trial: folder / f"{trial.name}.json" for trial in trials}
    missing = list({path: trial for trial, path in paths.items() if not path.is_file()}.values())
    starts = dict.fromkeys(_pretraining(trial, material) for trial in missing if trial.pretrain)
    first = [trial for trial in starts if not _weights(folder, trial).is_file()]
    # Trials that wait for a pretraining come last.
    ready = [(_pretrain, trial) for trial in first] + [(_run, trial) for trial in missing if not trial.pretrain]
    waiting = [(_run, trial) for trial in missing if trial.pretrain]
    with (
        Progress("classifiers", len(missing), "classifier") as bar,
        Pool(min(workers or cores(), MOST_WORKERS), len(missing), shared=(folder, material)) as pool,
    ):
        for jobs in (ready, waiting):
            for (make, _), _ in zip(jobs, pool.map(_make, jobs, chunk=1), strict=True):
                if make is _run:
                    bar.update()
                    progress(sum(1 for _ in folder.glob("*.json")))
    return [json.loads(paths[trial].read_text(encoding="utf-8")) for trial in trials]


def _make(job: tuple[Callable[[Trial, Path, Material], None], Trial], folder: Path, material: Material) -> None:
    make, trial = job
    make(trial, folder, material)


def _pretrain(trial: Trial, folder: Path, material: Material) -> None:
    path = _weights(folder, trial)
    path.parent.mkdir(exist_ok=True)
    with one_thread():
        model = pretrain(trial, material)
    with atomic.replacing(path) as file:
        file.write(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))


def _run(trial: Trial, folder: Path, material: Material) -> None:
    start = None
    if trial.pretrain:
        weights = load_file(_weights(folder, _pretraining(trial, material)))
        _, size, _, channels = material.train.pixels.shape
        start = classifier.build(classifier.SMALL, channels, len(weights["head.bias"]), size)
        start.load_state_dict(weights)
    with one_thread():
        result = run_trial(trial, material, start)
    atomic.write_text(folder / f"{trial.name}.json", json.dumps(result) + "\n")


def _weights(folder: Path, pretraining: Trial) -> Path:
    return folder / PRETRAINED / f"{pretraining.name}.safetensors"

"""The training set of a recipe: the images that it uses as tar shards, and how often each of them is drawn.

    training_set/real/       training images, as they were packed
    training_set/auxiliary/  where the recipe uses them; likewise generated/, unlabelled/
    training_set/sources.json

Every sample's metadata has the "weight" with which it is drawn: a folder has its share, and within it all classes weigh
the same. Of each folder sources.json names the stage in which it is trained on: 1, or, after a pretraining, 2. The
weights of a stage add up to 1. `learning_rates` holds one for each stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mdaug.measures.classifier import TUNING, one_thread
from mdaug.recipe.trials import Images, Material, Trial, pseudo_labels
from shards import atomic
from shards.dataset import ShardDataset
from shards.index import write_index
from shards.writer import write_shard

FOLDER = "training_set"
SOURCES = f"{FOLDER}/sources.json"
PER_SHARD = 1000  # samples
TARGETS = {
    "uniform": "all target classes, equally",
    "classes": "its own class, as a further output",
    "labels": "its class",
}


@dataclass(frozen=True)
class Stored:
    """Where the images of a source lie: image i of the recipe's `Images` is sample `indices[i]` of `datasets[i]`."""

    datasets: list[ShardDataset]
    indices: list[int]

    @classmethod
    def at(cls, places: Iterable[tuple[ShardDataset, int]]) -> Stored:
        """Return the images at (data set, index)."""
        datasets, indices = map(list, zip(*places, strict=True))
        return cls(datasets, indices)

    def take(self, chosen: np.ndarray) -> Stored:
        """Return the images at the given positions."""
        return Stored.at((self.datasets[i], self.indices[i]) for i in chosen.tolist())


def write(folder: Path, trial: Trial, material: Material, stored: dict[str, Stored]) -> None:
    """Write the images that a trial is trained on.

    Args:
        folder: the output folder of the recipe.
        trial: one without a fold, on all training images.
        material: labels of all images.
        stored: "real", and those of "auxiliary", "generated" and "unlabelled" that are used -> where their bytes are.
    """
    classes = list(material.classes)
    others: list[tuple[str, Any, float, str]] = []
    before: list[tuple[str, Any, float, str]] = []  # what a first stage is trained on
    if trial.use:
        used = (before, 1.0) if trial.pretrain else (others, trial.share)
        used[0].append(("auxiliary", material.auxiliary, used[1], TARGETS[trial.use]))
    if trial.synthetic:
        generated = material.synthetic[trial.kind, None]
        others.append(("generated", generated, trial.synthetic, TARGETS["labels"]))
    if trial.pseudo:
        with one_thread():  # as the classifier that was trained on them
            chosen, labels = pseudo_labels(trial, material)
        if len(chosen) and material.unlabelled is not None:
            stored = stored | {"unlabelled": stored["unlabelled"].take(chosen)}
            images = Images(material.unlabelled[chosen], labels, [""] * len(chosen))
            others.append(("unlabelled", images, trial.pseudo, TARGETS["labels"]))
    rest = 1 - sum(other[2] for other in others)
    sources = []
    for name, images, share, target in [*before, ("real", material.train, rest, TARGETS["labels"]), *others]:
        weights = share * _weights(images.labels, by_class=target != TARGETS["uniform"])
        own = classes if target == TARGETS["labels"] else stored[name].datasets[0].classes
        place = folder / FOLDER / name
        place.mkdir(parents=True, exist_ok=True)
        for shard, first in enumerate(range(0, len(images), PER_SHARD)):
            those = range(first, min(first + PER_SHARD, len(images)))
            write_shard(place / f"{shard:06d}.tar", _samples(those, stored[name], images.labels, weights, target))
        index = stored[name].datasets[0].index
        write_index(place, own, **{key: index[key] for key in ("image_shape", "colormap") if key in index})
        stage = 1 + (bool(before) and name != "auxiliary")
        sources.append({"folder": name, "stage": stage, "images": len(images), "share": share, "target": target})
    settings = {name: getattr(material, name) for name in ("steps", "batch_size")}
    rates = [material.learning_rate, TUNING * material.learning_rate][: 1 + bool(before)]
    record = {"classes": classes, "sources": sources, **settings, "learning_rates": rates}
    atomic.write_text(folder / SOURCES, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _weights(labels: np.ndarray, by_class: bool) -> np.ndarray:
    """Return the weights of a source, float64 (n,) with sum 1, as `classifier.train` draws its images."""
    if not by_class:
        return np.full(len(labels), 1 / len(labels))
    _, label_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[label_of])


def _samples(
    chosen: range, stored: Stored, labels: np.ndarray, weights: np.ndarray, target: str
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for i in chosen:
        dataset, index = stored.datasets[i], stored.indices[i]
        meta = dataset[index]["meta"]
        label = int(labels[i]) if target == TARGETS["labels"] else int(dataset.labels[index])
        data = dataset.raw(index, "image")
        extension = "png" if data[:4] == b"\x89PNG" else "jpg"
        about = {**meta, "key": dataset.key(index), "weight": float(weights[i])}
        yield (
            f"{i:08d}",
            {extension: data, "cls": str(label).encode(), "json": json.dumps(about, ensure_ascii=False).encode()},
        )

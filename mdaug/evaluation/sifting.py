"""The sifter's judgement on the synthetic images, for the arms with sifting.

The limits come from training images alone: one group in four sets them, the others train the sifter's classifier. The
split that judges the experiment has no say in what is kept, unlike `val` when `mdaug generate --sift` makes a set.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mdaug.evaluation import sift
from mdaug.evaluation.classifier import one_thread
from mdaug.evaluation.data import ImageSet
from shards.atomic import write_text

QUANTILE = 0.05  # share of real images that each of the four measures may reject, as `mdaug generate` has it
CHUNK = 512  # images


def judge(train: ImageSet, held_out: ImageSet, synthetic: ImageSet, *, steps: int, file: Path) -> dict:
    """Return what the sifter says of synthetic and of held-out images; read from `file` where it is there already.

    Returns:
        {"quantile"; "accuracy" of the sifter's classifier on the images that set the limits; "reasons": of "synthetic"
        and "held_out", per image, the measure that rejects it, or "" for one that is kept; "rejected": of both the
        share per class, None for a class without images}.
    """
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    limits = limit_setters(train)
    settings = {"quantile": QUANTILE, "steps": steps, "max_candidates": 1}
    sifter, accuracy = sift.fit(train.subset(np.flatnonzero(~limits)), train.subset(np.flatnonzero(limits)), settings)
    sets = {"synthetic": synthetic, "held_out": held_out}
    reasons = {name: _reasons(sifter, images) for name, images in sets.items()}
    rejected = {name: _rejected(reasons[name], images) for name, images in sets.items()}
    said = {"quantile": QUANTILE, "accuracy": accuracy, "reasons": reasons, "rejected": rejected}
    if not file.is_file():  # otherwise another rank was faster, and all take what it says
        write_text(file, json.dumps(said) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))


def kept(said: dict, synthetic: ImageSet) -> ImageSet | None:
    """Return the synthetic images within all limits; None where there are none."""
    chosen = np.flatnonzero([reason == "" for reason in said["reasons"]["synthetic"]])
    return synthetic.subset(chosen) if len(chosen) else None


def limit_setters(train: ImageSet) -> np.ndarray:
    """Return which training images set the limits, bool (n,): about a quarter of every class.

    Whole groups are taken, in an order that is always the same; a class all of whose groups fall on one side gives
    every fourth of its images.
    """
    names, group_of = np.unique(np.asarray(train.groups), return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    chosen = np.isin(group_of, order[: max(1, len(names) // 4)])
    for label in np.unique(train.labels):
        members = np.flatnonzero(train.labels == label)
        if chosen[members].all() or not chosen[members].any():
            chosen[members] = np.arange(len(members)) % 4 == max(1, min(3, len(members) - 1))
    return chosen


@one_thread()
def _reasons(sifter: sift.Sifter, images: ImageSet) -> list[str]:
    found: list[str] = []
    for start in range(0, len(images), CHUNK):
        places = range(start, min(start + CHUNK, len(images)))
        pixels = np.stack([images.original(i) for i in places])
        found += [reason for reason, _, _ in sifter.judge(pixels, images.labels[start : start + CHUNK])]
    return found


def _rejected(reasons: list[str], images: ImageSet) -> list[float | None]:
    out = np.array([reason != "" for reason in reasons])
    of_class = [out[images.labels == label] for label in range(len(images.dataset.classes))]
    return [float(part.mean()) if len(part) else None for part in of_class]

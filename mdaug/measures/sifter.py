"""Rejects synthetic images that are unlike the real ones of their class: four measures, with limits set on real images.

Every limit is a quantile of the same measure over real validation images, so a real image is rejected by a measure
as often as the settings say. The figures of the envelopes are shares of the image, seen against the quartiles of the
class; they are not in m/s. Sifting by distance in a feature space: Erol, Gurbuz, Amin 2020 (PCA hull, +9 points of
accuracy); distance to the k-th neighbour: Kynkäänniemi et al. 2019 (improved precision).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mdaug.augment import TODAY
from mdaug.measures import classifier, envelope, image_set, levels
from shards import atomic, provenance
from shards.errors import UserError
from shards.index import read_index

FOLDER = "sifter"
WEIGHTS, SETTINGS = "sifter.safetensors", "sifter.json"
MEASURES = ("confidence", "margin", "distance", "envelope")
# Least limits: an image is not rejected for a high confidence or margin, however sure the classifier is of real ones.
FLOORS = (0.1, 0.2, 0.0, 0.0)
NEIGHBOUR = 3
FEW = 20  # validation images of a class; with fewer its limits come from all classes
MOST_PER_CLASS = 2000
TEMPERATURES = (0.1, 20.0)  # bounds: for a classifier without errors the best would be 0


def describe(packed: Path, images: str, *, quantile: float, steps: int, max_candidates: int) -> dict:
    """Return the settings of a sifter as the plan holds them.

    Raises:
        UserError: `packed` is not the set with the hash `images`, on which the pipeline was trained, or has no val.
    """
    own = provenance.read(packed, "images")["hash"]
    provenance.require_same("images", packed, own, Path("the pipeline"), images)
    if not (packed / "val" / "index.json").is_file():
        raise UserError(
            f"{packed / 'val'} is empty: nothing sets the limits of a sifter; pack more images, or with --val_fraction"
        )
    return {"images": images, "quantile": quantile, "steps": steps, "max_candidates": max_candidates}


@dataclass
class Sifter:
    """Judges images by limits that real ones set; `fit` or `load` make it.

    Attributes:
        model: classifier trained on the real training images.
        temperature: by which its logits are divided, so that its confidence on validation images is honest.
        features: (n, 64) of the real training images.
        labels: (n,) their classes.
        centre: (classes, 6) medians of their envelope figures.
        scale: (classes, 6) quartile ranges of them.
        limits: (measures, classes): largest value within the limits.
        image_size: side of the images that the classifier sees.
        palette: how the images show power, see `levels.palette`.
        max_candidates: images made for a sample before the best is kept.
        hash: sha256 of all of the above.
    """

    model: classifier.SmallResNet
    temperature: float
    features: torch.Tensor
    labels: torch.Tensor
    centre: np.ndarray
    scale: np.ndarray
    limits: np.ndarray
    image_size: int
    palette: str
    max_candidates: int
    hash: str

    def judge(self, pixels: np.ndarray, labels: np.ndarray) -> list[tuple[str, float, float]]:
        """Return (reason, score, excess) of images.

        reason is "" or the measure that is furthest beyond its limit, score the probability of the class, excess the
        largest ratio of a measure to its limit.

        Args:
            pixels: uint8 (n, H, W, C).
            labels: int64 (n,).
        """
        images = np.stack([image_set.preprocess(image, self.image_size) for image in pixels])
        measured = self._measure(images, pixels, labels)
        ratio = measured / self.limits[:, labels]
        worst = ratio.argmax(axis=0)
        return [
            (MEASURES[worst[i]] if ratio[worst[i], i] > 1 else "", float(1 - measured[0, i]), float(ratio[worst[i], i]))
            for i in range(len(labels))
        ]

    @torch.no_grad()
    def _measure(self, images: np.ndarray, originals: Iterable[np.ndarray], labels: np.ndarray) -> np.ndarray:
        """Return (measures, n); each grows with how unlike its class an image is."""
        _, features = classifier.outputs(self.model, images)
        own, margin = _confidence(self.model, features, labels, self.temperature)
        figures = np.stack([envelope_figures(levels.to_levels(image, self.palette)) for image in originals])
        beyond = np.abs(figures - self.centre[labels]) / self.scale[labels]
        return np.stack([1 - own, 1 - margin, self._distances(features, labels), beyond.max(axis=1)])

    def _distances(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the distance of each feature vector to the third nearest real one of its class."""
        distances = np.empty(len(labels))
        for label in np.unique(labels):
            of_class = self.features[self.labels == int(label)]
            rows = torch.from_numpy(features[labels == label].astype(np.float32))
            nearest = torch.cdist(rows, of_class).topk(min(NEIGHBOUR, len(of_class)), largest=False).values
            distances[labels == label] = nearest[:, -1].numpy()
        return distances


def envelope_figures(level: np.ndarray) -> np.ndarray:
    """Return six figures of the levels of a spectrogram, uint8 (H, W), rows Doppler, columns time; each about 0 to 1.

    The reach of the envelopes on both sides (5 % and 95 % over time), the median width between them, mean and standard
    deviation over time of the power's centre, and the mean level.
    """
    power = envelope.signal_power(level)
    lit = power.sum(axis=0) > 0
    if not lit.any():
        return np.zeros(6)
    power = power[:, lit]
    _, upper, lower = envelope.envelopes(power)
    rows = (np.arange(len(level)) + 0.5) / len(level)
    centre = rows @ power / power.sum(axis=0)
    reach = (np.quantile(upper, 0.05), np.quantile(lower, 0.95), np.median(lower - upper))
    return np.array([*reach, centre.mean(), centre.std(), level.mean() / 255])


@classifier.one_thread()
def fit(train: image_set.ImageSet, val: image_set.ImageSet, settings: dict) -> tuple[Sifter, float]:
    """Train the classifier on some real images, set the limits on others.

    On one CPU thread on any machine, so that the sifter is a function of images and settings alone.

    Args:
        train: images of the classifier and of the neighbours.
        val: images of other groups, which set temperature and limits.
        settings: see `describe`.

    Returns:
        The sifter, and the mean recall per class of its classifier on `val`.
    """
    # The classifier and its features.
    count = len(train.dataset.classes)
    options = {"steps": settings["steps"], "batch_size": 32, "learning_rate": 1e-3, "seed": 0, "policy": TODAY}
    model = classifier.train(train.images, train.labels, count, device=torch.device("cpu"), **options)
    assert isinstance(model, classifier.SmallResNet)
    features = torch.from_numpy(classifier.outputs(model, train.images)[1].astype(np.float32))
    predicted, val_features = classifier.outputs(model, val.images)
    # What the envelopes of each class are like.
    palette = levels.palette(train)
    figures = np.stack([envelope_figures(levels.to_levels(train.original(i), palette)) for i in range(len(train))])
    quartiles = np.stack([np.quantile(figures[train.labels == c], [0.25, 0.5, 0.75], axis=0) for c in range(count)])
    sifter = Sifter(
        model=model,
        temperature=_temperature(model, val_features, val.labels),
        features=features,
        labels=torch.from_numpy(train.labels),
        centre=quartiles[:, 1],
        scale=np.maximum(quartiles[:, 2] - quartiles[:, 0], 0.01),
        limits=np.ones((len(MEASURES), count)),
        image_size=train.images.shape[1],
        palette=palette,
        max_candidates=settings["max_candidates"],
        hash="",
    )
    # The limits: quantiles of the measures over the other real images.
    measured = sifter._measure(val.images, (val.original(i) for i in range(len(val))), val.labels)
    for label in range(count):
        own = measured[:, val.labels == label]
        own = own if own.shape[1] >= FEW else measured
        sifter.limits[:, label] = np.maximum(np.quantile(own, 1 - settings["quantile"], axis=1), FLOORS) + 1e-9
    return sifter, float(image_set.class_weights(val.labels) @ (predicted == val.labels))


def prepare(folder: Path, settings: dict, packed: Path | None) -> Sifter:
    """Return the sifter of a plan's folder; the first worker that needs it trains it for all.

    Raises:
        UserError: the folder has none, and there is no packed set to train it on.
    """
    place = folder / FOLDER
    if not all((place / name).is_file() for name in (SETTINGS, WEIGHTS)):
        shutil.rmtree(place, ignore_errors=True)  # a part of one
        if packed is None:
            raise UserError(f"{folder} has no sifter yet; name the packed set with --sift to train it")
        print("sift: training a classifier on the real training images", flush=True)
        size = max(16, min(64, read_index(packed / "train")["image_shape"][0] // 16 * 16))
        train, val = (
            image_set.load(packed / part, image_size=size, max_per_class=MOST_PER_CLASS) for part in ("train", "val")
        )
        sifter, accuracy = fit(train, val, settings)
        print(f"sift: the classifier finds {100 * accuracy:.1f} % of the real validation images of a class", flush=True)
        with atomic.replacing_folder(place, keep_first=True) as temporary:  # all workers take that of the fastest
            _save(sifter, temporary, settings | {"accuracy": round(accuracy, 4)})
    return load(place, settings)


def load(place: Path, settings: dict) -> Sifter:
    """Return the sifter that a folder holds."""
    tensors = load_file(place / WEIGHTS)
    about = json.loads((place / SETTINGS).read_text(encoding="utf-8"))
    weights = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    model = classifier.SmallResNet(weights["stem.0.weight"].shape[1], len(tensors["centre"]))
    model.load_state_dict(weights)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Sifter(
        model=model.eval(),
        temperature=about["temperature"],
        features=tensors["features"],
        labels=tensors["labels"],
        centre=tensors["centre"].numpy(),
        scale=tensors["scale"].numpy(),
        limits=tensors["limits"].numpy(),
        image_size=about["image_size"],
        palette=about["palette"],
        max_candidates=settings["max_candidates"],
        hash=provenance.hash_files([place / WEIGHTS]),
    )


def _save(sifter: Sifter, place: Path, about: dict) -> None:
    weights = {f"model.{name}": tensor.cpu().contiguous() for name, tensor in sifter.model.state_dict().items()}
    arrays = {name: torch.from_numpy(getattr(sifter, name)).contiguous() for name in ("centre", "scale", "limits")}
    save_file({**weights, **arrays, "features": sifter.features, "labels": sifter.labels}, place / WEIGHTS)
    about |= {name: getattr(sifter, name) for name in ("temperature", "image_size", "palette")}
    about["measures"] = list(MEASURES)
    atomic.write_text(place / SETTINGS, json.dumps(about, indent=1) + "\n")


@torch.no_grad()
def _confidence(
    model: classifier.SmallResNet, features: np.ndarray, labels: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of each image's class, and its lead over the likeliest other one."""
    weight = next(model.head.parameters())
    logits = model.head(torch.from_numpy(features).to(weight.device, weight.dtype)).double().cpu()
    probability = torch.softmax(logits / temperature, dim=1).numpy()
    rows = np.arange(len(labels))
    own = probability[rows, labels]
    probability[rows, labels] = 0
    return own, own - probability.max(axis=1)


def _temperature(model: classifier.SmallResNet, features: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the least negative log-likelihood (Guo et al. 2017, eq. 9)."""
    choices = np.geomspace(*TEMPERATURES, 60)
    losses = [-np.log(_confidence(model, features, labels, t)[0] + 1e-12).mean() for t in choices]
    return float(choices[int(np.argmin(losses))])

"""Pictures written during training: reconstructions, and samples beside the training images nearest to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mdaug.images import grid, to_uint8
from mdaug.measures import image_set, levels
from mdaug.measures.memorization import nearest
from mdaug.training.objective import VALIDATION_SEED
from shards.colormap import paint

PICTURES_PER_CLASS = 4
MOST_TRAIN, MOST_VAL = 1000, 200  # images compared, spread over the classes
SIDE = 64  # pixels at which they are compared


def save_reconstructions(path: Path, images: torch.Tensor, reconstruction: torch.Tensor, colormap: str | None) -> None:
    """Write originals, reconstructions, and differences with the PSNR of each, in three rows.

    Args:
        path: the PNG to write.
        images: originals (B, C, H, W) in [-1, 1].
        reconstruction: the same images out of the VQ-VAE.
        colormap: name of the colour map behind images of one channel.
    """
    psnr = 10 * torch.log10(4 / (reconstruction.float() - images).square().mean((1, 2, 3)))
    original, copy = to_uint8(images), to_uint8(reconstruction)
    difference = (128 + (copy.astype(np.int16) - original) // 2).astype(np.uint8)
    painted = [[paint(image, colormap) for image in row] for row in (original, copy)]
    captions = [[], [], [f"{value:.1f} dB" for value in psnr.tolist()]]
    names = ["original", "reconstruction", "difference"]
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(grid([*painted, list(difference)], names, captions=captions)).save(path)


class SamplePictures:
    """Does the model repeat training images while it learns? A row of samples of each class above their nearest ones.

    Args:
        packed: the packed images.
        classes: class names.
        conditions: the conditions of the pipeline, or None.
        colormap: name of the colour map behind images of one channel.
    """

    def __init__(self, packed: Path, classes: list[str], conditions: dict[str, Any] | None, colormap: str | None):
        self.packed, self.classes, self.conditions, self.colormap = packed, classes, conditions, colormap
        self._neighbours: Neighbours | None = None  # read with the first pictures

    def save(self, path: Path, pipeline: Any, num_inference_steps: int, batch_size: int) -> dict[str, float]:
        """Write the picture; return the median distance of the samples, that of validation images, and their ratio."""
        pipeline.set_progress_bar_config(disable=True)
        labels = [label for label in range(len(self.classes)) for _ in range(PICTURES_PER_CLASS)]
        generators = [torch.Generator().manual_seed(VALIDATION_SEED + i) for i in range(len(labels))]
        images: list[np.ndarray] = []
        for start in range(0, len(labels), batch_size):
            part = slice(start, start + batch_size)
            result = pipeline(
                class_labels=labels[part],
                generator=generators[part],
                num_inference_steps=num_inference_steps,
                output_type="pt",
                conditions=self._conditions(part),
            )
            images += list(to_uint8(2 * result.images - 1))

        self._neighbours = self._neighbours or Neighbours(self.packed)
        nearest_images, distances = self._neighbours.of(images)
        painted = [paint(image, self.colormap) for image in images]
        rows, names, captions = [], [], []
        for label, name in enumerate(self.classes):
            part = slice(label * PICTURES_PER_CLASS, (label + 1) * PICTURES_PER_CLASS)
            rows += [painted[part], nearest_images[part]]
            names += [name, "nearest"]
            captions += [[], [f"{distance:.1f}" for distance in distances[part]]]
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(grid(rows, names, captions=captions)).save(path)
        median, of_val = float(np.median(distances)), self._neighbours.val_distance
        return {"nearest_train": median, "nearest_train_of_val": of_val, "nearest_ratio": median / max(of_val, 1e-9)}

    def _conditions(self, part: slice) -> dict[str, list[float | None]]:
        """Return the conditions of some of the samples: those of real training images of their class."""
        if self.conditions is None:
            return {}
        names, values = self.conditions["names"], self.conditions["values"]
        rows = [
            values[name][i * len(values[name]) // PICTURES_PER_CLASS]
            for name in self.classes
            for i in range(PICTURES_PER_CLASS)
        ]
        return {name: [row[column] for row in rows[part]] for column, name in enumerate(names)}


class Neighbours:
    """At most MOST_TRAIN training images of a packed set, and how far its validation images are from them.

    Distances are RMS differences in levels (0 to 255), the least over all shifts in time, see `memorization.nearest`.
    """

    def __init__(self, packed: Path):
        classes = len(image_set.ShardDataset(packed / "train", fields=()).classes)
        self.train, val = (
            image_set.load(packed / split, image_size=16, max_per_class=max(1, most // classes))
            for split, most in (("train", MOST_TRAIN), ("val", MOST_VAL))
        )
        self.palette = levels.palette(self.train)
        self.levels = levels.stack(self.train, self.palette, (SIDE, SIDE))
        self.val_distance = float(np.median(nearest(levels.stack(val, self.palette, (SIDE, SIDE)), self.levels)[0]))

    def of(self, images: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the nearest training picture of each image uint8 (H, W, C), shifted in time to where it is nearest,
        and the distances.
        """
        small = (Image.fromarray(levels.to_levels(image, self.palette)) for image in images)
        shrunk = [np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX)) for picture in small]
        distances, found, shifts = nearest(np.stack(shrunk), self.levels)
        pictures = [self.train.picture(int(i)) for i in found]
        shifted = [np.roll(p, round(s * p.shape[1]), axis=1) for p, s in zip(pictures, shifts, strict=True)]
        return shifted, distances

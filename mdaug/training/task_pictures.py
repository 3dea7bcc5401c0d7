"""Does the model repeat training images while it learns? Samples beside their nearest training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mdaug.measures import image_set, levels
from mdaug.measures.memorization import nearest

MOST_TRAIN, MOST_VAL = 1000, 200  # images compared, spread over the classes
SIDE = 64  # pixels at which they are compared


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
        """Return the nearest training picture of each image uint8 (H, W, C), turned in time to where it is nearest, and
        the distances.
        """
        small = (Image.fromarray(levels.to_levels(image, self.palette)) for image in images)
        shrunk = [np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX)) for picture in small]
        distances, found, shifts = nearest(np.stack(shrunk), self.levels)
        pictures = [self.train.picture(int(i)) for i in found]
        turned = [np.roll(p, round(s * p.shape[1]), axis=1) for p, s in zip(pictures, shifts, strict=True)]
        return turned, distances

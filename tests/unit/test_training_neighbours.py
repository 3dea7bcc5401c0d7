"""Nearest training images beside samples: a copy is found whatever its shift in time, and told by its distance."""

from __future__ import annotations

import numpy as np

from mdaug.training.task_pictures import Neighbours
from shards.dataset import ShardDataset
from tests.toy import toy_packed


def test_a_shifted_training_image_is_found_and_others_are_as_far_as_validation_images(tmp_path):
    packed = toy_packed(tmp_path / "packed", size=32, train=40, val=20)
    train, val = (ShardDataset(packed / split) for split in ("train", "val"))
    neighbours = Neighbours(packed)
    copy = np.roll(train[6]["image"], 5, axis=1)
    pictures, distances = neighbours.of([copy, *(val[i]["image"] for i in range(20))])
    assert np.array_equal(pictures[0], copy)
    assert distances[0] < 0.1
    assert neighbours.val_distance == np.median(distances[1:])
    assert (distances[1:] > 1).all()

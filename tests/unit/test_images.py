"""The one way between 8-bit images and tensors."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mdaug.images import in_range, to_tensor, to_uint8
from shards.colormap import colormap, paint


@pytest.mark.parametrize("channels", [1, 3])
def test_every_level_comes_back(channels):
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(channels, axis=2)
    tensor = to_tensor(image)
    assert (tensor.shape, float(tensor.min()), float(tensor.max())) == ((channels, 16, 16), -1, 1)
    assert (to_uint8(tensor) == image).all()


def test_every_level_has_the_nearest_number_of_its_value():
    """The bits that NumPy's division gives: a multiplication by the inverse would change 111 of 256 levels."""
    found = in_range(torch.arange(256, dtype=torch.uint8))
    assert found.numpy().tobytes() == (np.arange(256, dtype=np.float32) / np.float32(127.5) - 1).tobytes()


def test_values_beyond_the_range_are_cut():
    assert to_uint8(2 * to_tensor(np.array([[[0], [255]]], np.uint8))).flatten().tolist() == [0, 255]


@pytest.mark.parametrize("name", ["jet-64", "jet-256", "parula", "viridis"])
def test_background_stays_background(name):
    """A picture with JPEG's faults, as one channel through the network's range, painted again."""
    floor = colormap(name).palette[0]
    picture = np.tile(floor, (64, 64, 1))
    picture[24:40, :, :] = colormap(name).palette[np.arange(64) * 4][None]  # an echo on it
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=75)
    levels = colormap(name).invert(np.asarray(Image.open(file)))[..., None]
    painted = paint(to_uint8(to_tensor(levels)), name)
    background = np.r_[0:15, 49:64]  # blocks of JPEG without the echo, whose colour reaches a pixel beyond its blocks
    assert np.abs(painted[background].astype(int) - floor).max() <= 3


def test_background_of_colour_images_stays_background():
    floor = colormap("jet-256").palette[0]
    image = np.tile(floor, (8, 8, 1))
    assert (to_uint8(to_tensor(image)) == floor).all()

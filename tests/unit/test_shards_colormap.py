"""Colour maps: levels come back from JPEG pictures, and the floor stays the floor."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.colormap import COLORMAPS, colormap, detect, most_frequent, paint
from shards.dataset import ShardDataset
from shards.options import PackConfig
from shards.pack import run as pack
from shards.packed import open_packed


def levels(seed: int = 0, size: int = 256) -> np.ndarray:
    """A made spectrogram, uint8 (size, size): limbs around a torso over a floor of exactly 0, as groups cut it."""
    rng = np.random.default_rng(seed)
    time, doppler = np.meshgrid(np.linspace(0, 1, size), np.linspace(-1, 1, size))
    power = np.full((size, size), 1e-4)
    for amplitude, width, gain in ((0.05, 0.03, 1.0), (0.3, 0.05, 0.1), (0.5, 0.08, 0.03)):
        course = 0.1 + amplitude * np.sin(2 * np.pi * (4 * time + rng.random()))
        power += gain * np.exp(-0.5 * ((doppler - course) / width) ** 2)
    decibels = 10 * np.log10(power) + rng.normal(0, 0.5, power.shape)
    return np.clip(255 * (decibels + 35) / 35, 0, 255).round().astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 75) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("name", COLORMAPS)
def test_levels_come_back_exactly_from_an_unharmed_picture(name):
    image = levels()[..., None]
    back = colormap(name).invert(paint(image, name)).astype(int)
    entries = len(np.unique(colormap(name).colours, axis=0))
    # 64 colours are four levels wide; matplotlib's jet has neighbours of one colour, up to three in a row
    assert np.abs(back - image[..., 0]).max() <= (0 if entries == 256 else 3)


def test_levels_survive_jpeg():
    """About 1.1 of 256 levels for jet after JPEG of quality 75; chroma is halved, so edges are worse than areas."""
    image = levels()
    error = np.abs(colormap("jet-256").invert(jpeg(paint(image[..., None], "jet-256"))).astype(int) - image)
    assert error.mean() < 3.0
    assert np.quantile(error, 0.95) <= 12


@pytest.mark.parametrize("name", COLORMAPS)
def test_floor_survives_jpeg_and_tells_the_map(name):
    image = levels()
    picture = jpeg(paint(image[..., None], name))
    assert detect(most_frequent(picture)) == name
    floor = image == 0
    assert floor.mean() > 0.4
    inside = floor.copy()  # away from signal: JPEG mixes blocks of 16 pixels
    for shift in range(-16, 17):
        inside &= np.roll(floor, shift, 0)
    for shift in range(-16, 17):
        inside &= np.roll(inside, shift, 1)
    again = paint(colormap(name).invert(picture)[..., None], name).astype(int)
    assert inside.any()
    assert np.abs(again[inside] - colormap(name).colours[0]).max() <= 3


def test_known_floors():
    """The lowest colours as MATLAB and matplotlib draw them; a real data set of jet(256) after JPEG has (0, 0, 130)."""
    floors = {(0, 0, 131): "jet-256", (0, 0, 130): "jet-256", (0, 0, 143): "jet-64", (0, 0, 127): "matplotlib-jet",
              (62, 38, 168): "parula-2017", (53, 42, 135): "parula", (68, 1, 84): "viridis",
              (0, 0, 0): None, (200, 200, 200): None}  # fmt: skip
    assert {floor: detect(list(floor)) for floor in floors} == floors


@pytest.mark.parametrize(("name", "ours"), [("jet", "matplotlib-jet"), ("viridis", "viridis")])
def test_maps_are_those_of_matplotlib(name, ours):
    import matplotlib

    table = matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3].astype(int)
    assert np.abs(colormap(ours).colours - table).max() <= 1


@pytest.mark.parametrize(
    ("name", "rows"),
    [("parula", {0: (0.2081, 0.1663, 0.5292), 9: (0.0060, 0.4086, 0.8828), 32: (0.2178, 0.7250, 0.6193),
                 54: (0.9990, 0.7653, 0.2164), 63: (0.9763, 0.9831, 0.0538)}),
     ("parula-2017", {0: (0.2422, 0.1504, 0.6603), 9: (0.2810, 0.3228, 0.9579), 32: (0.0964, 0.7500, 0.7120),
                      54: (0.9970, 0.7659, 0.2199), 63: (0.9769, 0.9839, 0.0805)})],
)  # fmt: skip
def test_parula_is_that_of_matlab(name, rows):
    """Rows of parula(64) as MATLAB prints them; they lie 255 / 63 levels apart."""
    for row, colour in rows.items():
        at = row * 255 / 63
        below, above = (colormap(name).colours[int(f(at))].astype(float) for f in (np.floor, np.ceil))
        between = below + (at % 1) * (above - below)
        assert np.abs(between - 255 * np.array(colour)).max() <= 2


@pytest.mark.parametrize("name", COLORMAPS)
def test_any_colour_gets_the_level_of_the_nearest_entry(name):
    """Exact, whatever was inverted before, in one picture or in stacks; and the distance is that to the entry."""
    colours = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    entries = colormap(name).colours.astype(int)
    squares = np.square(colours[..., None, :].astype(int) - entries).sum(-1)
    colormap(name).invert(colours[0, :3])
    levels = colormap(name).invert(colours)
    nearest = np.round(squares.argmin(-1) * 255 / (len(entries) - 1))
    assert np.array_equal(levels, nearest)
    assert np.allclose(colormap(name).distance(colours), np.sqrt(squares.min(-1)))


def coloured_folder(root: Path, name: str | None = "jet-256") -> Path:
    for i in range(12):
        (root / "walk").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(paint(levels(i, 64)[..., None], name) if name else levels(i, 64))
        picture.save(root / "walk" / f"walk_{100 * i}.png")
    return root


def test_gray_packing_keeps_the_level_and_the_colours(tmp_path):
    source = coloured_folder(tmp_path / "images")
    pack(PackConfig(source, tmp_path / "packed", image_mode="gray", workers=1))
    train = ShardDataset(tmp_path / "packed" / "train", ("image", "meta"))
    assert train.index["image_shape"] == [64, 64, 1]
    assert train.index["colormap"] == "jet-256"
    sample = train[0]
    number = int(sample["meta"]["source"].split("_")[1].split(".")[0]) // 100
    assert np.array_equal(sample["image"][..., 0], levels(number, 64))
    shard, first, _ = train.shards[0]
    data = (train.folder / shard).read_bytes()
    picture = Image.open(io.BytesIO(data[data.index(b"\x89PNG") :]))  # any other reader sees the user's colours
    original = Image.open(source / train[first]["meta"]["source"])
    assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(original))


def test_colours_are_not_mixed_when_a_picture_is_resized(tmp_path):
    """Between floor and red lie levels, not the purple that mixing dark blue and red would give."""
    image = np.zeros((64, 64), np.uint8)
    image[:, 33:] = 230
    for i in range(12):
        (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
        image[i, 0] = 1
        Image.fromarray(paint(image[..., None], "jet-256")).save(tmp_path / "images" / "a" / f"{100 * i}.png")
    pack(PackConfig(tmp_path / "images", tmp_path / "packed", image_size=32, image_mode="gray", workers=1))
    row = ShardDataset(tmp_path / "packed" / "train")[0]["image"][20, :, 0].astype(int)
    assert (np.diff(row) >= 0).all()
    assert row[10] == 0
    assert row[30] == 230


def test_a_named_map_overrules_and_none_takes_the_brightness(tmp_path):
    source = coloured_folder(tmp_path / "images", "jet-64")
    for wanted, expected in (("auto", "jet-64"), ("jet-256", "jet-256"), ("none", None)):
        pack(PackConfig(source, tmp_path / wanted, image_mode="gray", colormap=wanted, workers=1))
        index = ShardDataset(tmp_path / wanted / "train").index
        assert (index["image_shape"], index["colormap"]) == ([64, 64, 1], expected)
    with pytest.raises(ValueError, match="colormap=hot must be one of auto"):
        PackConfig(source, tmp_path / "x", colormap="hot")


@pytest.mark.parametrize(
    ("name", "options", "shape", "kept"),
    [
        ("jet-64", {}, [64, 64, 1], "jet-64"),  # told by its floor
        ("turned", {"colormap": "jet-256"}, [64, 64, 1], "jet-256"),  # named
        ("turned", {}, [64, 64, 3], None),
        ("turned", {"colormap": "none"}, [64, 64, 3], None),
        (None, {}, [64, 64, 1], None),  # single channel
    ],
)
def test_level_is_gray_where_the_map_is_known_and_colour_elsewhere(name, options, shape, kept, tmp_path, capsys):
    source = coloured_folder(tmp_path / "images", "viridis" if name == "turned" else name)
    if name == "turned":  # a map that nobody knows: viridis with its channels turned
        for path in source.glob("*/*.png"):
            Image.fromarray(np.asarray(Image.open(path))[..., [1, 2, 0]]).save(path)
    pack(PackConfig(source, tmp_path / "packed", image_mode="level", workers=1, **options))
    index = ShardDataset(tmp_path / "packed" / "train").index
    assert (index["image_shape"], index["colormap"]) == (shape, kept)
    assert ("keeps these images in colour" in capsys.readouterr().out) == (shape[2] == 3)
    if shape[2] == 3:
        pack(PackConfig(source, tmp_path / "rgb", image_mode="rgb", workers=1))
        assert index["hash"] == ShardDataset(tmp_path / "rgb" / "train").hash


def test_packed_images_of_another_mode_are_refused(tmp_path):
    from shards.errors import UserError

    pack(PackConfig(coloured_folder(tmp_path / "images"), tmp_path / "packed", workers=1))
    assert open_packed(tmp_path / "packed", 64, image_mode="rgb") == tmp_path / "packed"
    with pytest.raises(UserError, match=r"3 channel\(s\), but image_mode is gray"):
        open_packed(tmp_path / "packed", 64, image_mode="gray")


@pytest.mark.parametrize("name", COLORMAPS)
def test_colours_off_a_map_are_found_as_if_all_were_compared_with_all(name):
    rng = np.random.default_rng(0)
    near = colormap(name).palette[rng.integers(0, 256, 500)].astype(int) + rng.integers(-60, 61, (500, 3))
    pixels = np.concatenate([near.clip(0, 255), rng.integers(0, 256, (500, 3))]).astype(np.uint8).reshape(20, 50, 3)
    away = np.sqrt(((pixels[..., None, :].astype(int) - colormap(name).colours.astype(int)) ** 2).sum(-1).min(-1))
    assert np.allclose(colormap(name).distance(pixels), away)
    for limit in (20.0, 60.0, 500.0):
        assert (colormap(name).is_farther(pixels, limit) == (away > limit)).all()

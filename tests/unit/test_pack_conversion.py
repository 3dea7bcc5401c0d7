"""`mdaug pack`: what becomes of a file: bad ones are named with their reason, others converted and counted."""

from __future__ import annotations

import errno
import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import image_to_png
from shards.dataset import ShardDataset, decode_image
from shards.errors import UserError
from shards.image_to_png import to_png
from shards.options import PackConfig
from shards.pack import run as pack
from shards.source import read_folder

from .shards_helpers import image_folder, numbered_folder, packed_set, png


@pytest.fixture
def source(tmp_path) -> Path:
    return numbered_folder(tmp_path / "images", {"ID_10": list(range(30)), "ID_2": list(range(1, 25))})


def bad_folder(root: Path) -> tuple[Path, dict[str, str]]:
    """Return an image folder with one file of every bad kind, and what must be said of each."""
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(png(900, (64, 64)))).save(jpeg, "JPEG")
    good = {f"a/img_{i}.png": png(i) for i in range(40)} | {f"b/img_{i}.png": png(100 + i) for i in range(40)}
    bad = {
        "a/empty.png": (b"", "empty file"),
        "a/text.png": (b"<html>404</html>", "unreadable: not a PNG, JPEG"),
        "a/cut.png": (png(901, (64, 64))[:5000], "truncated"),
        "a/cut.jpg": (jpeg.getvalue()[:1500], "truncated"),
        "a/header.png": (png(902)[:20], "truncated"),
        "a/zcopy.png": (png(3), "same bytes as a/img_3.png"),
        "a/.hidden.png": (png(903), "hidden file"),
        "a/.ipynb_checkpoints/img.png": (png(904), "hidden file"),
        "b/notes.txt": (b"hello", "not a .png, .jpg"),
        "b/Thumbs.db": (b"x", "junk of an operating system"),
    }
    files = good | {name: data for name, (data, _) in bad.items()}
    return image_folder(root, files), {name: reason for name, (_, reason) in bad.items()}


def test_every_bad_file_is_named_with_its_reason(tmp_path, capsys):
    source, reasons = bad_folder(tmp_path / "images")
    report = packed_set(source, tmp_path / "out")
    rejected = {entry["file"]: entry["reason"] for entry in report["rejected"]}
    overlapping = {name for name, reason in rejected.items() if reason == "gap between train and val"}
    assert rejected.keys() == reasons.keys() | overlapping
    for name, reason in reasons.items():
        assert rejected[name].startswith(reason), name
    shown = capsys.readouterr().out
    assert f"found {report['found']} = packed {report['packed']} + rejected {len(rejected)}" in shown
    assert "2 hidden file" in shown


def test_a_file_that_may_not_be_read_is_rejected(tmp_path, source, monkeypatch):
    read = Path.read_bytes

    def denied(path):
        if path.name == "ID_2_5.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    report = json.loads(json.dumps(packed_set(source, tmp_path / "out")))
    assert {"file": "ID_2/ID_2_5.png", "class": "ID_2", "reason": "unreadable: Permission denied"} in report["rejected"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_no_damage_gets_past_the_check_as_a_crash(tmp_path, kind):
    file = io.BytesIO()
    Image.open(io.BytesIO(png(1, (24, 24)))).save(file, kind)
    whole = file.getvalue()
    rng = np.random.default_rng(0)
    path = tmp_path / "x.png"
    outcomes = Counter()
    for cut in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:cut])
        result = image_to_png.check(path)
        outcomes[result.error is None] += 1
        if result.error is None:  # a decoder that is content must also be content when packing
            to_png(path, (8, 8), 3)
    assert outcomes[False] > 0.9 * outcomes.total()
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        if image_to_png.check(path).error is None:
            to_png(path, (8, 8), 3)


def test_modes_and_sizes_are_converted_and_counted(tmp_path):
    levels = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    files = {f"a/n{i}.png": png(i) for i in range(20)}
    grey16, palette, bilevel, wide = io.BytesIO(), io.BytesIO(), io.BytesIO(), png(50, (16, 8))
    Image.fromarray(levels).save(grey16, "PNG")
    Image.open(io.BytesIO(png(60))).quantize(16).save(palette, "PNG")
    Image.open(io.BytesIO(png(61, mode="L"))).convert("1").save(bilevel, "PNG")
    files |= {
        "a/n20.png": grey16.getvalue(),
        "a/n21.png": palette.getvalue(),
        "a/n22.png": bilevel.getvalue(),
        "a/n23.png": png(62, mode="L"),
        "a/n24.png": png(63, mode="RGBA"),
        "a/n25.jpg": png(64, mode="CMYK"),
        "a/n26.png": wide,
    }
    report = packed_set(image_folder(tmp_path / "images", files), tmp_path / "out", gap=0)
    counts = {what: entry["files"] for what, entry in report["conversions"].items()}
    assert counts == {
        "mode I;16 to RGB": ["a/n20.png"],
        "mode P to RGB": ["a/n21.png"],
        "mode 1 to RGB": ["a/n22.png"],
        "mode L to RGB": ["a/n23.png"],
        "mode RGBA to RGB": ["a/n24.png"],
        "mode CMYK to RGB": ["a/n25.jpg"],
        "resized from 16x8 to 8x8": ["a/n26.png"],
    }
    assert report["image_shape"] == [8, 8, 3]
    sixteen = decode_image(to_png(tmp_path / "images" / "a" / "n20.png", (8, 8), 1))
    assert np.array_equal(sixteen[:, :, 0], np.round(levels / 257).astype(np.uint8))


def test_a_png_as_wanted_is_kept_byte_for_byte_and_nothing_else_is(tmp_path):
    rgb, rgba = png(0), png(0, mode="RGBA")
    grey16 = io.BytesIO()
    Image.fromarray(np.full((8, 8), 257, np.uint16)).save(grey16, "PNG")
    path = tmp_path / "x.png"
    path.write_bytes(rgb)
    assert to_png(path, (8, 8), 3) == rgb
    assert to_png(path, (8, 8), 1) != rgb
    assert to_png(path, (4, 4), 3) != rgb
    for data, channels in ((rgba, 3), (grey16.getvalue(), 1)):
        path.write_bytes(data)
        stored = Image.open(io.BytesIO(to_png(path, (8, 8), channels)))
        assert stored.mode == ("RGB" if channels == 3 else "L")


def test_transparency_is_laid_over_white(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0] = (200, 10, 10, 255)
    pixels[1, 1] = (0, 0, 0, 128)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = decode_image(to_png(tmp_path / "x.png", (2, 2), 3))
    assert image.tolist() == [[[200, 10, 10]] * 2, [[255, 255, 255], [127, 127, 127]]]


def test_grey_images_stay_single_channel_unless_one_is_colour_or_the_user_says(tmp_path):
    grey = {f"a/g{i}.png": png(i, mode="L") for i in range(20)}
    source = image_folder(tmp_path / "images", grey)
    assert packed_set(source, tmp_path / "auto")["image_shape"] == [8, 8, 1]
    assert packed_set(source, tmp_path / "rgb", image_mode="rgb")["image_shape"] == [8, 8, 3]
    image_folder(source, {"a/g20.png": png(20)})
    assert packed_set(source, tmp_path / "mixed")["image_shape"] == [8, 8, 3]
    report = packed_set(source, tmp_path / "gray", image_mode="gray")
    assert report["image_shape"] == [8, 8, 1]
    assert any("not monotonic in luma" in note for note in report["notes"])


@pytest.mark.parametrize("size", [(3, 3), (5, 5), (8, 8), (32, 32), (50, 50)])
def test_resizing_draws_no_value_that_was_not_between_those_of_the_image(tmp_path, size):
    """A filter that rings would leave [60, 190]: on a colour map that is a colour, hence a level, out of nowhere."""
    pixels = np.full((16, 16, 3), 60, np.uint8)
    pixels[5:11, 7:] = 190
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = decode_image(to_png(tmp_path / "x.png", size, 3))
    assert image.shape == (size[1], size[0], 3)
    assert image.min() >= 60
    assert image.max() <= 190


def test_reducing_averages_instead_of_picking_pixels(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(tmp_path / "x.png")
    image = decode_image(to_png(tmp_path / "x.png", (16, 16), 1))
    assert np.abs(image.astype(int) - 100).max() <= 6  # the border sees one stripe more or less


def test_names_with_dots_spaces_and_other_letters_get_plain_unique_keys(tmp_path):
    names = [
        "img 0.5.png",
        "img 0.7.png",
        "ä.png",
        "a.png",
        "a.jpg",
        "A.png",
        "行走.png",
        "跑步.png",
        "x" * 120 + ".png",
    ]
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(png(77))).save(jpeg, "JPEG")
    files = {f"walk ü.1/{name}": png(i) if name != "a.jpg" else jpeg.getvalue() for i, name in enumerate(names)}
    source = image_folder(tmp_path / "images", files)
    packed_set(source, tmp_path / "out")
    sources = {}
    for side in ("train", "val"):
        dataset = ShardDataset(tmp_path / "out" / side, ("meta",))
        sources |= {dataset.keys[i]: dataset[i]["meta"]["source"] for i in range(len(dataset))}
    assert sorted(sources.values()) == sorted(files)
    assert len({key.casefold() for key in sources}) == len(names)
    assert dataset.classes == ["walk ü.1"]
    alone = {image.path: image.key for image in read_folder(source).images}
    assert all(alone[path] == key for key, path in sources.items())


def test_a_name_that_is_not_utf8_is_rejected(tmp_path, source):
    with open(os.fsencode(source / "ID_2") + b"/\xff\xfe.png", "wb") as file:
        file.write(png(55))
    pack(PackConfig(source, tmp_path / "out", workers=1))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {"file": "ID_2/\\xff\\xfe.png", "class": "ID_2", "reason": "file name is not UTF-8"} in report["rejected"]
    assert report["found"] == report["packed"] + len(report["rejected"])


def test_a_link_to_a_folder_above_itself_is_not_followed(source):
    before = read_folder(source)
    (source / "ID_2/again").symlink_to(source / "ID_2")
    (source / "ID_10/all").symlink_to(source)
    assert read_folder(source).images == before.images
    (source / "ID_3").symlink_to(source)
    with pytest.raises(UserError, match="ID_3 holds no image"):
        read_folder(source)

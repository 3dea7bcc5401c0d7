"""Image folders composed at random: each picture is packed with the levels and the label of its formula, or listed.

MDAUG_EXAMPLES sets how many folders are tried.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.options import PackConfig
from shards.pack import read_report
from shards.pack import run as pack
from shards.verify import verify
from tests.pictures import painted, ridge

SIDE = 24
CLASSES = ["fall", "walk", "sit down", "ID_2", "ID_10", "走路", "größe", "x" * 180]
FORMS = ["L", "1x16", "RGB-grey", "jet-256", "viridis", "parula", "LA", "P", "tif", "bmp", "webp", "tif16"]
SPLITS = [("train", "val"), ("Train", "Test"), ("training", "validation"), ("TRAIN", "VALID")]
JUNK = {
    "hidden": (".hidden.png", b"x"),
    "mac": ("__MACOSX/._a.png", b"x"),
    "nas": ("@eaDir/a.png/THUMB.png", b"x"),
    "windows": ("Thumbs.db", b"x"),
    "text": ("notes.txt", b"hello"),
    "empty": ("empty.png", b""),
    "cut": ("cut.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
    "lie": ("lie.jpg", b"this is text"),
}
# How stored pixels are turned so that EXIF's orientation shows them upright.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    6: lambda a: np.rot90(a),
    8: lambda a: np.rot90(a, -1),
}


@dataclass(frozen=True)
class Picture:
    number: int
    form: str
    orientation: int
    deep: bool
    framed: bool = False


pictures = st.builds(
    Picture,
    number=st.integers(0, 10_000),
    form=st.sampled_from(FORMS),
    orientation=st.sampled_from([1, 1, 1, *UPRIGHT]),
    deep=st.sampled_from([False, False, True]),
)
folders = st.fixed_dictionaries(
    {
        "classes": st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3, unique=True),
        "splits": st.sampled_from([None, None, *SPLITS]),
        "pictures": st.lists(pictures, min_size=2, max_size=5, unique_by=lambda picture: picture.number),
        "junk": st.lists(st.sampled_from(sorted(JUNK)), max_size=3, unique=True),
        "copies": st.lists(st.sampled_from(["same class", "other class", "other form"]), max_size=2, unique=True),
        "frame": st.sampled_from([None, None, "crop", "ask"]),
        "column": st.sampled_from([None, ["1", "2"], ["1", "2.5"], ["1", "two"], ["", "3"]]),
    }
)


def write(path: Path, picture: Picture) -> None:
    """Save a picture in its form, turned as its EXIF orientation undoes."""
    levels = ridge(picture.number, SIDE, SIDE)
    pixels: np.ndarray = levels
    if picture.form == "RGB-grey":
        pixels = np.repeat(levels[..., None], 3, 2)
    elif picture.form in ("jet-256", "viridis", "parula"):
        pixels = painted(levels, picture.form)
        if picture.framed:
            pixels = np.pad(pixels, ((2, 1), (0, 3), (0, 0)), constant_values=255)
    elif picture.form in ("1x16", "tif16"):
        pixels = levels.astype(np.uint16) * 257
    elif picture.form == "LA":
        pixels = np.stack([levels, np.full_like(levels, 255)], 2)
    image = Image.fromarray(np.ascontiguousarray(UPRIGHT[picture.orientation](pixels)))
    if picture.form == "P":
        image = image.convert("P")
    exif = Image.Exif()
    exif[0x112] = picture.orientation
    options = {} if picture.form == "bmp" or picture.orientation == 1 else {"exif": exif}
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options, **({"lossless": True} if picture.form == "webp" else {}))


def compose(root: Path, folder: dict) -> dict[str, tuple[int, str]]:
    """Write an image folder; return path -> (number of its formula, class) of every picture in it."""
    made: dict[str, tuple[int, str]] = {}

    def put(name: str, class_name: str, picture: Picture) -> None:
        if picture.form == "bmp":
            picture = replace(picture, orientation=1)
        write(root / name, picture)
        made[name] = (picture.number, class_name)

    sides = folder["splits"] or ("",)
    for s, side in enumerate(sides):
        above = f"{side}/" if side else ""
        for c, class_name in enumerate(folder["classes"]):
            for i, picture in enumerate(folder["pictures"]):
                number = picture.number + 20_000 * (s * 10 + c)
                own = replace(picture, number=number, framed=folder["frame"] is not None)
                ending = {"tif16": "tif"}.get(own.form, own.form if own.form in ("tif", "bmp", "webp") else "png")
                # One picture of a class always lies directly in its folder.
                inner = "session/" if own.deep and i else ""
                put(f"{above}{class_name}/{inner}r{i // 2}_{i:03d}.{ending}", class_name, own)
            for kind in folder["junk"]:
                name, data = JUNK[kind]
                path = root / f"{above}{class_name}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    first = Picture(folder["pictures"][0].number, "L", 1, False)
    above = f"{sides[0]}/" if sides[0] else ""
    for kind in folder["copies"]:
        target = folder["classes"][-1 if kind == "other class" else 0]
        form = "RGB-grey" if kind == "other form" else "L"
        put(f"{above}{target}/copy of {kind}.png", target, Picture(first.number, form, 1, False))
    if folder["column"]:
        rows = [f"{name},{folder['column'][i % 2]}" for i, name in enumerate(sorted(made))]
        (root / "metadata.csv").write_text("\n".join(["file,speed", *rows]), encoding="utf-8")
    return made


@pytest.mark.slow
@settings(
    max_examples=int(os.environ.get("MDAUG_EXAMPLES", "300")),
    deadline=None,
    derandomize="MDAUG_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(folder=folders)
def test_a_picture_is_packed_as_its_formula_says_or_listed_with_its_reason(folder):
    with tempfile.TemporaryDirectory() as name:
        root, output = Path(name) / "in", Path(name) / "out"
        made = compose(root, folder)
        message = ""
        try:
            pack(PackConfig(root, output, image_mode="level", frame=folder["frame"] or "ask", workers=1))
        except UserError as error:  # a class of which nothing can be used, or two readings
            message = str(error)
        if message:
            assert "\n" not in message
            assert not (output / "run.json").exists()
            return

        # Counts add up, over every file that lies where an image is expected.
        report = read_report(output)
        rejected = {entry["file"]: entry["reason"] for entry in report["rejected"]}
        assert report["found"] == report["packed"] + len(rejected)
        files = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.parent != root}
        assert verify(output) == []

        # Pixels and labels, and one type per column.
        packed, types = set(), set()
        classes = json.loads((output / "classes.json").read_text(encoding="utf-8"))
        for side in report["splits"]:
            data = ShardDataset(output / side, ("image", "meta"))
            for i in range(len(data)):
                sample = data[i]
                number, class_name = made[sample["meta"]["source"]]
                away = np.abs(sample["image"][..., 0].astype(int) - ridge(number, SIDE, SIDE))
                assert sample["image"].shape == (SIDE, SIDE, 1)
                assert away.max() <= 4, sample["meta"]["source"]
                assert classes[sample["label"]] == class_name
                packed.add(sample["meta"]["source"])
                types.add(type(sample["meta"].get("speed", 0 if not types else next(iter(types))())))
        assert len(types) <= 1
        assert packed.isdisjoint(rejected)
        assert packed | rejected.keys() == files
        assert all(rejected.values())

        # A picture in two classes is in neither; painted and grey it is not the same picture.
        painted_first = folder["pictures"][0].form in ("jet-256", "viridis", "parula")
        for source in packed if not painted_first else ():
            twins = {c for n, c in made.values() if n == made[source][0]}
            assert twins == {made[source][1]}

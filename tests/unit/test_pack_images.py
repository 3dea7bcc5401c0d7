"""`mdaug pack`: every file is packed or named with its reason, the bytes are the data's, and nothing is half done."""

from __future__ import annotations

import csv
import errno
import io
import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import convert, provenance, writer
from shards import pack as packing
from shards.cache import open_packed
from shards.convert import to_png
from shards.dataset import ShardDataset, decode_image
from shards.errors import UserError
from shards.index import content_hash
from shards.pack import PackConfig, pack
from shards.source import read_folder
from shards.verify import verify

from .shards_helpers import contents, image_folder, numbered_folder, png


def packed(source: Path, output: Path, **options) -> dict:
    """Pack in this process and return the report, after checking that it adds up with what was written."""
    pack(PackConfig(source, output, **{"workers": 1, **options}))
    report = json.loads((output / "report.json").read_text())
    assert verify(output) == []
    assert report["found"] == report["packed"] + len(report["rejected"])
    written = [
        ShardDataset(output / side, ("meta",))[i]["meta"]["source"]
        for side, part in report["splits"].items()
        for i in range(part["samples"])
    ]
    assert sorted(written) == sorted(set(written))
    assert len(written) == report["packed"]
    files = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file() and path.parent != source]
    assert sorted(written + [entry["file"] for entry in report["rejected"]]) == sorted(files)
    return report


@pytest.fixture
def source(tmp_path) -> Path:
    return numbered_folder(tmp_path / "images", {"ID_10": list(range(30)), "ID_2": list(range(1, 25))})


def test_samples_carry_image_label_class_and_source(tmp_path, source):
    report = packed(source, tmp_path / "out", shard_size=7)
    assert report["image_shape"] == [8, 8, 3]
    for side in ("train", "val"):
        dataset = ShardDataset(tmp_path / "out" / side, ("image", "meta"))
        assert dataset.classes == ["ID_2", "ID_10"]
        assert dataset.index["image_shape"] == [8, 8, 3]
        assert {count for _, _, count in dataset.shards[:-1]} <= {7}
        assert set(dataset.labels) == {0, 1}
        for i in range(len(dataset)):
            sample = dataset[i]
            original = np.asarray(Image.open(source / sample["meta"]["source"]))
            assert np.array_equal(sample["image"], original)
            assert dataset.classes[sample["label"]] == sample["meta"]["class"] == sample["meta"]["source"].split("/")[0]
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["ID_2", "ID_10"]
    assert provenance.read(tmp_path / "out", "images")["hash"] == content_hash(tmp_path / "out")


def test_the_shards_mix_the_classes_for_readers_that_shuffle_only_locally(tmp_path):
    classes = {name: list(range(100)) for name in "abcd"}
    packed(numbered_folder(tmp_path / "images", classes), tmp_path / "out", shard_size=40)
    dataset = ShardDataset(tmp_path / "out" / "train", ())
    for _, first, count in dataset.shards:
        if count == 40:
            assert set(dataset.labels[first : first + count]) == {0, 1, 2, 3}


def test_same_images_same_bytes_wherever_and_with_any_number_of_workers(tmp_path, source):
    packed(source, tmp_path / "one", shard_size=10, image_size=6)
    copy = image_folder(tmp_path / "other" / "name", contents(source))
    packed(copy, tmp_path / "two", shard_size=10, image_size=6, workers=3)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    for name in ("plan.json",):  # names the folder
        assert one.pop(name) != two.pop(name)
    assert one == two


@pytest.mark.parametrize("stop", [0, 1, 9, 10, 25, 42, 45])
def test_stopped_at_any_image_the_same_command_continues_to_the_same_bytes(tmp_path, source, monkeypatch, stop):
    packed(source, tmp_path / "whole", shard_size=10)
    done = 0

    def stopping(*arguments, **named):
        nonlocal done
        done += 1
        if done > stop:
            raise KeyboardInterrupt
        return to_png(*arguments, **named)

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "to_png", stopping)
        with pytest.raises(KeyboardInterrupt):
            packed(source, output, shard_size=10)
    assert not (output / "provenance.json").exists()
    finished_before = {path: path.stat().st_mtime_ns for path in output.rglob("*.tar")}
    with pytest.raises(UserError, match="not a finished 'images' folder"):
        open_packed(output, 8)
    packed(source, output, shard_size=10)
    assert contents(output) == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in finished_before.items())


def test_a_damaged_shard_of_a_finished_folder_is_written_again(tmp_path, source):
    packed(source, tmp_path / "out")
    whole = contents(tmp_path / "out")
    tar = tmp_path / "out" / "train" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    packed(source, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_again_says_finished_and_touches_nothing(tmp_path, source, capsys):
    packed(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != ".lock"}
    capsys.readouterr()
    packed(source, tmp_path / "out")
    assert "packed already" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    for path in source.rglob("*.png"):  # the same images with other times are still the same images
        os.utime(path, (1, 1))
    packed(source, tmp_path / "out")
    assert "from the same images: nothing to do" in capsys.readouterr().out


def test_an_output_folder_with_another_run_is_refused_naming_the_difference(tmp_path, source):
    packed(source, tmp_path / "out")
    with pytest.raises(UserError, match="image_size is None there and 16 here; choose another output_dir"):
        packed(source, tmp_path / "out", image_size=16)
    (source / "ID_2" / "ID_2_99.png").write_bytes(png(4711))
    with pytest.raises(UserError, match=r"packing of other images \(54 files .* now 55 files"):
        packed(source, tmp_path / "out")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds something else \('thesis\.tex'\)"):
        packed(source, tmp_path / "foreign")
    with pytest.raises(UserError, match="lies inside data_dir"):
        packed(source, source / "packed")


def bad_folder(root: Path) -> tuple[Path, dict[str, str]]:
    """Return an image folder with one file of every bad kind, and what must be said of each."""
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(png(900, (64, 64)))).save(jpeg, "JPEG")
    good = {f"a/img_{i}.png": png(i) for i in range(40)} | {f"b/img_{i}.png": png(100 + i) for i in range(40)}
    bad = {
        "a/empty.png": (b"", "empty file"),
        "a/text.png": (b"<html>404</html>", "unreadable: not a PNG or JPEG"),
        "a/cut.png": (png(901, (64, 64))[:5000], "truncated"),
        "a/cut.jpg": (jpeg.getvalue()[:1500], "truncated"),
        "a/header.png": (png(902)[:20], "truncated"),
        "a/zcopy.png": (png(3), "same bytes as a/img_3.png"),
        "a/.hidden.png": (png(903), "hidden file"),
        "a/.ipynb_checkpoints/img.png": (png(904), "hidden file"),
        "b/notes.txt": (b"hello", "not a .png, .jpg or .jpeg file"),
        "b/Thumbs.db": (b"x", "not a .png, .jpg or .jpeg file"),
    }
    files = good | {name: data for name, (data, _) in bad.items()}
    return image_folder(root, files), {name: reason for name, (_, reason) in bad.items()}


def test_every_bad_file_is_named_with_its_reason(tmp_path, capsys):
    source, reasons = bad_folder(tmp_path / "images")
    report = packed(source, tmp_path / "out")
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
    report = json.loads(json.dumps(packed(source, tmp_path / "out")))
    assert {"file": "ID_2/ID_2_5.png", "reason": "unreadable: Permission denied"} in report["rejected"]


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
        result = convert.check(path)
        outcomes[result.error is None] += 1
        if result.error is None:  # a decoder that is content must also be content when packing
            to_png(path, (8, 8), 3)
    assert outcomes[False] > 0.9 * outcomes.total()
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        if convert.check(path).error is None:
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
    report = packed(image_folder(tmp_path / "images", files), tmp_path / "out", gap=0)
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
    assert packed(source, tmp_path / "auto")["image_shape"] == [8, 8, 1]
    assert packed(source, tmp_path / "rgb", image_mode="rgb")["image_shape"] == [8, 8, 3]
    image_folder(source, {"a/g20.png": png(20)})
    assert packed(source, tmp_path / "mixed")["image_shape"] == [8, 8, 3]
    report = packed(source, tmp_path / "gray", image_mode="gray")
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
    packed(source, tmp_path / "out")
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
    assert {"file": "ID_2/\\xff\\xfe.png", "reason": "file name is not UTF-8"} in report["rejected"]
    assert report["found"] == report["packed"] + len(report["rejected"])


def test_folders_that_cannot_be_packed_are_refused_in_one_line(tmp_path, source):
    def refused(match, **options):
        with pytest.raises(UserError, match=match) as error:
            pack(PackConfig(options.pop("data_dir", source), tmp_path / "out", workers=1, **options))
        assert "\n" not in str(error.value)

    refused("is not a folder", data_dir=tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "x.png").write_bytes(png(0))
    refused("holds no class folder; lay the images out as", data_dir=tmp_path / "flat")
    (source / "ID_3").mkdir()
    refused("ID_3 holds no image; put images there or remove", data_dir=source)
    (source / "ID_3" / "x.png").write_bytes(b"")
    refused(r"ID_3: none of its images can be packed \(the first, ID_3/x.png: empty file\)", data_dir=source)


def test_one_class_is_allowed_with_a_note(tmp_path):
    report = packed(numbered_folder(tmp_path / "images", {"only": list(range(30))}), tmp_path / "out")
    assert any("one class only ('only')" in note for note in report["notes"])


def test_metadata_joins_by_file_and_decides_the_groups(tmp_path, source):
    with open(source / "metadata.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "class", "group", "snr_db", "person"])
        for path in sorted(source.rglob("*.png")):
            number = int(path.stem.rpartition("_")[2])
            table.writerow([path.relative_to(source), path.parent.name, f"g{number % 5}", number / 2, "007"])
        table.writerow(["ID_2/gone.png", "ID_2", "g1", 0, ""])
    report = packed(source, tmp_path / "out")
    assert report["split_rule"] == "groups by metadata column group"
    assert set(report["splits"]["train"]["groups"]) | set(report["splits"]["val"]["groups"]) == {
        f"g{i}" for i in range(5)
    }
    meta = ShardDataset(tmp_path / "out" / "train", ("meta",))[0]["meta"]
    number = int(meta["source"].rpartition("_")[2].removesuffix(".png"))
    assert (meta["snr_db"], meta["group"], meta["person"]) == (number / 2, f"g{number % 5}", "007")
    assert any("1 rows of metadata.csv name no image" in note for note in report["notes"])


def test_metadata_that_does_not_fit_is_refused(tmp_path, source):
    for text, match in (("name,x\na,1\n", "no column 'file'"), ("file,x\na,1\na,2\n", "'a' is named twice")):
        (source / "metadata.csv").write_text(text)
        with pytest.raises(UserError, match=match):
            pack(PackConfig(source, tmp_path / "out", workers=1))
    (source / "metadata.csv").write_bytes(b"file,x\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="not a CSV table in UTF-8"):
        pack(PackConfig(source, tmp_path / "out", workers=1))


def test_a_folder_that_is_split_already(tmp_path):
    names = [f"train/{c}/{i}.png" for c in "ab" for i in range(8)]
    names += [f"val/{c}/{i}.png" for c in "ab" for i in range(3)]
    names += [f"test/{c}/{i}.png" for c in "ab" for i in range(2)]
    files = {name: png(i) for i, name in enumerate(names)}
    packed(image_folder(tmp_path / "images", files), tmp_path / "out")
    sizes = {side: len(ShardDataset(tmp_path / "out" / side)) for side in ("train", "val", "test")}
    assert sizes == {"train": 16, "val": 6, "test": 4}
    assert ShardDataset(tmp_path / "out" / "val").classes == ["a", "b"]


def test_a_full_disk_is_one_line_and_the_same_command_continues(tmp_path, source, monkeypatch):
    packed(source, tmp_path / "whole", shard_size=10)
    synced = 0
    sync = os.fsync

    def full(descriptor):
        nonlocal synced
        synced += 1
        if synced == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(writer.os, "fsync", full)
        with pytest.raises(UserError, match="no space left while writing"):
            packed(source, tmp_path / "out", shard_size=10)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    packed(source, tmp_path / "out", shard_size=10)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_size", 0), ("image_size", "8x"), ("image_size", "8x8x8"),
     ("image_mode", "jet"), ("val_fraction", 0.0), ("val_fraction", 0.9), ("gap", -1),
     ("shard_size", 0), ("seed", -1), ("group_by", "("), ("group_by", "no_group"), ("group_by", "(a)(b)")],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is"):
        PackConfig(Path("a"), Path("b"), **{field: value})


def test_open_packed_takes_packed_images_of_the_right_size_only(tmp_path, source):
    packed(source, tmp_path / "out")
    assert open_packed(tmp_path / "out", 8) == tmp_path / "out"
    with pytest.raises(UserError, match="8x8, but image_size is 16; give --image_size 8 or pack"):
        open_packed(tmp_path / "out", 16)
    with pytest.raises(UserError, match="8x8, but image_size is 8x16; give --image_size 8 or pack"):
        open_packed(tmp_path / "out", "8x16")


def test_open_packed_caches_an_image_folder_until_a_file_changes(tmp_path, source):
    first = open_packed(source, 8, workers=1)
    assert first.parent == tmp_path / ".mdaug-cache"
    (source / "provenance.json").write_text("{}")  # as the simulator leaves one: still an image folder
    written = (first / "train" / "000000.tar").stat().st_mtime_ns
    assert open_packed(source, 8, workers=1) == first
    assert (first / "train" / "000000.tar").stat().st_mtime_ns == written
    assert open_packed(source, 4, workers=1) != first
    (source / "ID_2" / "ID_2_77.png").write_bytes(png(77))
    assert open_packed(source, 8, workers=1) != first


def open_and_report(source: Path, results) -> None:
    results.put((str(open_packed(source, 8, workers=1)), os.getpid()))


def test_ranks_that_open_at_once_get_one_whole_folder(tmp_path, source):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=open_and_report, args=(source, results)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    folders = {results.get(timeout=60)[0] for _ in ranks}
    for rank in ranks:
        rank.join(timeout=60)
    assert len(folders) == 1
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert verify(Path(folders.pop())) == []

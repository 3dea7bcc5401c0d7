"""`mdaug pack`: every file is packed or named with its reason, the bytes are the data's, and nothing is half done."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import pack as packing
from shards import provenance, writer
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.image_to_png import to_png
from shards.index import content_hash
from shards.options import PackConfig
from shards.pack import run as pack
from shards.packed import open_packed

from .shards_helpers import contents, image_folder, numbered_folder, packed_set, png


@pytest.fixture
def source(tmp_path) -> Path:
    return numbered_folder(tmp_path / "images", {"ID_10": list(range(30)), "ID_2": list(range(1, 25))})


def test_samples_carry_image_label_class_and_source(tmp_path, source):
    report = packed_set(source, tmp_path / "out", shard_size=7)
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
    packed_set(numbered_folder(tmp_path / "images", classes), tmp_path / "out", shard_size=40)
    dataset = ShardDataset(tmp_path / "out" / "train", ())
    for _, first, count in dataset.shards:
        if count == 40:
            assert set(dataset.labels[first : first + count]) == {0, 1, 2, 3}


def test_same_images_same_bytes_wherever_and_with_any_number_of_workers(tmp_path, source):
    packed_set(source, tmp_path / "one", shard_size=10, image_size=6)
    copy = image_folder(tmp_path / "other" / "name", contents(source))
    packed_set(copy, tmp_path / "two", shard_size=10, image_size=6, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("stop", [0, 1, 9, 10, 25, 42, 45])
def test_stopped_at_any_image_the_same_command_continues_to_the_same_bytes(tmp_path, source, monkeypatch, stop):
    packed_set(source, tmp_path / "whole", shard_size=10)
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
            packed_set(source, output, shard_size=10)
    assert not (output / "provenance.json").exists()
    finished_before = {path: path.stat().st_mtime_ns for path in output.rglob("*.tar")}
    with pytest.raises(UserError, match="not a finished 'images' folder"):
        open_packed(output, 8)
    packed_set(source, output, shard_size=10)
    assert contents(output) == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in finished_before.items())


def test_a_damaged_shard_of_a_finished_folder_is_written_again(tmp_path, source):
    packed_set(source, tmp_path / "out")
    whole = contents(tmp_path / "out")
    tar = tmp_path / "out" / "train" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    packed_set(source, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_again_says_finished_and_touches_nothing(tmp_path, source, capsys):
    packed_set(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != ".lock"}
    capsys.readouterr()
    packed_set(source, tmp_path / "out")
    assert "packed already" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    for path in source.rglob("*.png"):  # the same images with other times are still the same images
        os.utime(path, (1, 1))
    packed_set(source, tmp_path / "out")
    assert "from the same images: nothing to do" in capsys.readouterr().out


def test_an_output_folder_with_another_run_is_refused_naming_the_difference(tmp_path, source):
    packed_set(source, tmp_path / "out")
    with pytest.raises(UserError, match=r"image_size: None there, 16 now\); choose another --output_dir"):
        packed_set(source, tmp_path / "out", image_size=16)
    (source / "ID_2" / "ID_2_99.png").write_bytes(png(4711))
    with pytest.raises(UserError, match=r"another run of mdaug pack \(made from folder: .* there, .* now"):
        packed_set(source, tmp_path / "out")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds other files \('thesis\.tex'\)"):
        packed_set(source, tmp_path / "foreign")
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="lies inside data_dir"):
        packed_set(source, source / "packed")


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
    report = packed_set(numbered_folder(tmp_path / "images", {"only": list(range(30))}), tmp_path / "out")
    assert any("one class only ('only')" in note for note in report["notes"])


def test_metadata_joins_by_file_and_decides_the_groups(tmp_path, source):
    with open(source / "metadata.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "class", "group", "snr_db", "person"])
        for path in sorted(source.rglob("*.png")):
            number = int(path.stem.rpartition("_")[2])
            table.writerow([path.relative_to(source), path.parent.name, f"g{number % 5}", number / 2, "007"])
        table.writerow(["ID_2/gone.png", "ID_2", "g1", 0, ""])
    report = packed_set(source, tmp_path / "out")
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
    packed_set(image_folder(tmp_path / "images", files), tmp_path / "out")
    sizes = {side: len(ShardDataset(tmp_path / "out" / side)) for side in ("train", "val", "test")}
    assert sizes == {"train": 16, "val": 6, "test": 4}
    assert ShardDataset(tmp_path / "out" / "val").classes == ["a", "b"]


def test_a_full_disk_is_one_line_and_the_same_command_continues(tmp_path, source, monkeypatch):
    packed_set(source, tmp_path / "whole", shard_size=10)
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
            packed_set(source, tmp_path / "out", shard_size=10)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    packed_set(source, tmp_path / "out", shard_size=10)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_size", 0), ("image_size", 100000), ("workers", 100000), ("image_size", "8x"), ("image_size", "8x8x8"),
     ("image_mode", "jet"), ("val_fraction", 0.0), ("val_fraction", 0.9), ("gap", -1),
     ("shard_size", 0), ("seed", -1), ("group_by", "("), ("group_by", "no_group"), ("group_by", "(a)(b)")],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}="):
        PackConfig(Path("a"), Path("b"), **{field: value})

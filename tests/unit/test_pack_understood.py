"""`mdaug pack` looks at every file, says what it took it for, and asks where two readings are possible."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.colormap import COLORMAPS
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.options import PackConfig
from shards.pack import read_report
from shards.pack import run as pack
from tests.pictures import framed, painted, ridge, save, two_classes
from tests.unit.shards_helpers import packed_set


def levels_of(output: Path) -> dict[str, np.ndarray]:
    """Return source -> pixels of all packed images."""
    found = {}
    for side in ("train", "val", "test"):
        if (output / side).is_dir():
            data = ShardDataset(output / side, ("image", "meta"))
            found |= {data[i]["meta"]["source"]: data[i]["image"] for i in range(len(data))}
    return found


def note(report: dict, *words: str) -> str:
    """Return the one note that holds all words."""
    [found] = [text for text in report["notes"] if all(word in text for word in words)]
    return found


# Colours.


def test_every_picture_is_inverted_with_its_own_colour_map(tmp_path):
    for i in range(8):
        save(tmp_path / f"in/fall/r{i // 4}_{i}.png", painted(ridge(i), "jet-256"))
        save(tmp_path / f"in/walk/r{i // 4}_{i}.png", painted(ridge(99 + i), "viridis"))
    report = packed_set(tmp_path / "in", tmp_path / "out", image_mode="level")
    for source, image in levels_of(tmp_path / "out").items():
        number = int(source.split("_")[1][0]) + 99 * source.startswith("walk")
        assert np.abs(image[..., 0].astype(int) - ridge(number)).max() <= 3, source
    assert "viridis (8)" in note(report, "each was inverted with its own map") or "jet" in report["notes"][0]
    assert "8 RGB in viridis" in report["understood"]["pictures"]


def test_colour_maps_that_go_with_the_class_are_said_where_colours_are_kept(tmp_path):
    for i in range(8):
        save(tmp_path / f"in/fall/r{i // 4}_{i}.png", painted(ridge(i), "jet-256"))
        save(tmp_path / f"in/walk/r{i // 4}_{i}.png", painted(ridge(99 + i), "parula"))
    report = packed_set(tmp_path / "in", tmp_path / "out")
    assert "parula (8)" in note(report, "several colour maps")


@pytest.mark.parametrize("name", COLORMAPS)
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_set_in_one_map_is_not_said_to_be_mixed(name, ending, tmp_path):
    for i in range(12):
        options = {"quality": 85} if ending == "jpg" else {}
        save(tmp_path / f"in/{'ab'[i % 2]}/r{i // 4}_{i}.{ending}", painted(ridge(i, 96, 96), name), **options)
    for mode in ("rgb", "level"):
        report = packed_set(tmp_path / "in", tmp_path / mode, image_mode=mode)
        assert not [text for text in report["notes"] if "map" in text]
    assert report["colormap"] == name


def test_a_frame_is_asked_about_and_cropped_or_kept(tmp_path):
    for i in range(8):
        save(tmp_path / f"in/{'ab'[i % 2]}/r{i // 4}_{i}.png", framed(painted(ridge(i), "jet-256")))
    with pytest.raises(UserError, match=r"8 of 8 images .* 2 at the top.*--frame crop.*--frame keep"):
        packed_set(tmp_path / "in", tmp_path / "asked", image_mode="level")
    report = packed_set(tmp_path / "in", tmp_path / "out", image_mode="level", frame="crop")
    assert report["image_shape"] == [60, 60, 1]
    for source, image in levels_of(tmp_path / "out").items():
        number = int(source.split("_")[1][0])
        assert np.abs(image[..., 0].astype(int) - ridge(number)[2:-2, 2:-2]).max() <= 3
    assert report["conversions"]["frame cut off (2 rows above, 2 below, 2 columns left, 2 right)"]["count"] == 8
    kept = packed_set(tmp_path / "in", tmp_path / "kept", image_mode="level", frame="keep")
    assert kept["image_shape"] == [64, 64, 1]
    assert "8 images have colours that" in note(kept, "axes, text or another map")


def test_three_equal_channels_are_grey(tmp_path):
    for i in range(8):
        save(tmp_path / f"in/{'ab'[i % 2]}/r{i // 4}_{i}.png", np.repeat(ridge(i)[..., None], 3, 2))
    for mode in ("auto", "level", "gray"):
        report = packed_set(tmp_path / "in", tmp_path / mode, image_mode=mode)
        assert report["image_shape"] == [64, 64, 1]
        assert not [text for text in report["notes"] if "colour" in text or "grey" in text]
        assert all(
            (image[..., 0] == ridge(int(s.split("_")[1][0]))).all() for s, image in levels_of(tmp_path / mode).items()
        )
    assert "8 RGB with equal channels (grey)" in report["understood"]["pictures"]


def test_the_odd_one_out_is_named(tmp_path):
    two_classes(tmp_path / "in", count=20)
    logo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    save(tmp_path / "in/walk/logo_999.png", logo)
    report = packed_set(tmp_path / "in", tmp_path / "rgb")
    assert "walk/logo_999.png" in note(report, "1 of", "are colour")
    assert "odd ones: walk/logo_999.png" in report["understood"]["pictures"]


def test_a_coloured_picture_of_no_known_map_is_not_inverted_with_that_of_the_others(tmp_path):
    two_classes(tmp_path / "in", paint="jet-256")
    save(tmp_path / "in/walk/logo_999.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    report = packed_set(tmp_path / "in", tmp_path / "out", image_mode="level")
    assert [entry["file"] for entry in report["rejected"]] == ["walk/logo_999.png"]


@pytest.mark.slow
def test_looking_for_colour_maps_takes_no_memory_that_grows_with_the_pictures(tmp_path):
    def peak(mode: str) -> float:
        code = (
            "import sys; from pathlib import Path; from shards.options import PackConfig; from shards.pack import run;"
            f"run(PackConfig(Path({str(tmp_path / 'in')!r}), Path({str(tmp_path)!r}) / {mode!r}, image_size=64,"
            f"image_mode={mode!r}, workers=1)); import resource;"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    for i in range(10):
        big = np.kron(ridge(i), np.ones((20, 27), np.uint8))
        save(tmp_path / f"in/{'ab'[i % 2]}/r{i // 4}_{i}.png", painted(big, "jet-256"))
    assert peak("level") - peak("rgb") < 0.3  # GB


def test_masks_and_constant_pictures_are_said(tmp_path):
    for i in range(8):
        save(tmp_path / f"in/{'ab'[i % 2]}/r{i // 4}_{i}.png", (ridge(i) > 128).astype(np.uint8))
    save(tmp_path / "in/a/r9_900.png", np.full((64, 64), 0, np.uint8))
    report = packed_set(tmp_path / "in", tmp_path / "out")
    assert "use 1 of 255 levels" in note(report, "8-bit images")
    assert "1 images are of one colour only (a/r9_900.png)" in note(report, "one colour only")


# Folders.


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAINING", "Testing"), ("train", "eval")])
def test_splits_are_known_by_any_usual_name(train, test, tmp_path):
    for side in (train, test):
        for i in range(8):
            first = 100 * (side == test)
            save(tmp_path / f"in/{side}/{'fall' if i % 2 else 'walk'}/r{i // 4}_{i:03d}.png", ridge(first + i))
    report = packed_set(tmp_path / "in", tmp_path / "out")
    assert report["splits"]["test"]["classes"] == {"fall": 4, "walk": 4}
    assert f"{test} (test)" in report["understood"]["folders"]


def test_folders_that_can_be_read_in_two_ways_are_asked_about(tmp_path):
    for site in ("lab", "field"):
        for i in range(8):
            save(
                tmp_path / f"in/{site}/{'fall' if i % 2 else 'walk'}/r{i // 4}_{i}.png", ridge(i + 50 * (site == "lab"))
            )
    with pytest.raises(UserError, match=r"classes 'field', 'lab' .*--class_depth 1.* classes 'fall', 'walk' inside"):
        packed_set(tmp_path / "in", tmp_path / "asked")
    assert packed_set(tmp_path / "in", tmp_path / "one", class_depth=1)["splits"]["train"]["classes"].keys() == {
        "field", "lab",
    }  # fmt: skip
    two = packed_set(tmp_path / "in", tmp_path / "two", class_depth=2)
    assert two["splits"]["train"]["classes"].keys() == {"fall", "walk"}


def test_a_class_without_training_images_is_no_class(tmp_path):
    for side, names in (("train", ("fall", "walk")), ("val", ("fall", "walk", "extra"))):
        for k, name in enumerate(names):
            for i in range(3):
                save(tmp_path / f"in/{side}/{name}/{i}.png", ridge(100 * k + i + 1000 * (side == "val")))
    report = packed_set(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/classes.json").read_text() == '["fall", "walk"]\n'
    assert "extra" in note(report, "no training images of")
    assert {entry["reason"] for entry in report["rejected"]} == {"its class has no training images"}


def test_the_same_picture_in_two_classes_is_used_in_neither(tmp_path):
    two_classes(tmp_path / "in")
    for i in range(3):
        save(tmp_path / f"in/fall/copy_{i}.png", ridge(9000 + i))
    report = packed_set(tmp_path / "in", tmp_path / "out")
    assert {entry["file"] for entry in report["rejected"] if entry["reason"].startswith("in two classes")} == {
        *(f"fall/copy_{i}.png" for i in range(3)),
        *(f"walk/r0_{i:03d}.png" for i in range(3)),
    }


def test_the_same_picture_saved_anew_on_both_sides_is_said(tmp_path):
    for i in range(8):
        for side in ("train", "val"):
            save(tmp_path / f"in/{side}/{'ab'[i % 2]}/{i}.png", ridge(i + 100 * (side == "val"), 96, 96))
    save(tmp_path / "in/val/a/again.jpg", ridge(0, 96, 96), quality=80)
    report = packed_set(tmp_path / "in", tmp_path / "out")
    text = note(report, "1 pairs", "val and test leak")
    assert "train/a/0.png" in text
    assert "val/a/again.jpg" in text


def test_copies_on_two_sides_stay_where_they_judge(tmp_path):
    for i in range(8):
        for side in ("train", "val"):
            save(tmp_path / f"in/{side}/{'ab'[i % 2]}/{i}.png", ridge(i + 100 * (side == "val")))
    save(tmp_path / "in/train/a/leak.png", ridge(100))
    report = packed_set(tmp_path / "in", tmp_path / "out")
    assert [entry["file"] for entry in report["rejected"]] == ["train/a/leak.png"]


def test_junk_of_network_drives_is_skipped_and_counted(tmp_path):
    two_classes(tmp_path / "in")
    save(tmp_path / "in/walk/@eaDir/r0_000.png/SYNOFILE_THUMB_S.png", ridge(5))
    save(tmp_path / "in/walk/#recycle/x.png", ridge(6))
    (tmp_path / "in/fall/Thumbs.db").write_bytes(b"x")
    report = packed_set(tmp_path / "in", tmp_path / "out")
    assert report["packed"] + sum("gap" in entry["reason"] for entry in report["rejected"]) == 16
    assert report["understood"]["skipped"] == "3 junk of an operating system or network drive"


@pytest.mark.parametrize("ending", ["tif", "bmp", "webp", "TIFF"])
def test_what_pillow_reads_without_loss_is_packed(ending, tmp_path):
    for i in range(8):
        options = {"lossless": True} if ending == "webp" else {}
        save(tmp_path / f"in/{'ab'[i % 2]}/r{i // 4}_{i}.{ending}", ridge(i), **options)
    packed_set(tmp_path / "in", tmp_path / "out")
    assert all(
        (image[..., 0] == ridge(int(s.split("_")[1][0]))).all() for s, image in levels_of(tmp_path / "out").items()
    )


def test_a_file_of_several_pictures_is_rejected_with_its_reason(tmp_path):
    two_classes(tmp_path / "in")
    pages = [Image.fromarray(ridge(i)) for i in (70, 71)]
    pages[0].save(tmp_path / "in/walk/film.tif", save_all=True, append_images=pages[1:])
    report = packed_set(tmp_path / "in", tmp_path / "out")
    assert [entry["reason"] for entry in report["rejected"] if "film" in entry["file"]] == [
        "holds 2 pictures; save each as a file of its own"
    ]


def test_a_pipe_is_not_waited_for(tmp_path):
    two_classes(tmp_path / "in")
    os.mkfifo(tmp_path / "in/fall/x.png")
    pack(PackConfig(tmp_path / "in", tmp_path / "out", workers=1))
    rejected = read_report(tmp_path / "out")["rejected"]
    assert {"file": "fall/x.png", "class": "fall", "reason": "not a regular file"} in rejected


def test_what_mdaug_has_written_is_not_an_image_folder(tmp_path):
    packed_set(two_classes(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(UserError, match="holds 'images', but 'image-folder' is needed here"):
        pack(PackConfig(tmp_path / "out", tmp_path / "again", workers=1))


def test_a_class_name_that_no_file_can_bear_is_refused_at_once(tmp_path):
    two_classes(tmp_path / "in")
    save(tmp_path / "in" / ("ü" * 126) / "0.png", ridge(1))
    with pytest.raises(UserError, match=r"at most 200 bytes; rename it"):
        pack(PackConfig(tmp_path / "in", tmp_path / "out", workers=1))


# Files beyond their bytes, and tables.


def test_a_picture_is_turned_upright_as_viewers_show_it(tmp_path):
    two_classes(tmp_path / "in")
    exif = Image.Exif()
    exif[0x112] = 6
    save(tmp_path / "in/walk/r9_900.jpg", np.rot90(ridge(7, 64, 96)).copy(), exif=exif, quality=95)
    report = packed_set(tmp_path / "in", tmp_path / "out", image_size="64x96")
    [turned] = [image for source, image in levels_of(tmp_path / "out").items() if "r9_900" in source]
    assert np.abs(turned[..., 0].astype(int) - ridge(7, 64, 96)).mean() < 4
    assert report["conversions"]["turned upright as EXIF says"]["count"] == 1


def test_names_are_compared_after_normalisation_and_rows_without_a_file_are_named(tmp_path):
    two_classes(tmp_path / "in")
    name = "größe_900.png"
    save(tmp_path / "in/walk" / unicodedata.normalize("NFD", name), ridge(77))
    table = ["file,speed", f"walk/{unicodedata.normalize('NFC', name)},1.5", "walk/R0_000.PNG,2", "gone.png,3"]
    (tmp_path / "in/metadata.csv").write_text("\n".join(table), encoding="utf-8")
    report = packed_set(tmp_path / "in", tmp_path / "out", gap=0)
    assert ": its case differs" in note(report, "2 rows of metadata.csv")
    data = [ShardDataset(tmp_path / "out" / side, ("meta",)) for side in ("train", "val")]
    assert [d[i]["meta"]["speed"] for d in data for i in range(len(d)) if "speed" in d[i]["meta"]] == [1.5]


@pytest.mark.parametrize(
    ("cells", "values"), [(["1", "2", ""], [1, 2]), (["1", "1.5", "2"], [1.0, 1.5, 2.0]), (["1", "x", ""], ["1", "x"])]
)
def test_a_column_has_one_type(cells, values, tmp_path):
    two_classes(tmp_path / "in")
    rows = ["file,speed", *(f"walk/r0_{i:03d}.png,{cell}" for i, cell in enumerate(cells))]
    (tmp_path / "in/metadata.csv").write_text("\n".join(rows))
    packed_set(tmp_path / "in", tmp_path / "out", gap=0)
    data = [ShardDataset(tmp_path / "out" / side, ("meta",)) for side in ("train", "val")]
    found = sorted(
        (d[i]["meta"]["source"], d[i]["meta"]["speed"]) for d in data for i in range(len(d)) if "speed" in d[i]["meta"]
    )
    assert [value for _, value in found] == values
    assert len({type(value) for _, value in found}) == 1


def test_a_physical_column_with_its_unit_in_the_cell_is_refused_at_pack(tmp_path):
    two_classes(tmp_path / "in")
    (tmp_path / "in/metadata.csv").write_text("file,duration_s\nwalk/r0_000.png,2 s\n")
    with pytest.raises(UserError, match=r"duration_s of 'walk/r0_000.png' is '2 s'; write a number above 0 in s"):
        pack(PackConfig(tmp_path / "in", tmp_path / "out", workers=1))
    assert not (tmp_path / "out/run.json").exists()


# The command.


def test_what_is_refused_has_not_claimed_the_folder(tmp_path):
    two_classes(tmp_path / "in")
    with pytest.raises(UserError, match="does not match --group_by"):
        pack(PackConfig(tmp_path / "in", tmp_path / "out", group_by="subject(\\d+)", workers=1))
    packed_set(tmp_path / "in", tmp_path / "out", group_by="(r\\d)")


def test_a_dry_run_says_all_and_writes_nothing(tmp_path, capsys):
    two_classes(tmp_path / "in", paint="jet-64")
    pack(PackConfig(tmp_path / "in", tmp_path / "out", workers=1, dry_run=True))
    printed = capsys.readouterr().out
    assert "2 classes from folders" in printed
    assert "16 RGB in jet-64" in printed
    assert not (tmp_path / "out").exists()


def test_time_grows_with_the_classes_not_with_their_square(tmp_path):
    def seconds(count: int) -> float:
        for k in range(count):
            for i in range(3):
                pixels = np.random.default_rng([k, i]).integers(0, 255, (4, 4), np.uint8)
                save(tmp_path / f"in{count}/c{k:04d}/x{i}.png", pixels)
        begun = time.process_time()
        pack(PackConfig(tmp_path / f"in{count}", tmp_path / f"out{count}", workers=1, dry_run=True))
        return time.process_time() - begun

    assert seconds(800) < 6 * seconds(200) + 0.5

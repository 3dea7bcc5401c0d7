"""Finalize: damage is found and mended, manifests, grids and the forms of output."""

import csv
import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from mdaug.generation import worker
from shards import provenance
from shards.colormap import colormap
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.verify import inspect
from shards.writer import finished, write_shard
from tests.generation import debris, files, make, step
from tests.tiny_pipeline import CLASSES, save_tiny


def test_a_damaged_shard_is_found_and_made_again_on_request(ldm, tmp_path):
    folder = make(ldm, tmp_path / "out", num_samples=20)
    whole = files(folder)
    shard = folder / "000001.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"000001\.tar \(1 shard is\) damaged or of another plan .* --repair$") as error:
        step(ldm, folder, "finalize")
    assert not (folder / provenance.FILE_NAME).exists()  # no later step takes it for finished
    assert not debris(folder)
    assert f"mdaug generate --step work --ldm_path {ldm} --output_dir {folder} --repair" in str(error.value)
    make(ldm, folder, num_samples=20, repair=True)
    assert files(folder) == whole
    assert (folder / provenance.FILE_NAME).is_file()
    shard.write_bytes(content)
    step(ldm, folder, "work", repair=True, worker=1, num_workers=2)
    step(ldm, folder, "finalize")
    assert files(folder) == whole


def test_a_shard_of_other_samples_is_found(ldm, tmp_path):
    """A whole shard with the wrong number of samples, or of another class, is no shard of the plan."""
    folder = make(ldm, tmp_path / "out", per_class="walk=4,fall=12")
    other = make(ldm, tmp_path / "other", per_class="walk=12,fall=4")
    (folder / provenance.FILE_NAME).unlink()  # of a set that is not finished yet
    for suffix in (".tar", ".json"):
        (folder / "000001").with_suffix(suffix).write_bytes((other / "000001").with_suffix(suffix).read_bytes())
    with pytest.raises(UserError, match=r"000001.tar \(1 shard is\) damaged or of another plan .* --repair"):
        step(ldm, folder, "finalize")


def test_images_of_one_colour_and_images_that_are_no_pictures_are_found(ldm, tmp_path):
    folder = make(ldm, tmp_path / "out", num_samples=20)
    (folder / provenance.FILE_NAME).unlink()  # of a set that is not finished yet
    dataset = ShardDataset(folder, fields=("image", "meta"))

    def rewrite(png) -> None:
        samples = []
        for i in range(8):
            sample, file = dataset[i], io.BytesIO()
            Image.fromarray(sample["image"]).save(file, "PNG")
            members = {"png": file.getvalue(), "cls": str(sample["label"]).encode()}
            samples.append((sample["key"], members | {"json": json.dumps(sample["meta"]).encode()}))
        samples[3][1]["png"] = png
        write_shard(folder / "000000.tar", samples)

    blank, small = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (16, 16), "navy").save(blank, "PNG")
    Image.new("RGB", (8, 8), "navy").save(small, "PNG")
    rewrite(blank.getvalue())
    with pytest.raises(UserError, match=r"000000.tar: 000000003 \(1 image is\) of one colour only"):
        step(ldm, folder, "finalize")
    for png in (b"no picture", small.getvalue()):
        rewrite(png)
        with pytest.raises(UserError, match=r"000000.tar \(1 shard is\) damaged"):
            step(ldm, folder, "finalize")


def test_a_sample_that_is_not_a_number_stops_the_work_by_name(ldm, tmp_path, monkeypatch):
    original = worker.sample_images

    def broken(*arguments):
        images = original(*arguments).clone()
        images[1] = float("nan")
        return images

    monkeypatch.setattr(worker, "sample_images", broken)
    with pytest.raises(UserError, match=r"sample 1 \(class .*, seed \d+\) is not a number in precision 'no'"):
        make(ldm, tmp_path / "out", num_samples=4)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_full_disk_stops_the_work_and_the_same_command_goes_on(ldm, tmp_path, monkeypatch):
    import errno

    from shards import writer

    original, left = writer.os.fsync, [3]

    def full(descriptor):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(descriptor)

    folder = make(ldm, tmp_path / "out", num_samples=20, step="plan")
    with monkeypatch.context() as patch:
        patch.setattr("shards.writer.os.fsync", full)
        with pytest.raises(UserError, match=r"no space left while writing .* run the same command again"):
            make(ldm, folder, num_samples=20)
    assert not debris(folder)
    make(ldm, folder, num_samples=20)
    assert files(folder) == files(make(ldm, tmp_path / "whole", num_samples=20))


def test_both_manifests_say_the_same_of_every_sample(ldm, tmp_path):
    folder = make(ldm, tmp_path / "out", num_samples=20, guidance_scale=1.5)
    table = parquet.read_table(folder / "manifest.parquet").to_pylist()
    rows = list(csv.DictReader(io.StringIO((folder / "manifest.csv").read_text())))
    assert [{name: "" if value is None else str(value) for name, value in row.items()} for row in table] == rows
    dataset = ShardDataset(folder)
    assert [(row["key"], row["label"]) for row in table] == list(zip(dataset.keys, dataset.labels, strict=True))
    assert {(row["guidance_scale"], row["source"]) for row in table} == {(1.5, "synthetic")}
    assert {row["pipeline"] for row in table} == {provenance.read(ldm / "best", "pipeline")["hash"]}
    assert {row["shard"] for row in table} == {name for name, _, _ in dataset.shards}


def test_a_grid_of_each_class_made_and_a_card(ldm, tmp_path):
    folder = make(ldm, tmp_path / "out", per_class="walk=9,bird=3")
    sizes = {path.stem: Image.open(path).height for path in (folder / "grids").iterdir()}
    assert sizes == {"walk": 36, "bird": 18}  # two rows of 16 pixels and a gap of 2, and one
    card = (folder / "README.md").read_text()
    assert "| 0 | walk | 9 |" in card
    assert "| 1 | fall | 0 |" in card


def test_the_folder_form_is_the_layout_of_the_user(ldm, tmp_path):
    folder = make(ldm, tmp_path / "out", per_class="walk=9,bird=3", output_format="folder")
    dataset = ShardDataset(folder)
    found = sorted((folder / "images").glob("*/*.png"))
    assert Counter(path.parent.name for path in found) == {"walk": 9, "bird": 3}
    for i, key in enumerate(dataset.keys):
        image = np.asarray(Image.open(folder / "images" / CLASSES[dataset.labels[i]] / f"{key}.png"))
        assert np.array_equal(image, dataset[i]["image"])
    from shards.source import read_folder

    source = read_folder(folder / "images")
    assert (source.classes, source.rejected) == (["bird", "walk"], {})
    assert source.images[0].metadata["source"] == "synthetic"
    assert not debris(folder)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"floor": [0, 0, 131]}, "jet-256"),
        ({"floor": [67, 2, 85]}, "viridis"),  # as JPEG changes it
        ({"channels": 1, "colormap": "parula", "floor": [0]}, None),
        ({"channels": 1}, None),
    ],
)
def test_the_npy_form_is_the_level_in_decibels(options, name, tmp_path):
    ldm = save_tiny(tmp_path / "ldm", **options)
    folder = make(ldm, tmp_path / "out", num_samples=3, output_format="npy", dynamic_range_db=30.0)
    dataset = ShardDataset(folder)
    for i, key in enumerate(dataset.keys):
        array = np.load(folder / "arrays" / CLASSES[dataset.labels[i]] / f"{key}.npy")
        assert (array.dtype, array.shape) == (np.float32, (16, 16))
        picture = dataset[i]["image"]
        levels = colormap(name).invert(picture) if name else picture[..., 0]
        np.testing.assert_allclose(array, levels / 255 * 30 - 30, atol=1e-5)


@pytest.mark.parametrize("floor", [None, [11, 0, 0], [0, 0, 0]])
def test_colours_of_an_unknown_map_have_no_decibels(floor, tmp_path):
    ldm = save_tiny(tmp_path / "ldm", floor=floor)
    with pytest.raises(UserError, match=r"colour map .* is not known .* pack the images with --image_mode gray"):
        make(ldm, tmp_path / "out", num_samples=3, output_format="npy")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mixed", [False, True])
def test_hugging_face_reads_the_shards(ldm, packed, tmp_path, monkeypatch, mixed):
    import datasets

    folder = make(ldm, tmp_path / "out", num_samples=20, **({"include_real": packed} if mixed else {}))
    files = sorted(str(path) for path in folder.glob("*.tar"))
    data = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    assert data["__key__"] == ShardDataset(folder).keys
    assert data["cls"] == ShardDataset(folder).labels.tolist()
    assert np.array_equal(np.asarray(data[3]["png"]), ShardDataset(folder)[3]["image"])
    assert Counter(row["source"] for row in data["json"]) == Counter({"synthetic": 20, "real": 10 if mixed else 0})


def test_is_whole_sees_a_flipped_bit(ldm, tmp_path):
    shard = make(ldm, tmp_path / "out", num_samples=2) / "000000.tar"
    keys = ["000000000", "000000001"]
    assert inspect(shard, keys, None, [16, 16, 3]).is_whole
    assert not inspect(shard, keys[:1], None, [16, 16, 3]).is_whole
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert not inspect(shard, keys, None, [16, 16, 3]).is_whole
    assert finished(shard) is not None  # its length is right

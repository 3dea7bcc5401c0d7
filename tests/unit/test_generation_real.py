"""Real and synthetic images in one folder: level, told apart, and mended by the command that is printed."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from pyarrow import parquet

from mdaug import cli
from shards import provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from tests.generation import files, make, step
from tests.tiny_pipeline import CLASSES, save_tiny


def read_plainly(folder: Path) -> list[tuple]:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")
    return [(sample["__key__"], sample["cls"], sample["png"].shape, sample["json"]) for sample in data]


def test_a_mixed_set_is_level_and_says_what_is_real(ldm, packed, tmp_path):
    folder = make(ldm, tmp_path / "out", num_samples=11, include_real=packed)
    rows = parquet.read_table(folder / "manifest.parquet").to_pylist()
    assert Counter(row["class"] for row in rows) == {"walk": 7, "fall": 7, "bird": 7}
    real = [row for row in rows if row["source"] == "real"]
    assert len(real) == 10
    assert {row["original"] for row in real} == {
        f"{c}/{i}.png" for c, n in zip(CLASSES, (6, 3, 1), strict=True) for i in range(n)
    }
    assert {row["group"] for row in real} == {f"g{i}" for i in range(6)}
    images = ShardDataset(packed / "train")
    mixed = ShardDataset(folder)
    assert np.array_equal(mixed[mixed.keys.index("real_000000000")]["image"], images[0]["image"])
    assert provenance.read(folder, "mixed")["made_from"]["real"] == provenance.read(packed, "images")["hash"]
    plain = read_plainly(folder)
    assert [key for key, *_ in plain] == mixed.keys
    assert len({frozenset(meta) for *_, meta in plain}) == 1
    card = (folder / "README.md").read_text()
    assert "| 0 | walk | 1 | 6 |" in card


def test_the_command_that_is_printed_mends_real_shards_too(ldm, packed, tmp_path):
    folder = make(ldm, tmp_path / "out", num_samples=11, include_real=packed)
    whole = files(folder)
    places = f"--ldm_path {ldm} --output_dir {folder}"
    for number in (0, 1):
        (folder / f"real-00000{number}.json").unlink()
    with pytest.raises(UserError, match=r"real-000000.tar, real-000001.tar \(2 shards are\) missing") as error:
        step(ldm, folder, "finalize")
    command = str(error.value).split("make the rest with: mdaug ")[1]
    assert command == f"generate --step plan {places} --include_real PACKED"
    assert cli.main(command.replace("PACKED", str(packed)).split()) == 0
    (folder / "real-000001.tar").write_bytes(whole["real-000001.tar"].replace(b"PNG", b"GIF"))
    (folder / "000000.tar").write_bytes(whole["000000.tar"].replace(b"PNG", b"GIF"))
    with pytest.raises(UserError, match=r"\(2 shards are\) damaged") as error:
        step(ldm, folder, "finalize", include_real=packed)
    for command in str(error.value).split("make them again with: ")[1].split(" && "):
        assert cli.main(command.split()[1:]) == 0
    step(ldm, folder, "finalize")
    assert files(folder) == whole


def test_a_worker_leaves_the_end_to_the_one_that_still_copies_real_images(ldm, packed, tmp_path):
    folder = make(ldm, tmp_path / "out", num_samples=11, include_real=packed, worker=1, num_workers=3)
    make(ldm, folder, num_samples=11, include_real=packed, worker=2, num_workers=3)
    assert not list(folder.glob("real-*"))
    assert len(list(folder.glob("*.tar"))) == 2  # worker 2 has made the shard of worker 0, too
    assert not (folder / provenance.FILE_NAME).exists()
    make(ldm, folder, num_samples=11, include_real=packed, worker=0, num_workers=3)
    assert provenance.read(folder, "mixed")


def test_a_packed_set_that_is_not_that_of_the_plan_is_refused(ldm, packed, tmp_path):
    plain = make(ldm, tmp_path / "plain", num_samples=3, step="plan")
    with pytest.raises(UserError, match="includes no real images"):
        step(ldm, plain, "work", include_real=packed)
    mixed = make(ldm, tmp_path / "mixed", num_samples=3, step="plan", include_real=packed)
    (tmp_path / "other").mkdir()
    provenance.write(tmp_path / "other", kind="images", content_hash="1" * 64, made_from={}, config={})
    with pytest.raises(UserError, match="real images differ"):
        step(ldm, mixed, "plan", include_real=tmp_path / "other")


def test_real_images_of_other_classes_are_refused(packed, tmp_path):
    other = save_tiny(tmp_path / "grey", channels=1)
    with pytest.raises(UserError, match=r"has images of .* \[16, 16, 3\], the model has \[16, 16, 1\]"):
        make(other, tmp_path / "out", include_real=packed, num_samples=3)

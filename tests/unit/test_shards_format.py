"""The shards: plain tars that any reader reads, written all or nothing, and found out when they are damaged."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards import atomic
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import content_hash, write_index
from shards.verify import verify
from shards.writer import finished, tar_header, write_shard

from .shards_helpers import contents, npy, png, samples, shard_folder


def test_a_header_is_that_of_tarfile():
    rng = np.random.default_rng(0)
    for _ in range(200):
        name = "".join(rng.choice(list("azAZ09_-."), rng.integers(1, 98)))
        member = tarfile.TarInfo(name)
        member.size = int(rng.integers(0, 8**11 - 1) >> rng.integers(0, 33))
        assert tar_header(name, member.size) == member.tobuf(format=tarfile.USTAR_FORMAT)


def test_plain_webdataset_and_our_dataset_read_the_same_samples(tmp_path):
    folder = shard_folder(tmp_path / "train")
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    ours = ShardDataset(folder, ("image", "array", "meta"))
    assert len(ours) == len(theirs) == 10
    assert ours.keys == [sample["__key__"] for sample in theirs]
    for i, other in enumerate(theirs):
        sample = ours[i]
        assert (ours.raw(i, "image"), ours.raw(i, "array")) == (other["png"], other["npy"])
        assert np.array_equal(sample["image"], np.asarray(Image.open(io.BytesIO(other["png"]))))
        assert np.array_equal(sample["array"], np.load(io.BytesIO(other["npy"])))
        assert sample["label"] == int(other["cls"])
        assert sample["meta"] == json.loads(other["json"])


def test_shard_list_is_what_wids_expects_and_offsets_point_into_a_standard_tar(tmp_path):
    folder = shard_folder(tmp_path)
    index = json.loads((folder / "index.json").read_text())
    assert index["wids_version"] == 1
    assert [(s["url"], s["nsamples"]) for s in index["shardlist"]] == [
        ("000000.tar", 5),
        ("000001.tar", 1),
        ("000002.tar", 4),
    ]
    record = finished(folder / "000002.tar")
    with tarfile.open(folder / "000002.tar") as tar:
        for key, (offset, size) in zip(record["keys"], record["members"]["png"], strict=True):
            member = tar.getmember(f"{key}.png")
            assert (member.offset_data, member.size) == (offset, size)


def test_same_samples_same_bytes_whenever_and_wherever_written(tmp_path):
    first, second = shard_folder(tmp_path / "a"), shard_folder(tmp_path / "elsewhere" / "b")
    assert contents(first) == contents(second)
    assert content_hash(first) == content_hash(second)


def test_content_hash_changes_with_data_and_with_classes(tmp_path):
    folder = shard_folder(tmp_path)
    before = content_hash(folder)
    write_index(folder, ["a", "c"])
    renamed = content_hash(folder)
    write_shard(folder / "000001.tar", samples(90, 1))
    write_index(folder, ["a", "b"])
    assert len({before, renamed, content_hash(folder)}) == 3


@pytest.mark.parametrize("stop", range(4))
def test_interrupted_at_any_sample_there_is_no_shard_and_writing_again_gives_the_same_bytes(tmp_path, stop):
    def cut_short():
        yield from samples(0, stop)
        raise KeyboardInterrupt

    path = tmp_path / "000000.tar"
    with pytest.raises(KeyboardInterrupt):
        write_shard(path, cut_short())
    assert finished(path) is None
    assert list(tmp_path.iterdir()) == []
    write_shard(path, samples(0, 4))
    write_shard(tmp_path / "whole" / "000000.tar", samples(0, 4))
    assert path.read_bytes() == (tmp_path / "whole" / "000000.tar").read_bytes()


def test_killed_between_tar_and_sidecar_the_shard_does_not_exist_and_debris_goes(tmp_path):
    folder = shard_folder(tmp_path / "x")
    whole = contents(folder)
    (folder / "000001.json").unlink()  # killed after the rename of the tar
    assert finished(folder / "000001.tar") is None
    assert write_index(folder, ["a", "b"], image_shape=[8, 8, 3])["nsamples"] == 9
    (folder / ".000001.tar.0123abcd.tmp").write_bytes(b"half")  # killed while writing
    (folder / ".000001.json.4711.tmp").write_bytes(b"half")
    debris = set(folder.glob(".*"))
    with atomic.replacing(folder / "000001.tar"):  # a second writer of the same shard, at work now
        (living,) = set(folder.glob(".*")) - debris
        write_shard(folder / "000001.tar", samples(5, 1))
        assert list(folder.glob(".*")) == [living]
        living.write_bytes((folder / "000001.tar").read_bytes())
    write_index(folder, ["a", "b"], image_shape=[8, 8, 3])
    assert contents(folder) == whole


@pytest.mark.parametrize("seed", [5, 6])
def test_a_shard_written_again_is_there_all_the_time_if_it_is_the_same(tmp_path, monkeypatch, seed):
    path, replace = tmp_path / "000000.tar", os.replace
    write_shard(path, samples(5, 3))
    there = []

    def watched(source, target):
        there.append(finished(path) is not None)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_shard(path, samples(seed, 3))
    assert there == [seed == 5] * 2
    assert len(list(tmp_path.iterdir())) == 2


def test_the_index_ends_all_debris_but_that_of_the_living(tmp_path):
    folder = shard_folder(tmp_path / "x")
    for name in ("000001.tar", "000001.json", "index.json"):
        (folder / f".{name}.0123abcd.tmp").write_bytes(b"half")
    with atomic.replacing(folder / "000002.tar"):
        write_index(folder, ["a", "b"], image_shape=[8, 8, 3])
        assert [path.name[:11] for path in folder.glob(".*")] == [".000002.tar"]


def test_a_writer_whose_new_file_was_taken_for_debris_takes_another(tmp_path, monkeypatch):
    lock, taken = fcntl.flock, []

    def late(file, how):
        if how == fcntl.LOCK_EX and not taken:
            taken.append(file.name)
            os.unlink(file.name)
        return lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    atomic.write_text(tmp_path / "a", "whole")
    assert taken
    assert (tmp_path / "a").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out"
    for text in ("old", "new"):
        with atomic.replacing_folder(path) as folder:
            (folder / "a").write_text(text)
            assert path.is_dir() == (text == "new")  # the one of before stays until the end

    def interrupted():
        with atomic.replacing_folder(path) as folder:
            (folder / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (path / "a").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_of_equal_folders_made_at_once_the_first_stays_and_debris_goes(tmp_path):
    path = tmp_path / "out"
    (tmp_path / ".out.0123abcd.tmp" / "sub").mkdir(parents=True)  # of a killed writer
    with atomic.replacing_folder(path, keep_first=True) as slow:
        (slow / "a").write_text("slow")
        with atomic.replacing_folder(path, keep_first=True) as fast:
            assert sorted(entry for entry in tmp_path.iterdir()) == sorted([slow, fast])
            (fast / "a").write_text("fast")
    assert (path / "a").read_text() == "fast"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_no_space_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    write_shard(tmp_path / "000000.tar", samples(0, 2))

    class FullDisk(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > 3000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(atomic, "open", FullDisk, raising=False)
    with pytest.raises(UserError, match=r"no space left while writing .*000001\.tar") as error:
        write_shard(tmp_path / "000001.tar", samples(2, 20))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.json", "000000.tar"]


@pytest.mark.parametrize("key", ["a.b", "a b", "", "ä", "a/b", ".a", "x" * 81])
def test_keys_that_other_readers_would_tear_apart_are_refused(tmp_path, key):
    with pytest.raises(UserError, match="key"):
        write_shard(tmp_path / "0.tar", [(key, {"cls": b"0"})])
    assert list(tmp_path.iterdir()) == []


def test_repeated_keys_are_refused(tmp_path):
    with pytest.raises(UserError, match="two samples have the key 'k'"):
        write_shard(tmp_path / "0.tar", [("k", {"cls": b"0"}), ("k", {"cls": b"1"})])


def test_statistics_are_taken_after_the_last_sample(tmp_path):
    seen = []

    def counted():
        for sample in samples(0, 3):
            seen.append(sample[0])
            yield sample

    record = write_shard(tmp_path / "0.tar", counted(), statistics=lambda: {"n": len(seen)})
    assert record["statistics"] == {"n": 3}
    assert finished(tmp_path / "0.tar") == record


@pytest.mark.parametrize("cut", [1, 1024, 1500, 4000])
def test_a_truncated_tar_is_found_before_any_sample_is_read(tmp_path, cut):
    folder = shard_folder(tmp_path)
    path = folder / "000000.tar"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"000000\.tar is missing, cut or changed .* again"):
        ShardDataset(folder)
    with pytest.raises(UserError, match=r"000000\.tar is cut"):
        write_index(folder, ["a", "b"])
    assert any("000000.tar is missing, cut" in problem for problem in verify(folder))


def test_verify_finds_every_kind_of_damage(tmp_path):
    def damaged(name, change):
        folder = shard_folder(tmp_path / name)
        assert verify(folder) == []
        change(folder)
        return " ".join(verify(folder))

    def flip(folder):
        path = folder / "000000.tar"
        data = bytearray(path.read_bytes())
        data[finished(path)["members"]["png"][0][0] + 60] ^= 255
        path.write_bytes(data)

    def edit(name, change):
        def apply(folder):
            content = json.loads((folder / name).read_text())
            change(content)
            (folder / name).write_text(json.dumps(content))

        return apply

    assert "sha256" in damaged("flip", flip)
    assert "has no sidecar" in damaged("sidecar", lambda folder: (folder / "000001.json").unlink())
    assert "not in the index" in damaged("extra", lambda folder: write_shard(folder / "9.tar", samples(50, 1)))
    assert "differ" in damaged("count", edit("000000.json", lambda record: record.update(count=7)))
    assert "other members" in damaged("keys", edit("000000.json", lambda record: record["keys"].reverse()))
    assert "label" in damaged("label", edit("000000.json", lambda record: record.update(labels=[1] * 5)))
    assert "shape" in damaged("shape", edit("index.json", lambda index: index.update(image_shape=[8, 8, 1])))
    assert "its hash" in damaged("classes", edit("index.json", lambda index: index.update(classes=["b", "a"])))

    def repeat(folder):
        write_shard(folder / "000001.tar", samples(0, 1))
        write_index(folder, ["a", "b"], image_shape=[8, 8, 3])

    assert "is also in" in damaged("repeat", repeat)


class Harmful:
    """Its unpickling would run code."""

    def __reduce__(self):
        return (pytest.fail, ("data was unpickled",))


def test_nothing_is_unpickled_from_data(tmp_path):
    file = io.BytesIO()
    np.save(file, np.array([Harmful()], dtype=object), allow_pickle=True)
    for name, data in (("object", file.getvalue()), ("raw", pickle.dumps(Harmful()))):
        write_shard(tmp_path / name / "0.tar", [("k", {"cls": b"0", "npy": data})])
        write_index(tmp_path / name, ["a"])
        dataset = ShardDataset(tmp_path / name, ("array",))
        with pytest.raises(UserError, match=r"sample 'k' .* has no readable array"):
            dataset[0]
        assert verify(tmp_path / name)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.float16(3),
        np.zeros((0, 4), np.int8),
    ],
)
def test_arrays_come_back_as_numpy_would_read_them(tmp_path, array):
    write_shard(tmp_path / "0.tar", [("k", {"cls": b"0", "npy": npy(array)})])
    write_index(tmp_path, ["a"])
    read = ShardDataset(tmp_path, ("array",))[0]["array"]
    assert np.array_equal(read, array)
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    assert read.flags.writeable


def test_images_are_height_width_channels_of_one_or_three(tmp_path):
    modes = [png(0, (6, 4), "L"), png(1, (6, 4), "RGB"), png(2, (6, 4), "RGBA")]
    write_shard(tmp_path / "0.tar", [(f"k{i}", {"cls": b"0", "png": data}) for i, data in enumerate(modes)])
    write_index(tmp_path, ["a"])
    dataset = ShardDataset(tmp_path)
    assert [dataset[i]["image"].shape for i in range(3)] == [(4, 6, 1), (4, 6, 3), (4, 6, 3)]
    assert all(dataset[i]["image"].flags.writeable for i in range(3))


def test_dataset_gives_only_the_fields_asked_for_and_refuses_those_that_are_not_there(tmp_path):
    write_shard(tmp_path / "0.tar", [("k", {"cls": b"0", "png": png(0)})])
    write_index(tmp_path, ["a"])
    assert ShardDataset(tmp_path)[0].keys() == {"key", "label", "image"}
    with pytest.raises(UserError, match="'array' is needed"):
        ShardDataset(tmp_path, ("array",))
    with pytest.raises(UserError, match=r"no index\.json"):
        ShardDataset(tmp_path / "nowhere")


def test_dataset_reads_again_after_a_shard_was_replaced(tmp_path):
    folder = shard_folder(tmp_path)
    old = ShardDataset(folder)[5]["image"]
    write_shard(folder / "000001.tar", samples(77, 1))
    write_index(folder, ["a", "b"])
    assert not np.array_equal(ShardDataset(folder)[5]["image"], old)


def test_workers_and_pickled_copies_read_the_same_as_the_main_process(tmp_path):
    from torch.utils.data import DataLoader

    dataset = ShardDataset(shard_folder(tmp_path), ("array",))
    here = [dataset[i]["array"].mean() for i in range(len(dataset))]
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert [float(sample["array"].mean()) for sample in loader] == here
    copy = pickle.loads(pickle.dumps(dataset))  # what spawned workers get
    assert [copy[i]["array"].mean() for i in range(len(copy))] == here

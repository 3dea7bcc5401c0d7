"""Plan, work and finalize apart; counts; damage; forms of output."""

import csv
import io
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from mdaug import cli
from mdaug.sampling import counts, planning, worker
from mdaug.sampling.generate import GenerateConfig, generate
from mdaug.sampling.inspection import is_whole
from mdaug.sampling.place import place
from mdaug.sampling.plan import read_plan
from shards import provenance
from shards.colormap import colormap
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.writer import finished, write_shard
from tests.tiny_pipeline import CLASSES, save_tiny
from tests.unit.sampling_helpers import files, make, step


def test_plan_work_and_finalize_apart_make_what_they_make_together(ldm, tmp_path, capsys):
    whole = files(make(ldm, tmp_path / "whole", num_samples=45))
    apart = make(ldm, tmp_path / "apart", num_samples=45, step="plan")
    assert list(files(apart)) == ["plan.json"]
    for number in (3, 0, 1):  # worker 2 of 4 is missing
        step(ldm, apart, "work", worker=number, num_workers=4)
    command = f"mdaug generate --step work --ldm_path {ldm} --output_dir {apart}"
    with pytest.raises(
        UserError, match=r"not complete: 000002.tar \(1 shard is\) missing; make the rest with: "
    ) as error:
        step(ldm, apart, "finalize")
    assert str(error.value).endswith(command)
    assert cli.main(["generate", "--step", "finalize", "--ldm_path", str(ldm), "--output_dir", str(apart)]) == 2
    assert not (apart / provenance.FILE_NAME).exists()
    capsys.readouterr()
    step(ldm, apart, "work")
    assert "5 samples" not in capsys.readouterr().out.split("worker 0 of 1: ")[1][:2]  # a shard of 8
    step(ldm, apart, "finalize")
    assert files(apart) == whole


def test_what_is_known_to_go_badly_is_said_before_the_work(ldm, tmp_path, capsys):
    make(ldm, tmp_path / "out", step="plan", scheduler_type="pndm", num_inference_steps=5, guidance_scale=8.0)
    output = capsys.readouterr().out
    assert "warning: pndm with 5 steps extrapolates from few points; take 10 or more" in output
    assert "warning: guidance 8 makes the samples of a class alike" in output


def test_steps_without_a_plan_say_how_to_start(ldm, tmp_path):
    with pytest.raises(UserError, match=r"holds no plan.json; start with: mdaug generate --step plan"):
        step(ldm, tmp_path / "none", "finalize")
    assert not (tmp_path / "none").exists()


def test_workers_that_are_done_share_what_others_left_and_leave_nothing(ldm, tmp_path, monkeypatch):
    """A second pass after worker 1 of 3 and a half of worker 2 were lost."""
    folder = make(ldm, tmp_path / "out", num_samples=96, step="plan")  # 12 shards
    plan = read_plan(folder)
    for number in (0, 2):
        step(ldm, folder, "work", worker=number, num_workers=3)
    for shard in (8, 11):
        (folder / plan.shard_name(shard)).with_suffix(".json").unlink()
    missing = worker.missing_shards(plan, folder)
    assert missing == [1, 4, 7, 8, 10, 11]
    orders = [worker.assigned(plan, folder, number, 3) for number in range(3)]
    assert orders[1] == [1, 4, 7, 10]  # its own, by the rule
    assert orders[2] == [8, 11]
    assert orders[0] == missing[::-1]  # a helper meets the owners last
    # with all of their own there, helpers begin apart, none where an owner begins, and go round
    helpers = [worker.assigned(plan, folder, number, 13) for number in (0, 12)]
    assert [sorted(order) for order in helpers] == [missing, missing]
    assert helpers[0][0] != helpers[1][0]
    assert helpers[1] == [4, 1, 11, 10, 8, 7]
    for number in (0, 1, 2):
        step(ldm, folder, "work", worker=number, num_workers=3)
    assert worker.missing_shards(plan, folder) == []
    assert files(folder) == files(make(ldm, tmp_path / "again", num_samples=96, step="work"))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}, (4, 8)),
        (
            {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_STEP": "2"}
            | {"RANK": "1", "WORLD_SIZE": "2"},
            (7, 8),
        ),
    ],
)
def test_array_tasks_and_ranks_within_them_count_as_workers(environment, expected):
    config = GenerateConfig(ldm_path=Path("ldm"), output_dir=Path("out"))
    assert place(config, environment) == expected
    explicit = GenerateConfig(ldm_path=Path("ldm"), output_dir=Path("out"), worker=1, num_workers=3)
    ranks = int(environment.get("WORLD_SIZE", "1"))
    assert place(explicit, environment) == (ranks + int(environment.get("RANK", "0")), 3 * ranks)


def test_an_array_with_gaps_is_refused(ldm):
    environment = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3"}
    with pytest.raises(UserError, match=r"array task 7 of 2 from 3 .* --array=0-N without gaps"):
        place(GenerateConfig(ldm_path=Path("ldm"), output_dir=Path("out")), environment)


def test_a_plan_of_a_hundred_million_samples_takes_seconds_and_little_memory(ldm, tmp_path):
    script = f"""
from pathlib import Path
from mdaug import cli
status = cli.main("generate --step plan --ldm_path {ldm} --output_dir {tmp_path / "out"} "
                  "--num_samples 100000000 --sift_steps 1".split())
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(status, peak.split()[1])
"""
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    seconds = time.monotonic() - start
    status, kilobytes = run.stdout.split()[-2:]
    assert status == "0", run.stderr
    assert int(kilobytes) < 1e6
    assert seconds < 10 or resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime < 10  # the machine may be busy
    plan = read_plan(tmp_path / "out")
    assert (plan.total, plan.num_shards) == (100_000_000, 100_000)
    assert (tmp_path / "out" / "plan.json").stat().st_size < 2000
    last = plan.samples(plan.num_shards - 1)
    assert len(last) == 1000
    assert np.bincount(plan.labels(last)).min() > 300
    assert plan.labels(np.arange(99_000_000, 99_000_100)).max() == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"balance_to": "packed"}, {"fall": 3, "bird": 5}),
        ({"balance_to": "counts.json"}, {"fall": 9, "bird": 10}),
        ({"balance_to": "packed", "fill": "walk=8"}, {"walk": 2, "fall": 3, "bird": 5}),
        ({"fill": "bird=5"}, {"bird": 5}),
        ({"fill": "bird=5", "include_real": "packed"}, {"bird": 4}),
        ({"num_samples": 11, "include_real": "packed"}, {"walk": 1, "fall": 4, "bird": 6}),
        ({"num_samples": 6, "include_real": "packed"}, {"fall": 2, "bird": 4}),
    ],
)
def test_classes_are_filled_up_to_what_is_asked(ldm, packed, tmp_path, options, expected):
    (tmp_path / "counts.json").write_text(json.dumps({"walk": 10, "fall": 1, "bird": 0}))
    places = {"packed": packed, "counts.json": tmp_path / "counts.json"}
    config = GenerateConfig(ldm_path=ldm, output_dir=tmp_path, **{k: places.get(v, v) for k, v in options.items()})
    made = planning.make_plan(config, "cpu").counts
    assert {name: count for name, count in made.items() if count} == expected


def test_level_counts_are_as_level_as_can_be():
    random = np.random.default_rng(0)
    for _ in range(300):
        known = [f"c{i}" for i in range(random.integers(1, 6))]
        have = {name: int(random.integers(0, 20)) for name in known}
        number = int(random.integers(1, 60))
        given = counts.even(number, known, known, have)
        assert sum(given.values()) == number
        assert max(have[name] + n for name, n in given.items() if n) - min(have[n] + given[n] for n in known) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance_to": "even.json"}, "nothing to make: .*even.json has walk 4, fall 4, bird 4"),
        ({"balance_to": "list.json"}, "says not how many images"),
        ({"balance_to": "broken.json"}, "is not JSON"),
        ({"balance_to": "other.json"}, "the model knows no class swim"),
        ({"fill": "swim=4"}, "the model knows no class swim"),
        ({"include_real": "empty"}, "not a finished 'images' folder"),
        ({"num_samples": 600_000_000, "sift": "packed"}, "images differ"),
        ({"num_samples": 5_000_000_000}, "more than there are seeds"),
        ({"compile": True}, "--compile is for a GPU"),
        ({"ldm_path": Path("nowhere")}, "nowhere holds no pipeline"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(ldm, packed, tmp_path, options, message):
    contents = {"even": {"walk": 4, "fall": 4, "bird": 4}, "list": CLASSES, "other": {"swim": 3}}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("{")
    places = {"packed": packed, "empty": tmp_path} | {path.name: path for path in tmp_path.glob("*.json")}
    options = {k: places.get(v, v) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(UserError, match=message):
        generate(GenerateConfig(**({"ldm_path": ldm, "output_dir": tmp_path / "out"} | options)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill": "fall=0"}, "fill asks for 0 of 'fall'"),
        ({"per_class": "fall=-3"}, "per_class asks for -3 of 'fall'"),
        ({"balance_to": Path("packed"), "num_samples": 5}, "leave out per_class, classes and num_samples"),
        ({"worker": 2}, "worker and num_workers belong together"),
        ({"worker": 2, "num_workers": 2}, "worker is 2; with num_workers 2"),
        ({"num_workers": 0, "worker": 0}, "num_workers is 0"),
        ({"repair": True, "step": "finalize"}, "repair makes shards again"),
        ({"guidance_interval": [0.5, 0.5]}, "guidance_interval is"),
        ({"sift_quantile": 0.7}, "sift_quantile is 0.7"),
        ({"max_candidates": 0}, "max_candidates is 0"),
        ({"dynamic_range_db": 0.0}, "dynamic_range_db is 0"),
    ],
)
def test_contradicting_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GenerateConfig(ldm_path=Path("ldm"), output_dir=Path("out"), **options)


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
    assert sorted(path.suffix for path in folder.glob(".*")) == []
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
    for suffix in (".tar", ".json"):
        (folder / "000001").with_suffix(suffix).write_bytes((other / "000001").with_suffix(suffix).read_bytes())
    with pytest.raises(UserError, match=r"000001.tar \(1 shard is\) damaged or of another plan .* --repair"):
        step(ldm, folder, "finalize")


def test_images_of_one_colour_and_images_that_are_no_pictures_are_found(ldm, tmp_path):
    folder = make(ldm, tmp_path / "out", num_samples=20)
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
    assert not list(folder.glob(".*"))
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
    assert not list(folder.glob(".*"))


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
    assert is_whole(shard, keys, None, [16, 16, 3])
    assert not is_whole(shard, keys[:1], None, [16, 16, 3])
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert not is_whole(shard, keys, None, [16, 16, 3])
    assert finished(shard) is not None  # its length is right

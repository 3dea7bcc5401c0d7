"""Samples redrawn from images: which source each has, the bytes of any number of workers, and what is refused."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from mdaug import cli
from mdaug.generation.make_plan import make_plan
from mdaug.generation.options import GenerateConfig
from mdaug.generation.sources import Sources
from mdaug.measures import image_set
from mdaug.pipeline.folder import save_pipeline
from mdaug.pipeline.pipeline import MicroDopplerPipeline
from shards import atomic, provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import content_hash, write_index
from shards.writer import write_shard
from tests import generation
from tests.generation import files, step
from tests.tiny_pipeline import CONDITIONS, tiny_pipeline


def picture(seed: int, size: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, channels), dtype=np.uint8)


def pack_of(folder: Path, train: dict[str, list[int]], val: dict[str, list[int]] | None = None, **form) -> Path:
    """A packed set whose images are `picture(seed)` of the seeds of each class."""
    classes = list(train | (val or {}))
    for split, images in (("train", train), ("val", val or {})):
        samples = []
        for name, seeds in images.items():
            for seed in seeds:
                file = folder.with_suffix(".png")
                pixels = picture(seed, **form)
                Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(file)
                meta = json.dumps({"class": name, "group": str(seed), "speed": seed / 10, "aspect": ""}).encode()
                cls = str(classes.index(name)).encode()
                samples.append((f"{name}_{seed}", {"png": file.read_bytes(), "cls": cls, "json": meta}))
        (folder / split).mkdir(parents=True)
        if samples:
            write_shard(folder / split / "000000.tar", samples)
        write_index(folder / split, classes, image_shape=list(picture(0, **form).shape))
    atomic.write_text(folder / "classes.json", json.dumps(classes))
    provenance.write(folder, kind="images", content_hash=content_hash(folder), made_from={}, config={})
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """What the pipeline was trained on."""
    train = {"walk": [1, 2, 3, 4, 5, 6], "fall": [11, 12, 13], "bird": [21]}
    return pack_of(tmp_path_factory.mktemp("own") / "packed", train, {"walk": [101], "fall": [111], "bird": [121]})


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    """Images of classes that the pipeline does not know, such as other persons or a simulator's."""
    return pack_of(tmp_path_factory.mktemp("others") / "packed", {"ann": [31, 32, 33, 34], "bob": [41, 42, 43]})


def trained_on(packed: Path, folder: Path, recorded: Path | None = None, **options) -> Path:
    made_from = {"images": provenance.read(packed, "images")["hash"], "vqvae": "2" * 64, "latents": "3" * 64}
    config = {"data_dir": str(recorded or packed), "image_mode": "rgb"}
    save_pipeline(tiny_pipeline(**options), folder / "best", made_from=made_from, config=config)
    return folder


@pytest.fixture(scope="module")
def ldm(own, tmp_path_factory) -> Path:
    return trained_on(own, tmp_path_factory.mktemp("ldm"))


def make(ldm: Path, folder: Path, **options) -> Path:
    return generation.make(ldm, folder, **({"num_inference_steps": 4} | options))


def rows_of(folder: Path) -> list[dict]:
    return parquet.read_table(folder / "manifest.parquet").to_pylist()


def test_by_default_each_training_image_is_redrawn_once_as_its_class(ldm, own, tmp_path):
    folder = make(ldm, tmp_path / "out", from_dir=own)
    rows = rows_of(folder)
    train = ShardDataset(own / "train")
    assert sorted(row["from_key"] for row in rows) == sorted(train.keys)
    assert all(row["from_class"] == row["class"] for row in rows)
    assert {row["strength"] for row in rows} == {0.6}
    assert {row["source"] for row in rows} == {"synthetic"}
    made = provenance.read(folder, "synthetic")
    assert (
        {row["from_set"] for row in rows} == {made["made_from"]["sources"]} == {provenance.read(own, "images")["hash"]}
    )
    meta = ShardDataset(folder, fields=("meta",))[0]["meta"]
    assert {key: rows[0][key] for key in ("strength", "from_key", "from_class", "from_set")}.items() <= meta.items()
    card = (folder / "README.md").read_text()
    assert "strength 0.6" in card
    assert "The class is that of the source" in card
    assert "walk 6" in card


def test_a_sample_is_its_source_noised_and_denoised_with_its_seed(ldm, own, tmp_path):
    folder = make(ldm, tmp_path / "out", from_dir=own, strength=[0.5, 1.0], scheduler_type="ddim")
    pipeline = MicroDopplerPipeline.from_pretrained(ldm / "best")
    pipeline.set_progress_bar_config(disable=True)
    dataset, train = ShardDataset(folder, fields=("image", "meta")), ShardDataset(own / "train")
    assert {dataset[i]["meta"]["strength"] for i in range(len(dataset))} == {0.5, 1.0}
    for i in (0, 9):
        meta = dataset[i]["meta"]
        source = train[train.keys.index(meta["from_key"])]["image"]
        options = {"generator": torch.Generator().manual_seed(meta["seed"]), "num_inference_steps": 4}
        image = pipeline(meta["class"], image=Image.fromarray(source), strength=meta["strength"], **options).images[0]
        assert np.abs(np.asarray(image, dtype=int) - dataset[i]["image"]).max() <= 1


def test_the_bytes_do_not_depend_on_workers_interruption_or_steps_apart(ldm, others, tmp_path, monkeypatch, capsys):
    options = {"from_dir": others, "redraw_as": "random", "num_samples": 30, "strength": [0.5, 0.75]}
    whole = files(make(ldm, tmp_path / "one", **options))
    for worker in (2, 0, 1):
        make(ldm, tmp_path / "three", **options, worker=worker, num_workers=3)
    assert files(tmp_path / "three") == whole
    # killed: a shard and the end are missing
    for name in ("000001.tar", "000001.json", "index.json", "provenance.json"):
        (tmp_path / "one" / name).unlink()
    capsys.readouterr()
    make(ldm, tmp_path / "one", **options)
    assert files(tmp_path / "one") == whole
    assert "8 samples" in capsys.readouterr().out
    # by hand; the folder of the sources may have moved
    make(ldm, tmp_path / "steps", **options, step="plan")
    moved = others.parent / "moved"
    others.rename(moved)
    try:
        step(ldm, tmp_path / "steps", "work", from_dir=moved)
    finally:
        moved.rename(others)
    step(ldm, tmp_path / "steps", "finalize")
    assert files(tmp_path / "steps") == whole


def test_samples_do_not_depend_on_the_batch_size(ldm, others, tmp_path):
    """But for the last bits of sums, as without sources."""
    options = {"from_dir": others, "redraw_as": "random", "num_samples": 20, "strength": [0.5, 0.75]}
    one, five = (ShardDataset(make(ldm, tmp_path / str(n), **options, batch_size=n)) for n in (1, 5))
    for i in range(20):
        assert np.abs(one[i]["image"].astype(int) - five[i]["image"]).max() <= 1


def test_every_source_is_used_once_before_any_is_used_again_and_meets_every_strength(ldm, own, others, tmp_path):
    folder = make(ldm, tmp_path / "keep", from_dir=own, strength=[0.5, 0.75, 1], per_class={"walk": 18, "fall": 8})
    met = defaultdict(list)
    for row in rows_of(folder):
        met[row["from_key"]].append(row["strength"])
    assert {key: sorted(strengths) for key, strengths in met.items() if key[:4] == "walk"} == {
        f"walk_{i}": [0.5, 0.75, 1] for i in range(1, 7)
    }
    assert sorted(len(strengths) for key, strengths in met.items() if key[:4] == "fall") == [2, 3, 3]
    options = {"from_dir": others, "redraw_as": "random", "strength": [0.5, 1], "num_samples": 28}
    rows = rows_of(make(ldm, tmp_path / "random", **options, classes=["walk", "fall"]))
    assert Counter(row["class"] for row in rows) == {"walk": 14, "fall": 14}
    assert set(Counter(row["from_key"] for row in rows).values()) == {4}
    assert set(Counter((row["from_key"], row["strength"]) for row in rows).values()) == {2}
    assert len({(row["class"], row["from_class"]) for row in rows}) == 4
    assert len(rows_of(make(ldm, tmp_path / "each", from_dir=others, redraw_as="random"))) == 7


def test_of_a_million_samples_the_sources_are_even_and_independent_of_the_class(ldm, others, tmp_path):
    options = GenerateConfig(ldm, tmp_path / "out", from_dir=others, redraw_as="random", num_samples=10**6)
    plan = make_plan(options, "cpu")
    found = Sources(plan, others).of(np.arange(500_000, 507_000))
    assert set(Counter(source.key for source in found.values()).values()) <= {999, 1000, 1001}
    pairs = Counter((plan.labels(np.array([i]))[0], source.key) for i, source in found.items())
    assert min(pairs.values()) > 250  # 333 expected, standard deviation 15 at most
    assert max(pairs.values()) < 420
    assert np.array_equal(np.sort(plan.places_in_class(np.arange(10**6))[plan.labels(np.arange(10**6)) == 1]),
                          np.arange(plan.counts["fall"]))  # fmt: skip


def test_conditions_are_those_of_the_source(own, tmp_path):
    ldm = trained_on(own, tmp_path / "ldm", conditions=CONDITIONS)
    rows = rows_of(make(ldm, tmp_path / "out", from_dir=own))
    assert all(row["condition_speed"] == int(row["from_key"].split("_")[1]) / 10 for row in rows)
    assert {row["condition_aspect"] for row in rows} == {None}
    rows = rows_of(make(ldm, tmp_path / "fixed", from_dir=own, conditions="aspect=30"))
    assert {row["condition_aspect"] for row in rows} == {30.0}


def test_sifting_real_images_and_files_go_with_it(ldm, own, others, tmp_path):
    options = {"from_dir": others, "redraw_as": "random", "num_samples": 10, "strength": [0.5, 1]}
    folder = make(ldm, tmp_path / "out", **options, sift=own, sift_steps=5, max_candidates=2, include_real=own,
                  output_format="folder")  # fmt: skip
    rows = rows_of(folder)
    assert Counter(row["source"] for row in rows) == {"synthetic": 10, "real": 10}
    assert len(image_set.load(folder, image_size=16, max_per_class=100)) == 10  # all of them synthetic to evaluate
    assert all((row["from_key"] is None) == (row["source"] == "real") for row in rows)
    assert {row["candidate"] for row in rows} <= {0, 1, None}
    plain = {row["key"]: row["from_key"] for row in rows_of(make(ldm, tmp_path / "plain", **options, include_real=own))}
    assert plain == {row["key"]: row["from_key"] for row in rows}
    assert len({frozenset(sample["meta"]) for sample in ShardDataset(folder, fields=("meta",))}) == 1
    table = (folder / "images" / "metadata.csv").read_text().splitlines()
    assert table[0].endswith("seed,strength,from_key,from_class")


def test_the_command_that_is_printed_mends_shards(ldm, own, tmp_path):
    folder = make(ldm, tmp_path / "out", from_dir=own)
    whole = files(folder)
    (folder / "000001.json").unlink()
    with pytest.raises(UserError, match="missing") as error:
        step(ldm, folder, "finalize")
    command = str(error.value).split("make the rest with: mdaug ")[1]
    assert cli.main(command.replace("PACKED", str(own)).split()) == 0
    step(ldm, folder, "finalize")
    assert files(folder) == whole


def image_folder(folder: Path, classes: dict[str, list[int]]) -> Path:
    for name, seeds in classes.items():
        (folder / name).mkdir(parents=True)
        for seed in seeds:
            Image.fromarray(picture(seed)).save(folder / name / f"{seed}.png")
    return folder


def test_an_image_folder_is_packed_once_as_for_the_training(ldm, tmp_path):
    images = image_folder(tmp_path / "images", {"ann": list(range(200, 210)), "bob": list(range(210, 220))})
    for name in ("one", "two"):
        rows = rows_of(make(ldm, tmp_path / name, from_dir=images, redraw_as="random", num_samples=6))
        assert {row["from_class"] for row in rows} == {"ann", "bob"}
    assert len([path for path in (tmp_path / ".mdaug-cache").iterdir() if path.is_dir()]) == 1


def refused(ldm: Path, folder: Path, message: str, **options) -> None:
    with pytest.raises(UserError, match=message) as error:
        make(ldm, folder, **options)
    assert "\n" not in str(error.value)
    assert not folder.exists()


def test_held_out_images_are_refused_as_sources(ldm, own, others, tmp_path):
    refused(ldm, tmp_path / "out", "holds held-out images", from_dir=own / "val")
    refused(ldm, tmp_path / "out", "is one split of a packed set", from_dir=own / "train")
    # among other images, found by their pixels
    mixed = pack_of(tmp_path / "mixed", {"ann": [31, 111], "bob": [41, 42]})
    message = r"1 of the images to redraw in .*mixed are held-out images of .*own.*val, such as 'ann_111'"
    refused(ldm, tmp_path / "out", message, from_dir=mixed, redraw_as="random")
    twice = pack_of(tmp_path / "twice", {"ann": [31, 32], "bob": [41]}, {"bob": [32]})
    refused(ldm, tmp_path / "out", "'ann_32'", from_dir=twice, redraw_as="random")
    # where the training set is not known it must be named
    lost = trained_on(own, tmp_path / "lost", recorded=tmp_path / "gone")
    refused(lost, tmp_path / "out", "cannot be looked up .* as --data_dir", from_dir=others, redraw_as="random")
    options = {"from_dir": others, "redraw_as": "random"}
    refused(lost, tmp_path / "out", "is not that set", **options, data_dir=others)
    refused(lost, tmp_path / "out", "held-out", from_dir=mixed, redraw_as="random", data_dir=own)
    assert len(rows_of(make(lost, tmp_path / "out", **options, data_dir=own))) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.4}, "strength=0.4 leaves 1 of 4 steps to do, .* needs 2; take num_inference_steps=5 or more"),
        ({"strength": [0.5, 0.1]}, "strength=0.1 leaves 0 of 4 steps .* num_inference_steps=20 or more"),
        ({"redraw_as": "keep"}, "images of ann, bob, which the model does not make unasked"),
        ({"redraw_as": "keep", "classes": ["walk"]}, "no training images of walk to redraw"),
        ({"redraw_as": "keep", "per_class": {"walk": 3}}, "no training images of walk to redraw"),
        ({"redraw_as": "random", "classes": ["swim"]}, "the model knows no class swim"),
    ],
)
def test_what_cannot_be_redrawn_is_refused(ldm, others, tmp_path, options, message):
    refused(ldm, tmp_path / "out", message, from_dir=others, **options)


def test_images_of_another_form_are_refused(ldm, tmp_path):
    for number, form in enumerate(({"size": 8}, {"channels": 1})):
        packed = pack_of(tmp_path / str(number), {"ann": [1, 2]}, **form)
        refused(ldm, tmp_path / "out", r"has images of .* the model has \[16, 16, 3\]", from_dir=packed)
    levels = trained_on(packed, tmp_path / "levels", channels=1, colormap="viridis")
    refused(levels, tmp_path / "out", "has levels of the colour map None, the model has viridis", from_dir=packed)
    empty = pack_of(tmp_path / "empty", {}, {"ann": [1]})
    refused(ldm, tmp_path / "out", "has no training images to redraw", from_dir=empty)
    (tmp_path / "nothing").mkdir()
    refused(ldm, tmp_path / "out", "nothing", from_dir=tmp_path / "nothing")
    refused(ldm, tmp_path / "out", "synthetic", from_dir=make(ldm, tmp_path / "made", num_samples=3))


def test_a_plan_and_its_sources_belong_together(ldm, own, others, tmp_path):
    plan = make(ldm, tmp_path / "redrawn", from_dir=own, step="plan")
    with pytest.raises(UserError, match="say where they are with --from_dir"):
        step(ldm, plan, "work")
    with pytest.raises(UserError, match="images to redraw differ"):
        step(ldm, plan, "work", from_dir=others)
    with pytest.raises(UserError, match="redraw"):
        make(ldm, plan, from_dir=own, strength=0.7)
    plain = make(ldm, tmp_path / "plain", num_samples=3, step="plan")
    with pytest.raises(UserError, match="redraws no images"):
        step(ldm, plain, "work", from_dir=own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.5}, "with from_dir"),
        ({"redraw_as": "random"}, "with from_dir"),
        ({"data_dir": Path("x")}, "with from_dir"),
        ({"from_dir": Path("x"), "strength": 0.0}, r"strength=0.0 must be greater than 0 and at most 1"),
        ({"from_dir": Path("x"), "strength": [0.5, 1.5]}, r"strength=1.5 must be greater than 0 and at most 1"),
        ({"from_dir": Path("x"), "strength": []}, "at least one number"),
    ],
)
def test_contradicting_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GenerateConfig(Path("a"), Path("b"), **options)


@pytest.mark.parametrize(
    ("text", "strengths"), [("0.4", [0.4]), ("1", [1.0]), ("[0.2,0.5]", [0.2, 0.5]), (None, [0.6])]
)
def test_strengths_of_the_command_line(text, strengths):
    flags = ["--ldm_path=a", "--output_dir=b", "--from_dir=c", *([f"--strength={text}"] if text else [])]
    assert cli.parse("generate", flags).strengths == strengths


def test_of_classes_that_are_kept_some_may_be_made(ldm, tmp_path):
    packed = pack_of(tmp_path / "packed", {"ann": [61], "walk": [62, 63]})
    folder = make(ldm, tmp_path / "out", from_dir=packed, classes=["walk"])
    assert sorted(row["from_key"] for row in rows_of(folder)) == ["walk_62", "walk_63"]
    assert "training images: walk 2." in (folder / "README.md").read_text()

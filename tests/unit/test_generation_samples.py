import csv
import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdaug import config as configuration
from mdaug.generation import worker
from mdaug.generation.counts import even
from mdaug.generation.options import GenerateConfig
from mdaug.generation.plan import Plan
from mdaug.pipeline.pipeline import MicroDopplerPipeline
from shards import provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.validation import WORKER, WORKERS
from tests import generation
from tests.generation import files
from tests.tiny_pipeline import CLASSES, save_tiny


def make(ldm: Path, folder: Path, **options) -> Path:
    return generation.make(ldm, folder, **({"num_inference_steps": 4, "scheduler_type": None} | options))


def plan_of(total: int, **options) -> Plan:
    settings = {
        "seed": 0,
        "pipeline": "",
        "images": "",
        "image_shape": [16, 16, 3],
        "scheduler_type": "ddim",
        "num_inference_steps": 5,
        "guidance_scale": 1.0,
    }
    settings |= {
        "mixed_precision": "no",
        "batch_size": 32,
        "samples_per_shard": 1000,
        "device": "cpu",
        "cpu_threads": 1,
    }
    return Plan(counts=even(total, CLASSES, CLASSES), **(settings | options))


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"num_samples": 20}, {"walk": 7, "fall": 7, "bird": 6}),
        ({"num_samples": 1}, {"walk": 1}),
        ({"num_samples": 8, "samples_per_shard": 8}, {"walk": 3, "fall": 3, "bird": 2}),
        ({"per_class": "fall=13,walk=2"}, {"walk": 2, "fall": 13}),
        ({"per_class": {"bird": 5}}, {"bird": 5}),
        ({"num_samples": 5, "classes": "bird,fall"}, {"fall": 3, "bird": 2}),
        ({}, {"walk": 6, "fall": 5, "bird": 5}),
    ],
)
def test_exactly_what_was_asked_for_is_found(ldm, tmp_path, options, counts):
    folder = make(ldm, tmp_path / "out", **options)
    dataset = ShardDataset(folder, fields=("image", "meta"))
    assert dataset.classes == CLASSES == json.loads((folder / "classes.json").read_text())
    assert Counter(CLASSES[label] for label in dataset.labels) == counts
    rows = list(csv.DictReader(io.StringIO((folder / "manifest.csv").read_text())))
    assert [row["key"] for row in rows] == dataset.keys
    for i, row in enumerate(rows):
        sample = dataset[i]
        assert sample["image"].shape == (16, 16, 3)
        assert (row["class"], row["label"]) == (sample["meta"]["class"], str(sample["label"]))
        assert int(row["seed"]) == sample["meta"]["seed"]
    made = provenance.read(folder, "synthetic")
    assert made["hash"] == dataset.hash
    assert made["made_from"] == {"pipeline": provenance.read(ldm / "best", "pipeline")["hash"], "images": "1" * 64}


def made(output: Path) -> Counter[str]:
    samples = ShardDataset(output, fields=("meta",))
    return Counter(samples[i]["meta"]["class"] for i in range(len(samples)))


def test_generate_leaves_auxiliary_classes_out_unless_they_are_named(tmp_path, monkeypatch):
    pipeline = save_tiny(tmp_path / "pipeline", auxiliary=["fall"])
    common = {"num_inference_steps": 2, "batch_size": 4}

    def run(name, **options):
        generation.generate(GenerateConfig(pipeline, tmp_path / name, **common, **options))
        return made(tmp_path / name), json.loads((tmp_path / name / "index.json").read_text())["classes"]

    assert run("default", num_samples=5) == ({"walk": 3, "bird": 2}, ["walk", "bird"])
    assert run("named", num_samples=4, classes=["fall"]) == ({"fall": 4}, ["walk", "bird", "fall"])
    assert run("each", per_class={"bird": 1, "fall": 2})[0] == {"bird": 1, "fall": 2}
    (tmp_path / "counts.json").write_text('{"walk": 4, "bird": 2}')
    assert run("balanced", balance_to=tmp_path / "counts.json")[0] == {"bird": 2}
    # A label names the same picture in either set: the class decides, not its place.
    named = ShardDataset(tmp_path / "named")
    everything = save_tiny(tmp_path / "plain")
    generation.generate(GenerateConfig(everything, tmp_path / "all", num_samples=4, classes=["fall"], **common))
    for i in range(4):
        np.testing.assert_array_equal(named[i]["image"], ShardDataset(tmp_path / "all")[i]["image"])
    with pytest.raises(UserError, match="the model knows no class car; it knows walk, fall, bird"):
        run("unknown", classes=["car"])
    with pytest.raises(UserError, match="not the auxiliary class 'fall'; leave out --sift"):
        run("sifted", classes=["fall"], sift=tmp_path)


def test_the_bytes_do_not_depend_on_workers_order_or_interruption(ldm, tmp_path, monkeypatch):
    whole = files(make(ldm, tmp_path / "whole", num_samples=45))
    for name, turns in (("forwards", [(0, 3), (1, 3), (2, 3)]), ("backwards", [(1, 2), (0, 2)])):
        for rank, world in turns:
            monkeypatch.setenv(WORKER, str(rank))
            monkeypatch.setenv(WORKERS, str(world))
            torch.set_num_threads(2)  # what a worker finds must not matter
            make(ldm, tmp_path / name, num_samples=45)
        assert files(tmp_path / name) == whole

    class Stop(Exception):
        pass

    original = worker.sample_images
    random = np.random.default_rng(0)
    monkeypatch.delenv(WORKER)
    monkeypatch.delenv(WORKERS)
    stops = 0
    while not (tmp_path / "interrupted" / provenance.FILE_NAME).exists():
        batches_left = int(random.integers(1, 5))

        def interrupted(*arguments):
            nonlocal batches_left
            if batches_left == 0:
                raise Stop
            batches_left -= 1
            return original(*arguments)

        monkeypatch.setattr(worker, "sample_images", interrupted)
        try:
            make(ldm, tmp_path / "interrupted", num_samples=45)
        except Stop:
            stops += 1
    assert stops > 1
    assert files(tmp_path / "interrupted") == whole


def test_a_sample_is_made_again_from_its_seed_and_label(ldm, tmp_path):
    dataset = ShardDataset(make(ldm, tmp_path / "out", num_samples=10), fields=("image", "meta"))
    pipeline = MicroDopplerPipeline.from_pretrained(ldm / "best")
    pipeline.set_progress_bar_config(disable=True)
    for i in (0, 9):
        sample = dataset[i]
        generator = torch.Generator().manual_seed(sample["meta"]["seed"])
        image = pipeline(sample["meta"]["class"], generator=generator, num_inference_steps=4).images[0]
        assert np.abs(np.asarray(image, dtype=int) - sample["image"]).max() <= 1


def test_the_same_plan_again_is_done_and_another_is_refused_untouched(ldm, tmp_path, capsys):
    folder = make(ldm, tmp_path / "out", num_samples=20, grid=True)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    make(ldm, folder, num_samples=20, grid=True)
    assert "found 20 = asked 20" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another run of mdaug generate \(seed: 42 there, 43 now\)"):
        make(ldm, folder, num_samples=20, seed=43)
    with pytest.raises(UserError, match=r"counts: .*'walk': 7.* there, .*'walk': 8.* now"):
        make(ldm, folder, num_samples=22)
    save_tiny(tmp_path / "other", channels=1)
    with pytest.raises(UserError, match="pipeline"):
        make(tmp_path / "other", folder, num_samples=20)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert {path for path in folder.rglob("*") if path.is_file()} == before.keys()


def test_a_folder_with_other_files_is_refused(ldm, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"other files .* and no run\.json"):
        make(ldm, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_vqvae_must_be_that_of_the_pipeline(ldm, tmp_path):
    vqvae = tmp_path / "vqvae"
    shutil.copytree(ldm / "best" / "vqvae", vqvae)
    (vqvae / "geometry.json").write_text('{"image_shape": [16, 16, 3], "latent_shape": [4, 8, 8]}')
    provenance.write(vqvae, kind="vqvae", content_hash="9" * 64, made_from={}, config={})
    with pytest.raises(UserError, match=r"VQ-VAE differ .222222222222 against 9999"):
        make(ldm, tmp_path / "out", vqvae_path=vqvae)
    provenance.write(vqvae, kind="vqvae", content_hash="2" * 64, made_from={}, config={})
    make(ldm, tmp_path / "out", vqvae_path=vqvae)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "fall,swim"}, "the model knows no class swim; it knows walk, fall, bird"),
        ({"per_class": "swim=3"}, "the model knows no class swim"),
        ({"beta_schedule": "linear"}, "--beta_schedule linear contradicts .* squaredcos_cap_v2"),
        ({"mixed_precision": "fp16"}, "fp16 needs a GPU"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU refuses")
def test_what_does_not_fit_the_model_is_refused(ldm, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make(ldm, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples=0 must be at least 1"),
        ({"num_samples": -3}, "num_samples=-3"),
        ({"per_class": "fall=0"}, "per_class: fall=0 must be at least 1"),
        ({"per_class": "fall"}, "per_class=fall must be written as fall=30,walk=20"),
        ({"per_class": "fall=3", "num_samples": 3}, "leave out classes and num_samples"),
        ({"scheduler_type": "lms"}, "scheduler_type=lms"),
        (
            {"scheduler_type": "pndm", "num_inference_steps": 3},
            "num_inference_steps=3 must be 4 to 999 for scheduler_type 'pndm'",
        ),
        ({"guidance_scale": -1.0}, "guidance_scale=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"cpu_threads": 10**6}, "cpu_threads=1000000 must be .*at most 1024"),
    ],
)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GenerateConfig(ldm_path=Path("ldm"), output_dir=Path("out"), **options)


def test_the_command_line_fills_the_configuration(tmp_path):
    argv = ["--ldm_path=ldm", "--output_dir=out", "--grid", "--scheduler_type=pndm", "--vqvae_model_path=vqvae"]
    counts = configuration.parse(GenerateConfig, [*argv, "--per_class", "fall=30,walk=20"], prog="mdaug generate")
    assert counts.per_class == {"fall": 30, "walk": 20}
    mapping = configuration.parse(
        GenerateConfig, [*argv, '--per_class={"fall": 30, "walk": 20}'], prog="mdaug generate"
    )
    assert mapping == counts
    assert (counts.grid, counts.scheduler_type, counts.vqvae_path) == (True, "pndm", Path("vqvae"))
    configuration.save(counts, tmp_path / "generate.yaml")
    assert configuration.parse(GenerateConfig, ["--config", str(tmp_path / "generate.yaml")], prog="mdaug") == counts


def test_the_pipeline_is_saved_when_asked(ldm, tmp_path):
    make(ldm, tmp_path / "silent", num_samples=1)
    assert not (tmp_path / "silent" / "vq_diffusion_pipeline").exists()
    make(ldm, tmp_path / "flag", num_samples=1, save_pipeline=True)
    MicroDopplerPipeline.from_pretrained(tmp_path / "flag" / "vq_diffusion_pipeline")


def test_the_grid_has_a_row_per_class_made(ldm, tmp_path):
    one = Image.open(make(ldm, tmp_path / "one", per_class="fall=9", grid=True) / "grid.png")
    three = Image.open(make(ldm, tmp_path / "three", num_samples=30, grid=True) / "grid.png")
    assert three.height == 3 * one.height


@pytest.mark.parametrize("scheduler_type", ["ddpm", "dpmsolver++"])
def test_the_noise_of_a_step_belongs_to_the_sample_too(ldm, tmp_path, scheduler_type):
    """DDPM draws noise in every step: it too comes from the generator of the sample."""
    options = {"num_samples": 8, "scheduler_type": scheduler_type, "samples_per_shard": 4}
    first = ShardDataset(make(ldm, tmp_path / "a", **options))
    again = ShardDataset(make(ldm, tmp_path / "b", **options, batch_size=2))
    for i in range(8):
        assert np.abs(first[i]["image"].astype(int) - again[i]["image"]).max() <= 1


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100, 4181, 10_000])
def test_labels_fill_the_quota_and_are_spread_over_the_shards(total):
    plan = plan_of(total, samples_per_shard=100)
    labels = plan.labels(np.arange(total))
    assert Counter(labels.tolist()) == {k: n for k, n in enumerate(plan.counts.values()) if n}
    if total >= 1000:
        for shard in range(total // 100):
            counts = np.bincount(plan.labels(plan.samples(shard)), minlength=3)
            assert counts.min() >= 30


def test_no_two_samples_of_a_million_share_their_noise():
    seeds = plan_of(1_000_000).seeds(np.arange(1_000_000))
    assert len(np.unique(seeds)) == 1_000_000
    assert 0 <= seeds.min() <= seeds.max() < 2**32  # torch's CPU generator reads no more bits than that
    noise = {torch.randn(1, generator=torch.Generator().manual_seed(seed)).item() for seed in seeds[:2000].tolist()}
    assert len(noise) > 1990
    assert not np.array_equal(seeds, plan_of(1_000_000, seed=1).seeds(np.arange(1_000_000)))


def test_shards_cover_every_sample_once_and_workers_every_shard():
    plan = plan_of(1234, samples_per_shard=100, batch_size=32)
    shards = [plan.samples(shard) for shard in range(plan.num_shards)]
    assert np.array_equal(np.concatenate(shards), np.arange(1234))
    assert {len(shard) for shard in shards[:-1]} == {100}
    owners = [worker.shards_of(plan, w, 4) for w in range(4)]
    assert sorted(shard for owned in owners for shard in owned) == list(range(plan.num_shards))


def test_the_lines_of_the_card_read_the_shards(ldm, tmp_path, monkeypatch):
    folder = make(ldm, tmp_path / "out", num_samples=20)
    card = (folder / "README.md").read_text()
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    read: list[tuple] = []
    exec(lines.replace("    ...", "    read.append((image.shape, label))"), {"read": read})
    assert read == [((16, 16, 3), label) for label in ShardDataset(folder).labels.tolist()]


def test_levels_are_generated_in_the_colours_of_their_map(tmp_path):
    from diffusers import DiffusionPipeline

    from shards.colormap import paint

    source = save_tiny(tmp_path / "pipeline", channels=1, colormap="jet-256")
    folder = make(source, tmp_path / "out", num_samples=3, grid=True)
    dataset = ShardDataset(folder)
    assert (dataset.index["image_shape"], dataset.index["colormap"]) == ([16, 16, 1], "jet-256")
    painted = paint(dataset[0]["image"], "jet-256")
    data = (folder / "000000.tar").read_bytes()
    picture = Image.open(io.BytesIO(data[data.index(b"\x89PNG") :]))
    assert np.array_equal(np.asarray(picture.convert("RGB")), painted)
    assert len(np.unique(np.asarray(Image.open(folder / "grid.png")).reshape(-1, 3), axis=0)) > 3
    pipeline = DiffusionPipeline.from_pretrained(source, custom_pipeline=str(source), trust_remote_code=True)
    image = pipeline(0, generator=torch.Generator().manual_seed(0), num_inference_steps=2).images[0]
    levels = pipeline(0, generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np").images
    assert np.array_equal(np.asarray(image), paint((levels[0] * 255).round().astype(np.uint8), "jet-256"))

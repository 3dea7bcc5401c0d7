"""Continuous conditions: from metadata through network and pipeline to every generated sample."""

from __future__ import annotations

import csv
import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from mdaug import config as configuration
from mdaug.generation.generate import run as generate
from mdaug.generation.options import GenerateConfig
from mdaug.pipeline.pipeline import MicroDopplerPipeline
from mdaug.training import conditions
from mdaug.training.objective import Diffuse
from mdaug.training.options_ldm import LDMConfig
from mdaug.training.options_vqvae import EncodeConfig
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import write_index
from shards.writer import write_shard
from tests.tiny_pipeline import CONDITIONS, clean_environment, sample, save_tiny, tiny_pipeline, tiny_unet
from tests.toy import packed_metadata

NAN = math.nan


def test_columns_are_normalised_by_the_training_split_alone(tmp_path):
    train = [{"class": "walk", "speed": value, "site": "a"} for value in ("1", "", "2", "5.5", "3")]
    read = conditions.read(packed_metadata(tmp_path, train, [{"speed": "100"}, {}]), ["speed"])
    values = np.array([1, 2, 5.5, 3])
    assert read.mean == [values.mean()]
    assert read.std == [values.std()]
    assert np.isnan(read.train[1])
    np.testing.assert_allclose(read.train[[0, 2, 3, 4]][:, 0], (values - values.mean()) / values.std(), rtol=1e-6)
    np.testing.assert_allclose(read.val[:][:, 0], [(100 - values.mean()) / values.std(), NAN], rtol=1e-6)
    assert read.values == {"walk": [[1.0], [2.0], [3.0]], "fall": [[5.5]]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sped", "names 'sped', a column .* does not have; its numeric columns are flat, speed"),
        ("site", "names 'site', which holds 'a' at sample 'train0' of .*train; a condition is a number"),
        ("flat", "names 'flat', which is 3 for all training images .*; a condition has to vary"),
    ],
)
def test_a_column_that_cannot_be_a_condition_is_named_with_those_that_can(tmp_path, name, message):
    train = [{"speed": str(i), "site": "a", "flat": "3"} for i in range(3)]
    with pytest.raises(UserError, match=message):
        conditions.read(packed_metadata(tmp_path, train, train[:1]), ["speed", name])


def test_metadata_are_read_once_for_all_processes_and_starts(tmp_path, monkeypatch):
    train = [{"speed": str(i), "site": "a"} for i in range(6)]
    folder = packed_metadata(tmp_path, train, train[:2])
    first = conditions.read(folder, ["speed"])
    reads = []
    decode = ShardDataset.__getitem__
    monkeypatch.setattr(ShardDataset, "__getitem__", lambda self, i: reads.append(i) or decode(self, i))
    again = conditions.read(folder, ["speed"])
    assert reads == []
    assert (again.mean, again.std, again.values) == (first.mean, first.std, first.values)
    assert again.train[:].tobytes() == first.train[:].tobytes()
    assert isinstance(again.train.raw.base, np.memmap)
    with pytest.raises(UserError, match="names 'sped'"):
        conditions.read(folder, ["sped"])
    # Another content of the same folder is read anew.
    packed_metadata(tmp_path, [{"speed": "7"}, {"speed": "9"}], train[:1])
    assert conditions.read(folder, ["speed"]).mean == [8]


@pytest.mark.slow
def test_many_shards_give_the_same_table_on_all_cores(tmp_path, monkeypatch):
    folder = packed_metadata(tmp_path, [{"speed": str(i)} for i in range(4)], [{}])
    for number in range(1, 4):
        meta = [json.dumps({"speed": 10 * number + i}).encode() for i in range(3)]
        rows = [(f"n{number}_{i}", {"cls": b"0", "json": about}) for i, about in enumerate(meta)]
        write_shard(folder / "train" / f"{number:06d}.tar", rows)
    write_index(folder / "train", ["walk", "fall"])
    alone = conditions.read(folder, ["speed"]).train.raw.copy()
    (table,) = (folder / "train").glob("columns-*.npy")
    table.unlink()
    monkeypatch.setattr(conditions, "SHARDS_PER_PROCESS", 2)
    monkeypatch.setattr("shards.pool.cores", lambda: 2)
    assert np.array_equal(conditions.read(folder, ["speed"]).train.raw, alone)
    assert alone[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 20, 21, 22, 30, 31, 32]


def test_flags_and_yaml_name_columns_values_and_transforms(tmp_path):
    flags = "--data_dir d --vqvae_path v --output_dir o".split()
    for value in ("speed,aspect", "[speed, aspect]"):
        config = configuration.parse(LDMConfig, [*flags, "--condition_on", value], "mdaug train-ldm")
        assert config.condition_on == ["speed", "aspect"]
    configuration.save(config, tmp_path / "c.yaml")
    assert configuration.parse(LDMConfig, ["--config", str(tmp_path / "c.yaml")], "x") == config
    wanted = configuration.parse(GenerateConfig, "--ldm_path l --output_dir o --conditions speed=1.2".split(), "x")
    assert wanted.conditions == {"speed": 1.2}
    encoding = configuration.parse(EncodeConfig, [*flags, "--augment_with", "roll,gain"], "mdaug encode")
    assert encoding.augment_with == ["roll", "gain"]
    for field, value in (("condition_dropout", 1), ("augment_probability", 1.5)):
        with pytest.raises(ValueError, match=f"{field}={value}"):
            LDMConfig(Path("d"), Path("o"), vqvae_path=Path("v"), **{field: value})


def test_conditions_are_dropped_with_the_class_and_on_their_own():
    config = LDMConfig(Path("d"), Path("o"), vqvae_path=Path("v"), label_dropout=0.2, condition_dropout=0.3)
    diffuse = Diffuse([0.0], [1.0], config, num_classes=2)
    shown = {
        "array": np.zeros((1, 2, 2), np.float32),
        "label": 1,
        "conditions": np.array([0.5, NAN, -1], np.float32),
        "augment": np.ones(3, np.float32),
    }
    items = [diffuse(shown, position) for position in range(2000)]
    without = np.array([item["label"] == 2 for item in items])
    hidden = np.stack([np.isnan(item["conditions"]) for item in items])
    assert hidden[without].all()
    assert hidden[:, 1].all()  # what an image does not have
    rates = hidden[~without][:, [0, 2]].mean(axis=0)
    assert (np.abs(rates - (1 - 0.7 * 0.7)) < 0.04).all()  # all together, or each on its own
    both = hidden[~without][:, 0] & hidden[~without][:, 2]
    assert abs(both.mean() - (0.3 + 0.7 * 0.3**2)) < 0.04
    again = diffuse(shown, 1999)
    assert np.array_equal(again["conditions"], items[1999]["conditions"], equal_nan=True)
    held_out = diffuse.validation(shown, 3)
    assert "augment" not in held_out
    assert np.array_equal(held_out["conditions"], shown["conditions"], equal_nan=True)


def test_a_fresh_network_with_conditions_and_augmentation_starts_as_one_without():
    """Nothing is lost by switching them on: zeros add nothing, and values nothing yet."""
    from mdaug.models.hybrid_unet import ConditionEmbedding

    embedding = ConditionEmbedding(2, 32)
    assert not embedding(torch.tensor([[0.3, NAN]])).any()
    unet = tiny_unet(augment_size=5)
    noisy, step, label = torch.randn(2, 4, 8, 8), torch.tensor([5, 9]), torch.tensor([0, 1])
    with torch.no_grad():
        without = unet(noisy, step, label).sample
        assert torch.equal(unet(noisy, step, label, augment=torch.zeros(2, 5)).sample, without)
        assert not torch.equal(unet(noisy, step, label, augment=torch.ones(2, 5)).sample, without)


def test_network_tells_values_apart_and_takes_nan_for_none(tmp_path):
    unet = tiny_unet(num_conditions=2, augment_size=5)
    noisy, step, label = torch.randn(3, 4, 8, 8), torch.tensor(7), torch.tensor([0, 1, 2])
    given = torch.tensor([[0.5, -1.0], [NAN, 2.0], [NAN, NAN]])
    with torch.no_grad():
        prediction = unet(noisy, step, label, conditions=given).sample
        nothing = unet(noisy, step, label).sample
        unet.save_pretrained(tmp_path)
        again = type(unet).from_pretrained(tmp_path)(noisy, step, label, conditions=given).sample
        shifted = unet(noisy, step, label, conditions=given + 0.1).sample
    assert prediction.isfinite().all()
    assert torch.equal(again, prediction)
    assert torch.equal(prediction[2], nothing[2])
    assert not any(torch.equal(prediction[i], nothing[i]) for i in (0, 1))
    assert not any(torch.equal(prediction[i], shifted[i]) for i in (0, 1))
    with pytest.raises(ValueError, match="trained without any"):
        tiny_unet()(noisy, step, label, conditions=given)


def test_pipeline_takes_conditions_in_the_units_of_the_metadata(tmp_path):
    pipeline = tiny_pipeline(conditions=CONDITIONS)
    options = {"labels": ["walk"], "count": 2}
    plain = sample(pipeline, **options)
    walking = sample(pipeline, **options, conditions={"speed": 2.0})
    assert not torch.equal(plain, walking)
    assert torch.equal(walking, sample(pipeline, **options, conditions={"speed": [2.0], "aspect": None}))
    assert torch.equal(plain, sample(pipeline, **options, conditions={"speed": None}))
    saved = save_tiny(tmp_path / "pipe", conditions=CONDITIONS)
    loaded = MicroDopplerPipeline.from_pretrained(saved)
    assert torch.equal(walking, sample(loaded, **options, conditions={"speed": 2.0}))
    assert loaded.config.conditions == CONDITIONS
    assert "| speed | 1.5 | 0.5 |" in (saved / "README.md").read_text()
    with pytest.raises(ValueError, match="'sped' is unknown; the conditions of this model are: speed, aspect"):
        sample(pipeline, **options, conditions={"sped": 2.0})
    with pytest.raises(ValueError, match="3 values of condition 'speed' for 1 labels"):
        sample(pipeline, **options, conditions={"speed": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="the conditions of this model are: none"):
        sample(tiny_pipeline(), **options, conditions={"speed": 2.0})


def test_guidance_is_from_the_network_without_class_and_conditions(monkeypatch):
    pipeline = tiny_pipeline(conditions=CONDITIONS)
    told = []
    forward = pipeline.unet.forward

    def spied(latents, timestep, **given):
        told.append(given)
        return forward(latents, timestep, **given)

    monkeypatch.setattr(pipeline.unet, "forward", spied)
    sample(pipeline, ["walk"], 1, guidance_scale=2.0, num_inference_steps=1, conditions={"speed": 2.0})
    assert told[0]["class_labels"].tolist() == [3, 0]
    assert torch.equal(told[0]["conditions"].isnan(), torch.tensor([[True, True], [False, True]]))
    assert told[0]["conditions"][1, 0] == 1.0  # (2.0 - 1.5) / 0.5
    assert all("augment" not in given for given in told)


@pytest.mark.slow
def test_the_folder_takes_conditions_without_mdaug(tmp_path):
    folder = save_tiny(tmp_path / "pipe", conditions=CONDITIONS)
    script = tmp_path / "fresh.py"
    script.write_text(
        "import torch\nfrom diffusers import DiffusionPipeline\n"
        "pipe = DiffusionPipeline.from_pretrained('.', custom_pipeline='.', trust_remote_code=True)\n"
        "generator = torch.Generator().manual_seed(0)\n"
        "images = pipe('walk', generator=[generator], num_inference_steps=5, output_type='pt', "
        "conditions={'speed': 2.0}).images\ntorch.save(images, 'images.pt')\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    python = clean_environment(tmp_path / "venv")
    run = subprocess.run([python, "-I", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    theirs = torch.load(folder / "images.pt", weights_only=True)
    ours = sample(tiny_pipeline(conditions=CONDITIONS), ["walk"], 1, conditions={"speed": 2.0})
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def ldm(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("ldm") / "best", conditions=CONDITIONS).parent


def make(ldm: Path, folder: Path, **options) -> dict[str, dict]:
    """Generate, and return the description of each sample by key."""
    settings = {"num_samples": 30, "num_inference_steps": 2, "batch_size": 4, "samples_per_shard": 10}
    generate(GenerateConfig(ldm_path=ldm, output_dir=folder, **(settings | options)))
    dataset = ShardDataset(folder, fields=("image", "meta"))
    return {item["key"]: item for item in (dataset[i] for i in range(len(dataset)))}


def test_samples_get_the_joint_values_of_real_images_of_their_class(ldm, tmp_path):
    made = make(ldm, tmp_path / "out")
    joint = {name: {tuple(row) for row in rows} for name, rows in CONDITIONS["values"].items()}
    seen: dict[str, set] = {name: set() for name in joint}
    for item in made.values():
        meta = item["meta"]
        seen[meta["class"]].add((meta["condition_speed"], meta["condition_aspect"]))
    assert seen == joint
    with open(tmp_path / "out" / "manifest.csv", newline="") as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    for key, item in made.items():
        speed = item["meta"]["condition_speed"]
        assert rows[key]["condition_speed"] == ("" if speed is None else str(speed))
    assert "`condition_speed`" in (tmp_path / "out" / "README.md").read_text()
    # any one of them is made again by what its description says
    item = next(item for item in made.values() if item["meta"]["condition_aspect"] == 60.0)
    pipeline = MicroDopplerPipeline.from_pretrained(ldm / "best")
    told = {name: item["meta"][f"condition_{name}"] for name in CONDITIONS["names"]}
    generator = [torch.Generator().manual_seed(item["meta"]["seed"])]
    again = sample(pipeline, [item["label"]], 1, generator=generator, num_inference_steps=2, conditions=told)
    assert np.abs(255 * again[0].permute(1, 2, 0).numpy() - item["image"]).max() <= 1


def test_conditions_depend_on_plan_and_sample_alone(ldm, tmp_path):
    one = make(ldm, tmp_path / "one")
    for worker in (1, 0):
        config = GenerateConfig(ldm, tmp_path / "two", num_samples=30, num_inference_steps=2, batch_size=4,
                                samples_per_shard=10, worker=worker, num_workers=2)  # fmt: skip
        generate(config)
    two = ShardDataset(tmp_path / "two", fields=("meta",))
    assert {item["key"]: item["meta"] for item in two} == {key: item["meta"] for key, item in one.items()}
    other = make(ldm, tmp_path / "other", seed=7)
    assert any(one[key]["meta"]["condition_speed"] != other[key]["meta"]["condition_speed"] for key in one)


def test_fixed_conditions_reach_every_sample_and_others_are_refused(ldm, tmp_path, capsys):
    made = make(ldm, tmp_path / "out", conditions="speed=1.7", classes=["walk", "bird"])
    assert {item["meta"]["condition_speed"] for item in made.values()} == {1.7}
    assert {item["meta"]["condition_aspect"] for item in made.values()} == {10.0, 60.0, None}
    assert "no training image of bird has a value of speed" in capsys.readouterr().out
    make(ldm, tmp_path / "far", conditions="speed=9", classes=["walk"], num_samples=2)
    assert "speed=9 lies outside the training images of walk (1 to 2)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another run of mdaug generate .*conditions"):
        make(ldm, tmp_path / "out", conditions="speed=1.8", classes=["walk", "bird"])
    with pytest.raises(UserError, match=r"names 'sped', which the model was not trained on; .* speed, aspect"):
        make(ldm, tmp_path / "new", conditions="sped=1")
    with pytest.raises(ValueError, match="must be written as name=number"):
        GenerateConfig(ldm, tmp_path, conditions="speed")

"""Auxiliary images and first weights: what is refused, how classes are named, and how positions are shared out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from mdaug import cli
from mdaug.generation.generate import run as generate
from mdaug.generation.options import GenerateConfig
from mdaug.training import auxiliary, conditions, initial
from mdaug.training.ldm_task import LDMTask
from mdaug.training.options_ldm import LDMConfig
from mdaug.training.options_vqvae import VQVAEConfig
from mdaug.training.vqvae_task import VQVAETask
from shards import provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import content_hash, write_index
from shards.order import BalancedOrder, EpochOrder, SharedOrder, epoch_length
from shards.writer import write_shard
from tests.tiny_pipeline import save_tiny
from tests.toy import CLASSES, unequal_packed
from tests.toy_latents import SHAPE, toy_latents

SMALL = {"block_out_channels": (16, 32), "num_heads": 2, "norm_num_groups": 8, "window_size": 4, "layers_per_block": 1}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


# --- positions ---


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1, 0.3, 0.9, 1e-3])
def test_the_share_is_exact_at_every_position_and_an_epoch_shows_each_own_sample_once(share):
    own, others = EpochOrder(37, 1), EpochOrder(11, 1)
    order = SharedOrder(own, others, 37, share)
    shown = [order.index(position) for position in range(3000)]
    counted = np.cumsum([index >= 37 for index in shown])
    assert all(abs(counted[p] - (p + 1) * share) < 1 for p in range(3000))
    if share == 0.25:  # batches of any size that the share divides hold exactly that many
        assert set(np.add.reduceat([index >= 37 for index in shown], range(0, 3000, 20))) == {5}
    epoch = [index for index in shown[: order.num_samples] if index < 37]
    assert order.num_samples == epoch_length(37, share)
    assert -1e-9 <= order.num_samples - 37 / (1 - share) < 1 + 1e-9
    assert sorted(epoch[:37]) == list(range(37))
    auxiliary_shown = [index - 37 for index in shown if index >= 37]
    assert auxiliary_shown == [others.index(position) for position in range(len(auxiliary_shown))]


def test_a_class_of_5_and_one_of_300_are_drawn_equally_often_and_so_are_the_images_of_each():
    labels = np.array([4] * 300 + [0] * 5 + [7] * 40)
    order = BalancedOrder(labels, seed=3)
    seen: Counter[int] = Counter()
    for position in range(3000):
        seen[order.index(position)] += 1
        if position % 7 == 0:
            by_class = [sum(n for i, n in seen.items() if labels[i] == label) for label in (0, 4, 7)]
            assert max(by_class) - min(by_class) <= 1
            for label in (0, 4, 7):
                counts = [seen[i] for i in np.flatnonzero(labels == label).tolist()]
                assert max(counts) - min(counts) <= 1
    back = BalancedOrder(labels, seed=3)
    forward = [order.index(position) for position in range(500)]
    assert [back.index(position) for position in reversed(range(500))] == forward[::-1]
    assert forward != [BalancedOrder(labels, seed=4).index(position) for position in range(500)]


# --- sets ---


def other_persons(folder: Path, names=("anna", "ben"), count=6, **options) -> Path:
    """A packed set of other classes with pictures of its own."""
    return unequal_packed(folder, {name: (count + i, 1) for i, name in enumerate(names)}, size=16, seed=20, **options)


def config(folders: dict[str, Path], aux=None, **options) -> LDMConfig:
    root = folders["packed"].parent
    return LDMConfig(
        data_dir=folders["packed"], output_dir=root / "run", vqvae_path=folders["vqvae"], image_size=16, aux_dir=aux,
        latent_channels=2, **{**SMALL, **options},
    )  # fmt: skip


def latents_of(folder: Path, images: Path | None, vqvae: Path, classes: list[str], labels: list[int], seed=5) -> Path:
    """Latents of an auxiliary set, noise."""
    import io

    rng, samples = np.random.default_rng(seed), []
    for i, label in enumerate(labels):
        file = io.BytesIO()
        np.save(file, rng.standard_normal(SHAPE).astype(np.float32))
        samples.append((f"x_{i:04d}", {"npy": file.getvalue(), "cls": str(label).encode()}))
    write_shard(folder / "train" / "000000.tar", samples)
    for split in ("train", "val"):
        (folder / split).mkdir(exist_ok=True)
        write_index(folder / split, classes, latent_shape=list(SHAPE))
    made_from = {"images": "1" * 64, "vqvae": provenance.read(vqvae, "vqvae")["hash"]}
    provenance.write(folder, kind="latents", content_hash=content_hash(folder), made_from=made_from, config={})
    return folder


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    return toy_latents(tmp_path / "toy", train=24, val=4)


def task(folders, others, **options) -> LDMTask:
    made_from = {"images": "", "vqvae": provenance.read(folders["vqvae"], "vqvae")["hash"]}
    chosen = config(folders, list(others), **options)
    pairs = [(folder, folder) for folder in others]
    return LDMTask(chosen, folders["packed"], folders["vqvae"], folders["latents"], made_from, pairs)


def test_each_batch_holds_the_share_and_auxiliary_classes_come_behind_those_of_the_target(folders, tmp_path):
    first = latents_of(tmp_path / "a", None, folders["vqvae"], ["anna", "ben"], [0] * 9 + [1] * 3)
    alone = latents_of(tmp_path / "b", None, folders["vqvae"], ["simulated"], [0] * 12, seed=6)
    trained = task(folders, [first, alone], aux_share=0.25, label_dropout=0.0, balance_classes=True)
    assert trained.classes == [*CLASSES, "anna", "ben"]
    assert trained.auxiliary == ["anna", "ben"]
    shown = [trained.dataset[position]["label"] for position in range(24 * 12)]
    for start in range(0, len(shown), 16):
        assert sum(label >= 4 for label in shown[start : start + 16]) == 4
    counts = Counter(shown)
    assert max(counts[i] for i in range(4)) - min(counts[i] for i in range(4)) <= 1
    assert max(counts[i] for i in (4, 5, 6)) - min(counts[i] for i in (4, 5, 6)) <= 1  # 6: no class
    assert trained.epoch == 32  # 24 images of the target are three quarters of it
    assert trained.module.config.num_classes == 6
    assert trained.diffuse.null_label == 6
    # One scale: that of the target's latents.
    statistics = json.loads((folders["latents"] / "statistics.json").read_text())
    assert trained.statistics["mean"] == statistics["mean"]
    at = next(position for position, label in enumerate(shown) if label == 4)
    raw = trained.dataset.dataset[trained.dataset.order.index(at)]["array"]
    mean, std = (np.array(statistics[name])[:, None, None] for name in ("mean", "std"))
    np.testing.assert_allclose(trained.dataset[at]["latent"], (raw - mean) / std, rtol=1e-5)
    # The pipeline says which are which, and pictures show the target alone.
    assert trained.pipeline(trained.module).config.auxiliary == ["anna", "ben"]
    assert "| 4 | anna (auxiliary) |" in trained.pipeline(trained.module).model_card()
    assert trained.pictures.classes == CLASSES


def test_without_auxiliary_images_a_training_sees_what_it_saw(folders):
    trained = task(folders, [])
    plain = EpochOrder(24, 0)
    assert [trained.dataset.order.index(p) for p in range(100)] == [plain.index(p) for p in range(100)]
    assert trained.epoch == 24
    assert trained.auxiliary == []
    assert trained.pipeline(trained.module).config.auxiliary is None


def test_names_that_are_in_both_sets_are_asked_for_and_one_class_is_no_class(folders, tmp_path):
    def latents(name, classes):
        return latents_of(tmp_path / name, None, folders["vqvae"], classes, [i % len(classes) for i in range(6)])

    shared, again = latents("a", ["anna", "wavy"]), latents("b", ["anna", "carl"])
    for others, message in (
        ([shared], "class 'wavy' is in .*packed and in aux_dir .*a; say --same_names same, .* or --same_names other"),
        ([latents("c", ["anna", "ben"]), again], "class 'anna' is in .*c and in aux_dir .*b; say --same_names"),
    ):
        with pytest.raises(UserError, match=message) as error:
            auxiliary.name_classes(config(folders, others), CLASSES, others)
        assert "\n" not in str(error.value)

    def named(**options):
        classes, places = auxiliary.name_classes(config(folders, **options), CLASSES, [shared, again])
        return classes, [place.tolist() for place in places]

    assert named(same_names="same") == (["anna", "carl"], [[4, 3], [4, 5]])
    renamed = ["anna", "wavy (auxiliary)", "anna (auxiliary)", "carl"]
    assert named(same_names="other") == (renamed, [[4, 5], [6, 7]])
    assert named(aux_labels="none") == ([], [[-1, -1], [-1, -1]])
    lone = latents("d", ["wavy"])
    assert auxiliary.name_classes(config(folders), CLASSES, [lone])[1][0].tolist() == [-1]
    told = config(folders, same_names="same")
    assert auxiliary.name_classes(told, CLASSES, [lone]) == ([], [np.array([3])])
    stranger = latents("e", ["dora"])
    assert auxiliary.name_classes(told, CLASSES, [stranger]) == ([], [np.array([-1])])
    labelled = config(folders, aux_labels="classes")
    assert auxiliary.name_classes(labelled, CLASSES, [stranger]) == (["dora"], [np.array([4])])


def refused(folders, aux, message, vqvae=True, **options) -> None:
    chosen = config(folders, aux, **options)

    def all_checks():
        opened = auxiliary.open_sets(chosen, folders["packed"], folders["vqvae"] if vqvae else None)
        auxiliary.refuse_overlap(chosen, folders["packed"], opened)
        auxiliary.refuse_same_latents(chosen, folders["latents"], opened)

    with pytest.raises(UserError, match=message) as error:
        all_checks()
    assert "\n" not in str(error.value)


def test_sets_that_do_not_fit_are_refused_in_one_line(folders, tmp_path):
    refused(folders, tmp_path / "nothing", "nothing is not a folder|nothing does not exist")
    large = unequal_packed(tmp_path / "large", {"anna": (4, 1), "ben": (4, 1)}, size=32)
    refused(folders, large, "large holds images of 32x32, but image_size is 16")
    # The pictures of the target itself, as training and as held-out images.
    named = r"8 images of aux_dir .* are training and held-out images of .*packed, such as (\S+), which is \1 there"
    refused(folders, folders["packed"], named)
    val = tmp_path / "val"
    (val / "train").mkdir(parents=True)
    for path in (folders["packed"] / "val").iterdir():
        (val / "train" / path.name).write_bytes(path.read_bytes())
    write_index(val / "val", [], image_shape=[16, 16, 1]) if (val / "val").mkdir() is None else None
    provenance.write(val, kind="images", content_hash=content_hash(val), made_from={}, config={})
    refused(folders, [other_persons(tmp_path / "good"), val], "4 images of aux_dir .*val are held-out images of")
    # Latents: of another VQ-VAE, of target images, and where images are wanted.
    latents = latents_of(tmp_path / "latents", None, folders["vqvae"], ["anna", "ben"], [0, 1])
    refused(folders, latents, "holds 'latents', but 'images' is needed here", vqvae=False)
    refused(folders, folders["latents"], "28 images of aux_dir .* are training and held-out images")
    record = json.loads((latents / "provenance.json").read_text())
    record["made_from"]["vqvae"] = "2" * 64
    (latents / "provenance.json").write_text(json.dumps(record))
    refused(folders, latents, "do not belong together: their VQ-VAE differ")


@pytest.mark.slow
def test_colours_of_another_map_are_refused_and_image_folders_take_the_form_of_the_target(tmp_path):
    from PIL import Image

    from shards.colormap import colormap
    from tests.toy import toy_image

    def folder(name, painted, classes):
        rng = np.random.default_rng(len(name))
        for label, each in enumerate(classes):
            (tmp_path / name / each).mkdir(parents=True)
            for i in range(6):
                picture = toy_image(label, rng, 32)[:, :, 0]
                image = colormap(painted).picture(picture) if painted else Image.fromarray(picture)
                image.convert("RGB").save(tmp_path / name / each / f"r{i}_{i}.png")
        return tmp_path / name

    from shards.packed import open_packed

    jet = folder("jet", "jet-256", ["a", "b"])
    others = folder("others", "viridis", ["c", "d"])
    for mode in ("rgb", "gray"):
        packed = open_packed(jet, 32, image_mode=mode)
        options = VQVAEConfig(data_dir=jet, output_dir=tmp_path / "run", image_size=32, image_mode=mode, aux_dir=others)
        if mode == "rgb":
            with pytest.raises(UserError, match=r"holds pictures in viridis, .* in jet-256; pack both"):
                auxiliary.open_sets(options, packed)
        else:
            (opened,) = auxiliary.open_sets(options, packed)
            shape = ShardDataset(opened / "train").index["image_shape"]
            assert shape == ShardDataset(packed / "train").index["image_shape"] == [32, 32, 1]
    gray = open_packed(folder("gray", None, ["e", "f"]), 32)
    options = VQVAEConfig(data_dir=jet, output_dir=tmp_path / "run", image_size=32, image_mode="rgb", aux_dir=gray)
    with pytest.raises(UserError, match=r"holds images of 1 channel\(s\), but image_mode is rgb"):
        auxiliary.open_sets(options, open_packed(jet, 32, image_mode="rgb"))


def test_conditions_of_auxiliary_images_are_in_the_scale_of_the_target(tmp_path, folders):
    from tests.unit.test_conditions import packed

    target = packed(tmp_path / "t", [{"speed": str(i)} for i in range(4)], [{}])
    others = packed(tmp_path / "o", [{"speed": "10"}, {"aspect": "3"}], [{}])
    read = conditions.read(target, ["speed"])
    found = read.of_auxiliary(others, "train", 2)
    np.testing.assert_array_equal(found.raw[:, 0], [10, np.nan])
    assert found[0][0] == pytest.approx((10 - 1.5) / np.std(range(4)))
    assert np.isnan(read.of_auxiliary(None, "train", 3)[:]).all()


def test_an_image_without_class_is_shown_without_conditions(folders):
    trained = task(folders, [], label_dropout=0.0, condition_dropout=0.0)
    sample = {"array": np.zeros(SHAPE, np.float32), "label": 4, "conditions": np.ones(2, np.float32)}
    assert np.isnan(trained.diffuse(dict(sample), 0)["conditions"]).all()
    assert not np.isnan(trained.diffuse({**sample, "label": 1}, 0)["conditions"]).any()


def test_latents_with_and_without_copies_mix_in_one_batch(folders, tmp_path):
    others = latents_of(tmp_path / "a", None, folders["vqvae"], ["anna", "ben"], [0, 1] * 6)
    index = json.loads((others / "train" / "index.json").read_text())
    # As if encoded with two copies of each image: items 0, 3, 6, ... are the images.
    shards = ShardDataset(others / "train", fields=("array",))
    from mdaug import augment

    samples = [
        (
            f"c_{i:03d}",
            {
                "npy": shards.raw(i, "array"),
                "cls": str(i // 3 % 2).encode(),
                "json": json.dumps({"augment": [float(i % 3)] * augment.SIZE}).encode(),
            },
        )
        for i in range(12)
    ]
    write_shard(others / "train" / "000000.tar", samples)
    write_index(others / "train", index["classes"], latent_shape=list(SHAPE), copies=2)
    record = json.loads((others / "provenance.json").read_text())
    record |= {"hash": content_hash(others), "files": {}}
    (others / "provenance.json").write_text(json.dumps(record))
    trained = task(folders, [others], augment_probability=1.0, label_dropout=0.0)
    batch = default_collate([trained.dataset[position] for position in range(16)])
    told, label = batch["augment"][:, 0], batch["label"]
    assert set(told[label < 4].tolist()) == {0.0}
    assert set(told[label >= 4].tolist()) == {1.0, 2.0}
    assert trained.module.augment_embedding is not None


def test_the_vqvae_draws_the_same_share_and_starts_its_codes_from_both(tmp_path):
    target = unequal_packed(tmp_path / "t", {"a": (9, 2), "b": (3, 2)}, size=16)
    others = unequal_packed(tmp_path / "o", {"a": (20, 1), "c": (4, 1)}, size=16, meta={"x": 1})
    options = VQVAEConfig(
        data_dir=target, output_dir=tmp_path / "run", image_size=16, n_layers=1, base_channels=8, vq_num_embed=16,
        aux_dir=others, aux_share=0.25, balance_classes=True,
    )  # fmt: skip
    trained = VQVAETask(options, target, {"images": "1", "auxiliary": "2"}, [others])
    shown = np.array([trained.dataset.order.index(position) for position in range(480)])
    assert ((shown >= 12).reshape(-1, 16).sum(1) == 4).all()
    labels = trained.train_set.labels
    assert np.bincount(labels[shown[shown < 12]]).tolist() == [180, 180]
    assert len(np.unique(shown[shown >= 12])) == 26  # its two splits
    assert trained.num_images == 38
    assert trained.epoch == 16


# --- flags ---


def test_flags_and_yaml_name_one_folder_or_several(tmp_path):
    flags = ["--data_dir", "d", "--output_dir", "o"]
    assert cli.parse("train-vqvae", [*flags, "--aux_dir", "x,y"]).aux_dir == [Path("x"), Path("y")]
    (tmp_path / "c.yaml").write_text("aux_dir: [x, ~/y]\n")
    several = cli.parse("train-vqvae", [*flags, "--config", str(tmp_path / "c.yaml")])
    assert several.aux_dir == [Path("x"), Path("~/y").expanduser()]
    assert auxiliary.folders_of(cli.parse("train-vqvae", [*flags, "--aux_dir", "x"])) == [Path("x")]
    assert auxiliary.folders_of(cli.parse("train-vqvae", flags)) == []
    with pytest.raises(UserError, match=r"aux_share=1.0 must be greater than 0 and less than 1"):
        cli.parse("train-vqvae", [*flags, "--aux_share", "1"])


def test_a_job_finds_every_auxiliary_folder(tmp_path, monkeypatch):
    from launch import preflight

    monkeypatch.chdir(tmp_path)
    options = VQVAEConfig(Path("d"), Path("o"), aux_dir=[Path("x"), Path("s3://bucket/y")])
    assert preflight.absolute(options).aux_dir == [tmp_path / "x", Path("s3://bucket/y")]
    assert preflight.local_paths(options)["aux_dir[0]"] == tmp_path / "x"
    (tmp_path / "d" / "a").mkdir(parents=True)
    (tmp_path / "d" / "a" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"aux_dir=.*x does not exist; make it first, or correct --aux_dir"):
        preflight.check("train-vqvae", preflight.absolute(options), 1)


# --- generate ---


def made(output: Path) -> Counter[str]:
    samples = ShardDataset(output, fields=("meta",))
    return Counter(samples[i]["meta"]["class"] for i in range(len(samples)))


def test_generate_leaves_auxiliary_classes_out_unless_they_are_named(tmp_path, monkeypatch):
    pipeline = save_tiny(tmp_path / "pipeline", auxiliary=["fall"])
    common = {"num_inference_steps": 2, "batch_size": 4}

    def run(name, **options):
        generate(GenerateConfig(pipeline, tmp_path / name, **common, **options))
        return made(tmp_path / name), json.loads((tmp_path / name / "index.json").read_text())["classes"]

    assert run("default", num_samples=5) == ({"walk": 3, "bird": 2}, ["walk", "bird"])
    assert run("named", num_samples=4, classes=["fall"]) == ({"fall": 4}, ["walk", "bird", "fall"])
    assert run("each", per_class={"bird": 1, "fall": 2})[0] == {"bird": 1, "fall": 2}
    (tmp_path / "counts.json").write_text('{"walk": 4, "bird": 2}')
    assert run("balanced", balance_to=tmp_path / "counts.json")[0] == {"bird": 2}
    # A label names the same picture in either set: the class decides, not its place.
    named = ShardDataset(tmp_path / "named")
    everything = save_tiny(tmp_path / "plain")
    generate(GenerateConfig(everything, tmp_path / "all", num_samples=4, classes=["fall"], **common))
    for i in range(4):
        np.testing.assert_array_equal(named[i]["image"], ShardDataset(tmp_path / "all")[i]["image"])
    with pytest.raises(UserError, match="the model knows no class car; it knows walk, fall, bird"):
        run("unknown", classes=["car"])
    with pytest.raises(UserError, match="not the auxiliary class 'fall'; leave out --sift"):
        run("sifted", classes=["fall"], sift=tmp_path)


# --- first weights ---


def test_weights_of_a_pipeline_come_with_their_classes_by_name(folders, tmp_path, capsys):
    base = task(folders, [])
    with torch.no_grad():
        for parameter in base.module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    pipeline = base.pipeline(base.module)
    pipeline.register_to_config(classes=["wavy", "old", "flat", "gone"])
    from mdaug.pipeline.folder import save_pipeline

    settings = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
    made_from = {"images": "1", "vqvae": "2", "latents": "3"}
    save_pipeline(pipeline, tmp_path / "base", made_from=made_from, config=settings)
    capsys.readouterr()
    trained = task(folders, [], init_from=tmp_path / "base", dropout=0.1)
    rows, there = trained.module.class_embedding.weight, base.module.class_embedding.weight
    mean = there[:4].mean(0)
    expected = torch.stack([there[2], mean, mean, there[0], there[4]])  # flat, rising, falling, wavy, none
    torch.testing.assert_close(rows, expected)
    for (name, value), other in zip(trained.module.named_parameters(), base.module.parameters(), strict=True):
        if name != "class_embedding.weight":
            torch.testing.assert_close(value, other)
    for average in (name for name in trained.ema.state() if name.endswith("/conv_in.bias")):
        torch.testing.assert_close(trained.ema.state()[average], base.module.conv_in.bias)
    line = capsys.readouterr().out
    assert "classes found by name: flat, wavy; new, as the mean of the known ones: rising, falling" in line
    assert "left out: old, gone; its VQ-VAE was another one" in line

    for options, message in (
        ({"block_out_channels": (16, 48)}, r"block_out_channels \[16, 32\] there, \[16, 48\] here"),
        ({"prediction_type": "epsilon"}, "prediction_type v_prediction there, epsilon here"),
    ):
        with pytest.raises(UserError, match=f"base holds a network that does not fit: {message}") as error:
            task(folders, [], init_from=tmp_path / "base", **options)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"latent shape \[4, 8, 8\] there, \[2, 4, 4\] here"):
        task(folders, [], init_from=save_tiny(tmp_path / "tiny"))
    with pytest.raises(UserError, match="holds no pipeline"):
        initial.made_from(config(folders, init_from=folders["vqvae"]))


def test_a_vqvae_starts_from_another_one_or_from_that_of_a_pipeline(tmp_path):
    from mdaug.models.vqvae import save_vqvae, stock_model

    target = unequal_packed(tmp_path / "t", {"a": (9, 2), "b": (3, 2)}, size=16)
    sizes = {"image_size": 16, "n_layers": 1, "base_channels": 8, "vq_num_embed": 16}

    def build(**options) -> VQVAETask:
        chosen = VQVAEConfig(data_dir=target, output_dir=tmp_path / "run", **{**sizes, **options})
        return VQVAETask(chosen, target, {})

    base = build(seed=9)
    torch.nn.init.normal_(base.codebook.codes)
    saved = {"image_shape": [16, 16, 1], "made_from": {"images": ""}, "config": {}}
    save_vqvae(stock_model(base.model_config, base.module.state_dict()), tmp_path / "base", **saved)
    trained = build(init_from=tmp_path / "base")
    expected = base.module.state_dict()
    for name, value in trained.module.state_dict().items():
        if name not in ("codebook.sums", "codebook.counts"):
            torch.testing.assert_close(value, expected[name])
    torch.testing.assert_close(trained.codebook.sums, base.codebook.codes)
    trained.prepare(None)  # nothing is placed anew
    torch.testing.assert_close(trained.codebook.codes, base.codebook.codes)
    with pytest.raises(UserError, match="num_vq_embeddings 16 there, 32 here; give the options it was trained with"):
        build(init_from=tmp_path / "base", vq_num_embed=32)
    with pytest.raises(UserError, match=r"image_shape \[16, 16, 3\] there, \[16, 16, 1\] here"):
        build(init_from=save_tiny(tmp_path / "pipeline"))


def test_the_run_of_a_training_names_the_auxiliary_images_and_what_it_began_with(folders, tmp_path):
    others = other_persons(tmp_path / "others")
    chosen = config(folders, others, train_samples=16, num_workers=0, warmup_steps=0)
    assert auxiliary.made_from(chosen) == {"auxiliary": provenance.read(others, "images")["hash"]}
    assert auxiliary.made_from(config(folders)) == {"auxiliary": None}
    both = auxiliary.made_from(config(folders, [others, folders["packed"]]))["auxiliary"]
    assert both not in (None, *auxiliary.made_from(chosen).values())

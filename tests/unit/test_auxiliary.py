"""Auxiliary images: what is refused, how their classes are named, and how flags name them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import preflight
from mdaug import cli
from mdaug.training import auxiliary, conditions
from mdaug.training.options_vqvae import VQVAEConfig
from shards import provenance
from shards.colormap import colormap
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import content_hash, write_index
from shards.packed import open_packed
from tests.toy import CLASSES, packed_metadata, toy_image, unequal_packed
from tests.toy_latents import auxiliary_latents, toy_config, toy_latents


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    return toy_latents(tmp_path / "toy", train=24, val=4)


def other_persons(folder: Path, names=("anna", "ben"), count=6, **options) -> Path:
    """A packed set of other classes with pictures of its own."""
    return unequal_packed(folder, {name: (count + i, 1) for i, name in enumerate(names)}, size=16, seed=20, **options)


def test_names_that_are_in_both_sets_are_asked_for_and_one_class_is_no_class(folders, tmp_path):
    def latents(name, classes):
        return auxiliary_latents(tmp_path / name, folders["vqvae"], classes, [i % len(classes) for i in range(6)])

    shared, again = latents("a", ["anna", "wavy"]), latents("b", ["anna", "carl"])
    for others, message in (
        ([shared], "class 'wavy' is in .*packed and in aux_dir .*a; say --same_names same, .* or --same_names other"),
        ([latents("c", ["anna", "ben"]), again], "class 'anna' is in .*c and in aux_dir .*b; say --same_names"),
    ):
        with pytest.raises(UserError, match=message) as error:
            auxiliary.name_classes(toy_config(folders, others), CLASSES, others)
        assert "\n" not in str(error.value)

    def named(**options):
        classes, places = auxiliary.name_classes(toy_config(folders, **options), CLASSES, [shared, again])
        return classes, [place.tolist() for place in places]

    assert named(same_names="same") == (["anna", "carl"], [[4, 3], [4, 5]])
    renamed = ["anna", "wavy (auxiliary)", "anna (auxiliary)", "carl"]
    assert named(same_names="other") == (renamed, [[4, 5], [6, 7]])
    assert named(aux_labels="none") == ([], [[-1, -1], [-1, -1]])
    lone = latents("d", ["wavy"])
    assert auxiliary.name_classes(toy_config(folders), CLASSES, [lone])[1][0].tolist() == [-1]
    told = toy_config(folders, same_names="same")
    assert auxiliary.name_classes(told, CLASSES, [lone]) == ([], [np.array([3])])
    stranger = latents("e", ["dora"])
    assert auxiliary.name_classes(told, CLASSES, [stranger]) == ([], [np.array([-1])])
    labelled = toy_config(folders, aux_labels="classes")
    assert auxiliary.name_classes(labelled, CLASSES, [stranger]) == (["dora"], [np.array([4])])


def refused(folders, aux, message, vqvae=True, **options) -> None:
    chosen = toy_config(folders, aux, **options)

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
    latents = auxiliary_latents(tmp_path / "latents", folders["vqvae"], ["anna", "ben"], [0, 1])
    refused(folders, latents, "holds 'latents', but 'images' is needed here", vqvae=False)
    refused(folders, folders["latents"], "28 images of aux_dir .* are training and held-out images")
    record = json.loads((latents / "provenance.json").read_text())
    record["made_from"]["vqvae"] = "2" * 64
    (latents / "provenance.json").write_text(json.dumps(record))
    refused(folders, latents, "do not belong together: their VQ-VAE differ")


@pytest.mark.slow
def test_colours_of_another_map_are_refused_and_image_folders_take_the_form_of_the_target(tmp_path):
    def folder(name, painted, classes):
        rng = np.random.default_rng(len(name))
        for label, each in enumerate(classes):
            (tmp_path / name / each).mkdir(parents=True)
            for i in range(6):
                picture = toy_image(label, rng, 32)[:, :, 0]
                image = colormap(painted).picture(picture) if painted else Image.fromarray(picture)
                image.convert("RGB").save(tmp_path / name / each / f"r{i}_{i}.png")
        return tmp_path / name

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
    target = packed_metadata(tmp_path / "t", [{"speed": str(i)} for i in range(4)], [{}])
    others = packed_metadata(tmp_path / "o", [{"speed": "10"}, {"aspect": "3"}], [{}])
    read = conditions.read(target, ["speed"])
    found = read.of_auxiliary(others, "train", 2)
    np.testing.assert_array_equal(found.raw[:, 0], [10, np.nan])
    assert found[0][0] == pytest.approx((10 - 1.5) / np.std(range(4)))
    assert np.isnan(read.of_auxiliary(None, "train", 3)[:]).all()


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
    monkeypatch.chdir(tmp_path)
    options = VQVAEConfig(Path("d"), Path("o"), aux_dir=[Path("x"), Path("s3://bucket/y")])
    assert preflight.absolute(options).aux_dir == [tmp_path / "x", Path("s3://bucket/y")]
    assert preflight.local_paths(options)["aux_dir[0]"] == tmp_path / "x"
    (tmp_path / "d" / "a").mkdir(parents=True)
    (tmp_path / "d" / "a" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"aux_dir=.*x does not exist; make it first, or correct --aux_dir"):
        preflight.check("train-vqvae", preflight.absolute(options), 1)


def test_the_run_of_a_training_names_the_auxiliary_images_and_what_it_began_with(folders, tmp_path):
    others = other_persons(tmp_path / "others")
    chosen = toy_config(folders, others, train_samples=16, num_workers=0, warmup_steps=0)
    assert auxiliary.made_from(chosen) == {"auxiliary": provenance.read(others, "images")["hash"]}
    assert auxiliary.made_from(toy_config(folders)) == {"auxiliary": None}
    both = auxiliary.made_from(toy_config(folders, [others, folders["packed"]]))["auxiliary"]
    assert both not in (None, *auxiliary.made_from(chosen).values())

"""The images of a recipe: made alike, kept apart, and refused in one line where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mdaug.recipe.generators import Generators
from mdaug.recipe.inputs import load
from mdaug.recipe.options import AugmentConfig
from shards import output_folder, provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from tests.pictures import painted, ridge, save
from tests.recipes import recorded, small_recipe
from tests.toy import CLASSES, toy_folder, toy_packed


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return toy_packed(tmp_path_factory.mktemp("packed") / "packed", size=32, train=48, val=16)


@pytest.fixture
def options(packed, tmp_path):
    return small_recipe(packed, tmp_path / "recipe")


def test_auxiliary_images_that_do_not_fit_are_refused_in_one_line(options, packed, tmp_path, capsys):
    with pytest.raises(UserError, match="3 channel"):
        load(replace(options, aux_dir=toy_folder(tmp_path / "a" / "colours", channels=3)))
    with pytest.raises(UserError, match="class 'flat' is in data_dir and in aux_dir; say --same_names same"):
        load(replace(options, aux_dir=toy_folder(tmp_path / "b" / "names", names=("flat", "zag"))))
    capsys.readouterr()
    same = load(replace(options, aux_dir=tmp_path / "b" / "names", same_names="same"))
    assert (same.same, set(same.auxiliary.labels)) == (True, {CLASSES.index("flat")})
    assert "that data_dir does not have are left out: 8 (zag)" in capsys.readouterr().out
    other = load(replace(options, aux_dir=tmp_path / "b" / "names", same_names="other"))
    assert (other.same, len(other.auxiliary)) == (False, 16)
    cased = replace(options, aux_dir=toy_folder(tmp_path / "cased" / "names", names=("Flat", "zag")))
    with pytest.raises(UserError, match=r"'flat' is in data_dir and in aux_dir, there as 'Flat'.* the same name"):
        load(cased)
    with pytest.raises(UserError, match=r"no class of aux_dir .* \(Flat, zag\) has the name of one of data_dir"):
        load(replace(cased, same_names="same"))
    assert not load(replace(cased, same_names="other")).same
    with pytest.raises(UserError, match=r"\d+ of \d+ images of aux_dir .* are training and held-out images"):
        load(replace(options, aux_dir=packed, same_names="other"))
    resized = load(replace(options, aux_dir=toy_folder(tmp_path / "c" / "large", size=48)))
    assert resized.auxiliary.pixels.shape[1:] == (32, 32, 1)


def test_recordings_of_an_auxiliary_image_folder_stay_together_as_those_of_the_training_images(options, tmp_path):
    folder = toy_folder(tmp_path / "a" / "images")
    found = load(replace(options, aux_dir=folder, group_by=r"(\d)\.png"))  # the last digit of eight
    assert set(found.auxiliary.groups) == set("01234567")
    with pytest.raises(UserError, match=r"aux_dir .* does not match --group_by .*; or pack that folder by itself"):
        load(replace(options, aux_dir=folder, group_by=r"_(r\d)_"))


def test_pictures_in_another_colour_map_are_refused_in_one_line(options, tmp_path):
    for name, paint, first in (("mine", "jet-256", 0), ("theirs", "viridis", 50)):
        for label in range(2):
            for i in range(8):
                levels = ridge(100 * label + first + i, 32, 32)
                save(tmp_path / name / f"{name}{label}" / f"r{i // 2}_{i}.png", painted(levels, paint))
    mine = replace(options, data_dir=tmp_path / "mine", group_by=r"(r\d)_")
    for role in ("aux_dir", "unlabelled_dir"):
        with pytest.raises(UserError, match=f"{role} .* holds pictures in viridis.*--image_mode gray"):
            load(replace(mine, **{role: tmp_path / "theirs"}))


def test_unlabelled_images_that_train_or_judge_are_refused(options, packed, tmp_path):
    with pytest.raises(UserError, match=r"\d+ of \d+ images of unlabelled_dir .* are training and held-out images"):
        load(replace(options, unlabelled_dir=packed))
    with pytest.raises(UserError, match=r"unlabelled_dir .* holds images of 3 channel"):
        load(replace(options, unlabelled_dir=toy_folder(tmp_path / "a" / "colours", channels=3)))
    inputs = load(replace(options, unlabelled_dir=toy_folder(tmp_path / "b" / "names", names=("flat", "zag"))))
    assert inputs.unlabelled.shape == (16, 32, 32, 1)
    assert inputs.made_from["unlabelled"]


def test_a_generator_needs_two_images_of_a_class_and_a_base_model_that_is_there(options, tmp_path):
    with pytest.raises(UserError, match="holds no trained VQ-VAE"):
        load(replace(options, generate=True, init_from=tmp_path))
    inputs = load(options)
    one = replace(inputs, train=inputs.train.take(np.arange(4)))
    made = Generators(replace(options, generate=True), one, np.zeros(4, int))
    with pytest.raises(UserError, match="a generator needs two images of a class"):
        made._pack(tmp_path / "packed", None)
    with pytest.raises(UserError, match="no-such-preset"):
        Generators(replace(options, generate=True, generator="no-such-preset"), inputs, np.zeros(48, int))


def test_values_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="--generate true"):
        AugmentConfig(Path("a"), Path("b"), init_from=Path("base"))
    for wrong, field in (({"share": 0.9}, "share"), ({"image_size": 50}, "multiple of 16"), ({"folds": 1}, "folds")):
        with pytest.raises(ValueError, match=field):
            AugmentConfig(Path("a"), Path("b"), **wrong)


def test_the_domain_of_an_image_is_read_from_its_metadata_or_its_path(options, tmp_path):
    options = replace(options, aux_dir=recorded(tmp_path / "others"), same_names="same")
    assert load(options).auxiliary_domains is None
    inputs = load(replace(options, aux_domains="column:person"))
    assert {(d, g[:2]) for d, g in zip(inputs.auxiliary_domains, inputs.auxiliary.groups, strict=True)} == {
        (f"p{k}", f"x{k}") for k in range(3)
    }
    paths = load(replace(options, aux_domains=r"x(\d)_")).auxiliary_domains
    assert [f"p{domain}" for domain in paths] == inputs.auxiliary_domains
    with pytest.raises(UserError, match=r"has no value in column 'sensor' of metadata.csv; .* --aux_domains that fits"):
        load(replace(options, aux_domains="column:sensor"))
    with pytest.raises(UserError, match=r"does not match --aux_domains 'y\(.\)'.*in the path from aux_dir on"):
        load(replace(options, aux_domains="y(.)"))
    right = replace(options, aux_domains="x(.)")
    for wrong in ({"aux_domains": "x"}, {"same_names": "ask"}, {"aux_dir": None}):
        with pytest.raises(ValueError, match="aux_domains"):
            replace(right, **wrong)


def test_an_image_folder_that_a_command_wrote_is_packed_as_any_other(options, tmp_path, capsys):
    """Simulate and spectrogram leave run.json in theirs, as pack does; and --group_by says where it is not used."""
    folder = tmp_path / "images"
    output_folder.claim(folder, "spectrogram", {})
    (recorded(folder, persons=2) / "metadata.csv").unlink()
    provenance.write(folder, kind="image-folder", content_hash="a", made_from={}, config={})
    output_folder.disown_all()
    persons = {"group_by": r"x(\d)_"}
    inputs = load(replace(options, data_dir=folder, **persons))
    assert {*inputs.train.groups, *inputs.held_out.groups} == {"0", "1"}
    assert "--group_by is for" not in capsys.readouterr().out
    auxiliary = load(replace(options, aux_dir=folder, same_names="same", **persons)).auxiliary
    assert set(auxiliary.groups) == {"0", "1"}
    said = [line for line in capsys.readouterr().out.splitlines() if "--group_by is for image folders" in line]
    assert len(said) == 1
    assert f"data_dir {options.data_dir} is packed already" in said[0]


def test_the_parts_of_the_one_recording_of_an_auxiliary_class_are_one_group(options, tmp_path):
    """pack cuts it in two, for train and val; episodes must not judge one part by the other."""
    folder = toy_folder(tmp_path / "others")
    auxiliary = load(replace(options, aux_dir=folder, group_by="(zig|zag)")).auxiliary
    assert {tuple(sorted(set(np.array(auxiliary.groups)[auxiliary.labels == k]))) for k in (0, 1)} == {
        ("zag of zag",),
        ("zig of zig",),
    }


def test_a_refusal_names_a_file_of_each_side(options, packed, tmp_path):
    index = load(options).stored["real"]
    dataset, i = index.datasets[0], index.indices[5]
    folder = recorded(tmp_path / "others", persons=1)
    (folder / "copies").mkdir()
    (folder / "metadata.csv").unlink()
    (folder / "copies" / "mine.png").write_bytes(dataset.raw(i, "image"))
    with pytest.raises(
        UserError,
        match=rf"1 of \d+ images of aux_dir .* are training images of .*, such as "
        rf"copies/mine\.png, which is {dataset.key(i)} there",
    ):
        load(replace(options, aux_dir=folder, same_names="same"))
    # Of several all are named at once, whatever they are copies of.
    held_out = load(options).held_out_split
    of_held_out = ShardDataset(packed / held_out, fields=("image", "meta"))
    (folder / "copies" / "theirs.png").write_bytes(of_held_out.raw(0, "image"))
    with pytest.raises(
        UserError,
        match=r"2 of \d+ images of aux_dir .* are training and held-out images of .*; "
        r"leave out of aux_dir: (?=.*copies/mine\.png).*copies/theirs\.png",
    ):
        load(replace(options, aux_dir=folder, same_names="same"))

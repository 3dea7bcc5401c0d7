"""The recipe: additions must prove themselves, overlaps are refused, what is delivered works without mdaug."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mdaug.augment import RICHER, TODAY, Policy
from mdaug.measures import classifier, image_set
from mdaug.recipe import comparison, deliver, page, policy_search, recipe, training_set
from mdaug.recipe.figures import gains
from mdaug.recipe.generators import Generators
from mdaug.recipe.inputs import load
from mdaug.recipe.options import AugmentConfig
from mdaug.recipe.trials import GIVEN, Images, Material, Trial, make_folds, pseudo_labels, run_trial
from shards import provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from tests.pictures import painted, ridge, save
from tests.toy import CLASSES, toy_image, toy_packed, toy_synthetic

FEW = {"only": TODAY, "richer": RICHER}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return toy_packed(tmp_path_factory.mktemp("packed") / "packed", size=32, train=48, val=16)


@pytest.fixture
def options(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(policy_search.search, "__defaults__", (FEW, *policy_search.search.__defaults__[1:]))
    small = {"image_size": 32, "steps": 2, "seeds": 2, "folds": 2, "n_per_class": [2], "batch_size": 8, "workers": 1}
    return AugmentConfig(packed, tmp_path / "recipe", **small)


def others(folder: Path, names=("zig", "zag"), size: int = 32, channels: int = 1) -> Path:
    """An image folder of other classes."""
    from PIL import Image

    rng = np.random.default_rng(5)
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            picture = np.repeat(toy_image(label, rng, size), channels, axis=2)
            picture[..., 0] ^= 1 if channels == 3 else 0
            Image.fromarray(picture.squeeze()).save(folder / name / f"{i:02d}.png")
    return folder


def test_an_arm_ends_where_it_cannot_be_proven_and_not_where_others_are_compared_with_it(options, packed):
    """The first arm never beats today's transforms, the second always."""
    train = load(options).train
    trained: list[Trial] = []

    def run(trials):
        trained.extend(trials)
        right = {comparison.TODAY_ARM: 0.5, "worse": 0.4, "better": 0.9}
        rng = np.random.default_rng(0)
        shown = [np.flatnonzero(compared.folds == trial.fold) for trial in trials]
        predicted = [
            np.where(rng.random(len(own)) < right[trial.arm], train.labels[own], (train.labels[own] + 1) % 4).tolist()
            for trial, own in zip(trials, shown, strict=True)
        ]
        return [
            {"trial": asdict(trial), "judged": own.tolist(), "plain": seen, "averaged": seen}
            for trial, own, seen in zip(trials, shown, predicted, strict=True)
        ]

    folds = np.arange(len(train)) // 4 % 2
    compared = comparison.Comparison(replace(options, seeds=3), load(options), folds, TODAY, run)
    compared._compare([Trial(comparison.TODAY_ARM, TODAY)])
    rows = compared._compare([Trial("worse", TODAY), Trial("better", RICHER)], comparison.TODAY_ARM)
    assert [row["seeds"] for row in rows] == [1, 3]
    assert compared._keep(rows, comparison.TODAY_ARM) == "better"
    assert sum(trial.arm == "worse" for trial in trained) == 2
    assert gains(compared.hits["worse"], train.labels, compared.hits[comparison.TODAY_ARM][:1])[0] < 0
    assert compared._compare([Trial("worse", RICHER)], comparison.TODAY_ARM, all_seeds=True)[0]["seeds"] == 3


def test_a_trial_judges_its_fold_and_uses_the_others(packed):
    rng = np.random.default_rng(0)
    pixels = np.stack([toy_image(i % 4, rng, 32) for i in range(48)])
    train = Images(pixels, np.arange(48) % 4, [str(i // 4) for i in range(48)])
    material = Material(
        CLASSES, train, np.arange(48) // 24, auxiliary=Images(pixels[:9], np.arange(9) % 3, ["a"] * 9), steps=2
    )
    for use in ("", "uniform", "classes"):
        result = run_trial(Trial("x", replace(RICHER, copies=2, mix=0.3), use, fold=1), material)
        assert (result["judged"], result["images"], result["steps"]) == (list(range(24, 48)), 24, 2)
        assert set(result["plain"]) | set(result["averaged"]) <= {0, 1, 2, 3}  # never one of the auxiliary classes


@pytest.mark.slow
def test_the_whole_recipe_resumes_and_its_classifier_needs_torch_alone(options, tmp_path):
    options = replace(options, aux_dir=others(tmp_path / "others"), synthetic_dir=None)
    found = recipe.run(options)
    place = options.output_dir
    assert {row["arm"] for row in found["cross_validation"]["arms"]} == {
        comparison.TODAY_ARM, comparison.AVERAGED, comparison.UNIFORM, comparison.CLASSES,
        *[comparison.SEARCHED] * (found["searched"] != "only"),
    }  # fmt: skip
    assert json.loads((place / recipe.RECIPE).read_text())["held_out"] == json.loads(json.dumps(found["held_out"]))
    text = (place / "report.html").read_text(encoding="utf-8")
    assert "How to train on these images" in text
    weights = place / deliver.WEIGHTS
    assert weights.stat().st_mode & 0o444 == weights.parent.stat().st_mode & 0o444
    assert "mdaug augment --data_dir" in text
    assert f"python {deliver.PREDICT} " in text
    alone = {**found, "groups": {**found["groups"], "train": found["images"]["train"]}}
    warned = [any("Every image counts as a recording" in said for said in page.sentences(of)) for of in (found, alone)]
    assert warned == [False, True]
    of_seeds = [" ".join(page.sentences({**found, "config": {**found["config"], "seeds": n}})) for n in (1, 2, 3)]
    assert ["--seeds 3 or more" in said for said in of_seeds] == [True, True, False]

    # Interrupted before the end: one trial and what follows are made again, and nothing else.
    trials = sorted((place / recipe.TRIALS).iterdir())
    times = {path: path.stat().st_mtime_ns for path in trials}
    trials[3].unlink()
    (place / provenance.FILE_NAME).unlink()
    again = recipe.run(options)
    assert json.dumps(again) == json.dumps(found)
    assert [path for path in trials if path.stat().st_mtime_ns != times[path]] == [trials[3]]

    # A finished folder without one of its files is not believed.
    (place / deliver.PREDICT).unlink()
    recipe.run(options)
    assert (place / deliver.PREDICT).is_file()

    # The classifier by itself, elsewhere, as it predicts here.
    copy = tmp_path / "elsewhere"
    shutil.copytree(place / deliver.FOLDER, copy)
    pictures = sorted((tmp_path / "others").rglob("*.png"))[:4]
    code = f"""
import sys, json
sys.path.insert(0, {str(copy)!r})
import predict
print(json.dumps(predict.predict({[str(path) for path in pictures]!r}).tolist()))
print([name for name in sys.modules if name.split(".")[0] in ("mdaug", "shards", "safetensors", "diffusers")])
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    rows, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    here = np.asarray(json.loads(rows))
    assert here.shape == (4, len(CLASSES))
    assert np.allclose(here.sum(1), 1)
    lines = subprocess.run(
        [sys.executable, copy / "predict.py", *pictures], capture_output=True, text=True, env=environment, check=True
    ).stdout.splitlines()
    assert [line.split(": ")[1].split(" ")[0] for line in lines] == [CLASSES[k] for k in here.argmax(1)]
    # Of images in folders named after the classes it says how many are recognised: all of one class, few of another.
    guess = CLASSES[here.argmax(1)[0]]
    other = next(name for name in CLASSES if name != guess)
    new = [tmp_path / "new" / name / f"{i}.png" for name, i in ((guess, 0), (guess, 1), (other, 0))]
    for path in new:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures[0], path)
    said = subprocess.run([sys.executable, copy / "predict.py", *new], capture_output=True, text=True, check=True)
    found_in = zip(new, said.stdout.splitlines(), strict=True)
    right = [line.split(": ")[1].startswith(f"{path.parent.name} ") for path, line in found_in]
    recalls = {guess: 50 * (right[0] + right[1]), other: 100 * right[2]}
    assert f"{np.mean(list(recalls.values())):.1f} %" in said.stderr
    assert all(f"{name} {recall:.0f}" in said.stderr for name, recall in recalls.items())
    none = subprocess.run([sys.executable, copy / "predict.py"], capture_output=True, text=True)
    assert (none.returncode, none.stderr.count("python predict.py IMAGE.png")) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("use", ["uniform", "classes", "labels"])
def test_the_training_set_trains_the_classifier_without_mdaug(options, packed, tmp_path, use):
    names = CLASSES[:2] if use == "labels" else ("zig", "zag")
    same = "same" if use == "labels" else "ask"
    options = replace(options, aux_dir=others(tmp_path / "others", names), same_names=same)
    inputs = load(replace(options, synthetic_dir=toy_synthetic(tmp_path / "synthetic", packed, per_class=4)))
    settings = {"steps": 2, "batch_size": 8}
    given = {(GIVEN, None): inputs.synthetic}
    material = Material(inputs.classes, inputs.train, np.array([]), None, inputs.auxiliary, given, **settings)
    trial = Trial("", replace(RICHER, mix=0.3, copies=2), use, share=0.25, synthetic=0.25)
    deliver.write(tmp_path / "out", trial, material, inputs.colormap)
    training_set.write(tmp_path / "out", trial, material, inputs.stored)

    # Every image that the recipe uses is there, as it was stored, and drawn as often as in the recipe.
    total = 0.0
    for name, share, images in (
        ("real", 0.5, inputs.train), ("auxiliary", 0.25, inputs.auxiliary), ("generated", 0.25, inputs.synthetic)
    ):  # fmt: skip
        there = ShardDataset(tmp_path / "out" / training_set.FOLDER / name, fields=("image", "meta"))
        samples = [there[i] for i in range(len(there))]
        weights = np.array([sample["meta"]["weight"] for sample in samples])
        assert len(there) == len(images)
        assert weights.sum() == pytest.approx(share)
        if use != "uniform" or name != "auxiliary":
            of_class = np.bincount(there.labels, weights)
            assert np.allclose(of_class[of_class > 0], share / (of_class > 0).sum())
        sized = np.stack([image_set.preprocess(sample["image"], 32) for sample in samples])
        assert (sized == images.pixels).all()
        total += weights.sum()
    assert total == pytest.approx(1)

    # Elsewhere, with torch alone.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    elsewhere = shutil.copytree(tmp_path / "out", tmp_path / "elsewhere")
    code = f"import sys, runpy; sys.argv = ['', '2']; sys.path.insert(0, {str(elsewhere / deliver.FOLDER)!r}); " + (
        f"runpy.run_path({str(elsewhere / deliver.TRAIN)!r}, run_name='__main__'); import predict; "
        f"print(predict.predict([{str(next((tmp_path / 'others').rglob('*.png')))!r}]).shape, "
        "[name for name in sys.modules if name.split('.')[0] in ('mdaug', 'shards', 'safetensors')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert done.stdout.splitlines()[-1] == f"(1, {len(CLASSES)}) []"


@pytest.mark.slow
def test_the_held_out_images_decide_nothing(options, tmp_path):
    """Other held-out images: everything but the figures on them stays."""
    first = recipe.run(options)
    inputs = load(options)
    scrambled = replace(inputs, held_out=replace(inputs.held_out, labels=(inputs.held_out.labels + 1) % 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "load", lambda _: scrambled)
        second = recipe.run(replace(options, output_dir=tmp_path / "scrambled"))
    without = ("held_out", "config")
    assert {k: v for k, v in first.items() if k not in without} == {k: v for k, v in second.items() if k not in without}
    assert first["held_out"] != second["held_out"]


def test_an_addition_is_kept_only_if_its_interval_lies_above_zero():
    rows = [{"arm": arm, "gain": gain} for arm, gain in (("a", (0.3, -0.1, 0.6)), ("b", (0.02, 0.01, 0.03)))]
    assert comparison.Comparison._keep(rows, "free") == "b"
    assert rows[1]["kept"]
    assert comparison.Comparison._keep(rows[:1], "free") == "free"


def test_generated_images_are_an_addition(options, packed, tmp_path):
    synthetic = toy_synthetic(tmp_path / "synthetic", packed, per_class=4)
    found = recipe.run(replace(options, synthetic_dir=synthetic))
    rows = {row["arm"]: row for row in found["cross_validation"]["arms"]}
    assert (f"{comparison.GENERATED}{comparison.TWICE}" in rows) == (rows[comparison.GENERATED]["gain"][0] >= 0)
    assert "upper bound" in (options.output_dir / "report.html").read_text(encoding="utf-8")
    foreign = toy_packed(tmp_path / "foreign", size=32, train=8, val=8)
    with pytest.raises(UserError, match="images differ"):
        load(replace(options, data_dir=foreign, synthetic_dir=synthetic))


def test_auxiliary_images_that_do_not_fit_are_refused_in_one_line(options, packed, tmp_path, capsys):
    with pytest.raises(UserError, match="3 channel"):
        load(replace(options, aux_dir=others(tmp_path / "a" / "colours", channels=3)))
    with pytest.raises(UserError, match="class 'flat' is in data_dir and in aux_dir; say --same_names same"):
        load(replace(options, aux_dir=others(tmp_path / "b" / "names", names=("flat", "zag"))))
    capsys.readouterr()
    same = load(replace(options, aux_dir=tmp_path / "b" / "names", same_names="same"))
    assert (same.same, set(same.auxiliary.labels)) == (True, {CLASSES.index("flat")})
    assert "that data_dir does not have are left out: 8 (zag)" in capsys.readouterr().out
    other = load(replace(options, aux_dir=tmp_path / "b" / "names", same_names="other"))
    assert (other.same, len(other.auxiliary)) == (False, 16)
    cased = replace(options, aux_dir=others(tmp_path / "cased" / "names", names=("Flat", "zag")))
    with pytest.raises(UserError, match=r"'flat' is in data_dir and in aux_dir, there as 'Flat'.* the same name"):
        load(cased)
    with pytest.raises(UserError, match=r"no class of aux_dir .* \(Flat, zag\) has the name of one of data_dir"):
        load(replace(cased, same_names="same"))
    assert not load(replace(cased, same_names="other")).same
    with pytest.raises(UserError, match=r"\d+ of \d+ images of aux_dir .* are training and held-out images"):
        load(replace(options, aux_dir=packed, same_names="other"))
    resized = load(replace(options, aux_dir=others(tmp_path / "c" / "large", size=48)))
    assert resized.auxiliary.pixels.shape[1:] == (32, 32, 1)


def test_recordings_of_an_auxiliary_image_folder_stay_together_as_those_of_the_training_images(options, tmp_path):
    folder = others(tmp_path / "a" / "images")
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


def test_unlabelled_images_that_train_or_judge_are_refused(options, packed, tmp_path):
    with pytest.raises(UserError, match=r"\d+ of \d+ images of unlabelled_dir .* are training and held-out images"):
        load(replace(options, unlabelled_dir=packed))
    with pytest.raises(UserError, match=r"unlabelled_dir .* holds images of 3 channel"):
        load(replace(options, unlabelled_dir=others(tmp_path / "a" / "colours", channels=3)))
    inputs = load(replace(options, unlabelled_dir=others(tmp_path / "b" / "names", names=("flat", "zag"))))
    assert inputs.unlabelled.shape == (16, 32, 32, 1)
    assert inputs.made_from["unlabelled"]


def task(rng: np.random.Generator, per_class: int, groups: int) -> Images:
    """Toy images, `groups` of each class."""
    labels = np.tile(np.arange(4), per_class)
    pixels = np.stack([toy_image(label, rng, 16) for label in labels])
    return Images(pixels, labels, [f"g{i // 4 % groups}" for i in range(len(labels))])


def test_pseudo_labels_are_what_the_classifier_without_them_is_confident_of(tmp_path):
    """Learnt well, they are right."""
    rng = np.random.default_rng(0)
    train, unknown = task(rng, 16, 2), task(rng, 6, 2)
    pixels = np.concatenate([unknown.pixels, rng.integers(0, 256, (8, 16, 16, 1), dtype=np.uint8)])
    material = Material(CLASSES, train, np.array([]), unlabelled=pixels, steps=150, batch_size=16, learning_rate=3e-3)
    trial = Trial("", TODAY, pseudo=0.25)
    with classifier.one_thread():
        chosen, labels = pseudo_labels(trial, material)
        again, _ = pseudo_labels(replace(trial, pseudo=0.1), material)  # the share does not decide them
    assert chosen.tolist() == again.tolist()
    known = chosen[chosen < len(unknown)]
    assert len(known) >= 0.7 * len(unknown)
    assert (labels[: len(known)] == unknown.labels[known]).mean() > 0.9


def test_the_training_set_holds_the_unlabelled_images_that_were_given_a_label(options, tmp_path):
    inputs = load(replace(options, unlabelled_dir=others(tmp_path / "others")))
    settings = {"steps": 60, "batch_size": 16, "learning_rate": 3e-3}
    material = Material(inputs.classes, inputs.train, np.array([]), unlabelled=inputs.unlabelled, **settings)
    trial = Trial("", TODAY, pseudo=0.25)
    with classifier.one_thread():
        chosen, labels = pseudo_labels(trial, material)
        training_set.write(tmp_path / "out", trial, material, inputs.stored)
    assert len(chosen)
    there = ShardDataset(tmp_path / "out" / training_set.FOLDER / "unlabelled", fields=("image", "meta"))
    assert there.labels.tolist() == labels.tolist()
    sized = np.stack([image_set.preprocess(there[i]["image"], 32) for i in range(len(there))])
    assert (sized == inputs.unlabelled[chosen]).all()
    assert sum(there[i]["meta"]["weight"] for i in range(len(there))) == pytest.approx(0.25)


def test_auxiliary_images_choose_the_policy_where_they_are_more_and_have_groups(options, packed, tmp_path):
    rng = np.random.default_rng(0)
    few, many = task(rng, 4, 2), task(rng, 20, 4)
    for images, used in (
        (many, True),
        (None, False),
        (few, False),  # no more than the training images
        (replace(many, groups=[f"c{label}" for label in many.labels]), False),  # one group of each class
        (many.take(np.flatnonzero(many.labels == 0)), False),  # one class
    ):
        found = policy_search.task_of(images, CLASSES, 16)
        assert (found is not None) == used
    found = policy_search.task_of(many.take(np.flatnonzero(many.labels > 1)), CLASSES, 16)
    assert (list(found.classes), set(found.train.labels)) == (CLASSES[2:], {0, 1})
    assert len(set(found.folds)) == 2

    # Within a recipe: each classifier of the search sees as many of them as a fold has training images.
    seen = []

    def run(trials, material=None):
        seen.extend((trial.per_class, trial.subset, material is not None) for trial in trials)
        return [{"trial": asdict(t), "judged": [], "plain": [], "averaged": []} for t in trials]

    inputs = replace(load(options), auxiliary=many, same=False, auxiliary_classes=CLASSES)
    short = replace(inputs, train=inputs.train.take(np.arange(16)))
    chosen, gain = recipe._search(options, short, np.arange(16) // 8, run)
    assert set(seen) <= {(2, subset, True) for subset in (0, 1, comparison.FRESH, comparison.FRESH + 1)}
    assert gain is not None
    assert chosen.name in FEW
    seen.clear()
    assert recipe._search(options, replace(short, auxiliary=few), np.arange(16) // 8, run)[1] is None
    assert {each[2] for each in seen} == {False}


@pytest.mark.parametrize(
    ("own", "there", "kept"),
    [
        ((0.02, -0.1, 0.1), (0.03, 0.01, 0.05), True),  # proven on auxiliary images, and not contradicted
        ((-0.02, -0.1, 0.1), (0.03, 0.01, 0.05), False),
        ((0.02, -0.1, 0.1), (0.03, -0.01, 0.05), False),
        ((0.02, -0.1, 0.1), None, False),
    ],
)
def test_a_policy_that_is_proven_on_auxiliary_images_is_kept_unless_the_own_ones_contradict(
    options, monkeypatch, own, there, kept
):
    compared = comparison.Comparison(options, load(options), np.array([0]), RICHER, None, there)

    def compare(arms, against=None, all_seeds=False):
        rows = [{"arm": t.arm, "recall": 0.5, "against": against, "gain": own, "kept": False} for t in arms]
        compared.trials |= {trial.arm: trial for trial in arms}
        compared.rows += rows
        return rows

    monkeypatch.setattr(compared, "_compare", compare)
    free, best = compared.choose()
    assert free == best == (comparison.SEARCHED if kept else comparison.TODAY_ARM)
    assert next(row for row in compared.rows if row["arm"] == comparison.SEARCHED)["kept"] == kept


def test_generated_images_have_to_beat_the_best_direct_use_though_it_was_not_proven(options, monkeypatch, tmp_path):
    inputs = load(replace(options, aux_dir=others(tmp_path / "others"), unlabelled_dir=others(tmp_path / "more", "pq")))
    compared = comparison.Comparison(options, inputs, np.array([0]), TODAY, None, None, ["redrawn", "varied"])
    recalls = {comparison.TODAY_ARM: 0.5, comparison.UNIFORM: 0.6, comparison.CLASSES: 0.55, comparison.PSEUDO: 0.58}
    gain = {"redrawn": 0.1, "varied": -0.1}

    def compare(arms, against=None, all_seeds=False):
        if any(trial.use and not trial.synthetic for trial in arms):
            assert all_seeds  # generated images are compared with one of them
        rows = [
            {
                "arm": trial.arm, "recall": recalls.get(trial.arm, 0.5), "against": against, "kept": False,
                "gain": (gain.get(trial.kind, 0.1), -0.2, 0.3),
            }
            for trial in arms
        ]  # fmt: skip
        compared.trials |= {trial.arm: trial for trial in arms}
        compared.rows += rows
        return rows

    monkeypatch.setattr(compared, "_compare", compare)
    assert compared.choose() == (comparison.TODAY_ARM, comparison.TODAY_ARM)
    made = compared.rows[-3:]
    assert {row["against"] for row in made} == {comparison.UNIFORM}
    names = [f"{comparison.GENERATED}, {kind}" for kind in ("redrawn", "varied", f"redrawn{comparison.TWICE}")]
    assert [row["arm"] for row in made] == names  # half of each batch only where a quarter loses nothing
    assert [compared.trials[name].synthetic for name in names] == [0.25, 0.25, 0.5]


def test_values_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="--generate true"):
        AugmentConfig(Path("a"), Path("b"), init_from=Path("base"))
    for wrong, field in (({"share": 0.9}, "share"), ({"image_size": 50}, "multiple of 16"), ({"folds": 1}, "folds")):
        with pytest.raises(ValueError, match=field):
            AugmentConfig(Path("a"), Path("b"), **wrong)


def test_a_search_prefers_what_helps():
    """Two candidates, one of which makes every image noise."""
    rng = np.random.default_rng(0)
    pixels = np.stack([toy_image(i % 4, rng, 16) for i in range(64)])
    train = Images(pixels, np.arange(64) % 4, [str(i // 4) for i in range(64)])
    folds = make_folds(train.labels, train.groups, 2, CLASSES)
    material = Material(CLASSES, train, folds, steps=80, batch_size=16, learning_rate=3e-3)
    candidates = {"noise": Policy(noise=1.0, gain=1.0, time_mask=1.0), "today": TODAY}

    def run(trials):
        with classifier.one_thread():
            return [run_trial(trial, material) for trial in trials]

    chosen = policy_search.search(train, folds, run, candidates, seeds=1)
    assert chosen.name == "today"
    assert len(chosen.table) == 4
    assert chosen.low <= chosen.recall <= chosen.high

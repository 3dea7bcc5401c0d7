"""The recipe: additions must prove themselves, and a run resumes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from mdaug.augment import RICHER, TODAY, Policy
from mdaug.measures import classifier
from mdaug.recipe import comparison, deliver, page, policy_search, recipe
from mdaug.recipe.figures import gains
from mdaug.recipe.inputs import load
from mdaug.recipe.trials import Images, Material, Trial, make_folds, pseudo_labels, run_trial
from shards import provenance
from shards.errors import UserError
from tests.recipes import FEW, search_only, small_recipe
from tests.toy import CLASSES, toy_folder, toy_image, toy_packed, toy_synthetic


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return toy_packed(tmp_path_factory.mktemp("packed") / "packed", size=32, train=48, val=16)


@pytest.fixture
def options(packed, tmp_path, monkeypatch):
    search_only(monkeypatch, FEW)
    return small_recipe(packed, tmp_path / "recipe")


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
def test_the_whole_recipe_resumes(options, tmp_path):
    options = replace(options, aux_dir=toy_folder(tmp_path / "others"), synthetic_dir=None)
    found = recipe.run(options)
    place = options.output_dir
    assert {row["arm"] for row in found["cross_validation"]["arms"]} == {
        comparison.TODAY_ARM, comparison.RICHER_ARM, comparison.AVERAGED, comparison.SEARCHED,
        comparison.PRETRAINED, comparison.UNIFORM, comparison.CLASSES,
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
    trials = sorted((place / recipe.TRIALS).glob("*.json"))
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
    chosen, on_auxiliary = recipe._search(options, short, np.arange(16) // 8, run)
    assert set(seen) <= {(2, subset, True) for subset in (0, 1)}
    assert on_auxiliary
    assert chosen.name in FEW
    seen.clear()
    assert not recipe._search(options, replace(short, auxiliary=few), np.arange(16) // 8, run)[1]
    assert {each[2] for each in seen} == {False}


UNSURE, BETTER, WORSE = (0.02, -0.3, 0.3), (0.02, 0.01, 0.03), (-0.02, -0.03, -0.01)


@pytest.mark.parametrize(
    ("richer", "searched", "on_auxiliary", "free"),
    [
        (UNSURE, UNSURE, False, comparison.RICHER_ARM),  # where it begins; a search has to be proven
        ((-0.02, -0.3, 0.2), UNSURE, False, comparison.RICHER_ARM),
        (WORSE, UNSURE, False, comparison.TODAY_ARM),
        (UNSURE, BETTER, False, comparison.SEARCHED),
        (WORSE, BETTER, False, comparison.SEARCHED),
        (UNSURE, UNSURE, True, comparison.SEARCHED),  # chosen on many images, and not contradicted
        (UNSURE, (-0.02, -0.3, 0.2), True, comparison.RICHER_ARM),
    ],
)
def test_the_free_baseline_is_the_richer_transforms_unless_others_are_proven(
    options, monkeypatch, richer, searched, on_auxiliary, free
):
    compared = comparison.Comparison(
        options, load(options), np.array([0]), replace(RICHER, circular=True), None, on_auxiliary
    )
    gain = {comparison.RICHER_ARM: richer, comparison.SEARCHED: searched}

    def compare(arms, against=None, all_seeds=False):
        rows = [
            {"arm": t.arm, "recall": 0.5, "against": against, "gain": gain.get(t.arm, UNSURE), "kept": False}
            for t in arms
        ]
        compared.trials |= {trial.arm: trial for trial in arms}
        compared.rows += rows
        return rows

    monkeypatch.setattr(compared, "_compare", compare)
    assert compared.choose() == (free, free)
    rows = {row["arm"]: row for row in compared.rows}
    assert rows[comparison.RICHER_ARM]["kept"] == (richer != WORSE)
    assert rows[comparison.SEARCHED]["kept"] == (free == comparison.SEARCHED)
    assert compared.trials[comparison.RICHER_ARM].policy == RICHER


def test_generated_images_have_to_beat_the_best_direct_use_though_it_was_not_proven(options, monkeypatch, tmp_path):
    inputs = load(
        replace(options, aux_dir=toy_folder(tmp_path / "others"), unlabelled_dir=toy_folder(tmp_path / "more", "pq"))
    )
    compared = comparison.Comparison(options, inputs, np.array([0]), TODAY, None, False, ["redrawn", "varied"])
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
    assert compared.choose() == (comparison.RICHER_ARM, comparison.RICHER_ARM)
    made = compared.rows[-3:]
    assert {row["against"] for row in made} == {comparison.UNIFORM}
    names = [f"{comparison.GENERATED}, {kind}" for kind in ("redrawn", "varied", f"redrawn{comparison.TWICE}")]
    assert [row["arm"] for row in made] == names  # half of each batch only where a quarter loses nothing
    assert [compared.trials[name].synthetic for name in names] == [0.25, 0.25, 0.5]


@pytest.mark.parametrize("helps", [True, False])
def test_unlabelled_images_come_on_top_of_the_use_of_auxiliary_images_that_was_kept(
    options, monkeypatch, tmp_path, helps
):
    folders = {
        name: toy_folder(tmp_path / name, names) for name, names in (("aux_dir", "ab"), ("unlabelled_dir", "pq"))
    }
    compared = comparison.Comparison(options, load(replace(options, **folders)), np.array([0]), TODAY, None)
    both = f"{comparison.PRETRAINED} {comparison.PSEUDO}"
    proven = {comparison.PRETRAINED, *[both] * helps}

    def compare(arms, against=None, all_seeds=False):
        low = {trial.arm: 0.01 if trial.arm in proven else -0.01 for trial in arms}
        rows = [
            {"arm": arm, "recall": 0.5, "against": against, "gain": (0.05, low[arm], 0.1), "kept": False} for arm in low
        ]
        compared.trials |= {trial.arm: trial for trial in arms}
        compared.rows += rows
        return rows

    monkeypatch.setattr(compared, "_compare", compare)
    assert compared.choose() == (comparison.RICHER_ARM, both if helps else comparison.PRETRAINED)
    assert compared.rows[-1]["against"] == comparison.PRETRAINED
    assert compared.trials[both] == replace(compared.trials[comparison.PRETRAINED], arm=both, pseudo=options.share)


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

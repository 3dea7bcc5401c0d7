"""What the recipe decides by: whole groups, nested subsets, worth in images, intervals, and what can be proven yet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mdaug.augment import TODAY
from mdaug.measures.worth import in_words, worth
from mdaug.recipe.figures import interval, provable
from mdaug.recipe.trials import Images, Material, Trial, make_folds, members
from shards.errors import UserError
from tests.toy import CLASSES


def test_groups_are_never_torn_and_every_class_is_in_two_folds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        groups_per_class = rng.integers(2, 6, 4)
        own = rng.random() < 0.5  # recordings of one class each, or persons who show them all
        labels = np.repeat(np.arange(4), groups_per_class * 3)
        groups = [f"{k if own else ''}r{i // 3}" for k, n in enumerate(groups_per_class) for i in range(3 * n)]
        folds = make_folds(labels, groups, 3, CLASSES)
        assert all(len(set(folds[[g == name for g in groups]])) == 1 for name in set(groups))
        assert all(len(set(folds[labels == label])) > 1 for label in range(4))


def test_every_class_is_in_two_folds_also_where_groups_hold_some_classes_each():
    rng = np.random.default_rng(1)
    for _ in range(100):
        shows = rng.random((7, 4)) < 0.5
        shows[:2] = True
        group, label = np.nonzero(np.repeat(shows, rng.integers(1, 4), axis=1))
        labels, groups = label % 4, [str(g) for g in group]
        folds = make_folds(labels, groups, 3, CLASSES)
        assert all(len(set(folds[labels == k])) > 1 for k in range(4))


def test_a_class_with_one_group_is_named_with_what_to_do():
    with pytest.raises(UserError, match=r"class 'rising' has training images of 1 group.*--group_by"):
        make_folds(np.array([0, 0, 1, 1]), ["a", "b", "a", "a"], 3, CLASSES[:2])


def test_subsets_are_nested_in_images_and_in_groups():
    labels = np.tile(np.arange(3), 40)
    train = Images(np.zeros((120, 16, 16, 1), np.uint8), labels, [f"g{i // 12}" for i in range(120)])
    material = Material(["a", "b", "c"], train, np.arange(120) // 60)
    for field, numbers in (("per_class", (1, 3, 9, 0)), ("num_groups", (1, 2, 4, 0))):
        chosen = [set(members(Trial("", TODAY, fold=0, subset=4, **{field: n}), material)) for n in numbers]
        assert all(few < more for few, more in itertools.pairwise(chosen))
        assert all(60 <= i < 120 for i in chosen[-1])
    assert np.bincount(labels[members(Trial("", TODAY, per_class=3), material)]).tolist() == [3] * 3
    first, second = (set(members(Trial("", TODAY, per_class=3, subset=s), material)) for s in (0, 1))
    assert first != second


def test_worth_is_read_off_the_curve_and_a_flat_one_says_so():
    curve = [(5, 0.6), (10, 0.7), (20, 0.8)]
    assert worth(0.7, curve)["number"] == pytest.approx(10)
    assert 10 < worth(0.75, curve)["number"] < 20
    assert [in_words(worth(value, curve)) for value in (0.5, 0.9)] == ["less than 5", "more than 20"]
    assert in_words(worth(0.7, [(5, 0.70), (20, 0.71)])) == "flat curve"


def test_interval_is_of_classes_and_excludes_zero_for_a_real_gain():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [190, 10])
    always = np.tile(labels == 0, (3, 1))
    assert interval(always, labels, [str(i) for i in range(200)])[0] == pytest.approx(0.5)
    base = rng.random((3, 200)) < 0.5
    better = base | (rng.random((3, 200)) < 0.5)
    difference, low, high = interval(better, labels, [str(i) for i in range(200)], base)
    assert 0 < low < difference < high
    _, low, high = interval(rng.random((3, 200)) < 0.5, labels, [str(i) for i in range(200)], base)
    assert low < 0 < high


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_an_arm_that_is_ended_early_could_not_have_been_proven(seeds):
    """Whatever gains follow, and however small the spread over the images, the interval reaches zero."""
    rng = np.random.default_rng(seeds)
    t = {2: 12.706, 3: 4.303, 5: 2.776}[seeds]  # Student's, 97.5 %
    ended = 0
    for known in rng.normal(0.5, 1, (400, seeds - 1)):
        for count in range(1, seeds):
            rest = np.linspace(-20, 40, 601)[:, None].repeat(seeds - count, axis=1)
            varied = rng.normal(rng.choice([1, 5, 20]), rng.choice([0, 1]), rest.shape)
            every = np.concatenate([rest, varied])
            every = np.concatenate([np.broadcast_to(known[:count], (len(every), count)), every], axis=1)
            can = (every.mean(1) > t * every.std(1, ddof=1) / np.sqrt(seeds)).any()
            ended += not provable(known[:count], seeds)
            assert provable(known[:count], seeds) or not can
    assert ended > 100

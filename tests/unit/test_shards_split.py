"""The split: by group, both sides hold every class, and no window of train overlaps one of val."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from shards.errors import UserError
from shards.source import SourceImage, natural_key
from shards.split import split_images


def images(*paths: str, **metadata: list[str]) -> list[SourceImage]:
    ordered = sorted(paths, key=natural_key)
    rows = [{name: values[paths.index(path)] for name, values in metadata.items()} for path in ordered]
    return [
        SourceImage(path, path.split("/")[-2], str(i), metadata=row)
        for i, (path, row) in enumerate(zip(ordered, rows, strict=True))
    ]


def numbered(name: str, numbers, stem: str = "window") -> list[str]:
    return [f"{name}/{stem}{number}.png" for number in numbers]


def do_split(given, group_by=None, val_fraction=0.2, gap=4, seed=0):
    split = split_images(given, group_by=group_by, val_fraction=val_fraction, gap=gap, seed=seed)
    assert split.side.keys() | split.dropped.keys() == {image.path for image in given}
    assert not split.side.keys() & split.dropped.keys()
    sides_of_group = defaultdict(set)
    for path, side in split.side.items():
        sides_of_group[split.group[path]].add(side)
    assert all(len(sides) == 1 for sides in sides_of_group.values()), "a group lies on both sides"
    return split


def share(split, name: str) -> float:
    sides = Counter(side for path, side in split.side.items() if path.split("/")[-2] == name)
    assert sides["train"]
    assert sides["val"]
    return sides["val"] / sides.total()


def least_distance(split, name: str) -> int:
    """Return the least difference of numbers between train and val in one class whose files are window<number>."""
    numbers = defaultdict(list)
    for path, side in split.side.items():
        if path.startswith(f"{name}/"):
            numbers[side].append(int(path.rpartition("window")[2].removesuffix(".png")))
    return min(abs(a - b) for a in numbers["train"] for b in numbers["val"])


@pytest.mark.parametrize("seed", range(5))
def test_runs_of_numbers_are_groups_and_a_gap_holds_between_the_sides(seed):
    runs = [range(1, 18), range(19, 40), range(41, 55), range(58, 90), range(95, 110), range(113, 150), range(152, 170)]
    paths = [path for name in ("ID_1", "ID_2") for run in runs for path in numbered(name, run)]
    split = do_split(images(*paths), seed=seed)
    for name in ("ID_1", "ID_2"):
        assert 0.1 <= share(split, name) <= 0.3
        assert least_distance(split, name) > 4
        group_sizes = Counter(split.group[path] for path in paths if path.startswith(f"{name}/"))
        assert sorted(group_sizes.values()) == sorted(map(len, runs)), "a gap in the numbers starts a new group"
    assert set(split.dropped.values()) <= {"gap between train and val"}


@pytest.mark.parametrize(("count", "gap"), [(240, 4), (240, 0), (50, 7), (2000, 4)])
def test_one_long_run_is_cut_with_exactly_the_gap_lost(count, gap):
    split = do_split(images(*numbered("walk", range(count)), *numbered("fall", range(100, 100 + count))), gap=gap)
    for name in ("walk", "fall"):
        assert share(split, name) == pytest.approx(0.2, abs=0.04)
        assert least_distance(split, name) == gap + 1
    assert len(split.dropped) == 2 * gap


@pytest.mark.parametrize("start", [0, 7])
def test_numbers_in_steps_of_one_size_are_a_sequence_whose_gap_counts_images(start):
    """Windows named after their first sample: neighbours overlap as they do under running numbers."""
    places = [*range(100), *range(150, 200)]
    stepped, running = ([*numbered("walk", [start + step * i for i in places])] for step in (25, 1))
    split, same = do_split(images(*stepped)), do_split(images(*running))
    assert [split.side.get(path) for path in stepped] == [same.side.get(path) for path in running]
    assert {"train", "val"} == set(split.side.values())
    assert len(split.dropped) == len(same.dropped) == 4
    assert f"walk/window[{start}-" in " ".join(split.group.values())
    assert not split.warnings


def test_two_numbers_are_no_sequence():
    split = do_split(images(*(f"walk/p{p}_{number}.png" for p in range(20) for number in (3 * p, 500 + p * p))))
    assert split.rule == "every image for itself"


def test_numbers_count_by_value_not_by_letters():
    split = do_split(images(*numbered("walk", range(1, 121))), val_fraction=0.25)
    val = sorted(int(path.rpartition("window")[2][:-4]) for path, side in split.side.items() if side == "val")
    assert val == list(range(val[0], val[0] + 30))


def test_a_tiny_class_keeps_its_train_images_and_says_that_it_may_leak():
    split = do_split(images(*numbered("walk", range(5)), *numbered("fall", range(60))))
    assert Counter(split.side[path] for path in numbered("walk", range(5))) == {"train": 4, "val": 1}
    assert any("class walk is too small for a gap of 4" in warning for warning in split.warnings)


def test_named_groups_stay_whole_across_classes():
    paths = [f"{name}/p{person}_{i}.png" for name in ("walk", "fall", "sit") for person in range(10) for i in range(7)]
    split = do_split(images(*paths), group_by=r"/p(\d+)_")
    person_side = {(path.split("/p")[1].split("_")[0], side) for path, side in split.side.items()}
    assert len(person_side) == 10
    assert sum(side == "val" for _, side in person_side) == 2
    assert split.dropped == {}
    assert split.warnings == []


@pytest.mark.parametrize("seed", range(5))
def test_every_class_with_two_groups_is_on_both_sides_however_uneven(seed):
    groups = {"common": [40, 40, 5, 5, 5], "rare": [3, 2], "lopsided": [50, 1, 1], "shared": [10, 10, 10]}
    paths = [
        f"{name}/{'s' if name == 'shared' else name}{g}-{i}x.png"
        for name, sizes in groups.items()
        for g, size in enumerate(sizes)
        for i in range(size)
    ]
    split = do_split(images(*paths), group_by=r"/([a-z]+\d+)-", seed=seed)
    for name in groups:
        assert 0 < share(split, name) < 1
    assert 0.1 <= share(split, "common") <= 0.3


def test_a_class_with_one_group_is_cut_into_blocks_with_gap_and_warning():
    paths = [f"walk/a_{i}.png" for i in range(50)] + [f"fall/{g}_{i}.png" for g in "bcdef" for i in range(10)]
    split = do_split(images(*paths), group_by=r"/([a-z])_")
    val = [i for i in range(50) if split.side.get(f"walk/a_{i}.png") == "val"]
    train = [i for i in range(50) if split.side.get(f"walk/a_{i}.png") == "train"]
    assert (val, train) == (list(range(40, 50)), list(range(36)))
    assert any("class walk has one group only" in warning for warning in split.warnings)
    assert not any("class fall" in warning for warning in split.warnings)


def test_the_metadata_column_group_is_the_default_and_another_can_be_named():
    paths = [f"walk/{i}.png" for i in range(40)]
    given = images(*paths, group=[str(i // 8) for i in range(40)], day=[str(i % 4) for i in range(40)])
    assert set(do_split(given).group.values()) == set("01234")
    assert set(do_split(given, group_by="column:day").group.values()) == set("0123")
    with pytest.raises(UserError, match=r"walk/0\.png has no value in column 'person'"):
        do_split(given, group_by="column:person")


def test_a_group_by_that_does_not_match_names_the_file():
    with pytest.raises(UserError, match=r"walk/x\.png does not match --group_by"):
        do_split(images("walk/p1_a.png", "walk/x.png"), group_by=r"p(\d)_")


@pytest.mark.parametrize("stems", ["abcdefghij", ["t1700", "t1752", "t1801", "t1853", "t1902", "t1950"]])
def test_names_without_running_numbers_are_split_one_by_one_with_a_warning(stems):
    split = do_split(images(*(f"walk/{stem}.png" for stem in stems), *(f"fall/{stem}.png" for stem in stems)))
    assert share(split, "walk") == share(split, "fall") == pytest.approx(0.2, abs=0.04)
    assert any("--group_by" in warning for warning in split.warnings)


def test_a_given_split_is_kept_and_a_test_set_stays_apart():
    def at(side, name, number):
        return SourceImage(f"{side}/{name}/w{number}.png", name, f"{side}{name}{number}", side)

    given = [at(side, name, i) for side in ("test", "train", "val") for name in ("a", "b") for i in range(10)]
    assert all(path.startswith(f"{side}/") for path, side in do_split(given).side.items())
    without_val = [image for image in given if image.given_split != "val"]
    split = do_split(without_val, gap=1)
    assert {path for path, side in split.side.items() if side == "test"} == {
        image.path for image in given if image.given_split == "test"
    }
    assert 0 < share_of_train(split, "a") < 0.5


def share_of_train(split, name: str) -> float:
    sides = Counter(side for path, side in split.side.items() if f"train/{name}/" in path)
    return sides["val"] / sides.total()


def test_a_given_split_that_shares_a_group_is_reported():
    given = [
        SourceImage(f"{side}/a/p1_{i}.png", "a", f"{side}{i}", side) for side in ("train", "val") for i in range(3)
    ]
    split = split_images(given, group_by=r"/(p\d)_", val_fraction=0.2, gap=4, seed=0)
    assert any("share groups, such as 'p1'" in warning for warning in split.warnings)


def test_same_seed_same_split_another_seed_another():
    given = images(*(f"walk/{group}{i}x.png" for group in "abcdefghij" for i in range(3)))
    sides = [do_split(given, group_by=r"/([a-z])", seed=seed).side for seed in (0, 0, 1, 2, 3)]
    assert sides[0] == sides[1]
    assert any(side != sides[0] for side in sides[2:])


def test_natural_order():
    names = ["ID_10", "ID_2", "ID_1", "ID_02", "id_3", "ID_31", "walk"]
    assert sorted(names, key=natural_key) == ["ID_1", "ID_02", "ID_2", "id_3", "ID_10", "ID_31", "walk"]

"""Train and validation by group, so that no window is validated on if its neighbour was trained on.

Windows cut from one recording overlap; a random split of them measures memory, not generalisation. The unit that
goes to one side is therefore a group: one that the user names, or a run of consecutively numbered files.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.source import SourceImage

PART = ", part "  # between the name of a group that was cut and the number of the piece
NUMBER_AT_END = re.compile(r"(.*?)(\d+)", re.DOTALL)


@dataclass
class Split:
    """Where each image goes.

    Attributes:
        side: path -> "train", "val" or "test".
        group: path -> name of its group.
        dropped: path -> reason, for the images that go nowhere.
        rule: one sentence that says what decided.
        warnings: sentences for the user.
    """

    side: dict[str, str] = field(default_factory=dict)
    group: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    rule: str = ""
    warnings: list[str] = field(default_factory=list)


def split_images(images: list[SourceImage], *, group_by: str | None, val_fraction: float, gap: int, seed: int) -> Split:
    """Split images, in natural order of their paths, into train and val (and test, where the folder gave one).

    In order of precedence: the split of a folder laid out as root/{train,val}/<class>; `group_by`, a regular
    expression with one capture group or `column:<name>` of the metadata; the metadata column `group`; running numbers
    at the end of the file names; else every image for itself, with a warning.

    With running numbers (one by one, or in steps of one size) a run of consecutive numbers is a group, a long run is
    cut in two, and of one sequence no train image is within `gap` places of a val image: such images are dropped.

    Raises:
        UserError: `group_by` does not fit an image.
    """
    split = Split()
    given = {image.path: image.given_split for image in images if image.given_split}
    named = _named_groups(images, group_by)
    # The source is split already.
    if "val" in given.values():
        split.rule = "the folders train and val of the source"
        split.side = {path: side for path, side in given.items() if side}
        split.group = named or {image.path: image.path for image in images}
        both = _groups_on(split, "train") & _groups_on(split, "val")
        if both:
            split.warnings.append(f"the folders train and val share groups, such as '{min(both)}': val may leak")
        return split

    test = {path for path, side in given.items() if side == "test"}
    images = [image for image in images if image.path not in test]
    sequences = _sequences(images)
    # Which images belong together.
    if named:
        split.rule = f"groups by {group_by or 'metadata column group'}"
        split.group = {image.path: named[image.path] for image in images}
    elif sequences:
        split.rule = "runs of consecutive numbers at the end of the file names"
        split.group = _runs(images, sequences, val_fraction)
    else:
        split.rule = "every image for itself"
        split.group = {image.path: image.path for image in images}
        split.warnings.append(
            "nothing says which images belong together, so they were split one by one; if they are windows of longer "
            "recordings, val leaks: name the recordings with --group_by"
        )
    places = {} if named else sequences
    if named:
        places = _cut_lone_classes(images, split, val_fraction)
    # Which groups go to val; what lies too close to them is dropped.
    val = _choose(images, split.group, val_fraction, seed)
    split.side = {image.path: "val" if split.group[image.path] in val else "train" for image in images}
    _drop_neighbours(images, places, split, gap)
    held = {image.class_name for image in images if split.side.get(image.path) == "val"}
    for name in sorted({image.class_name for image in images}):
        if name not in held:
            split.warnings.append(f"class {name} has too few images or groups: val has none of it")
    # A test folder of the source stays as it is.
    split.side |= dict.fromkeys(test, "test")
    split.group |= {path: named.get(path, path) for path in test}
    return split


def _named_groups(images: list[SourceImage], group_by: str | None) -> dict[str, str]:
    """Return path -> group as the user or the metadata name it, {} where neither does."""
    if group_by is None:
        if not any("group" in image.metadata for image in images):
            return {}
        group_by = "column:group"
    return names_by(group_by, {image.path: image.metadata for image in images}, "group_by", "data_dir")


def names_by(rule: str, images: Mapping[str, Mapping[str, Any]], flag: str, folder: str) -> dict[str, str]:
    """Return path -> name, as a rule reads it off each image.

    Args:
        rule: a regular expression with one capture group, searched in the path, or `column:<name>` of the metadata.
        images: path -> metadata.
        flag, folder: the options that gave the rule and the images, to name in errors.

    Raises:
        UserError: an image without a name.
    """
    if rule.startswith("column:"):
        column = rule.removeprefix("column:")
        names = {path: str(metadata.get(column, "")) for path, metadata in images.items()}
        remedy = f"has no value in column '{column}' of metadata.csv; fill it in or give a --{flag} that fits"
    else:
        matches = {path: re.search(rule, path) for path in images}
        names = {path: match.group(1) or "" if match else "" for path, match in matches.items()}
        remedy = f"does not match --{flag} '{rule}'; the expression is searched in the path from {folder} on"
    for path, name in names.items():
        if not name:
            raise UserError(f"{path} {remedy}")
    return names


def _sequences(images: list[SourceImage]) -> dict[str, tuple[str, int]]:
    """Return path -> (name of its sequence, place in it) from the numbers that end the file names.

    Places count images: numbers 0, 25, 50, ... (first samples of windows, say) have the places 0, 1, 2, .... An image
    without a number is a sequence of its own. {} where most images do not follow another one (no numbers, or times
    or hashes).
    """
    numbered = {image.path: _number(image.path) for image in images}
    numbers: dict[str, set[int]] = defaultdict(set)
    for name, number in numbered.values():
        numbers[name].add(number)
    # Two numbers have a distance, but no stride.
    strides = {name: math.gcd(*(n - min(own) for n in own)) if len(own) > 2 else 1 for name, own in numbers.items()}
    numbered = {path: (name, number // strides[name]) for path, (name, number) in numbered.items()}
    ordered = sorted(numbered.values())
    following = sum(_follows(place, last) for last, place in pairwise(ordered))
    return numbered if following >= len(images) / 2 else {}


def _number(path: str) -> tuple[str, int]:
    """Return what stands before the number at the end of a file name, and the number; without one (path, 0)."""
    match = NUMBER_AT_END.fullmatch(os.path.splitext(path)[0])
    return (match.group(1), int(match.group(2))) if match else (path, 0)


def _follows(place: tuple[str, int], last: tuple[str, int]) -> bool:
    return place[0] == last[0] and place[1] <= last[1] + 1


def _runs(images: list[SourceImage], sequences: dict[str, tuple[str, int]], val_fraction: float) -> dict[str, str]:
    """Return path -> run; a run that holds much more than the val share of its class is cut near its end."""
    sizes = Counter(image.class_name for image in images)
    runs: list[list[SourceImage]] = []
    for image in sorted(images, key=lambda image: (sequences[image.path], image.path)):
        if runs and _follows(sequences[image.path], sequences[runs[-1][-1].path]):
            runs[-1].append(image)
        else:
            runs.append([image])
    group: dict[str, str] = {}
    for run in runs:
        too_long = len(run) > 2 * val_fraction * sizes[run[0].class_name]
        for piece in _cut(run, val_fraction) if too_long else [run]:
            (name, first), (_, last) = _number(piece[0].path), _number(piece[-1].path)
            group |= {image.path: f"{name}[{first}-{last}]" for image in piece}
    return group


def _cut(run: list[SourceImage], val_fraction: float) -> list[list[SourceImage]]:
    """Cut a run into a head and a tail of the val share."""
    tail = max(1, round(val_fraction * len(run)))
    return [run[:-tail], run[-tail:]] if len(run) > tail else [run]


def _cut_lone_classes(images: list[SourceImage], split: Split, val_fraction: float) -> dict[str, tuple[str, int]]:
    """Cut the group of every class that has but one, since a class must be on both sides.

    Returns path -> (group before the cut, rank in it) of the images of such classes.
    """
    places: dict[str, tuple[str, int]] = {}
    for name, own in _by_class(images).items():
        groups = {split.group[image.path] for image in own}
        if len(groups) > 1 or len(own) < 2:
            continue
        group = f"{groups.pop()} of {name}"
        places |= {image.path: (group, rank) for rank, image in enumerate(own)}
        for number, piece in enumerate(_cut(own, val_fraction), start=1):
            split.group |= {image.path: f"{group}{PART}{number}" for image in piece}
        split.warnings.append(
            f"class {name} has one group only: it was cut into two blocks, so val shows how well the model does on "
            "the same recording, not on a new one"
        )
    return places


def _choose(images: list[SourceImage], group: dict[str, str], val_fraction: float, seed: int) -> set[str]:
    """Return the groups of val: about `val_fraction` of every class, and never all of a class that has two groups.

    First fit in random order, then, for the classes that got less than half of their share, the group that brings the
    shares of all classes closest to `val_fraction`.
    """
    classes = sorted({image.class_name for image in images})
    names = sorted(set(group.values()))
    row, column = {name: i for i, name in enumerate(names)}, {name: i for i, name in enumerate(classes)}
    share = np.zeros((len(names), len(classes)))
    for image in images:
        share[row[group[image.path]], column[image.class_name]] += 1
    share /= share.sum(axis=0)
    lone = (share == 1).any(axis=1)  # the only group of a class stays in train
    chosen = np.zeros(len(names), dtype=bool)
    total = np.zeros(len(classes))
    slack = 1e-9
    for i in np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(len(names)):
        if not lone[i] and ((total + share[i])[share[i] > 0] <= 1.25 * val_fraction + slack).all():
            chosen[i] = True
            total = total + share[i]
    for c in range(len(classes)):
        if total[c] >= val_fraction / 2:
            continue
        # The one that helps most: by how much it changes the sum of (share - val_fraction)^2 over its own classes.
        best, gain = None, 0.0
        for i in np.flatnonzero(share[:, c]):
            own = np.flatnonzero(share[i])
            after = total[own] + share[i, own]
            if chosen[i] or lone[i] or not (after < 1 - slack).all():
                continue
            change = float(((after - val_fraction) ** 2 - (total[own] - val_fraction) ** 2).sum())
            if best is None or change < gain:
                best, gain = i, change
        if best is not None and (total[c] == 0 or gain < 0):
            chosen[best] = True
            total = total + share[best]
    return {names[i] for i in np.flatnonzero(chosen)}


def _drop_neighbours(images: list[SourceImage], places: dict[str, tuple[str, int]], split: Split, gap: int) -> None:
    """Drop the train images within `gap` numbers of a val image of their sequence, unless few would be left."""
    held: dict[str, list[int]] = defaultdict(list)
    for path, (name, number) in places.items():
        if split.side[path] == "val":
            held[name].append(number)
    sorted_held = {name: np.sort(numbers) for name, numbers in held.items()}
    for class_name, own in _by_class(images).items():
        train = [image.path for image in own if split.side[image.path] == "train"]
        near = [
            path
            for path in train
            if path in places and _distance(sorted_held.get(places[path][0]), places[path][1]) <= gap
        ]
        if len(near) > len(train) / 2:
            split.warnings.append(
                f"class {class_name} is too small for a gap of {gap} images between train and val: its neighbours "
                "stay, so windows that overlap leak"
            )
            continue
        for path in near:
            del split.side[path]
            split.dropped[path] = "gap between train and val"


def _distance(numbers: np.ndarray | None, number: int) -> float:
    """Return the distance of `number` from the nearest of sorted `numbers`."""
    if numbers is None:
        return float("inf")
    i = int(np.searchsorted(numbers, number))
    return min(abs(int(near) - number) for near in numbers[max(0, i - 1) : i + 1])


def _by_class(images: list[SourceImage]) -> dict[str, list[SourceImage]]:
    members: dict[str, list[SourceImage]] = defaultdict(list)
    for image in images:
        members[image.class_name].append(image)
    return members


def _groups_on(split: Split, side: str) -> set[str]:
    return {split.group[path] for path, its_side in split.side.items() if its_side == side}

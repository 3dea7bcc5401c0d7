"""Images of other classes that a classifier is trained with: made alike, kept apart from the others, and labelled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from mdaug.measures import image_set
from mdaug.measures.classifier import Source
from shards import provenance
from shards.colormap import nearest_maps
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import FILE_NAME as INDEX
from shards.index import SPLITS, read_index
from shards.packed import is_packed, open_packed
from shards.progress import say
from shards.split import PART

Use = Literal["uniform", "classes", "labels", "random"]
COMPARED = 8  # pictures of a set that show its colour map
NAMED = 10  # copies that a refusal names
RANDOM_LABELS = 4  # names the stream of random labels among those of a seed


@dataclass(frozen=True)
class Auxiliary:
    """Auxiliary images in memory.

    Attributes:
        pixels: uint8 (n, S, S, C).
        labels: int64 (n,), indices into `classes`.
        classes: their classes; the target classes where `same`.
        same: whether the labels are those of the target classes.
        content: hash of the packed set.
        places: of each image, the split that it lies in and its index there.
        groups: n names of recordings (or persons).
    """

    pixels: np.ndarray
    labels: np.ndarray
    classes: list[str]
    same: bool
    content: str
    places: list[tuple[ShardDataset, int]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def counts(self) -> list[int]:
        """Return the number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes)).tolist()


def load(
    aux_dir: Path,
    data_dir: Path,
    known: Mapping[str, image_set.ImageSet],
    *,
    same_names: Literal["ask", "same", "other"],
    image_size: int,
    max_per_class: int,
    role: str = "aux_dir",
    group_by: str | None = None,
) -> Auxiliary:
    """Return all images of an auxiliary folder, whatever their split.

    Args:
        aux_dir: packed images, or an image folder, which is packed first.
        data_dir: the packed target images.
        known: such as "training" -> target images, among which no auxiliary image may be.
        same_names: whether classes of one name are the same class; "ask": it has to be said.
        image_size, max_per_class: as in `image_set.load`.
        role: the option that names the folder.
        group_by: of an image folder, what is one recording, as in `mdaug pack`.

    Raises:
        UserError: images of other channels, in another colour map, or among the known ones by the hash of their pixels;
            classes of the same names, upper or lower case, if what that means is not said; none of them, if they are
            said to be the same.
    """
    folder = aux_dir
    if not is_packed(folder):
        try:
            folder = open_packed(folder, image_size, group_by=group_by)
        except UserError as error:
            remedy = "or pack that folder by itself and give the packed one"
            raise UserError(f"{role} {aux_dir}: {error}; {remedy}") from None
    target, own = read_index(data_dir / "train"), read_index(folder / "train")
    # Made alike, or refused.
    (height, width, channels), (own_height, own_width, own_channels) = target["image_shape"], own["image_shape"]
    if own_channels != channels:
        raise UserError(
            f"{role} {aux_dir} holds images of {own_channels} channel(s), data_dir {data_dir} of {channels}; pack "
            "both with the same --image_mode"
        )
    if (own_height, own_width) != (height, width):
        say(f"the images of {role} are {own_height}x{own_width}, the others {height}x{width}: all are resized alike")
    require_same_colours(ShardDataset(data_dir / "train"), ShardDataset(folder / "train"), data_dir, folder, role)
    parts = [
        image_set.load(folder / split, image_size=image_size, max_per_class=max_per_class)
        for split in SPLITS
        if (folder / split / INDEX).is_file() and read_index(folder / split)["shardlist"]
    ]
    pixels = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    places = [(part.dataset, int(i)) for part in parts for i in part.indices]
    groups = [group.rpartition(PART)[0] or group for part in parts for group in part.groups]  # both splits are taken
    # Kept apart from the images that train and judge.
    there = {
        digest(image): (what, images.dataset, int(i))
        for what, images in known.items()
        for image, i in zip(images.images, images.indices, strict=True)
    }
    twins = [(place, there[key]) for place, key in zip(places, map(digest, pixels), strict=True) if key in there]
    if twins:
        copies = [image_set.described(*place)[0] for place, _ in twins]
        whose = " and ".join(what for what in known if any(what == twin[0] for _, twin in twins))
        twin = image_set.described(*twins[0][1][1:])[0]
        more = f" and {len(copies) - NAMED} more" if len(copies) > NAMED else ""
        raise UserError(
            f"{len(copies)} of {len(pixels)} images of {role} {aux_dir} are {whose} images of {data_dir}, such as "
            f"{copies[0]}, which is {twin} there; leave out of {role}: {', '.join(copies[:NAMED])}{more}"
        )
    # Which classes these are.
    names: list[str] = own["classes"]
    shared = [name for name in names if name in target["classes"]]
    if same_names == "ask":
        here = {name.casefold(): name for name in target["classes"]}
        alike = [name for name in names if name.casefold() in here]
        if alike:
            own_name = here[alike[0].casefold()]
            both = f"class '{own_name}' is in data_dir and in aux_dir"
            written = "" if alike[0] in shared else f", there as '{alike[0]}'"
            remedy = " (give its folder the same name)" if written else ""
            raise UserError(
                f"{both}{written}; say --same_names same, if it is the same class{remedy}, or --same_names other, if "
                "the names agree by chance"
            )
    same = same_names == "same"
    if same and not shared:
        raise UserError(
            f"--same_names is same, but no class of {role} {aux_dir} ({', '.join(names[:9])}) has the name of one of "
            f"data_dir ({', '.join(target['classes'][:9])}); name its folders alike, or leave --same_names out"
        )
    if same:
        kept = np.isin(labels, [names.index(name) for name in shared])
        if not kept.all():
            others = ", ".join(name for name in names if name not in shared)
            say(
                f"auxiliary images of classes that data_dir does not have are left out: {int((~kept).sum())} ({others})"
            )
        place = np.array([target["classes"].index(name) if name in shared else -1 for name in names])
        pixels, labels, names = pixels[kept], place[labels[kept]], target["classes"]
        places = [places[i] for i in np.flatnonzero(kept)]
        groups = [groups[i] for i in np.flatnonzero(kept)]
    else:  # classes without images are no outputs of the network
        present, labels = np.unique(labels, return_inverse=True)
        names = [names[int(label)] for label in present]
    return Auxiliary(pixels, labels, names, same, provenance.read(folder, "images")["hash"], places, groups)


def require_same_colours(
    target: ShardDataset, auxiliary: ShardDataset, packed: Path, folder: Path, role: str = "aux_dir"
) -> None:
    """Refuse colours of another map. Levels are the same quantity whatever they were painted in."""
    if target.index["image_shape"][2] == 1 or not len(target) or not len(auxiliary):
        return
    own, other = _maps(target), _maps(auxiliary)
    if (own or other) and not set(own) & set(other):
        there, here = (names[0] if names else "no known colour map" for names in (other, own))
        raise UserError(
            f"{role} {folder} holds pictures in {there}, {packed} in {here}; pack both with --image_mode gray, which "
            "takes the level behind the colours"
        )


def _maps(dataset: ShardDataset) -> tuple[str, ...]:
    """Return the names of the colour maps that the pictures of a set may be painted in."""
    some = range(0, len(dataset), max(1, len(dataset) // COMPARED))
    return nearest_maps(np.concatenate([dataset[i]["image"].reshape(-1, 3) for i in some]))


def digest(image: np.ndarray) -> bytes:
    """Return the hash of the pixels of an image."""
    return hashlib.sha256(image.tobytes()).digest()


def source(
    pixels: np.ndarray, labels: np.ndarray, use: Use, num_classes: int, share: float, seed: int = 0
) -> tuple[Source, int]:
    """Return auxiliary images as a part of every batch, and how many outputs the network has with them.

    Args:
        pixels, labels: of `Auxiliary`.
        use: "uniform" labels over the target classes; further "classes" of the same network; "labels", which are those
            of the target classes; "random": a target class each, whatever the image shows.
        num_classes: of the target.
        share: of each batch.
        seed: of the random labels.
    """
    given, outputs = labels, num_classes
    if use == "uniform":
        given = np.full((len(pixels), num_classes), 1 / num_classes, dtype=np.float32)
    elif use == "classes":
        given, outputs = num_classes + labels, num_classes + int(labels.max()) + 1
    elif use == "random":
        given = np.random.default_rng([seed, RANDOM_LABELS]).integers(num_classes, size=len(pixels))
    return Source(pixels, given, share), outputs

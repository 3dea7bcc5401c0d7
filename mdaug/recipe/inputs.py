"""The images of a recipe: opened, made alike, and kept apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdaug.measures import image_set
from mdaug.recipe.options import AugmentConfig
from mdaug.recipe.training_set import Stored
from mdaug.recipe.trials import Images
from shards import provenance
from shards.errors import UserError
from shards.index import FILE_NAME as INDEX
from shards.index import read_index
from shards.output_folder import RUN_FILE
from shards.packed import open_packed
from shards.progress import say

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Inputs:
    """What a recipe is made of.

    Attributes:
        classes: names of the target classes.
        train, held_out: their images.
        held_out_split: name of the split that `held_out` is.
        auxiliary: further images, or None.
        auxiliary_classes: their classes.
        same: whether the labels of `auxiliary` are those of the target classes.
        synthetic: generated images, or None.
        colormap: of levels, as in index.json.
        made_from: role -> content hash.
        stored: "real", "auxiliary", "generated" -> where the bytes of their images are.
    """

    classes: list[str]
    train: Images
    held_out: Images
    held_out_split: str
    auxiliary: Images | None
    auxiliary_classes: list[str]
    same: bool
    synthetic: Images | None
    colormap: str | None
    made_from: dict[str, str | None]
    stored: dict[str, Stored]


def load(options: AugmentConfig) -> Inputs:
    """Open, and pack where needed, all images of a recipe.

    Raises:
        UserError: one class, no held-out images, auxiliary images of other channels, of classes with the same names (if
            that is not answered), or that are among the others; synthetic images of another set.
    """
    data_dir = _packed(options.data_dir, options)
    index = read_index(data_dir / "train")
    classes: list[str] = index["classes"]
    if len(classes) < 2:
        raise UserError(f"{data_dir} has only one class ('{classes[0]}'); a classifier has nothing to tell apart")
    split = next((name for name in ("test", "val") if (data_dir / name / INDEX).is_file()), None)
    if split is None or not read_index(data_dir / split)["shardlist"]:
        raise UserError(
            f"{options.data_dir} has no held-out images, so nothing could be said of the result: more groups, "
            "or a larger --val_fraction of mdaug pack"
        )
    made_from: dict[str, str | None] = {"images": provenance.read(data_dir, "images")["hash"]}
    made_from |= {"auxiliary": None, "synthetic": None}
    (train, real), (held_out, _) = (_images(data_dir / part, options) for part in ("train", split))
    stored = {"real": real}

    auxiliary: Images | None = None
    names: list[str] = []
    same = False
    if options.aux_dir is not None:
        auxiliary, names, same, made_from["auxiliary"], stored["auxiliary"] = _auxiliary(
            options, index, train, held_out
        )
    synthetic = None
    if options.synthetic_dir is not None:
        record = provenance.read(options.synthetic_dir, "synthetic", "mixed")
        origin = record["made_from"]["images"]
        provenance.require_same("images", data_dir, str(made_from["images"]), options.synthetic_dir, origin)
        made_from["synthetic"] = record["hash"]
        synthetic, stored["generated"] = _images(options.synthetic_dir, options)
    colormap = index.get("colormap")
    return Inputs(classes, train, held_out, split, auxiliary, names, same, synthetic, colormap, made_from, stored)


def _packed(folder: Path, options: AugmentConfig, group_by: str | None = None) -> Path:
    if (folder / RUN_FILE).is_file() or (folder / "train" / INDEX).is_file():
        return folder
    return open_packed(folder, options.image_size, group_by=group_by or options.group_by)


def _images(folder: Path, options: AugmentConfig) -> tuple[Images, Stored]:
    loaded = image_set.load(folder, image_size=options.image_size, max_per_class=options.max_per_class)
    stored = Stored([loaded.dataset] * len(loaded), loaded.indices.tolist())
    return Images(loaded.images, loaded.labels, loaded.groups), stored


def _auxiliary(
    options: AugmentConfig, index: dict, train: Images, held_out: Images
) -> tuple[Images, list[str], bool, str, Stored]:
    """Return the images, their classes, whether these are the target classes, the content hash, and where they lie."""
    assert options.aux_dir is not None
    # Of an auxiliary folder every image is used, whatever its group.
    folder = options.aux_dir
    if not ((folder / RUN_FILE).is_file() or (folder / "train" / INDEX).is_file()):
        folder = open_packed(folder, options.image_size)
    own = read_index(folder / "train")
    # Made alike, or refused.
    (height, width, channels), (own_height, own_width, own_channels) = index["image_shape"], own["image_shape"]
    if own_channels != channels:
        raise UserError(
            f"aux_dir {options.aux_dir} holds images of {own_channels} channel(s), data_dir {options.data_dir} of "
            f"{channels}; pack both with the same --image_mode"
        )
    if (own_height, own_width) != (height, width):
        say(f"auxiliary images are {own_height}x{own_width}, the others {height}x{width}: all are resized alike")
    parts = [_images(folder / split, options) for split in SPLITS if _holds_images(folder / split)]
    pixels = np.concatenate([part.pixels for part, _ in parts])
    labels = np.concatenate([part.labels for part, _ in parts])
    places = [place for _, stored in parts for place in zip(stored.datasets, stored.indices, strict=True)]
    # Kept apart from the images that train and judge.
    for what, images in (("training", train), ("held-out", held_out)):
        known = {_digest(image) for image in images.pixels}
        overlap = sum(_digest(image) in known for image in pixels)
        if overlap:
            raise UserError(
                f"{overlap} of {len(pixels)} images of aux_dir {options.aux_dir} are {what} images of "
                f"{options.data_dir}; leave them out of the auxiliary folder"
            )
    # Which classes these are.
    names: list[str] = own["classes"]
    shared = [name for name in names if name in index["classes"]]
    if shared and options.same_names == "ask":
        raise UserError(
            f"class '{shared[0]}' is in data_dir and in aux_dir; say --same_names same, if it is the same class, or "
            "--same_names other, if the names agree by chance"
        )
    same = options.same_names == "same" and bool(shared)
    if same:
        kept = np.isin(labels, [names.index(name) for name in shared])
        if not kept.all():
            say(f"auxiliary images of classes that data_dir does not have are left out: {int((~kept).sum())}")
        place = np.array([index["classes"].index(name) if name in shared else -1 for name in names])
        pixels, labels, names = pixels[kept], place[labels[kept]], index["classes"]
        places = [places[i] for i in np.flatnonzero(kept)]
    else:  # classes without images are no outputs of the network
        present, labels = np.unique(labels, return_inverse=True)
        names = [names[int(label)] for label in present]
    groups = [str(i) for i in range(len(labels))]
    stored = Stored(*map(list, zip(*places, strict=True)))
    return Images(pixels, labels, groups), names, same, provenance.read(folder, "images")["hash"], stored


def _holds_images(folder: Path) -> bool:
    return (folder / INDEX).is_file() and bool(read_index(folder)["shardlist"])


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()

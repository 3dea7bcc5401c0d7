"""What `mdaug pack` decides before the first shard is written: which images, on which side, and in which form."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards import duplicates
from shards.colormap import COLORMAPS
from shards.errors import UserError
from shards.image_to_png import Checked
from shards.index import SPLITS
from shards.options import PackConfig
from shards.pack_report import make_report, some
from shards.source import SourceFolder, SourceImage
from shards.split import Split, split_images
from shards.subset import take_per_class
from shards.validation import height_width


@dataclass
class PackPlan:
    """All decisions of a packing.

    Attributes:
        folder: the image folder.
        classes: the classes that have training images, in natural order; an image's label is its place here.
        split: where each image goes, and to which group it belongs.
        samples: "train", "val", "test" -> images in the order of the shards.
        size: (width, height) of all packed images.
        channels: 1 or 3.
        colormap: the colour map of the set, whose levels are packed, or None where colours stay or become brightness.
        own_maps: path -> colour map of the images that are painted in another one.
        crops: path -> rows and columns at (top, bottom, left, right) that are left out.
        turned: paths of the images that EXIF says are turned or mirrored.
        report: the content of report.json.
    """

    folder: SourceFolder
    classes: list[str]
    split: Split
    samples: dict[str, list[SourceImage]]
    size: tuple[int, int]
    channels: int
    colormap: str | None
    own_maps: dict[str, str]
    crops: dict[str, tuple[int, int, int, int]]
    turned: set[str]
    report: dict[str, Any]


def make_plan(options: PackConfig, folder: SourceFolder, checked: dict[str, Checked]) -> PackPlan:
    """Decide everything; raises UserError where nothing useful can be packed, or two readings are possible."""
    # Images that can be read and are there once.
    rejected = dict(folder.rejected)
    rejected |= {image.path: reason for image in folder.images if (reason := checked[image.path].error)}
    rejected |= duplicates.equal([image for image in folder.images if image.path not in rejected], checked)
    good = [image for image in folder.images if image.path not in rejected]

    # The form: levels behind a colour map, brightness, or colours as they are.
    colormap = _colormap(options, good, checked)
    if options.image_mode == "level" and colormap:
        unknown = [i.path for i in good if checked[i.path].channels == 3 and not checked[i.path].maps]
        rejected |= dict.fromkeys(
            unknown if options.colormap == "auto" else (), "colours of no colour map that is known"
        )
        good = [image for image in good if image.path not in rejected]
    own_maps = {
        image.path: maps[0]
        for image in good
        if colormap and options.colormap == "auto" and (maps := checked[image.path].maps) and colormap not in maps
    }
    crops = _crops(options, good, checked) if colormap else {}
    _refuse_empty_classes(folder, good, rejected)

    # The sides, without classes that nothing could be learnt of.
    split = split_images(
        good, group_by=options.group_by, val_fraction=options.val_fraction, gap=options.gap, seed=options.seed
    )
    rejected |= split.dropped
    trained = {image.class_name for image in good if split.side.get(image.path) == "train"}
    if without := [name for name in folder.classes if name not in trained]:
        split.warnings.append(f"no training images of {some(without)}: not a class of this set")
    rejected |= {image.path: "its class has no training images" for image in good if image.class_name not in trained}
    good = [image for image in good if image.path not in rejected]
    if not good:
        raise UserError(f"{folder.root} has no training images; put images into its folder train")

    # Size, channels, and the order of the samples: mixed, for readers that shuffle only within a shard. A subset of the
    # training images is taken last, so that they are packed as in the whole set.
    sizes = Counter(_cropped(checked[image.path].size, crops.get(image.path)) for image in good)
    common = max(sizes, key=lambda size: (sizes[size], size))
    size = height_width(options.image_size)[::-1] if options.image_size else common
    plain = not any(checked[image.path].channels == 3 for image in good)
    plain = plain or (options.image_mode == "level" and colormap is not None)
    channels = {"rgb": 3, "gray": 1}.get(options.image_mode, 1 if plain else 3)
    samples: dict[str, list[SourceImage]] = {}
    for number, side in enumerate(SPLITS):
        own = [image for image in good if split.side[image.path] == side]
        if own:
            order = np.random.Generator(np.random.Philox(key=[options.seed, 1 + number])).permutation(len(own))
            samples[side] = [own[i] for i in order]

    classes = [name for name in folder.classes if name in trained]
    if options.train_per_class is not None:
        own = samples["train"]
        labels = np.array([classes.index(image.class_name) for image in own])
        kept = take_per_class(labels, options.train_per_class, options.subset or 0)
        samples["train"] = [own[i] for i in kept]
        reason = f"not in subset {options.subset or 0} of {options.train_per_class} training images per class"
        rejected |= dict.fromkeys({image.path for image in own} - {image.path for image in samples["train"]}, reason)
    report = make_report(folder, classes, checked, rejected, split, samples, size, channels, colormap, own_maps, crops)
    if options.image_mode == "level" and channels == 3:
        report["notes"].append(
            "image_mode level keeps these images in colour (rgb): their colour map is not known, so the level "
            f"behind a colour is not either; name the map with --colormap ({', '.join(COLORMAPS)})"
        )
    turned = {image.path for image in good if checked[image.path].turned}
    return PackPlan(folder, classes, split, samples, size, channels, colormap, own_maps, crops, turned, report)


def _colormap(options: PackConfig, images: list[SourceImage], checked: dict[str, Checked]) -> str | None:
    """Return the colour map whose levels are packed: as named, else the one that most coloured images may have."""
    coloured = [checked[image.path] for image in images if checked[image.path].channels == 3]
    if options.image_mode not in ("gray", "level") or not coloured or options.colormap == "none":
        return None
    if options.colormap != "auto":
        return options.colormap
    votes = Counter(name for picture in coloured for name in picture.maps)
    first = Counter(picture.maps[0] for picture in coloured if picture.maps)
    best = max(votes, key=lambda name: (votes[name], first[name], name), default=None)
    known = sum(bool(picture.maps) for picture in coloured)
    return best if known > len(coloured) / 2 else None


def _crops(
    options: PackConfig, images: list[SourceImage], checked: dict[str, Checked]
) -> dict[str, tuple[int, int, int, int]]:
    """Return path -> what is cut off at the edges; UserError where nothing says whether frames are part of the data."""
    framed = {image.path: checked[image.path].frame for image in images if any(checked[image.path].frame)}
    if not framed or options.frame == "keep":
        return {}
    if options.frame == "crop":
        return framed
    frame, count = Counter(framed.values()).most_common(1)[0]
    raise UserError(
        f"{len(framed)} of {len(images)} images have rows or columns at the edge in one colour that their colour map "
        f"does not have (in {count} of them {frame[0]} at the top, {frame[1]} at the bottom, {frame[2]} at the left, "
        f"{frame[3]} at the right; such as {next(iter(framed))}): margins to cut off (--frame crop), or part of the "
        "data (--frame keep)? Say which"
    )


def _cropped(size: tuple[int, int], crop: tuple[int, int, int, int] | None) -> tuple[int, int]:
    top, bottom, left, right = crop or (0, 0, 0, 0)
    return size[0] - left - right, size[1] - top - bottom


def _refuse_empty_classes(folder: SourceFolder, good: list[SourceImage], rejected: dict[str, str]) -> None:
    """Refuse a class folder of which nothing can be packed."""
    left = {image.class_name for image in good}
    for image in folder.images:
        if image.class_name not in left:
            raise UserError(
                f"class folder {folder.root / image.class_name}: none of its images can be packed (the first, "
                f"{image.path}: {rejected[image.path]}); mend them or remove the folder"
            )

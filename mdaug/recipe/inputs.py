"""The images of a recipe: opened, made alike, and kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdaug.artifacts import find_pipeline, find_vqvae
from mdaug.measures import image_set
from mdaug.measures.auxiliary import load as load_auxiliary
from mdaug.measures.image_set import ImageSet
from mdaug.recipe.options import AugmentConfig
from mdaug.recipe.training_set import Stored
from mdaug.recipe.trials import Images
from shards import provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import FILE_NAME as INDEX
from shards.index import read_index
from shards.packed import is_packed, open_packed
from shards.progress import say
from shards.split import names_by


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
        auxiliary_domains: the person, site or sensor of each auxiliary image, as `--aux_domains` names it; None: not
            known.
        synthetic: generated images that were given, or None.
        unlabelled: images whose class is not known, uint8 (n, S, S, C), or None.
        colormap: of levels, as in index.json.
        made_from: role -> content hash.
        stored: "real", "auxiliary", "generated", "unlabelled" -> where the bytes of their images are.
    """

    classes: list[str]
    train: Images
    held_out: Images
    held_out_split: str
    auxiliary: Images | None
    auxiliary_classes: list[str]
    same: bool
    auxiliary_domains: list[str] | None
    synthetic: Images | None
    unlabelled: np.ndarray | None
    colormap: str | None
    made_from: dict[str, str | None]
    stored: dict[str, Stored]


def load(options: AugmentConfig) -> Inputs:
    """Open, and pack where needed, all images of a recipe.

    Raises:
        UserError: one class, no held-out images, auxiliary or unlabelled images of other channels, of classes with the
            same names (if that is not answered), or that are among the others; auxiliary images without a domain,
            where domains are asked for; synthetic images of another set; no base model where `init_from` names one.
    """
    for role, folder in (("data_dir", options.data_dir), ("aux_dir", options.aux_dir)):
        if options.group_by is not None and folder is not None and is_packed(folder):
            say(f"{role} {folder} is packed already, with groups of its own: --group_by is for image folders")
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
    made_from |= {"auxiliary": None, "synthetic": None, "unlabelled": None, "base": None}
    known = {role: _open(data_dir / part, options) for role, part in (("training", "train"), ("held-out", split))}
    (train, real), (held_out, _) = (_images(loaded) for loaded in known.values())
    stored = {"real": real}

    auxiliary: Images | None = None
    names: list[str] = []
    domains: list[str] | None = None
    same = False
    if options.aux_dir is not None:
        found = load_auxiliary(
            options.aux_dir,
            data_dir,
            known,
            same_names=options.same_names,
            image_size=options.image_size,
            max_per_class=options.max_per_class,
            group_by=options.group_by,
        )
        auxiliary = Images(found.pixels, found.labels, found.groups)
        names, same, made_from["auxiliary"] = found.classes, found.same, found.content
        stored["auxiliary"] = Stored.at(found.places)
        if options.aux_domains is not None:
            domains = _domains(found.places, options.aux_domains)
    unlabelled = None
    if options.unlabelled_dir is not None:  # whatever its folders are called
        found = load_auxiliary(
            options.unlabelled_dir,
            data_dir,
            known,
            same_names="other",
            image_size=options.image_size,
            max_per_class=options.max_per_class,
            role="unlabelled_dir",
        )
        unlabelled, made_from["unlabelled"] = found.pixels, found.content
        stored["unlabelled"] = Stored.at(found.places)
    synthetic = None
    if options.synthetic_dir is not None:
        record = provenance.read(options.synthetic_dir, "synthetic", "mixed")
        origin = record["made_from"]["images"]
        provenance.require_same("images", data_dir, str(made_from["images"]), options.synthetic_dir, origin)
        made_from["synthetic"] = record["hash"]
        synthetic, stored["generated"] = _images(_open(options.synthetic_dir, options))
    if options.init_from is not None:
        find_vqvae(options.init_from / "vqvae")
        made_from["base"] = find_pipeline(options.init_from / "ldm")[1]["hash"]
    colormap = index.get("colormap")
    return Inputs(
        classes=classes,
        train=train,
        held_out=held_out,
        held_out_split=split,
        auxiliary=auxiliary,
        auxiliary_classes=names,
        same=same,
        auxiliary_domains=domains,
        synthetic=synthetic,
        unlabelled=unlabelled,
        colormap=colormap,
        made_from=made_from,
        stored=stored,
    )


def _packed(folder: Path, options: AugmentConfig) -> Path:
    if is_packed(folder):
        return folder
    return open_packed(folder, options.image_size, group_by=options.group_by)


def _domains(places: Sequence[tuple[ShardDataset, int]], rule: str) -> list[str]:
    """Return the domain of each auxiliary image, by its path or its metadata as pack has stored them."""
    described = [image_set.described(*place) for place in places]
    names = names_by(rule, dict(described), "aux_domains", "aux_dir")
    return [names[path] for path, _ in described]


def _open(folder: Path, options: AugmentConfig) -> ImageSet:
    return image_set.load(folder, image_size=options.image_size, max_per_class=options.max_per_class)


def _images(loaded: ImageSet) -> tuple[Images, Stored]:
    stored = Stored([loaded.dataset] * len(loaded), loaded.indices.tolist())
    return Images(loaded.images, loaded.labels, loaded.groups), stored

"""The images that are redrawn instead of sampling from noise: which may be, and which one each sample begins with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mdaug.artifacts import packing_options_of_pipeline
from mdaug.generation.options import GenerateConfig
from mdaug.generation.plan import Plan
from shards import provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import FILE_NAME as INDEX
from shards.order import EpochOrder
from shards.packed import is_packed, open_packed

HELD_OUT = ("val", "test")


@dataclass(frozen=True)
class Source:
    """What a sample is redrawn from.

    Attributes:
        index: of the image in the training split of the packed set.
        key: its key there.
        class_name: its class.
        strength: share of the noise schedule to which it is noised.
        conditions: the conditions of the sample: those of the image where the plan fixes none, None where it has none.
    """

    index: int
    key: str
    class_name: str
    strength: float
    conditions: dict[str, float | None]


class Sources:
    """The source of every sample of a plan, a function of (plan, sample) alone.

    Every image of a class ("keep"), or of the set ("random"), is used once before any is used again. Strengths take
    turns: among the images of a pass, and for an image from pass to pass.

    Args:
        plan: a plan that redraws.
        packed: the packed set of that plan.
    """

    def __init__(self, plan: Plan, packed: Path):
        assert plan.redraw is not None
        self.plan = plan
        self.dataset = ShardDataset(packed / "train", fields=("image", "meta") if plan.condition_names else ("image",))
        self.keep, self.strengths = plan.redraw["redraw_as"] == "keep", plan.redraw["strengths"]
        labels = self.dataset.labels
        if self.keep:
            numbers = {name: label for label, name in enumerate(self.dataset.classes)}
            self.pools = [np.flatnonzero(labels == numbers.get(name, -1)) for name in plan.counts]
        else:
            self.pools = [np.arange(len(labels))]
        self.orders = [EpochOrder(len(pool), plan.seed) for pool in self.pools]

    def of(self, samples: np.ndarray) -> dict[int, Source]:
        """Return sample index -> its source; for one thread."""
        places = zip(self.plan.labels(samples).tolist(), self.plan.places_in_class(samples).tolist(), strict=True)
        found = {}
        for sample, (label, place) in zip(samples.tolist(), places, strict=True):
            pool, position = (label, place) if self.keep else (0, sample)
            number = self.orders[pool].index(position)
            index = int(self.pools[pool][number])
            strength = self.strengths[(number + position // len(self.pools[pool])) % len(self.strengths)]
            name = self.dataset.classes[self.dataset.labels[index]]
            found[sample] = Source(index, self.dataset.key(index), name, strength, self._conditions(index))
        return found

    def images(self, samples: np.ndarray) -> torch.Tensor:
        """Return the images that samples begin with, uint8 (B, C, H, W)."""
        sources = self.of(samples)
        pixels = [self.dataset[sources[sample].index]["image"] for sample in samples.tolist()]
        return torch.from_numpy(np.stack(pixels)).movedim(-1, 1)

    def _conditions(self, index: int) -> dict[str, float | None]:
        if self.plan.conditions is None:
            return {}
        meta = self.dataset[index]["meta"]
        own = {name: meta.get(name) for name in self.plan.condition_names}
        numbers = {name: None if value in ("", None) else float(value) for name, value in own.items()}
        return numbers | self.plan.conditions["fixed"]


def is_ready(options: GenerateConfig) -> bool:
    """Return whether nothing has to be packed before it is known what is redrawn."""
    return options.from_dir is None or is_packed(options.from_dir)


def open_sources(options: GenerateConfig, pipeline: Path) -> Path:
    """Return the packed set whose training images are redrawn; an image folder is packed once, as for the training.

    Raises:
        UserError: it is one split of a packed set, not a packed set, or cannot be packed.
    """
    folder = options.from_dir
    assert folder is not None
    if (folder / INDEX).is_file() and is_packed(folder.parent):
        why = "holds held-out images" if folder.name in HELD_OUT else "is one split of a packed set"
        raise UserError(
            f"{folder} {why}; give {folder.parent} as --from_dir, whose training images are redrawn and no others"
        )
    if is_packed(folder):
        return folder
    size, packing = packing_options_of_pipeline(pipeline)
    return open_packed(folder, size, **packing)


def describe(options: GenerateConfig, packed: Path, image_shape: list[int], colormap: str | None) -> dict:
    """Return {"hash", "classes": {name: images}, "redraw_as", "strengths"} of a packed set to be redrawn.

    Raises:
        UserError: it has no training images, or images of another shape or another colour map than the model's.
    """
    made = provenance.read(packed, "images")
    dataset = ShardDataset(packed / "train", fields=())
    if not len(dataset):
        raise UserError(f"{packed} has no training images to redraw; pack a folder that has")
    for what, of_set, of_model in (
        ("images of [height, width, channels]", dataset.index["image_shape"], image_shape),
        ("levels of the colour map", dataset.index.get("colormap"), colormap),
    ):
        if of_set != of_model:
            raise UserError(
                f"{packed} has {what} {of_set}, the model has {of_model}; pack the images to be redrawn with the "
                "--image_size, --image_mode and --colormap of those that trained the model"
            )
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()
    classes = {name: count for name, count in zip(dataset.classes, counts, strict=True) if count}
    redraw_as = options.redraw_as or "keep"
    return {"hash": made["hash"], "classes": classes, "redraw_as": redraw_as, "strengths": options.strengths}


def require(plan: Plan, options: GenerateConfig, pipeline: Path) -> Path:
    """Return the packed set that a plan redraws; raises UserError where the options name none, or another."""
    folder = options.output_dir
    if plan.redraw is None:
        raise UserError(f"the plan of {folder} redraws no images; leave out from_dir, or make another set")
    if options.from_dir is None:
        raise UserError(f"the plan of {folder} redraws images; say where they are with --from_dir")
    packed = open_sources(options, pipeline)
    here = provenance.read(packed, "images")["hash"]
    provenance.require_same("images to redraw", packed, here, folder, plan.redraw["hash"])
    return packed


def require_of_each_class(classes: list[str], redraw: dict, packed: Path) -> None:
    """Refuse samples that keep the class of their source where there is no source of that class."""
    missing = [name for name in classes if name not in redraw["classes"]]
    if redraw["redraw_as"] == "keep" and missing:
        raise UserError(
            f"{packed} has no training images of {', '.join(missing)} to redraw; leave these out with --classes or "
            "--per_class, or redraw images of any class with --redraw_as random"
        )


def kept_classes(redraw: dict, known: list[str], packed: Path) -> list[str]:
    """Return the classes of the sources, which redraw_as "keep" makes where nothing else is asked for.

    Raises:
        UserError: one of them is not among the classes that are made.
    """
    unknown = [name for name in redraw["classes"] if name not in known]
    if unknown:
        raise UserError(
            f"{packed} has images of {', '.join(unknown)}, which the model does not make unasked, so their class "
            "cannot be kept; name the classes to make with --classes, or change the class with --redraw_as random"
        )
    return list(redraw["classes"])


def refuse_held_out(options: GenerateConfig, packed: Path, pipeline: Path, trained_on: str) -> None:
    """Refuse sources that are held-out images, by their pixels: of their own set, or of that of the training.

    Args:
        options: data_dir is where the training set is; else it is looked for where it was then.
        packed: the packed set that is redrawn.
        pipeline: the pipeline folder.
        trained_on: content hash of the images of its training.

    Raises:
        UserError: a source is a held-out image, or the training set is not to be found.
    """
    training = _training_set(options, packed, pipeline, trained_on)
    held_out: dict[bytes, str] = {}
    for folder in dict.fromkeys((packed, training)):
        for split in HELD_OUT:
            if (folder / split / INDEX).is_file():
                held_out |= dict.fromkeys((digest for digest, _ in _digests(folder / split)), str(folder / split))
    found = [(key, held_out[digest]) for digest, key in _digests(packed / "train") if digest in held_out]
    if found:
        key, where = found[0]
        raise UserError(
            f"{len(found)} of the images to redraw in {packed} are held-out images of {where}, such as '{key}': what "
            "is made of them would be judged by themselves; pack them without these, or redraw other images"
        )


def _training_set(options: GenerateConfig, packed: Path, pipeline: Path, trained_on: str) -> Path:
    """Return the packed set that a pipeline was trained on."""
    if provenance.read(packed, "images")["hash"] == trained_on:
        return packed
    recorded = provenance.read(pipeline, "pipeline")["config"].get("data_dir")
    folder = options.data_dir or (Path(recorded) if recorded else None)
    if folder is not None and folder.is_dir():
        if not is_packed(folder):
            size, packing = packing_options_of_pipeline(pipeline)
            folder = open_packed(folder, size, **packing)
        if provenance.read(folder, "images")["hash"] == trained_on:
            return folder
    said = f"{folder} is not that set" if folder else "where that set is was not recorded"
    raise UserError(
        f"which images the training of {pipeline} held out cannot be looked up ({said}); give the packed set that it "
        "was trained on as --data_dir, so that none of them is redrawn"
    )


def _digests(split: Path) -> Iterator[tuple[bytes, str]]:
    """Yield (digest of the pixels, key) of every image of a split."""
    dataset = ShardDataset(split)
    for i in range(len(dataset)):
        sample = dataset[i]
        yield hashlib.sha256(np.ascontiguousarray(sample["image"]).tobytes()).digest(), sample["key"]

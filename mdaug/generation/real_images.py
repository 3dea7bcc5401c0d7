"""Real training images beside the synthetic samples: one mixed set, in which `source` distinguishes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mdaug.generation.plan import Plan
from mdaug.generation.shard import Members, to_png
from shards import provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.output_folder import OutputFolder
from shards.verify import inspect
from shards.writer import write_shard


def describe(packed: Path, classes: list[str], image_shape: list[int], colormap: str | None) -> dict:
    """Return {"hash", "samples"} of a packed set that can be mixed with samples of a model.

    Raises:
        UserError: it is not a packed set, or it has other classes, another image shape or another colour map.
    """
    made = provenance.read(packed, "images")
    dataset = ShardDataset(packed / "train", fields=())
    for what, of_set, of_model in (
        ("classes", dataset.classes, classes),
        ("images of [height, width, channels]", dataset.index["image_shape"], image_shape),
        ("levels of the colour map", dataset.index.get("colormap"), colormap),
    ):
        if of_set != of_model:
            raise UserError(
                f"{packed} has {what} {of_set}, the model has {of_model}; "
                "include the packed set that the model was trained on"
            )
    return {"hash": made["hash"], "samples": len(dataset)}


def require(plan: Plan, packed: Path, folder: Path) -> None:
    """Refuse a packed set that is not the one whose images the plan of `folder` includes."""
    if plan.include_real is None:
        raise UserError(f"the plan of {folder} includes no real images; leave out include_real, or make another set")
    provenance.require_same(
        "real images", packed, provenance.read(packed, "images")["hash"], folder, plan.include_real["hash"]
    )


def write_shards(plan: Plan, packed: Path, output: OutputFolder) -> None:
    """Copy the training images of a packed set into shards of the plan's folder; those that are whole stay."""
    dataset = ShardDataset(packed / "train", fields=("image", "meta"))
    for shard in range(plan.num_real_shards):
        path = output.path / plan.real_shard_name(shard)
        keys = [plan.real_key(i) for i in plan.real_images(shard)]
        if not inspect(path, keys, image_shape=plan.image_shape).is_whole:
            output.begin_again()
            write_shard(path, _samples(plan, shard, dataset))


def _samples(plan: Plan, shard: int, dataset: ShardDataset) -> Iterator[Members]:
    """Yield the members of real images, with the JSON keys of the synthetic ones: readers want all samples alike."""
    for i in plan.real_images(shard):
        sample = dataset[i]
        meta = {"class": dataset.classes[sample["label"]], "seed": None, "source": "real"}
        for name in plan.condition_names:
            value = sample["meta"].get(name)
            meta[f"condition_{name}"] = None if value in ("", None) else float(value)
        if plan.redraw:
            meta |= dict.fromkeys(("strength", "from_key", "from_class", "from_set"))
        if plan.sift:
            meta |= {"candidate": None, "score": None, "within_limits": None}
        meta |= {
            "group": str(sample["meta"].get("group", "")),
            "original": str(sample["meta"].get("source", sample["key"])),
        }
        text = json.dumps(meta, ensure_ascii=False)
        members = {
            "png": to_png(sample["image"], dataset.index.get("colormap")),
            "cls": str(sample["label"]).encode(),
            "json": text.encode(),
        }
        yield plan.real_key(i), members

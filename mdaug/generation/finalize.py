"""The end of a plan: every shard is looked at, then the files that make the folder a data set are written."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from mdaug.generation import card, export
from mdaug.generation import real_images as real
from mdaug.generation.card import Manifest
from mdaug.generation.inspection import CONSTANT, DAMAGED, MISSING, Inspection, inspect
from mdaug.generation.plan import Plan
from mdaug.images import grid
from shards import index, provenance
from shards.atomic import replacing, write_text
from shards.colormap import paint
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.writer import disk_full_as_user_error

GRID_COLUMNS = 8
GRIDS = "grids"
KIND, MIXED = "synthetic", "mixed"  # of a mixed set `mdaug evaluate` measures the synthetic images only


def finalize(plan: Plan, folder: Path, *, config: dict, mend: dict[str, str]) -> str:
    """Look at every sample, and write index, manifest, card, pictures, the other output form and provenance.

    One process at a time, see `shards.atomic.locked`.

    Args:
        plan: the plan of the folder.
        folder: where the shards are.
        config: the resolved configuration, as plain JSON values.
        mend: the commands that make what is missing of the "synthetic" and of the "real" images.

    Returns:
        A sentence that says what was found.

    Raises:
        UserError: shards are missing or damaged, images are constant, or a class has not the number asked for; with
            what mends it.
    """
    (folder / provenance.FILE_NAME).unlink(missing_ok=True)  # until all has been found
    classes = list(plan.counts)
    found: Counter = Counter()
    faults: dict[str, list[str]] = {}
    sifted: list[dict] = []
    with disk_full_as_user_error(folder), Manifest(folder, plan.condition_names) as manifest:
        for shard in _inspections(plan, folder):
            for kind, where in shard.faults.items():
                faults.setdefault(kind, []).extend(dict.fromkeys(where))
            for row in shard.rows:
                found[row["source"], row["class"]] += 1
                if row["source"] == "synthetic":
                    row.update(guidance_scale=plan.guidance_scale, pipeline=plan.pipeline)
            manifest.add(shard.rows)
            sifted.append(shard.statistics)
        _refuse(faults, folder, mend)
    content = index.write_index(folder, classes, image_shape=plan.image_shape, colormap=plan.colormap)
    write_text(folder / "classes.json", json.dumps(classes, ensure_ascii=False) + "\n")
    report = card.sift_report(plan, [statistics for statistics in sifted if statistics]) if plan.sift else None
    if report:
        write_text(folder / "sift.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "README.md", card.dataset_card(plan, found, report))
    _write_grids(plan, folder)
    if plan.output_format != "shards":
        export.write_files(plan, folder)
    made_from = {"pipeline": plan.pipeline, "images": plan.images}
    if plan.include_real:
        made_from["real"] = plan.include_real["hash"]
    kind = MIXED if plan.include_real else KIND
    provenance.write(folder, kind=kind, content_hash=content["hash"], made_from=made_from, config=config)
    lines = card.sift_lines(report) if report else []
    real_images = sum(count for (source, _), count in found.items() if source == "real")
    mixed = f" and {real_images} real ones" if real_images else ""
    return "\n".join([*lines, f"found {found.total() - real_images} = asked {plan.total}{mixed}: {folder} is finished"])


def write_grid(plan: Plan, folder: Path) -> None:
    """Write grid.png of a finished folder: the first samples of each class, one row per class with its name."""
    dataset = ShardDataset(folder)
    rows, names = [], []
    for label, name in enumerate(plan.counts):
        first = np.flatnonzero(dataset.labels == label)[:GRID_COLUMNS]
        if len(first):
            rows.append([paint(dataset[i]["image"], plan.colormap) for i in first.tolist()])
            names.append(name)
    with replacing(folder / "grid.png") as file:
        Image.fromarray(grid(rows, names)).save(file, "PNG")


def _write_grids(plan: Plan, folder: Path) -> None:
    """Write grids/<class>.png, up to 64 samples each."""
    dataset = ShardDataset(folder)
    (folder / GRIDS).mkdir(exist_ok=True)
    for label, name in enumerate(dataset.classes):
        first = np.flatnonzero(dataset.labels == label)[: GRID_COLUMNS**2].tolist()
        if first:
            images = [paint(dataset[i]["image"], plan.colormap) for i in first]
            rows = [images[at : at + GRID_COLUMNS] for at in range(0, len(images), GRID_COLUMNS)]
            Image.fromarray(grid(rows)).save(folder / GRIDS / f"{name}.png")


def _inspections(plan: Plan, folder: Path) -> Iterator[Inspection]:
    """Look at every shard of the plan, and at the real ones, in threads (decoding releases Python's lock)."""

    def synthetic(shard: int) -> Inspection:
        return inspect(folder / plan.shard_name(shard), *plan.keys_and_labels(shard), plan.image_shape)

    def copied(shard: int) -> Inspection:
        return inspect(folder / real.shard_name(shard), real.keys(plan, shard), None, plan.image_shape)

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        yield from threads.map(synthetic, range(plan.num_shards))
        yield from threads.map(copied, range(real.num_shards(plan)))


def _refuse(faults: dict[str, list[str]], folder: Path, mend: dict[str, str]) -> None:
    if missing := faults.get(MISSING):
        commands = _commands(missing, mend)
        raise UserError(f"{folder} is not complete: {_some(missing, 'shard')} missing; make the rest with: {commands}")
    if damaged := faults.get(DAMAGED):
        commands = _commands(damaged, mend | {"synthetic": f"{mend['synthetic']} --repair"})
        raise UserError(
            f"{folder}: {_some(damaged, 'shard')} damaged or of another plan (sha256, samples or pictures differ); "
            f"make them again with: {commands}"
        )
    if constant := faults.get(CONSTANT):
        raise UserError(
            f"{folder}: {_some(constant, 'image')} of one colour only; that lies in the model or its settings: "
            "look at them, choose other steps, guidance or precision and a new --output_dir, or reject them with --sift"
        )


def _commands(shards: list[str], mend: dict[str, str]) -> str:
    kinds = {"real" if name.startswith(real.PREFIX) else "synthetic" for name in shards}
    return " && ".join(command for kind, command in mend.items() if kind in kinds)


def _some(names: list[str], what: str) -> str:
    """Return a few of many names, and how many there are."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{shown} ({len(names)} {what + ' is' if len(names) == 1 else what + 's are'})"

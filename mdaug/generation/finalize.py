"""The end of a plan: look at every shard, then write the files that make the folder a data set."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from shlex import quote

import numpy as np
from PIL import Image

from mdaug import config
from mdaug.generation import card, export, inspected
from mdaug.generation.card import Manifest
from mdaug.generation.options import GenerateConfig
from mdaug.generation.plan import REAL, Plan
from mdaug.images import grid
from shards import index
from shards.atomic import remove_debris, replacing, write_text
from shards.colormap import paint
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.output_folder import OutputFolder
from shards.verify import CONSTANT, DAMAGED, MISSING
from shards.writer import disk_full_as_user_error

GRID_COLUMNS = 8
GRID, GRIDS = "grid.png", "grids"
KIND, MIXED = "synthetic", "mixed"  # of a mixed set `mdaug evaluate` measures the synthetic images only


def write_data_set(plan: Plan, output: OutputFolder, options: GenerateConfig) -> str:
    """Look at every sample, and write index, manifest, card, pictures, the other output form and provenance.

    One process at a time, see `shards.output_folder.exclusive`.

    Args:
        plan: the plan of the folder.
        output: the folder.
        options: those of the command, for provenance and for the commands that errors print.

    Returns:
        A sentence that says what was found.

    Raises:
        UserError: shards are missing or damaged, or images are constant; with the command that repairs it.
    """
    folder, classes = output.path, list(plan.counts)
    output.begin_again()
    remove_debris(folder)
    # Every sample: a row of the manifest each, and all faults before any of them is an error.
    found: Counter = Counter()
    faults: dict[str, list[str]] = {}
    sifted = card.Sifted()
    with disk_full_as_user_error(folder), Manifest(folder, plan.condition_names) as manifest:
        for shard in inspected.looks(plan, folder):
            for kind, places in shard.faults.items():
                faults.setdefault(kind, []).extend(places)
            found += shard.found
            manifest.add(shard.rows, shard.csv)
            sifted.add(shard.statistics)
        _refuse(faults, plan, folder, options)
    # The files beside the shards.
    content = index.write_index(folder, classes, image_shape=plan.image_shape, colormap=plan.colormap)
    write_text(folder / "classes.json", json.dumps(classes, ensure_ascii=False) + "\n")
    report = sifted.report(plan) if plan.sift else None
    if report:
        write_text(folder / "sift.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "README.md", card.dataset_card(plan, found, report))
    _write_grids(plan, folder)
    if plan.output_format != "shards":
        export.write_files(plan, folder)
    if options.grid:
        write_grid(plan, folder)
    # The mark of the end is last.
    inspected.forget(folder)
    output.finish(MIXED if plan.include_real else KIND, content["hash"], config.as_dict(options))
    lines = card.sift_lines(report) if report else []
    real = sum(count for (source, _), count in found.items() if source == "real")
    mixed = f" and {real} real ones" if real else ""
    return "\n".join([*lines, f"found {found.total() - real} = asked {plan.total}{mixed}: {folder} is finished"])


def write_grid(plan: Plan, folder: Path) -> None:
    """Write grid.png of a finished folder: the first samples of each class, one row per class with its name."""
    dataset = ShardDataset(folder)
    rows, names = [], []
    for label, name in enumerate(plan.counts):
        first = np.flatnonzero(dataset.labels == label)[:GRID_COLUMNS]
        if len(first):
            rows.append([paint(dataset[i]["image"], plan.colormap) for i in first.tolist()])
            names.append(name)
    with replacing(folder / GRID) as file:
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


def _refuse(faults: dict[str, list[str]], plan: Plan, folder: Path, options: GenerateConfig) -> None:
    """Raise UserError for the gravest kind of fault, with the command that repairs it."""
    if missing := faults.get(MISSING):
        raise UserError(
            f"{folder} is not complete: {_some(missing, 'shard')} missing; "
            f"make the rest with: {_commands(missing, plan, options)}"
        )
    if damaged := faults.get(DAMAGED):
        raise UserError(
            f"{folder}: {_some(damaged, 'shard')} damaged or of another plan (sha256, samples or pictures differ); "
            f"make them again with: {_commands(damaged, plan, options, ' --repair')}"
        )
    if constant := faults.get(CONSTANT):
        raise UserError(
            f"{folder}: {_some(constant, 'image')} of one colour only, because of the model or its settings: "
            "look at them, choose other steps, guidance or precision and a new --output_dir, or reject them with --sift"
        )


def _commands(shards: list[str], plan: Plan, options: GenerateConfig, repair: str = "") -> str:
    """Return the commands that make shards again: `work` for synthetic ones, `plan` for real ones."""
    ldm, output, images = map(quote, map(str, (options.ldm_path, options.output_dir, options.include_real or "PACKED")))
    folders = f"--ldm_path {ldm} --output_dir {output}"
    real = [name for name in shards if name.startswith(REAL)]
    sources = f" --from_dir {quote(str(options.from_dir or 'PACKED'))}" if plan.redraw else ""
    commands = [f"mdaug generate --step work {folders}{sources}{repair}"] if len(real) < len(shards) else []
    if real:
        commands.append(f"mdaug generate --step plan {folders} --include_real {images}")
    return " && ".join(commands)


def _some(names: list[str], what: str) -> str:
    """Return a few of many names, and how many there are."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{shown} ({len(names)} {what + ' is' if len(names) == 1 else what + 's are'})"

"""`mdaug pack`: an image folder -> tar shards + index, split by group, with a report that adds up."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shards import atomic, duplicates, image_to_png, provenance
from shards.errors import UserError
from shards.image_to_png import NO_FRAME, Checked, to_png
from shards.index import content_hash, write_index
from shards.options import PackConfig
from shards.output_folder import (
    LISTING_FILE,
    RUN_FILE,
    OutputFolder,
    claim,
    exclusive,
    read_run,
    refuse_other,
    require_apart,
)
from shards.pack_plan import PackPlan, make_plan
from shards.pack_report import summary
from shards.pool import Pool
from shards.progress import Progress, say
from shards.source import METADATA, SourceFolder, SourceImage, read_folder
from shards.validation import Preflight, identity_of, plain
from shards.writer import disk_full_as_user_error, finished, require_writable, write_shard

CLASSES, REPORT = "classes.json", "report.json"


def check(options: PackConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds something else, as far as that shows without reading the images."""
    require_apart(options.data_dir, options.output_dir)
    refuse_other(options.output_dir, "pack", identity_of(options))


def run(options: PackConfig) -> None:
    """Pack `options.data_dir` into `options.output_dir`; docs/data-format.md describes what is written.

    The bytes of the shards depend on the images, metadata.csv and `identity_of(options)` alone.

    Raises:
        UserError: a folder that cannot be packed, or an output folder that holds something else.
    """
    output = options.output_dir
    check(options, Preflight())
    provenance.require_whole(
        options.data_dir,
        otherwise=f"; or, if files were taken out on purpose, delete {RUN_FILE} and {provenance.FILE_NAME} there",
    )
    simulated = _hash_of_simulated(options.data_dir)
    folder = read_folder(options.data_dir, options.class_depth)
    if options.dry_run:
        with Pool(options.workers, len(folder.images)) as pool:
            plan = make_plan(options, folder, _check(folder, pool))
        say(f"{summary(plan.report, options.data_dir)}\n--dry_run: nothing was written")
        return
    require_writable(output)
    output.mkdir(parents=True, exist_ok=True)
    with disk_full_as_user_error(output), exclusive(output):
        refuse_other(output, "pack", identity_of(options))  # again: another process may have been here meanwhile
        # The same files by name, size and time: nothing is opened.
        listing = output / LISTING_FILE
        if _is_complete(output) and listing.is_file() and listing.read_text() == folder.listing:
            say(f"{output} is packed already: nothing to do")
            return
        with Pool(options.workers, len(folder.images)) as pool:
            # What the images are, and all decisions. The folder is claimed when nothing is left to be refused.
            checked = _check(folder, pool)
            made_from = {"folder": _source_hash(folder, checked)}
            refuse_other(output, "pack", identity_of(options), made_from)
            if _is_complete(output):
                say(f"{output} is packed already, from the same images: nothing to do")
                return
            plan = make_plan(options, folder, checked)
            mine = claim(output, "pack", identity_of(options), made_from, wait=True)
            mine.made_from |= simulated
            mine.begin_again()
            _write_shards(plan, options.shard_size, mine, pool)
        # What makes the shards a data set; the mark of the end is last.
        extra = {"image_shape": [plan.size[1], plan.size[0], plan.channels], "colormap": plan.colormap}
        for side in plan.samples:
            write_index(output / side, plan.classes, **extra)
        atomic.write_text(output / CLASSES, json.dumps(plan.classes, ensure_ascii=False) + "\n")
        atomic.write_text(output / REPORT, json.dumps(plan.report, indent=1, ensure_ascii=False) + "\n")
        atomic.write_text(listing, folder.listing)
        config = {name: plain(value) for name, value in asdict(options).items()}
        mine.finish("images", content_hash(output), config)
    written = f"wrote {output}; {output / REPORT} names every file rejected or converted"
    say(f"{summary(plan.report, options.data_dir)}\n{written}")


def _hash_of_simulated(data_dir: Path) -> dict[str, str]:
    """Return {"simulate": content hash} of a folder that mdaug simulated, whose metadata are the truth; else {}.

    Raises UserError for an image folder that a command of mdaug began and did not finish.
    """
    marks = [data_dir / RUN_FILE, data_dir / provenance.FILE_NAME]
    if not any(mark.is_file() for mark in marks):
        return {}
    if absent := [mark.name for mark in marks if not mark.is_file()]:
        raise UserError(
            f"{data_dir} has no {absent[0]}: mdaug began it and did not finish; give the command that made it again, "
            f"or delete {RUN_FILE} and {provenance.FILE_NAME} there to take the images as they are"
        )
    record, run = provenance.read(data_dir, "image-folder"), read_run(data_dir)
    return {"simulate": record["hash"]} if run and run["command"] == "simulate" else {}


def read_report(output: Path) -> dict[str, Any]:
    """Return the report.json of a finished packing."""
    return json.loads((output / REPORT).read_text(encoding="utf-8"))


def _is_complete(output: Path) -> bool:
    """Return whether a packing came to its end and still has all its files."""
    return provenance.is_whole(output)


def _write_shards(plan: PackPlan, shard_size: int, output: OutputFolder, pool: Pool) -> None:
    """Write every shard that is not there yet."""
    done = 0
    label = {name: str(i).encode() for i, name in enumerate(plan.classes)}
    convert = functools.partial(_convert, plan.folder.root, plan.size, plan.channels, plan.colormap)
    with Progress("packing", plan.report["packed"], "image") as progress:
        for side, images in plan.samples.items():
            for number, start in enumerate(range(0, len(images), shard_size)):
                path = output.path / side / f"{number:06d}.tar"
                chunk = images[start : start + shard_size]
                if finished(path) is None:
                    jobs = [
                        (i.path, plan.own_maps.get(i.path), plan.crops.get(i.path, NO_FRAME), i.path in plan.turned)
                        for i in chunk
                    ]
                    fields = (
                        (image.key, {"png": png, "cls": label[image.class_name], "json": _meta(plan, image)})
                        for image, png in zip(chunk, pool.map(convert, jobs), strict=True)
                    )
                    write_shard(path, fields)
                progress.update(len(chunk))
                done += len(chunk)
                output.progress(done, plan.report["packed"], "image")


def _convert(
    root: Path,
    size: tuple[int, int],
    channels: int,
    colormap: str | None,
    job: tuple[str, str | None, tuple[int, int, int, int], bool],
) -> bytes:
    path, own_map, crop, turned = job
    return to_png(root / path, size, channels, colormap, own_map, crop, turned)


def _meta(plan: PackPlan, image: SourceImage) -> bytes:
    meta = image.metadata | {
        "class": image.class_name,
        "group": plan.split.group[image.path],
        "source": image.path,
    }
    return json.dumps(meta, ensure_ascii=False).encode()


def _check(folder: SourceFolder, pool: Pool) -> dict[str, Checked]:
    """Decode every image once, to know what can be packed before the split is made."""
    checked: dict[str, Checked] = {}
    with Progress("checking", len(folder.images), "image") as progress:
        results = pool.map(image_to_png.check, [folder.root / image.path for image in folder.images])
        for image, result in zip(folder.images, results, strict=True):
            checked[image.path] = result
            progress.update()
    suspects = duplicates.suspects(checked)
    for path, pixels in zip(
        suspects, pool.map(image_to_png.hash_pixels, [folder.root / p for p in suspects]), strict=True
    ):
        checked[path] = replace(checked[path], pixels=pixels)
    return checked


def _source_hash(folder: SourceFolder, checked: dict[str, Checked]) -> str:
    digest = hashlib.sha256(json.dumps([[path, c.sha256] for path, c in sorted(checked.items())]).encode())
    digest.update(json.dumps(sorted(folder.rejected.items())).encode())
    if (folder.root / METADATA).is_file():
        digest.update((folder.root / METADATA).read_bytes())
    return digest.hexdigest()

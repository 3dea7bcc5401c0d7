"""`mdaug pack`: an image folder -> tar shards + index, split by group, with a report that adds up."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards import atomic, image_to_png
from shards.colormap import COLORMAPS, detect, most_frequent
from shards.errors import UserError
from shards.image_to_png import Checked, to_png
from shards.index import FILE_NAME as INDEX
from shards.index import SPLITS, content_hash, read_index, write_index
from shards.options import PackConfig
from shards.output_folder import LISTING_FILE, OutputFolder, claim, exclusive, is_finished, refuse_other, require_apart
from shards.pack_report import make_report, summary
from shards.pool import Pool
from shards.progress import Progress, say
from shards.source import METADATA, SourceFolder, SourceImage, plain_value, read_folder
from shards.split import Split, split_images
from shards.validation import Preflight, height_width, identity_of, plain
from shards.writer import disk_full_as_user_error, finished, write_shard

CLASSES, REPORT = "classes.json", "report.json"
COLORMAP_IMAGES = 32  # images among which the floor's colour is looked for


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
    folder = read_folder(options.data_dir)
    with disk_full_as_user_error(output):
        claim(output, "pack", identity_of(options))
        with exclusive(output):
            # The same files by name, size and time: nothing is opened.
            listing = output / LISTING_FILE
            if _is_complete(output) and listing.is_file() and listing.read_text() == folder.listing:
                say(f"{output} is packed already: nothing to do")
                return
            with Pool(options.workers, len(folder.images)) as pool:
                # What the images are, and whether they are those of an earlier run into this folder.
                checked = _check(folder, pool)
                source = _source_hash(folder, checked)
                mine = claim(output, "pack", identity_of(options), {"folder": source})
                if _is_complete(output):
                    say(f"{output} is packed already, from the same images: nothing to do")
                    return
                mine.begin_again()
                # All decisions, then the shards.
                job = _Job.plan(options, folder, checked)
                job.write_shards(mine, pool)
            # What makes the shards a data set; the mark of the end is last.
            extra = {"image_shape": [job.size[1], job.size[0], job.channels], "colormap": job.colormap}
            for side in job.samples:
                write_index(output / side, folder.classes, **extra)
            atomic.write_text(output / CLASSES, json.dumps(folder.classes, ensure_ascii=False) + "\n")
            atomic.write_text(output / REPORT, json.dumps(job.report, indent=1, ensure_ascii=False) + "\n")
            atomic.write_text(listing, folder.listing)
            config = {name: plain(value) for name, value in asdict(options).items()}
            mine.finish("images", content_hash(output), config)
    say(f"{summary(job.report, folder)}\nwrote {output}; {output / REPORT} names every file rejected or converted")


def read_report(output: Path) -> dict[str, Any]:
    """Return the report.json of a finished packing."""
    return json.loads((output / REPORT).read_text(encoding="utf-8"))


def _is_complete(output: Path) -> bool:
    """Return whether a packing came to its end and still has all its shards."""
    if not is_finished(output):
        return False
    sides = [output / side for side in read_report(output)["splits"]]
    if not all((side / INDEX).is_file() for side in sides):
        return False
    return all(finished(side / shard["url"]) for side in sides for shard in read_index(side)["shardlist"])


@dataclass
class _Job:
    """Everything that is decided before the first shard is written.

    Attributes:
        folder: the image folder.
        split: where each image goes.
        samples: "train", "val", "test" -> images in the order of the shards.
        size: (width, height) of all packed images.
        channels: 1 or 3.
        colormap: the colour map that is inverted, or None.
        shard_size: samples per shard.
        report: the content of report.json.
    """

    folder: SourceFolder
    split: Split
    samples: dict[str, list[SourceImage]]
    size: tuple[int, int]
    channels: int
    colormap: str | None
    shard_size: int
    report: dict[str, Any]

    @classmethod
    def plan(cls, config: PackConfig, folder: SourceFolder, checked: dict[str, Checked]) -> _Job:
        """Decide what is packed, where, and in which form."""
        rejected = folder.rejected | _bad_images(folder, checked)
        good = [image for image in folder.images if image.path not in rejected]
        for name in folder.classes:
            if not any(image.class_name == name for image in good):
                path = next(image.path for image in folder.images if image.class_name == name)
                raise UserError(
                    f"class folder {folder.root / name}: none of its images can be packed (the first, {path}: "
                    f"{rejected[path]}); mend them or remove the folder"
                )
        split = split_images(
            good, group_by=config.group_by, val_fraction=config.val_fraction, gap=config.gap, seed=config.seed
        )
        rejected |= split.dropped
        good = [image for image in good if image.path not in rejected]
        sizes = Counter(checked[image.path].size for image in good)
        common = max(sizes, key=lambda size: (sizes[size], size))
        size = height_width(config.image_size)[::-1] if config.image_size else common
        coloured = [folder.root / image.path for image in good if checked[image.path].channels == 3]
        levels = config.image_mode in ("gray", "level")
        colormap = _colormap(config.colormap, coloured) if levels and coloured else None
        plain = not coloured or (config.image_mode == "level" and colormap is not None)
        channels = {"rgb": 3, "gray": 1}.get(config.image_mode, 1 if plain else 3)
        samples: dict[str, list[SourceImage]] = {}
        for number, side in enumerate(SPLITS):
            own = [image for image in good if split.side[image.path] == side]
            if own:  # in mixed order, for readers that shuffle only within a shard
                order = np.random.Generator(np.random.Philox(key=[config.seed, 1 + number])).permutation(len(own))
                samples[side] = [own[i] for i in order]
        report = make_report(folder, checked, rejected, split, samples, size, channels, colormap)
        if config.image_mode == "level" and channels == 3:
            report["notes"].append(
                "image_mode level keeps these images in colour (rgb): their colour map is not known, so the level "
                f"behind a colour is not either; name the map with --colormap ({', '.join(COLORMAPS)})"
            )
        return cls(folder, split, samples, size, channels, colormap, config.shard_size, report)

    def write_shards(self, output: OutputFolder, pool: Pool) -> None:
        """Write every shard that is not there yet."""
        done = 0
        label = {name: str(i).encode() for i, name in enumerate(self.folder.classes)}
        convert = functools.partial(to_png, size=self.size, channels=self.channels, colormap=self.colormap)
        with Progress("packing", self.report["packed"], "image") as progress:
            for side, images in self.samples.items():
                for number, start in enumerate(range(0, len(images), self.shard_size)):
                    path = output.path / side / f"{number:06d}.tar"
                    chunk = images[start : start + self.shard_size]
                    if finished(path) is None:
                        pngs = pool.map(convert, [self.folder.root / image.path for image in chunk])
                        fields = (
                            (image.key, {"png": png, "cls": label[image.class_name], "json": self._meta(image)})
                            for image, png in zip(chunk, pngs, strict=True)
                        )
                        write_shard(path, fields)
                    progress.update(len(chunk))
                    done += len(chunk)
                    output.progress(done, self.report["packed"], "image")

    def _meta(self, image: SourceImage) -> bytes:
        meta = {name: plain_value(value) for name, value in image.metadata.items() if value}
        meta |= {"class": image.class_name, "group": self.split.group[image.path], "source": image.path}
        return json.dumps(meta, ensure_ascii=False).encode()


def _colormap(wanted: str, paths: list[Path]) -> str | None:
    """Return the name of the colour map of coloured images; None for brightness, also where none is recognised."""
    if wanted != "auto":
        return None if wanted == "none" else wanted
    shown = paths[:: max(1, len(paths) // COLORMAP_IMAGES)]
    pixels = []
    for path in shown:
        with Image.open(path) as image:
            pixels.append(np.asarray(image.convert("RGB")).reshape(-1, 3))
    return detect(most_frequent(np.concatenate(pixels)))


def _check(folder: SourceFolder, pool: Pool) -> dict[str, Checked]:
    """Decode every image once, to know what can be packed before the split is made."""
    checked: dict[str, Checked] = {}
    with Progress("checking", len(folder.images), "image") as progress:
        results = pool.map(image_to_png.check, [folder.root / image.path for image in folder.images])
        for image, result in zip(folder.images, results, strict=True):
            checked[image.path] = result
            progress.update()
    return checked


def _source_hash(folder: SourceFolder, checked: dict[str, Checked]) -> str:
    digest = hashlib.sha256(json.dumps([[path, c.sha256] for path, c in sorted(checked.items())]).encode())
    digest.update(json.dumps(sorted(folder.rejected.items())).encode())
    if (folder.root / METADATA).is_file():
        digest.update((folder.root / METADATA).read_bytes())
    return digest.hexdigest()


def _bad_images(folder: SourceFolder, checked: dict[str, Checked]) -> dict[str, str]:
    """Return path -> reason of the images that cannot be packed or that another image repeats."""
    bad: dict[str, str] = {}
    first: dict[str, str] = {}
    for image in folder.images:
        result = checked[image.path]
        if result.error:
            bad[image.path] = result.error
        elif (original := first.setdefault(result.sha256, image.path)) != image.path:
            bad[image.path] = f"same bytes as {original}"
    return bad

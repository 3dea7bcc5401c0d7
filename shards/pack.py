"""`mdaug pack`: an image folder -> tar shards + index, split by group, with a report that adds up."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from shards import atomic, provenance
from shards.colormap import COLORMAPS, detect, most_frequent
from shards.errors import UserError
from shards.image_to_png import Checked, check, to_png
from shards.index import SPLITS, content_hash, write_index
from shards.output_folder import REPORT, is_complete, lock, read_plan, require_apart, say, write_plan
from shards.pack_report import make_report, summary
from shards.progress import Progress
from shards.source import METADATA, SourceFolder, SourceImage, plain_value, read_folder
from shards.split import Split, split_images
from shards.validation import height_width, written
from shards.writer import finished, one_line_for_a_full_disk, write_shard

CLASSES = "classes.json"
MOST_WORKERS = 256
COLORMAP_IMAGES = 32  # images among which the floor's colour is looked for


@dataclass
class PackConfig:
    """Pack an image folder into WebDataset tar shards with an index, split into train and val by group."""

    data_dir: Path
    """Image folder: <class>/*.png|jpg|jpeg or {train,val,test}/<class>/*; metadata.csv (column `file`) may join."""
    output_dir: Path
    """Folder to write. The same command again continues there, or says that it is finished."""
    image_size: int | str | None = None
    """Pixels that every image is resized to: one number for squares, or height x width such as 128x256; by default the
    most frequent size of the images."""
    image_mode: Literal["auto", "rgb", "gray", "level"] = "auto"
    """Three channels or one; auto: one if every image is single channel, else three. gray takes from coloured images
    the level behind their colour map, and keeps the map as the palette of the PNGs; level: gray where that map is known
    (or there are no coloured images), else rgb."""
    colormap: str = "auto"
    """Colour map that image_mode gray and level invert: jet-256 and jet-64 (MATLAB), matplotlib-jet, parula (MATLAB
    until R2016b), parula-2017 (since) or viridis; auto: told by the most frequent colour, which is the floor; none: the
    brightness of the colours."""
    group_by: str | None = None
    """What must not be torn between train and val: a regular expression with one capture group, searched in the path
    of the image relative to data_dir, or column:<name> of metadata.csv. By default the metadata column `group`, else
    runs of consecutive numbers at the end of the file names."""
    val_fraction: float = 0.2
    """Share of the images of each class that goes to val, in (0, 0.5]."""
    gap: int = 4
    """With running numbers: images left out between train and val, so that overlapping windows do not leak."""
    shard_size: int = 256
    """Samples per shard."""
    seed: int = 0
    """Seed of the choice of groups and of the order of the samples in the shards."""
    workers: int = 0
    """Processes that decode and resize; 0: one per CPU core."""

    def __post_init__(self) -> None:
        self.data_dir, self.output_dir = Path(self.data_dir), Path(self.output_dir)
        if self.image_size is not None:
            self.image_size = written(*height_width(self.image_size))
        if self.image_mode not in ("auto", "rgb", "gray", "level"):
            raise ValueError(f"image_mode is '{self.image_mode}'; auto, rgb, gray and level are accepted")
        if self.colormap not in ("auto", "none", *COLORMAPS):
            raise ValueError(f"colormap is '{self.colormap}'; auto, none, {', '.join(COLORMAPS)} are accepted")
        if not 0 < self.val_fraction <= 0.5:
            raise ValueError(f"val_fraction is {self.val_fraction}; a share in (0, 0.5] is needed")
        for name, least in (("gap", 0), ("shard_size", 1), ("seed", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; a number >= {least} is needed")
        if self.workers > MOST_WORKERS:
            raise ValueError(f"workers is {self.workers}; at most {MOST_WORKERS} are accepted, for all start at once")
        if self.group_by is not None and not self.group_by.startswith("column:"):
            try:
                groups = re.compile(self.group_by).groups
            except re.error as error:
                raise ValueError(f"group_by is '{self.group_by}', no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"group_by is '{self.group_by}' with {groups} capture groups; exactly one is needed")

    def options(self) -> dict[str, Any]:
        """Return what decides the bytes of the output, besides the images."""
        return {k: v for k, v in asdict(self).items() if k not in ("data_dir", "output_dir", "workers")}

    def check_output(self, inputs_there: bool) -> None:
        """Raise UserError where output_dir holds something else, as far as that shows without reading the images."""
        require_apart(self.data_dir, self.output_dir)
        if self.output_dir.is_dir():
            read_plan(self.output_dir, self.options())


def pack(config: PackConfig) -> None:
    """Pack `config.data_dir` into `config.output_dir`; docs/data-format.md describes what is written.

    The bytes of the shards depend on the images, metadata.csv and `config.options()` alone.

    Raises:
        UserError: a folder that cannot be packed, or an output folder that holds something else.
    """
    output = config.output_dir
    config.check_output(inputs_there=True)  # before the lock, which is a file in it
    folder = read_folder(config.data_dir)
    output.mkdir(parents=True, exist_ok=True)
    with one_line_for_a_full_disk(output), lock(output):
        plan = read_plan(output, config.options())
        if plan and plan["listing"] == folder.listing and is_complete(output):
            say(f"{output} is packed already: nothing to do")
            return
        with _mapper(config.workers) as mapper:
            checked = _check(folder, mapper)
            source_hash = _source_hash(folder, checked)
            record = {
                "options": config.options(),
                "data_dir": str(config.data_dir),
                "files": len(checked) + len(folder.rejected),
                "listing": folder.listing,
                "source": source_hash,
            }
            write_plan(output, plan, record)
            if plan and is_complete(output):
                say(f"{output} is packed already, from the same images: nothing to do")
                return
            job = _Job.plan(config, folder, checked)
            job.write_shards(output, mapper)
        extra = {"image_shape": [job.size[1], job.size[0], job.channels], "colormap": job.colormap}
        for side in job.samples:
            write_index(output / side, folder.classes, **extra)
        atomic.write_text(output / CLASSES, json.dumps(folder.classes, ensure_ascii=False) + "\n")
        atomic.write_text(output / REPORT, json.dumps(job.report, indent=1, ensure_ascii=False) + "\n")
        provenance.write(
            output,
            kind="images",
            content_hash=content_hash(output),
            made_from={"folder": source_hash},
            config={**asdict(config), "data_dir": str(config.data_dir), "output_dir": str(output)},
        )
    say(f"{summary(job.report, folder)}\nwrote {output}; {output / REPORT} names every file rejected or converted")


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

    def write_shards(self, output: Path, mapper: _Mapper) -> None:
        """Write every shard that is not there yet."""
        label = {name: str(i).encode() for i, name in enumerate(self.folder.classes)}
        convert = functools.partial(to_png, size=self.size, channels=self.channels, colormap=self.colormap)
        with Progress("packing", self.report["packed"], "image") as progress:
            for side, images in self.samples.items():
                for number, start in enumerate(range(0, len(images), self.shard_size)):
                    path = output / side / f"{number:06d}.tar"
                    chunk = images[start : start + self.shard_size]
                    if finished(path) is None:
                        pngs = mapper(convert, [self.folder.root / image.path for image in chunk])
                        fields = (
                            (image.key, {"png": png, "cls": label[image.class_name], "json": self._meta(image)})
                            for image, png in zip(chunk, pngs, strict=True)
                        )
                        write_shard(path, fields)
                    progress.update(len(chunk))

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


class _Mapper:
    """`map` over a pool of processes, or in this one."""

    def __init__(self, pool: ProcessPoolExecutor | None):
        self.pool = pool

    def __call__(self, function, items: list) -> Iterator:
        return self.pool.map(function, items, chunksize=8) if self.pool else map(function, items)


@contextlib.contextmanager
def _mapper(workers: int) -> Iterator[_Mapper]:
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1:
        yield _Mapper(None)
        return
    # fork, as torch's DataLoader does: spawn would run the user's script again. The children only use Pillow.
    context = get_context("fork")
    with ProcessPoolExecutor(
        workers, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        yield _Mapper(pool)


def _check(folder: SourceFolder, mapper: _Mapper) -> dict[str, Checked]:
    """Decode every image once, to know what can be packed before the split is made."""
    checked: dict[str, Checked] = {}
    with Progress("checking", len(folder.images), "image") as progress:
        results = mapper(check, [folder.root / image.path for image in folder.images])
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

"""`mdaug simulate`: a labelled folder of spectrograms from physics, with every parameter in metadata.csv."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
from PIL import Image

from mdaug import config
from mdaug.radar.fit import Fit
from mdaug.radar.image_folder import METADATA_FILE, table, write_picture
from mdaug.radar.options import SimulateConfig
from mdaug.radar.presets import NO_FIT, PHYSICS, preset_of
from shards import atomic, provenance
from shards.output_folder import OutputFolder, claim, refuse_other
from shards.pool import Pool
from shards.progress import Progress
from shards.validation import Preflight, identity_of

NOT_LIKE = {"like": None}  # what the pictures are made from, where no set is imitated


def check(options: SimulateConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds something else."""
    refuse_other(options.output_dir, "simulate", identity(options), NOT_LIKE)


def run(options: SimulateConfig) -> None:
    """Write the image folder, metadata.csv (one row per picture) and, last, provenance.json.

    A picture is a pure function of (seed, class, index) and of the preset's numbers, so an interrupted run goes
    on with the pictures that are missing and ends with the bytes that it would have had.

    Raises UserError for a folder that holds something else, and when the disk is full.
    """
    output = claim(options.output_dir, "simulate", identity(options), NOT_LIKE, wait=True)
    if is_finished(output):
        return
    output.begin_again()
    rows = write_pictures(options, NO_FIT, output)
    finish(options, rows, output)


def is_finished(output: OutputFolder) -> bool:
    """Return whether there is nothing to do, and say so."""
    if output.finished:
        print(f"{output.path} is finished; nothing to do")
    return output.finished


def write_pictures(options: SimulateConfig, fit: Fit, output: OutputFolder) -> list[dict]:
    """Write the pictures that are missing; return the metadata rows of all."""
    folder = options.output_dir
    jobs = preset_of(options, fit).jobs()
    rows = [row for job in jobs for row in job]
    for name in dict.fromkeys(row["class"] for row in rows):
        (folder / name).mkdir(exist_ok=True)
        atomic.remove_debris(folder / name)
    missing = [job for job in jobs if not all((folder / row["file"]).is_file() for row in job)]
    count = sum(len(job) for job in missing)
    with Progress("simulating", count, "image") as progress, Pool(options.workers, len(missing)) as pool:
        for made in pool.map(partial(make, options, fit), missing):
            progress.update(made)
            output.progress(len(rows) - count + progress.count, len(rows), "image")
    return rows


def finish(options: SimulateConfig, rows: list[dict], output: OutputFolder) -> None:
    """Write what each of the pictures shows, and the mark of the end."""
    folder = options.output_dir
    atomic.write_text(folder / METADATA_FILE, table(rows))
    content = provenance.hash_files([folder / METADATA_FILE, *(folder / row["file"] for row in rows)])
    output.finish("image-folder", content, config.as_dict(options) | {"physics": PHYSICS})
    print(f"{folder}: {len(rows)} pictures of {len({row['class'] for row in rows})} classes")


def make(options: SimulateConfig, fit: Fit, job: list[dict]) -> int:
    """Write the pictures of one job; return their number."""
    for row, data in preset_of(options, fit).render(job):
        write_picture(options.output_dir / row["file"], data)
    return len(job)


def draw_pictures(options: SimulateConfig, fit: Fit, job: list[dict]) -> list[np.ndarray]:
    """Return the pictures of one job, uint8 (H, W, C), as an image file would show them."""
    pictures = (np.asarray(Image.open(io.BytesIO(data))) for _, data in preset_of(options, fit).render(job))
    return [picture.reshape(*picture.shape[:2], -1) for picture in pictures]


def identity(options: SimulateConfig) -> dict:
    """Return what decides the bytes of the folder, but for the set that is imitated."""
    return identity_of(options) | {"physics": PHYSICS}

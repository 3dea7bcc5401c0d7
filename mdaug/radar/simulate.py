"""`mdaug simulate`: a labelled folder of spectrograms from physics, with every parameter in metadata.csv."""

from __future__ import annotations

from functools import partial

from mdaug import config
from mdaug.radar.image_folder import METADATA_FILE, table, write_picture
from mdaug.radar.options import SimulateConfig
from mdaug.radar.presets import PHYSICS, preset_of
from shards import atomic, provenance
from shards.output_folder import claim, refuse_other
from shards.pool import Pool
from shards.progress import Progress
from shards.validation import Preflight, identity_of


def check(options: SimulateConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds something else."""
    refuse_other(options.output_dir, "simulate", _identity(options))


def run(options: SimulateConfig) -> None:
    """Write the image folder, metadata.csv (one row per picture) and, last, provenance.json.

    A picture is a pure function of (seed, class, index) and of the preset's numbers, so an interrupted run goes
    on with the pictures that are missing and ends with the bytes that it would have had.

    Raises UserError for a folder that holds something else, and when the disk is full.
    """
    folder = options.output_dir
    jobs = preset_of(options).jobs()
    rows = [row for job in jobs for row in job]
    output = claim(folder, "simulate", _identity(options), wait=True)
    if output.finished:
        print(f"{folder} is finished: {len(rows)} pictures; nothing to do")
        return
    output.begin_again()
    # The pictures, each class in a folder of its own.
    for name in dict.fromkeys(row["class"] for row in rows):
        (folder / name).mkdir(exist_ok=True)
        atomic.remove_debris(folder / name)
    missing = [job for job in jobs if not all((folder / row["file"]).is_file() for row in job)]
    count = sum(len(job) for job in missing)
    with Progress("simulating", count, "image") as progress, Pool(options.workers, len(missing)) as pool:
        for made in pool.map(partial(make, options), missing):
            progress.update(made)
            output.progress(len(rows) - count + progress.count, len(rows), "image")
    # What each of them shows, and the mark of the end.
    atomic.write_text(folder / METADATA_FILE, table(rows))
    content = provenance.hash_files([folder / METADATA_FILE, *(folder / row["file"] for row in rows)])
    output.finish("image-folder", content, config.as_dict(options) | {"physics": PHYSICS})
    print(f"{folder}: {len(rows)} pictures of {len({row['class'] for row in rows})} classes")


def make(options: SimulateConfig, job: list[dict]) -> int:
    """Write the pictures of one job; return their number."""
    for row, data in preset_of(options).render(job):
        write_picture(options.output_dir / row["file"], data)
    return len(job)


def _identity(options: SimulateConfig) -> dict:
    return identity_of(options) | {"physics": PHYSICS}

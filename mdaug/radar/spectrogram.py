"""`mdaug spectrogram`: raw recordings of a radar -> a labelled folder of spectrograms, every file accounted for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mdaug.config import as_dict
from mdaug.radar.image_folder import METADATA_FILE, encode, table, write_picture
from mdaug.radar.options import SpectrogramConfig
from mdaug.radar.recordings import Radar, Recording, Source, Unreadable, find, read
from mdaug.radar.stft import PRESETS, Chain, brightness, velocity_over_time
from shards import atomic, provenance
from shards.errors import UserError
from shards.output_folder import LISTING_FILE, OutputFolder, claim, is_finished, refuse_other, require_apart
from shards.pool import Pool
from shards.progress import Progress
from shards.validation import Preflight, height_width, identity_of

REPORT, DONE = "report.json", ".recordings"


def check(options: SpectrogramConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds something else, or an existing data_dir holds no recording."""
    require_apart(options.data_dir, options.output_dir)
    refuse_other(options.output_dir, "spectrogram", identity_of(options))
    if where.inputs_there:
        _sources(options)


def _sources(options: SpectrogramConfig) -> tuple[list[Source], dict[str, str]]:
    """Return the recordings of data_dir, and path -> reason for every other file; UserError where there is none."""
    return find(options.data_dir, glasgow=options.preset == "glasgow", class_pattern=options.class_pattern)


def run(options: SpectrogramConfig) -> None:
    """Write the image folder, metadata.csv (one row per picture), report.json and, last, provenance.json.

    The pictures of a recording depend on its bytes and on the options alone. An interrupted run goes on with the
    recordings that are missing.

    Raises:
        UserError: no recording can be used, the output folder holds something else, or the disk is full.
    """
    require_apart(options.data_dir, options.output_dir)
    sources, rejected = _sources(options)
    files = len(sources) + len(rejected)
    folder = options.output_dir
    listing = _listing(options.data_dir, sources)
    output = claim(folder, "spectrogram", identity_of(options), wait=True)
    if is_finished(folder):
        made_from = (folder / LISTING_FILE).read_text() if (folder / LISTING_FILE).is_file() else ""
        if len(made_from) == len(listing) and made_from != listing:
            raise UserError(
                f"the recordings in {options.data_dir} are not those that {folder} was made from; "
                "choose another --output_dir, or delete that folder"
            )
        if output.finished:
            report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            print(f"{folder} is finished: {report['pictures']} pictures; nothing to do")
            return
    output.begin_again()
    # Forget recordings that are gone since the run was interrupted, and what a killed process left.
    (folder / DONE).mkdir(exist_ok=True)
    keys = {source.key for source in sources}
    for record in (folder / DONE).glob("*.json"):
        if record.stem not in keys:
            _forget(folder, record)
    for written in (folder / DONE, *{folder / source.class_name for source in sources}):
        atomic.remove_debris(written)
    # The pictures of each recording.
    done: list[dict] = []
    with Progress("recordings", len(sources), "recording") as progress, Pool(options.workers, len(sources)) as pool:
        for source, result in zip(sources, pool.map(partial(make, options), sources), strict=True):
            progress.update()
            output.progress(progress.count, len(sources), "recording")
            if "reason" in result:
                rejected[source.path] = result["reason"]
            else:
                done.append(result)
    if not done:
        path = sources[0].path
        raise UserError(f"none of the {files} files in {options.data_dir} can be used; {path}: {rejected[path]}")
    _finish(options, output, listing, files, done, rejected)


def make(config: SpectrogramConfig, source: Source) -> dict:
    """Write the pictures of a recording; return its metadata "rows" and "sha256", or the "reason" why not."""
    path, record = config.data_dir / source.path, config.output_dir / DONE / f"{source.key}.json"
    stamp = _stamp(path)
    if record.is_file():
        saved = json.loads(record.read_text(encoding="utf-8"))
        if saved["stamp"] == stamp:
            return saved
        _forget(config.output_dir, record)  # the recording has changed since
    rows = []
    try:
        recording = read(path, Radar(config.carrier_hz, config.prf_hz, config.bandwidth_hz), config.variable)
        for number, (start_s, levels) in enumerate(_pictures(config, recording)):
            name = f"{source.class_name}/{source.key}_{number:03d}.png"
            (config.output_dir / source.class_name).mkdir(exist_ok=True)
            write_picture(config.output_dir / name, encode(levels, config.image_mode, format="PNG"))
            rows.append({"file": name, **_columns(config, source, recording), "start_s": round(start_s, 6)})
    except Unreadable as error:
        return {"reason": str(error)}
    result = {"stamp": stamp, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "rows": rows}
    atomic.write_text(record, json.dumps(result))
    return result


def _forget(folder: Path, record: Path) -> None:
    """Remove the pictures of a recording, and its record."""
    for row in json.loads(record.read_text(encoding="utf-8"))["rows"]:
        (folder / row["file"]).unlink(missing_ok=True)
    record.unlink()


def _pictures(config: SpectrogramConfig, recording: Recording) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (start in the recording in s, levels uint8 (H, W)) of each picture; Unreadable where there is none."""
    chain = chain_of(config)
    amplitudes = velocity_over_time(recording, chain)
    columns = amplitudes.shape[1]
    hop_s = round(chain.hop_s * recording.prf_hz) / recording.prf_hz
    if config.duration_s is not None:
        columns = int((config.duration_s - chain.window_s) / hop_s + 1e-9) + 1
        if columns < 2:
            raise Unreadable(f"duration_s {config.duration_s:g} is not longer than window_s {chain.window_s:g}")
        if columns > amplitudes.shape[1]:
            lasts = chain.window_s + (amplitudes.shape[1] - 1) * hop_s
            raise Unreadable(f"{lasts:.3g} s are left after settle_s, less than duration_s {config.duration_s:g}")
    height, width = height_width(config.image_size)
    step = max(1, round(columns * (1 - config.overlap)))
    for start in range(0, amplitudes.shape[1] - columns + 1, step):
        part = amplitudes[:, start : start + columns]
        values = brightness(part, chain.clip_db, maximum=(part if config.reference == "picture" else amplitudes).max())
        picture = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
        yield chain.settle_s + start * hop_s, np.round(np.asarray(picture) * 255).clip(0, 255).astype(np.uint8)


def chain_of(config: SpectrogramConfig) -> Chain:
    """Return the numbers of the preset, with those that the user gave instead."""
    names = [field.name for field in dataclasses.fields(Chain)]
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    preset = PRESETS.get(config.preset)
    return dataclasses.replace(preset, **given) if preset else Chain(**given)


def _columns(config: SpectrogramConfig, source: Source, recording: Recording) -> dict[str, Any]:
    chain = dataclasses.asdict(chain_of(config))
    near_far = chain.pop("range_m") or ("", "")
    return {
        "class": source.class_name,
        "group": source.group,
        "recording": source.path,
        **source.columns,
        "carrier_hz": recording.carrier_hz,
        "prf_hz": recording.prf_hz,
        **dict(zip(("range_min_m", "range_max_m"), near_far, strict=True)),
        **chain,
    }


def _finish(
    config: SpectrogramConfig,
    output: OutputFolder,
    listing: str,
    files: int,
    done: list[dict],
    rejected: dict[str, str],
) -> None:
    """Write the files that describe the whole folder, and print what became of every file."""
    folder, rows = config.output_dir, [row for result in done for row in result["rows"]]
    classes = Counter(row["class"] for row in rows)
    report = {
        "files": files,
        "recordings": len(done),
        "pictures": len(rows),
        "classes": dict(classes),
        "rejected": rejected,
    }
    atomic.write_text(folder / METADATA_FILE, table(rows))
    atomic.write_text(folder / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    content = provenance.hash_files([folder / METADATA_FILE, *(folder / row["file"] for row in rows)])
    output.made_from["recordings"] = hashlib.sha256("".join(each["sha256"] for each in done).encode()).hexdigest()
    atomic.write_text(folder / LISTING_FILE, listing)
    output.finish("image-folder", content, as_dict(config))
    shutil.rmtree(folder / DONE)
    print(f"{folder}: {len(rows)} pictures of {len(classes)} classes from {len(done)} recordings")
    print("  " + ", ".join(f"{name} {count}" for name, count in classes.items()))
    if rejected:
        print(f"{files} files = {len(done)} recordings + {len(rejected)} rejected, named in {folder / REPORT}:")
        for reason, count in Counter(rejected.values()).most_common():
            print(f"  {count} x {reason}")


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _listing(root: Path, sources: list[Source]) -> str:
    text = json.dumps([(source.path, source.class_name, *_stamp(root / source.path)) for source in sources])
    return hashlib.sha256(text.encode()).hexdigest()

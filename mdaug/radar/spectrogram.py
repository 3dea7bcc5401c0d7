"""`mdaug spectrogram`: raw recordings of a radar -> a labelled folder of spectrograms, every file accounted for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mdaug.config import as_dict
from mdaug.radar.image_folder import METADATA_FILE, encode, table, write_picture
from mdaug.radar.inspect_recording import inspect
from mdaug.radar.options import SpectrogramConfig
from mdaug.radar.recording import Radar, Unreadable
from mdaug.radar.recordings import Source, files_of, find, read
from mdaug.radar.stft import PRESETS, SILENT, Chain, Transform, brightness
from shards import atomic, provenance
from shards.errors import UserError
from shards.output_folder import LISTING_FILE, OutputFolder, claim, is_finished, refuse_other, require_apart
from shards.pool import Pool
from shards.progress import Progress
from shards.validation import Preflight, height_width, identity_of

REPORT, DONE = "report.json", ".recordings"
MOST_NOTES = 10  # lines at the end; report.json has all of them
MOST_AMPLITUDES = 1 << 27  # of one picture before it is resized


def check(options: SpectrogramConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds something else, or a data_dir that is there holds no recording."""
    if options.inspect is not None:
        return
    require_apart(*folders(options))
    refuse_other(folders(options)[1], "spectrogram", identity_of(options))
    if where.inputs_there:
        _sources(options)


def folders(options: SpectrogramConfig) -> tuple[Path, Path]:
    """Return data_dir and output_dir, which are given unless a single file is inspected."""
    assert options.data_dir is not None
    assert options.output_dir is not None
    return options.data_dir, options.output_dir


def radar_of(options: SpectrogramConfig) -> Radar:
    """Return what the options say of the radar and of the files."""
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Radar)}
    return Radar(**given | {"axes": options.axes and tuple(axis.strip() for axis in options.axes.split(","))})


def _sources(options: SpectrogramConfig) -> tuple[list[Source], dict[str, str]]:
    """Return the recordings of data_dir, and path -> reason for every other file; UserError where there is none."""
    return find(folders(options)[0], glasgow=options.preset == "glasgow", class_pattern=options.class_pattern)


def run(options: SpectrogramConfig) -> None:
    """Write the image folder, metadata.csv (one row per picture), report.json and, last, provenance.json.

    The pictures of a recording depend on its bytes and on the options alone. An interrupted run goes on with the
    recordings that are missing. With `inspect`, say what a reader sees in one file instead, and draw it.

    Raises:
        UserError: no recording can be used, the output folder holds something else, or the disk is full.
    """
    if options.inspect is not None:
        print(inspect(options.inspect, radar_of(options), options.output_dir or Path.cwd()))
        return
    data_dir, folder = folders(options)
    require_apart(data_dir, folder)
    sources, rejected = _sources(options)
    files = len(sources) + len(rejected)
    listing = _listing(data_dir, sources)
    output = claim(folder, "spectrogram", identity_of(options), wait=True)
    if is_finished(folder):
        made_from = (folder / LISTING_FILE).read_text() if (folder / LISTING_FILE).is_file() else ""
        if len(made_from) == len(listing) and made_from != listing:
            raise UserError(
                f"the recordings in {data_dir} are not those that {folder} was made from; "
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
        raise UserError(f"none of the {files} files in {data_dir} can be used; {path}: {rejected[path]}")
    _finish(options, output, listing, files, done, rejected)


def make(config: SpectrogramConfig, source: Source) -> dict:
    """Write the pictures of a recording; return its metadata "rows" and "sha256", or the "reason" why not."""
    data_dir, folder = folders(config)
    path, record = data_dir / source.path, folder / DONE / f"{source.key}.json"
    stamp = _stamp(path)
    if record.is_file():
        saved = json.loads(record.read_text(encoding="utf-8"))
        if saved["stamp"] == stamp:
            return saved
        _forget(folder, record)  # the recording has changed since
    rows: list[dict] = []
    try:
        recording = read(path, radar_of(config))
        transform = Transform(recording, chain_of(config))
        for number, (start_s, levels) in enumerate(_pictures(config, transform)):
            name = f"{source.class_name}/{source.key}_{number:03d}.png"
            (folder / source.class_name).mkdir(exist_ok=True)
            write_picture(folder / name, encode(levels, config.image_mode, format="PNG"))
            rows.append({"file": name, **_columns(transform, source), "start_s": round(start_s, 6)})
    except Unreadable as error:
        for row in rows:
            (folder / row["file"]).unlink()
        return {"reason": str(error)}
    result = {"stamp": stamp, "sha256": _sha256(files_of(path)), "rows": rows, "notes": recording.notes}
    atomic.write_text(record, json.dumps(result))
    return result


def _sha256(paths: list[Path]) -> str:
    """Return the hash of the bytes of files, one after another, read in blocks."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _forget(folder: Path, record: Path) -> None:
    """Remove the pictures of a recording, and its record."""
    for row in json.loads(record.read_text(encoding="utf-8"))["rows"]:
        (folder / row["file"]).unlink(missing_ok=True)
    record.unlink()


def _pictures(config: SpectrogramConfig, transform: Transform) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (start in the recording in s, levels uint8 (H, W)) of each picture; Unreadable where there is none."""
    chain, hop_s, columns = transform.chain, transform.hop_s, transform.columns
    if config.duration_s is not None:
        columns = int((config.duration_s - chain.window_s) / hop_s + 1e-9) + 1
        if columns < 2:
            raise Unreadable(f"duration_s {config.duration_s:g} is not longer than window_s {chain.window_s:g}")
        if columns > transform.columns:
            lasts = chain.window_s + (transform.columns - 1) * hop_s
            raise Unreadable(f"{lasts:.3g} s are left after settle_s, less than duration_s {config.duration_s:g}")
    if columns * len(transform.shown) > MOST_AMPLITUDES:
        raise Unreadable(f"a picture of {columns * hop_s:.3g} s has {columns} columns; give a shorter --duration_s")
    height, width = height_width(config.image_size)
    step = max(1, round(columns * (1 - config.overlap)))
    loudest = max(float(block.max()) for block in transform) if config.reference == "recording" else 0.0
    heard = False
    for start, part in _windows(transform, columns, step):
        maximum = loudest or float(part.max())
        audible = part.max() > transform.floor
        heard |= audible
        # What is left of a static echo are rounding errors: they stay dark.
        values = brightness(part, chain.clip_db, maximum) if audible else np.zeros(part.shape, np.float32)
        picture = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
        yield chain.settle_s + start * hop_s, np.round(np.asarray(picture) * 255).clip(0, 255).astype(np.uint8)
    if not heard:
        raise Unreadable(SILENT)


def _windows(blocks: Iterable[np.ndarray], columns: int, step: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first column, amplitudes (velocities, columns)) every `step` columns; holds no more than that."""
    held: list[np.ndarray] = []
    first, count, start = 0, 0, 0  # first column that is held, how many are, and where the next window starts
    for block in blocks:
        held.append(block)
        count += block.shape[1]
        while start + columns <= first + count:
            together = np.concatenate(held, axis=1)
            yield start, together[:, start - first : start - first + columns]
            start += step
            dropped = min(start - first, count)
            held, first, count = [together[:, dropped:]], first + dropped, count - dropped


def chain_of(config: SpectrogramConfig) -> Chain:
    """Return the numbers of the preset, with those that the user gave instead."""
    names = [field.name for field in dataclasses.fields(Chain)]
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    preset = PRESETS.get(config.preset)
    return dataclasses.replace(preset, **given) if preset else Chain(**given)


def _columns(transform: Transform, source: Source) -> dict[str, Any]:
    chain = dataclasses.asdict(transform.chain)
    near_far = chain.pop("range_m") or ("", "")
    return {
        "class": source.class_name,
        "group": source.group,
        "recording": source.path,
        **source.columns,
        "carrier_hz": transform.recording.carrier_hz,
        "prf_hz": transform.recording.prf_hz,
        **dict(zip(("range_min_m", "range_max_m"), near_far, strict=True)),
        **{name: "" if value is None else value for name, value in chain.items()},
    }


def _finish(
    config: SpectrogramConfig,
    output: OutputFolder,
    listing: str,
    files: int,
    done: list[dict],
    rejected: dict[str, str],
) -> None:
    """Write what describes the whole folder, and say what became of every file."""
    folder, rows = folders(config)[1], [row for result in done for row in result["rows"]]
    classes = Counter(row["class"] for row in rows)
    notes = {result["rows"][0]["recording"]: list(result["notes"]) for result in done if result["notes"]}
    report = {
        "files": files,
        "recordings": len(done),
        "pictures": len(rows),
        "classes": dict(classes),
        "rejected": rejected,
        "notes": notes,
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
    for note, count in Counter(note for several in notes.values() for note in several).most_common(MOST_NOTES):
        print(f"  {count} x {note}")
    if rejected:
        print(f"{files} files = {len(done)} recordings + {len(rejected)} rejected, named in {folder / REPORT}:")
        for reason, count in Counter(rejected.values()).most_common():
            print(f"  {count} x {reason}")


def _stamp(path: Path) -> list[int]:
    return [number for file in files_of(path) for number in (file.stat().st_size, file.stat().st_mtime_ns)]


def _listing(root: Path, sources: list[Source]) -> str:
    text = json.dumps([(source.path, source.class_name, *_stamp(root / source.path)) for source in sources])
    return hashlib.sha256(text.encode()).hexdigest()

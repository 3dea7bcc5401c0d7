"""`mdaug spectrogram`: raw recordings of a radar -> a labelled folder of spectrograms, every file accounted for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mdaug.radar.image_folder import METADATA_FILE, open_folder, refuse_other, run_all, table, write_picture
from shards import atomic, provenance
from shards.errors import UserError
from shards.output_folder import require_apart
from shards.progress import Progress
from shards.validation import height_width, written

if TYPE_CHECKING:
    import numpy as np

    from mdaug.radar.recordings import Recording, Source
    from mdaug.radar.stft import Chain


REPORT, DONE = "report.json", ".recordings"


@dataclass
class SpectrogramConfig:
    """Make spectrograms of raw radar recordings, as an image folder that `mdaug pack` takes.

    Numbers left out take the value of the preset. The same command again goes on where it was interrupted.
    """

    data_dir: Path
    """Recordings <class>/*.dat|mat|npy (glasgow: <campaign>/*.dat): text of Ancortek radars, or complex arrays of
    (pulses,) or (ranges, pulses), real ones of (pulses, 2)."""
    output_dir: Path
    """Folder for <class>/*.png, metadata.csv and report.json."""
    preset: Literal["generic", "glasgow", "ci4r24"] = "generic"
    """glasgow: doi:10.5525/gla.researchdata.848, classes and persons from the file names; ci4r24: the 24 GHz radar of
    CI4R; generic: any other."""
    class_pattern: str | None = None
    """Regular expression with one capture group that finds the class in the path; by default the first folder."""
    carrier_hz: float | None = None
    """Carrier frequency in Hz; needed where files have no header."""
    prf_hz: float | None = None
    """Pulses or sweeps per second; needed where files have no header."""
    bandwidth_hz: float | None = None
    """Of an FMCW radar, in Hz: rows of an array are then the samples of a sweep, and a Fourier transform makes ranges
    of them. Without it rows are ranges already."""
    variable: str | None = None
    """Name of the array in .mat files that hold several."""
    range_m: tuple[float, float] | None = None
    """Nearest and farthest range in m that count; by default all (glasgow: 1.5, 10; ci4r24: 0.2, 6.4)."""
    v_max_m_s: float | None = None
    """Velocity at the upper edge of the pictures in m/s; needed for generic (glasgow: 6, ci4r24: 4)."""
    window_s: float | None = None
    """Hamming window of the short-time Fourier transform in s: 0.1 (glasgow, ci4r24: 0.2)."""
    hop_s: float | None = None
    """Time from one column to the next in s: 0.01."""
    mti_cutoff_m_s: float | None = None
    """Velocity in m/s below which the high-pass takes movement for clutter: 0.1 (glasgow: 0.097, ci4r24: 0.031)."""
    settle_s: float | None = None
    """Left out at the beginning in s, while the high-pass settles: 0.3 (glasgow: 0.5, ci4r24: 0.2)."""
    clip_db: float | None = None
    """Dynamic range in dB below the maximum: 40."""
    reference: Literal["picture", "recording"] = "picture"
    """What that maximum is taken of. picture: a target that goes away stays bright; recording: it fades, and windows
    in which nothing happens stay dark instead of showing their noise."""
    duration_s: float | None = None
    """Time that a picture spans in s; by default all of a recording, as one picture."""
    overlap: float = 0.75
    """Share of a picture that the next one shows again, where duration_s cuts several from a recording; in [0, 1)."""
    image_size: int | str = 256
    """Pixels: one number for squares, or height x width such as 128x256."""
    image_mode: Literal["gray", "rgb"] = "gray"
    """gray: the levels; rgb: MATLAB's jet(256)."""
    workers: int = 0
    """Processes; 0 takes one per core that this process may use."""

    def __post_init__(self) -> None:
        self.data_dir, self.output_dir = Path(self.data_dir), Path(self.output_dir)
        self.image_size = written(*height_width(self.image_size))
        for name in (
            "carrier_hz", "prf_hz", "bandwidth_hz", "v_max_m_s", "window_s", "hop_s", "mti_cutoff_m_s", "clip_db",
            "duration_s",
        ):  # fmt: skip
            if (number := getattr(self, name)) is not None and not 0 < number < float("inf"):
                raise ValueError(f"{name} is {number}; accepted are numbers above 0")
        if self.settle_s is not None and not 0 <= self.settle_s < float("inf"):
            raise ValueError(f"settle_s is {self.settle_s}; accepted are numbers from 0")
        if self.range_m is not None and not 0 <= self.range_m[0] < self.range_m[1]:
            raise ValueError(f"range_m is {self.range_m}; accepted are two distances in m, the nearer first")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is {self.overlap}; accepted are shares from 0 to below 1")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; it must be at least 0")
        if self.preset == "generic" and self.v_max_m_s is None:
            raise ValueError("v_max_m_s is missing: the preset 'generic' needs the velocity that the pictures reach to")
        if self.class_pattern is not None:
            if self.preset == "glasgow":
                raise ValueError("class_pattern is given, but in the preset 'glasgow' the file names tell the classes")
            try:
                groups = re.compile(self.class_pattern).groups
            except re.error as error:
                raise ValueError(f"class_pattern is '{self.class_pattern}', no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"class_pattern is '{self.class_pattern}' with {groups} capture groups; one is needed")

    def check_output(self, inputs_there: bool) -> None:
        """Raise UserError where output_dir holds something else, or a data_dir that is there holds no recording."""
        require_apart(self.data_dir, self.output_dir)
        refuse_other(self, "spectrogram")
        if inputs_there:
            self.find()

    def find(self) -> tuple[list[Source], dict[str, str]]:
        """Return the recordings of data_dir, and path -> reason for every other file; UserError where there is none."""
        from mdaug.radar.recordings import find

        return find(self.data_dir, glasgow=self.preset == "glasgow", class_pattern=self.class_pattern)


def spectrogram(config: SpectrogramConfig) -> None:
    """Write the image folder, metadata.csv (one row per picture), report.json and, last, provenance.json.

    The pictures of a recording depend on its bytes and on the configuration alone. An interrupted run goes on with the
    recordings that are missing.

    Raises:
        UserError: no recording can be used, the output folder holds something else, or the disk is full.
    """
    require_apart(config.data_dir, config.output_dir)
    sources, rejected = config.find()
    files = len(sources) + len(rejected)
    plain = open_folder(config, "spectrogram")
    folder = config.output_dir
    listing = _listing(config.data_dir, sources)
    with atomic.locked(
        folder / ".lock", lambda: print(f"waiting for another process that writes {folder}", flush=True)
    ):
        if (folder / provenance.FILE_NAME).is_file():
            report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            if report["listing"] != listing:
                raise UserError(
                    f"the recordings in {config.data_dir} are not those that {folder} was made from; "
                    "choose another --output_dir, or delete that folder"
                )
            print(f"{folder} is finished: {report['pictures']} pictures; nothing to do")
            return
        (folder / DONE).mkdir(exist_ok=True)
        keys = {source.key for source in sources}
        for record in (folder / DONE).glob("*.json"):
            if record.stem not in keys:  # of a recording that is gone since the run was interrupted
                _forget(folder, record)
        done: list[dict] = []
        with Progress("recordings", len(sources), "recording") as progress:
            for source, result in zip(sources, run_all(partial(make, config), sources, config.workers), strict=True):
                progress.update()
                if "reason" in result:
                    rejected[source.path] = result["reason"]
                else:
                    done.append(result)
        if not done:
            path = sources[0].path
            raise UserError(f"none of the {files} files in {config.data_dir} can be used; {path}: {rejected[path]}")
        _finish(config, plain, listing, files, done, rejected)


def make(config: SpectrogramConfig, source: Source) -> dict:
    """Write the pictures of a recording; return its metadata "rows" and "sha256", or the "reason" why not."""
    from mdaug.radar.picture import encode
    from mdaug.radar.recordings import Radar, Unreadable, read

    path, record = config.data_dir / source.path, config.output_dir / DONE / f"{source.key}.json"
    stamp = _stamp(path)
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        if before["stamp"] == stamp:
            return before
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
    import numpy as np
    from PIL import Image

    from mdaug.radar.recordings import Unreadable
    from mdaug.radar.stft import brightness, velocity_over_time

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
    from mdaug.radar.stft import PRESETS, Chain

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
    config: SpectrogramConfig, plain: dict, listing: str, files: int, done: list[dict], rejected: dict[str, str]
) -> None:
    """Write what describes the whole folder, and say what became of every file."""
    folder, rows = config.output_dir, [row for result in done for row in result["rows"]]
    classes = Counter(row["class"] for row in rows)
    report = {
        "files": files,
        "recordings": len(done),
        "pictures": len(rows),
        "classes": dict(classes),
        "rejected": rejected,
        "listing": listing,
    }
    atomic.write_text(folder / METADATA_FILE, table(rows))
    atomic.write_text(folder / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    content = provenance.hash_files([folder / METADATA_FILE, *(folder / row["file"] for row in rows)])
    recordings = hashlib.sha256("".join(result["sha256"] for result in done).encode()).hexdigest()
    provenance.write(
        folder, kind="image-folder", content_hash=content, made_from={"recordings": recordings}, config=plain
    )
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

"""The report of a packing: what was found, what became of it, and what the user should know."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

from shards.image_to_png import Checked
from shards.source import SourceFolder, SourceImage, natural_key
from shards.split import Split


def make_report(
    folder: SourceFolder,
    checked: dict[str, Checked],
    rejected: dict[str, str],
    split: Split,
    samples: dict[str, list[SourceImage]],
    size: tuple[int, int],
    channels: int,
    colormap: str | None = None,
) -> dict[str, Any]:
    """Return the content of report.json.

    Args:
        folder: the image folder.
        checked: path -> what the image is.
        rejected: path -> reason, of every file that is not packed.
        split: where each image goes, and why.
        samples: "train", "val", "test" -> the images packed there.
        size: (width, height) of the packed images, in pixels.
        channels: 1 or 3.
        colormap: the colour map that was inverted, or None.

    Returns:
        "found" = "packed" + the length of "rejected", a list of {"file", "reason"}; "conversions": what -> count and
        files; "splits": side -> samples, counts per class and groups; "notes": sentences for the user.
    """
    packed = [image for own in samples.values() for image in own]
    packed.sort(key=lambda image: natural_key(image.path))
    return {
        "found": len(folder.images) + len(folder.rejected),
        "packed": len(packed),
        "rejected": [{"file": path, "reason": rejected[path]} for path in sorted(rejected, key=natural_key)],
        "image_shape": [size[1], size[0], channels],
        "colormap": colormap,
        "conversions": _conversions(packed, checked, size, channels, colormap),
        "split_rule": split.rule,
        "splits": {side: _describe(own, folder.classes, split) for side, own in samples.items()},
        "notes": folder.notes + _notes(packed, folder, checked, channels, colormap) + split.warnings,
    }


def summary(report: dict[str, Any], folder: SourceFolder) -> str:
    """Return classes x counts as a table, and what the user should know."""
    of_class = {image.path: image.class_name for image in folder.images}
    rejected = Counter(of_class.get(entry["file"], "") for entry in report["rejected"])
    sides = list(report["splits"])
    rows = [["class", *sides, "rejected"]]
    for name in folder.classes:
        rows.append([name, *(str(report["splits"][side]["classes"][name]) for side in sides), str(rejected[name])])
    if rejected[""]:
        rows.append(["(other files)", *("" for _ in sides), str(rejected[""])])
    totals = [str(report["splits"][side]["samples"]) for side in sides]
    rows.append(["total", *totals, str(len(report["rejected"]))])
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:{width}s}" + "".join(f"{cell:>10s}" for cell in row[1:]) for row in rows]
    height, image_width, channels = report["image_shape"]
    lines.append(
        f"found {report['found']} = packed {report['packed']} + rejected {len(report['rejected'])}; "
        f"{height}x{image_width}x{channels}; split by {report['split_rule']}"
    )
    reasons = Counter(re.split(r":| as ", entry["reason"])[0] for entry in report["rejected"])
    lines += [f"rejected: {count} {reason}" for reason, count in reasons.most_common()]
    lines += [f"converted: {entry['count']} {what}" for what, entry in report["conversions"].items()]
    lines += [f"warning: {note}" for note in report["notes"]]
    return "\n".join(lines)


def _conversions(
    images: list[SourceImage],
    checked: dict[str, Checked],
    size: tuple[int, int],
    channels: int,
    colormap: str | None,
) -> dict[str, dict[str, Any]]:
    """Return conversion -> count and files; the files of the most frequent size are not listed."""
    mode = "L" if channels == 1 else "RGB"
    common = Counter(checked[image.path].size for image in images).most_common(1)[0][0]
    files: dict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for image in images:
        result = checked[image.path]
        if result.mode != mode:
            inverted = colormap and result.channels == 3
            what = f"mode {result.mode} to {f'levels of {colormap}' if inverted else mode}"
            counts[what] += 1
            files[what].append(image.path)
        if result.size != size:
            what = "resized from {}x{} to {}x{}".format(*result.size, *size)
            counts[what] += 1
            if result.size != common:
                files[what].append(image.path)
    return {what: {"count": counts[what], "files": files[what]} for what in sorted(counts)}


def _notes(
    images: list[SourceImage],
    folder: SourceFolder,
    checked: dict[str, Checked],
    channels: int,
    colormap: str | None,
) -> list[str]:
    notes = []
    if len(folder.classes) == 1:
        notes.append(f"one class only ('{folder.classes[0]}'): a model of these images has no classes to tell apart")
    coloured = sum(checked[image.path].channels == 3 for image in images)
    if channels == 1 and coloured and colormap is None:
        notes.append(
            f"{coloured} colour images became grey by luma; a colour map such as jet is not monotonic in luma, "
            "so levels are mixed up: name the map with --colormap, or keep image_mode rgb for such images"
        )
    peak = max((checked[image.path].peak or 0 for image in images), default=0)
    if 0 < peak < 65535 // 4:
        notes.append(
            f"the 16-bit images use {peak} of 65535 levels at most and are dark after the division by 257; "
            "scale them to the full range before packing"
        )
    return notes


def _describe(images: list[SourceImage], classes: list[str], split: Split) -> dict[str, Any]:
    counts = Counter(image.class_name for image in images)
    groups = {split.group[image.path] for image in images}
    return {
        "samples": len(images),
        "classes": {name: counts[name] for name in classes},
        "groups": sorted(groups, key=natural_key) if len(groups) < len(images) else "one per image",
    }

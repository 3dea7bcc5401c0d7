"""The report of a packing: what was found, what became of it, and what the user should know."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards import duplicates
from shards.image_to_png import GREY_MODES, Checked
from shards.source import SourceFolder, SourceImage, natural_key
from shards.split import Split


def make_report(
    folder: SourceFolder,
    classes: list[str],
    checked: dict[str, Checked],
    rejected: dict[str, str],
    split: Split,
    samples: dict[str, list[SourceImage]],
    size: tuple[int, int],
    channels: int,
    colormap: str | None,
    own_maps: dict[str, str],
    crops: dict[str, tuple[int, int, int, int]],
) -> dict[str, Any]:
    """Return the content of report.json.

    Args:
        folder: the image folder.
        classes: the classes that are packed.
        checked: path -> what the image is.
        rejected: path -> reason, of every file that is not packed.
        split: where each image goes, and why.
        samples: "train", "val", "test" -> the images packed there.
        size: (width, height) of the packed images, in pixels.
        channels: 1 or 3.
        colormap: the colour map of the set, whose levels are packed, or None.
        own_maps: path -> colour map of the images that have another one.
        crops: path -> what was cut off at the edges.

    Returns:
        "found" = "packed" + the length of "rejected", a list of {"file", "reason"}; "understood": what the folder was
        taken for, a sentence for each question; "conversions": what -> count and files; "splits": side -> samples,
        counts per class and groups; "notes": sentences for the user.
    """
    packed = [image for own in samples.values() for image in own]
    packed.sort(key=lambda image: natural_key(image.path))
    read = [image for image in folder.images if not checked[image.path].error]
    return {
        "found": len(folder.images) + len(folder.rejected),
        "packed": len(packed),
        "rejected": [
            {"file": path, "class": _class_of(folder, path), "reason": rejected[path]}
            for path in sorted(rejected, key=natural_key)
        ],
        "understood": _understood(folder, read, checked, rejected, split, size, channels, colormap),
        "image_shape": [size[1], size[0], channels],
        "colormap": colormap,
        "conversions": _conversions(packed, checked, size, channels, colormap, own_maps, crops),
        "split_rule": split.rule,
        "splits": {side: _describe(own, classes, split) for side, own in samples.items()},
        "notes": folder.notes
        + _notes(packed, classes, checked, channels, colormap, own_maps)
        + _look_alike(packed, checked, split)
        + split.warnings
        + [f"{side} is empty: give more images, or another --val_fraction" for side in ("val",) if side not in samples],
    }


def summary(report: dict[str, Any], folder: Path) -> str:
    """Return what the image folder was understood as, classes x counts as a table, and what the user should know."""
    lines = [f"understood {folder} as", *(f"  {what:12s} {text}" for what, text in report["understood"].items())]
    rejected = Counter(entry["class"] for entry in report["rejected"])
    sides = list(report["splits"])
    rows = [["class", *sides, "rejected"]]
    for name in report["splits"]["train"]["classes"]:
        counts = (str(report["splits"][side]["classes"][name]) for side in sides)
        rows.append([name, *counts, str(rejected.pop(name, 0))])
    if others := sum(rejected.values()):
        rows.append(["(other files)", *("" for _ in sides), str(others)])
    totals = [str(report["splits"][side]["samples"]) for side in sides]
    rows.append(["total", *totals, str(len(report["rejected"]))])
    width = max(len(row[0]) for row in rows)
    lines += [f"{row[0]:{width}s}" + "".join(f"{cell:>10s}" for cell in row[1:]) for row in rows]
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


def some(names: Sequence[str], count: int = 3) -> str:
    """Return a few of many names, and how many more there are."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _class_of(folder: SourceFolder, path: str) -> str:
    """Return the class of a rejected image, "" of a file that is none."""
    return next((part for part in path.split("/")[:-1] if part in set(folder.classes)), "")


def _understood(
    folder: SourceFolder,
    images: list[SourceImage],
    checked: dict[str, Checked],
    rejected: dict[str, str],
    split: Split,
    size: tuple[int, int],
    channels: int,
    colormap: str | None,
) -> dict[str, str]:
    """Return question -> what the program decided, in words."""
    kinds = Counter(_kind(checked[image.path]) for image in images)
    odd = [kind for kind, count in kinds.items() if len(kinds) > 1 and count <= max(1, len(images) // 100)]
    names = [image.path for image in images if _kind(checked[image.path]) in odd]
    form = f"levels of {colormap}" if colormap and channels == 1 else "grey levels" if channels == 1 else "colours"
    skipped = Counter(reason for path, reason in rejected.items() if path in folder.rejected)
    copies = sum(reason.startswith(("same ", "in two classes")) for reason in rejected.values())
    turned = sum(checked[image.path].turned for image in images)
    return {
        "folders": folder.layout,
        "pictures": ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        + (f"; odd ones: {some(names)}" if odd else ""),
        "packed as": f"{form}, {size[1]}x{size[0]}",
        "orientation": f"{turned} turned upright as EXIF says" if turned else "as stored",
        "duplicates": f"{copies} left out" if copies else "none",
        "columns": ", ".join(f"{name} ({kind})" for name, kind in folder.columns.items()) or "no metadata.csv",
        "skipped": ", ".join(f"{count} {reason}" for reason, count in skipped.most_common()) or "nothing",
        "split": split.rule,
    }


def _kind(picture: Checked) -> str:
    """Return what a picture is, in words: its mode, and the colour map that it is painted in."""
    if picture.channels == 1:
        return picture.mode if picture.mode in GREY_MODES else f"{picture.mode} with equal channels (grey)"
    return f"{picture.mode} in {picture.maps[0]}" if picture.maps else f"{picture.mode} in no known colour map"


def _conversions(
    images: list[SourceImage],
    checked: dict[str, Checked],
    size: tuple[int, int],
    channels: int,
    colormap: str | None,
    own_maps: dict[str, str],
    crops: dict[str, tuple[int, int, int, int]],
) -> dict[str, dict[str, Any]]:
    """Return conversion -> count and files; the files of the most frequent size are not listed."""
    mode = "L" if channels == 1 else "RGB"
    common = Counter(checked[image.path].size for image in images).most_common(1)[0][0]
    files: dict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter()

    def note(what: str, path: str, listed: bool = True) -> None:
        counts[what] += 1
        if listed:
            files[what].append(path)

    for image in images:
        result = checked[image.path]
        if result.turned:
            note("turned upright as EXIF says", image.path)
        if any(crop := crops.get(image.path, ())):
            note("frame cut off ({} rows above, {} below, {} columns left, {} right)".format(*crop), image.path)
        if result.mode != mode:
            inverted = colormap and result.channels == 3
            target = f"levels of {own_maps.get(image.path, colormap)}" if inverted else mode
            note(f"mode {result.mode} to {target}", image.path)
        if result.size != size:
            note("resized from {}x{} to {}x{}".format(*result.size, *size), image.path, result.size != common)
    return {what: {"count": counts[what], "files": files[what]} for what in sorted(counts)}


def _notes(
    images: list[SourceImage],
    classes: list[str],
    checked: dict[str, Checked],
    channels: int,
    colormap: str | None,
    own_maps: dict[str, str],
) -> list[str]:
    """Return what looks as if it were not meant."""
    notes = []
    if len(classes) == 1:
        notes.append(f"one class only ('{classes[0]}'): a model of these images has no classes to tell apart")
    coloured = [image for image in images if checked[image.path].channels == 3]
    grey = [image for image in images if checked[image.path].channels == 1]
    if channels == 1 and coloured and colormap is None:
        notes.append(
            f"{len(coloured)} colour images became grey by luma; a colour map such as jet is not monotonic in luma, "
            "so levels are mixed up: name the map with --colormap, or keep image_mode rgb for such images"
        )
    # A few in colour among grey ones, or the other way round: packed alike, one of them is not what it was.
    if channels == 3 and grey and coloured:
        few, kind = (coloured, "colour") if len(coloured) <= len(grey) else (grey, "grey")
        names = some([image.path for image in few])
        notes.append(
            f"{len(few)} of {len(images)} images are {kind} ({names}), so all are packed as RGB; "
            "remove them, or pack levels: --image_mode level"
        )
    # Several colour maps: where they go with the class, they give it away.
    painted = Counter(checked[image.path].maps[0] for image in coloured if checked[image.path].maps)
    if own_maps:
        others = Counter(own_maps.values())
        notes.append(
            f"{len(own_maps)} images are not painted in {colormap} but in "
            f"{', '.join(f'{name} ({count})' for name, count in others.items())}; each was inverted with its own map"
        )
    elif channels == 3 and len(alike := _maps_apart([checked[image.path] for image in coloured])) > 1:
        notes.append(
            f"the images are painted in several colour maps ({', '.join(f'{n} ({painted[n]})' for n in alike)}); a "
            "classifier may tell classes by them: pack levels with --image_mode level"
        )
    off = [i.path for i in coloured if colormap and checked[i.path].off_map > _tolerated(i.path)]
    if off:
        notes.append(
            f"{len(off)} images have colours that {colormap} does not have ({some(off)}): axes, text or another map?"
        )
    # Values that use little of the range, or none of it.
    peak = max((checked[image.path].peak or 0 for image in grey), default=0)
    deep = any(checked[image.path].mode.startswith("I") for image in grey)
    if 0 < peak < (65535 if deep else 255) // 4:
        notes.append(
            f"the {16 if deep else 8}-bit images use {peak} of {65535 if deep else 255} levels at most and are dark"
            f"{' after the division by 257' if deep else ''}; scale them to the full range before packing"
        )
    if constant := [image.path for image in images if checked[image.path].constant]:
        notes.append(f"{len(constant)} images are of one colour only ({some(constant)}); they show nothing")
    return notes


def _maps_apart(pictures: list[Checked]) -> list[str]:
    """Return the colour maps that it takes to explain all pictures: one where it may be that of each."""
    left, needed = [picture for picture in pictures if picture.maps], []
    while left:
        votes = Counter(name for picture in left for name in picture.maps)
        needed.append(max(votes, key=lambda name: (votes[name], name)))
        left = [picture for picture in left if needed[-1] not in picture.maps]
    return needed


def _tolerated(path: str) -> float:
    """Return the share of colours off their map that the file format alone explains."""
    return 0.25 if path.lower().endswith((".jpg", ".jpeg", ".webp")) else 0.02


def _look_alike(images: list[SourceImage], checked: dict[str, Checked], split: Split) -> list[str]:
    """Return sentences on images that look the same in different classes or splits."""
    notes = []
    classes, splits = duplicates.look_alike(images, checked, split.side)
    if classes.count:
        first, second = classes.first
        notes.append(
            f"{classes.count} pairs of images in different classes look the same, such as {first} and {second}; one of "
            "the labels is wrong, or they show nothing"
        )
    if splits.count:
        first, second = splits.first
        notes.append(
            f"{splits.count} pairs of images on different sides of the split look the same, such as {first} and "
            f"{second}: val and test leak; remove one of each pair"
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

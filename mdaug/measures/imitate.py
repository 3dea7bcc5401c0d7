"""`mdaug simulate --like`: radar, noise and movements are read from a set, and the simulator is set to what they are.

`imitate_look` reads what pictures show, `imitate_fit` sets the simulator; this is the command and its table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mdaug.measures import realism
from mdaug.measures.imitate_fit import KNOBS, axes_of, calibrate, groups_of, palette_of
from mdaug.measures.imitate_look import AXIS, FIGURES, MOST_PER_CLASS, Look, Measured, look, read
from mdaug.radar.fit import BOUNDS, Fit
from mdaug.radar.options import SimulateConfig
from mdaug.radar.presets import STREAM, preset_of
from mdaug.radar.simulate import finish, identity, is_finished, write_pictures
from shards import atomic, provenance
from shards.index import read_index
from shards.output_folder import claim, refuse_other
from shards.packed import is_packed, open_packed
from shards.source import read_folder
from shards.validation import Preflight, written

JSON_FILE, TABLE_FILE = "like.json", "like.md"
LEGEND = """asked: what the simulator was set to, and in brackets where that comes from.
speed: of the torso, without sign; cadence: steps, swings or beats; reach: the faster edge of the picture's signal.
Medians ± standard deviations, between groups (of persons, recordings) and within them."""
LARGEST = 256  # side to which an image folder is packed where --image_size does not say otherwise


def check(options: SimulateConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds something else, or the set is not one; packs nothing."""
    assert options.like is not None
    made_from = {}
    if where.inputs_there and is_packed(options.like):
        made_from["like"] = provenance.read(options.like, "images")["hash"]
    elif where.inputs_there:
        read_folder(options.like)
    refuse_other(options.output_dir, "simulate", identity(options), made_from)


def run(options: SimulateConfig) -> None:
    """Write an image folder that resembles a set, like.json and like.md, which compare the two.

    Raises UserError for a folder that holds something else, an axis that neither the set nor a flag says, and classes
    that the set does not have.
    """
    packed = _open(options)
    made_from = {"like": provenance.read(packed, "images")["hash"]}
    output = claim(options.output_dir, "simulate", identity(options), made_from, wait=True)
    if is_finished(output):
        return
    measured = read(packed, options)
    who = "\n".join(_who(measured))
    print(f"{options.like}: {len(measured.images)} training images are looked at\n{who}", flush=True)
    if options.preset == "families":
        options = dataclasses.replace(options, classes=list(measured.imitates))
    output.begin_again()
    # Whatever an interrupted run has found stays.
    path = options.output_dir / JSON_FILE
    if path.is_file():
        fit = Fit.from_dict(json.loads(path.read_text(encoding="utf-8"))["fit"])
    else:
        fit = calibrate(measured, options)
        atomic.write_text(path, json.dumps({"fit": fit.as_dict()}, indent=1) + "\n")
    rows = write_pictures(options, fit, output)
    table, figures = compare(measured, options, fit, rows)
    record = {"imitates": measured.imitates, "fit": fit.as_dict(), "table": table, **figures}
    atomic.write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    text = markdown(table)
    atomic.write_text(options.output_dir / TABLE_FILE, text)
    print(text, flush=True)
    finish(options, rows, output)


def _who(measured: Measured) -> Iterable[str]:
    """Yield a line on each class of the preset, and one on the classes of the set that nothing imitates."""
    for name, other in measured.imitates.items():
        groups = measured.looks[name].groups
        whom = f"class {other}" if other else "all classes together"
        yield f"  {name} imitates {whom}: {len(groups)} images of {len(set(groups))} groups"
    classes = measured.images.dataset.classes
    if None not in measured.imitates.values() and (rest := set(classes) - set(measured.imitates.values())):
        yield f"  nothing imitates {', '.join(name for name in classes if name in rest)}; --like_classes names more"


def _open(options: SimulateConfig) -> Path:
    """Return the packed set; an image folder is packed once, at --image_size or the size of its first picture."""
    folder = options.like
    assert folder is not None
    if is_packed(folder):
        height, width, _ = read_index(folder / "train")["image_shape"]
        return open_packed(folder, written(height, width))
    source = read_folder(folder)
    with Image.open(source.root / source.images[0].path) as first:
        sides = [max(32, min(side, LARGEST) // 8 * 8) for side in (first.height, first.width)]
    return open_packed(folder, options.image_size or written(*sides))


def compare(measured: Measured, options: SimulateConfig, fit: Fit, rows: list[dict]) -> tuple[list[list[str]], dict]:
    """Return the table [what, measured, simulated, asked] with units, and the figures of `realism.compare`."""
    preset = preset_of(options, fit)
    # The radar and the picture.
    table = []
    for name, (words, unit) in AXIS.items():
        flag, said = getattr(options, name), measured.said[name]
        origin = f"--{name}" if flag else "the set" if said else "matched" if name in fit.sensor else "the preset"
        if name == "clip_db" and not flag and not said:
            origin = "assumed"
        here = _quantity(said, unit) if said else "not said"
        value = _quantity(float(preset.radar[name]), unit)
        table.append([words, here, value, f"{value} ({origin})"])
    height, width, channels = measured.images.original(0).shape
    size = f"{preset.size[0]} × {preset.size[1]}"
    origin = "--image_size" if options.image_size else "the set"
    table.append(["rows × columns", f"{height} × {width}", size, f"{size} ({origin})"])
    seen = f"{measured.native[0] or height} × {measured.native[1] or width}"
    seen = "not enlarged" if measured.native == (None, None) else seen
    native = f"{preset.sensor.rows} × {preset.sensor.columns}"
    table.append(["the same, before enlarging", seen, native, f"{native} (the set)"])
    here = fit.colormap or ("gray" if channels == 1 else "of no known map")
    colours, origin = palette_of(options, fit), "--image_mode" if options.image_mode else "the set"
    table.append(["colours", here, colours, f"{options.image_mode or fit.image_mode} ({origin})"])

    # What the classes show.
    looks = {}
    for name in measured.looks:
        of_class = [row for row in rows if name in (STREAM, row["class"])]
        most = MOST_PER_CLASS * len({row["class"] for row in of_class})
        some = [of_class[i] for i in np.linspace(0, len(of_class) - 1, min(len(of_class), most)).astype(int).tolist()]
        pictures = (_picture(options.output_dir / row["file"]) for row in some)
        looks[name] = look(pictures, groups_of(some), colours, axes_of(preset))
        table += _rows_of_class(name, measured, looks[name], fit, of_class)

    # Texture.
    first, second = (np.concatenate([each.levels for each in of_set.values()]) for of_set in (measured.looks, looks))
    groups, others = (
        [f"{name} {group}" for name, each in of_set.items() for group in each.groups]
        for of_set in (measured.looks, looks)
    )
    figures = realism.compare(first, second, groups, others)
    for key, words in realism.STATISTICS.items():
        here, there = (f"{statistics[key]:.3g}" for statistics in figures["statistics"])
        table.append([words, here, there, ""])
    table.append(["Fréchet distance, random features", "0", f"{figures['frechet']:.3g}", ""])
    if figures["accuracy"] is not None:
        words = f"accuracy of a classifier that tells the two apart, {figures['windows']} windows each"
        table.append([words, "0.5: cannot tell", f"{figures['accuracy']:.2f}", ""])
    return table, {"realism": figures}


def _rows_of_class(name: str, measured: Measured, simulated: Look, fit: Fit, rows: list[dict]) -> list[list[str]]:
    """Return the rows of the table on one class: movements, noise, and the parameters that were asked for."""
    target, table = measured.looks[name], []
    knobs = {knob.figure: knob for knob in KNOBS[name]}
    for figure, unit in FIGURES.items():
        here, there = target.spreads[figure], simulated.spreads[figure]
        asked = "of the preset"
        if figure in knobs and here and there:
            asked = "; ".join(_asked(parameter, rows) for parameter in knobs[figure].parameters)
        table.append([f"{name}: {figure}, {unit}", str(here or "not seen"), str(there or "not seen"), asked])
    if name in fit.approaching:
        shares = [f"{each.approaching:.2f}" for each in (target, simulated)]
        table.append([f"{name}: share that approaches", *shares, f"{fit.approaching[name]:.2f}"])
    tops = [f"{each.top[0]:.0f} ± {each.top[1]:.0f}" for each in (target, simulated)]
    asked = "{:.1f} ± {:.1f} dB below 255".format(*fit.peak_db[name]) if name in fit.peak_db else "255 in each"
    table.append([f"{name}: highest level of a picture", *tops, asked])
    shares = [f"{each.floor_share:.2f}" for each in (target, simulated)]
    table.append([f"{name}: share of pixels at the floor", *shares, _asked("snr_db", rows)])
    return table


def _quantity(value: float, unit: str) -> str:
    """Return a value with its unit."""
    return f"{value / 1e9:.4g} GHz" if unit == "Hz" else f"{value:.4g} {unit}"


def _asked(parameter: str, rows: list[dict]) -> str:
    """Return the values of a parameter as text, and whether many of them lie at a bound."""
    values = np.array([row[parameter] for row in rows], float)
    bound = np.isin(values, BOUNDS[parameter]).mean() > 0.1
    return f"{parameter} {values.mean():.3g} ± {values.std():.2g}" + (" (at its bound)" if bound else "")


def _picture(path: Path) -> np.ndarray:
    picture = np.asarray(Image.open(path))
    return picture.reshape(*picture.shape[:2], -1)


def markdown(table: list[list[str]]) -> str:
    """Return the table as Markdown, and what its words mean."""
    lines = ["| | measured | simulated | asked |", "|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in table)]
    return "\n".join([*lines, "", LEGEND]) + "\n"

"""The plots of the report, made from its metrics: accuracy curves with intervals, quantile boxes, profiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from mdaug.evaluation.usefulness import (
    BOTH,
    BOTH_TRANSFORMS,
    DUPLICATED,
    REAL,
    TRANSFORMS,
    WITH_SIFTED,
    WITH_SIFTED_TRANSFORMS,
    WITH_SIMULATED,
)

COLOURS = ("#3b6ea8", "#1a7f37", "#c2410c", "#7c3aed", "#57606a", "#b7791f", "#be185d", "#0e7490")
INK, FRAME = "#1b1f24", "#d9dee3"
SCALE = 2  # pixels of a PNG per unit
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}  # of SVG, and of Pillow
GAP, ROW = 16, 24  # units between plots, and the height of a line of the legend


@dataclass
class Drawing:
    """Shapes on white; coordinates are units from the upper left corner.

    Attributes:
        width, height: in units, pixels of the report on a wide screen.
        label: what the plot shows, for those who cannot see it.
        shapes: the SVG of each shape, and what draws it with Pillow.
    """

    width: float
    height: float
    label: str
    svg_shapes: list[str] = field(default_factory=list)
    calls: list[tuple[str, tuple, dict]] = field(default_factory=list)

    def line(self, points: Sequence[tuple[float, float]], colour: str = FRAME, width: float = 1.0) -> None:
        """Add a line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.svg_shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>')
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.calls.append(("line", (scaled,), {"fill": colour, "width": round(width * SCALE)}))

    def dot(self, x: float, y: float, colour: str, radius: float = 3.5) -> None:
        """Add a filled circle."""
        self.svg_shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"/>')
        self.calls.append(("circle", ((x * SCALE, y * SCALE), radius * SCALE), {"fill": colour}))

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Add a rectangle in a pale shade of a colour."""
        red, green, blue = (round(0.45 * value + 0.55 * 255) for value in ImageColor.getrgb(colour)[:3])
        pale = f"#{red:02x}{green:02x}{blue:02x}"
        self.svg_shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{pale}"/>'
        )
        corners = [(x * SCALE, y * SCALE), ((x + width) * SCALE, (y + height) * SCALE)]
        self.calls.append(("rectangle", (corners,), {"fill": pale}))

    def text(self, x: float, y: float, text: str, anchor: str = "start", bold: bool = False) -> None:
        """Add a word whose "start", "middle" or "end" on the base line is the given place."""
        weight = ' font-weight="600"' if bold else ""
        self.svg_shapes.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>')
        options = {"fill": INK, "font": _font(), "anchor": ANCHORS[anchor]}
        self.calls.append(("text", ((x * SCALE, y * SCALE), text), options))

    def svg(self) -> str:
        """Return the plot as an SVG element."""
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" role="img" '
            f'aria-label="{escape(self.label)}">{"".join(self.svg_shapes)}</svg>'
        )

    def image(self) -> Image.Image:
        """Return the plot as pixels."""
        picture = Image.new("RGB", (round(self.width * SCALE), round(self.height * SCALE)), "white")
        draw = ImageDraw.Draw(picture)
        for name, arguments, options in self.calls:
            getattr(draw, name)(*arguments, **options)
        return picture


@dataclass
class Figure:
    """Plots of the same series, whose colours are those of `COLOURS` in order.

    Attributes:
        series: their names.
        drawings: the plots.
        columns: plots beside each other in a PNG.
    """

    series: list[str]
    drawings: list[Drawing]
    columns: int = 1

    def html(self) -> str:
        """Return legend and plots as a part of the page; as many beside each other as the screen is wide."""
        entries = (
            f'<span><i style="background:{COLOURS[number]}"></i>{escape(name)}</span>'
            for number, name in enumerate(self.series)
        )
        svgs = "".join(drawing.svg() for drawing in self.drawings)
        return f'<p class="legend">{" ".join(entries)}</p><div class="plots">{svgs}</div>'

    def save(self, path: Path) -> None:
        """Write legend and plots as one PNG."""
        images = [drawing.image() for drawing in self.drawings]
        cell_width, cell_height = (max(image.size[axis] for image in images) + GAP * SCALE for axis in (0, 1))
        per_line = max(1, cell_width * self.columns // (210 * SCALE))
        top = ROW * SCALE * -(-len(self.series) // per_line) + GAP * SCALE
        rows = -(-len(images) // self.columns)
        sheet = Image.new("RGB", (cell_width * self.columns, top + cell_height * rows), "white")
        draw = ImageDraw.Draw(sheet)
        for number, name in enumerate(self.series):
            x, y = 210 * SCALE * (number % per_line) + 8, ROW * SCALE * (number // per_line) + 8
            draw.rectangle([(x, y), (x + 20, y + 20)], fill=COLOURS[number])
            draw.text((x + 30, y + 20), name, fill=INK, font=_font(), anchor="ls")
        for number, image in enumerate(images):
            sheet.paste(image, (cell_width * (number % self.columns), top + cell_height * (number // self.columns)))
        sheet.save(path, optimize=True)


def _font():
    return ImageFont.load_default(size=13 * SCALE)


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 300, 40, 12, 12, 34


def curves(series: dict[str, list[tuple[int, float, float, float]]], ticks: Sequence[str]) -> Drawing:
    """Return lines with intervals: per name a list of (index of the tick, value, low, high), values in percent."""
    values = [value for points in series.values() for point in points for value in point[1:]]
    low, high = 10 * int(min(values) // 10), min(100, 10 * int(-(-max(values) // 10)))
    low = min(low, high - 10)

    def x(position: float) -> float:
        return LEFT + (position + 0.5) * (WIDTH - LEFT - RIGHT) / len(ticks)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    plot = Drawing(WIDTH, HEIGHT, "accuracy against the number of real images per class")
    for value in range(low, high + 1, 10 if high - low > 20 else 5):
        plot.line([(LEFT, y(value)), (WIDTH - RIGHT, y(value))])
        plot.text(LEFT - 6, y(value) + 4, f"{value}", "end")
    for position, tick in enumerate(ticks):
        plot.text(x(position), HEIGHT - 18, tick, "middle")
    plot.text((LEFT + WIDTH) / 2, HEIGHT - 3, "real images per class", "middle")
    for number, points in enumerate(series.values()):
        colour = COLOURS[number]
        offset = 0.7 * (number - (len(series) - 1) / 2) / max(len(series), 2)  # intervals side by side
        places = [(x(position + offset), y(value)) for position, value, _, _ in points]
        plot.line(places, colour, 1.5)
        for (px, py), (_, _, bottom, top) in zip(places, points, strict=True):
            plot.line([(px, y(bottom)), (px, y(top))], colour, 1.5)
            plot.dot(px, py, colour)
    return plot


def boxes(names: Sequence[str], groups: Sequence[list[list[float] | None]], title: str, unit: str) -> Drawing | None:
    """Return, per class, one box for each set from its 5, 25, 50, 75 and 95 % quantiles; None where all lack."""
    known = [value for rows in groups for row in rows if row for value in (row[0], row[-1])]
    if not known:
        return None
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    left, row_height, width = 110, 16, 420
    band = row_height * len(groups) + 8

    def x(value: float) -> float:
        return left + (value - low) / span * (width - left - 14)

    plot = Drawing(width, 22 + band * len(names) + 22, f"{title}: quantiles per class")
    plot.text(0, 14, f"{title}, {unit}" if unit else title, bold=True)
    for index, name in enumerate(names):
        top = 22 + index * band
        plot.text(left - 6, top + band / 2 + 2, name[:14], "end")
        plot.line([(0, top), (width, top)])
        for number, rows in enumerate(groups):
            row, colour = rows[index], COLOURS[number]
            middle = top + 6 + row_height * (number + 0.5)
            if row is None:
                plot.text(left, middle + 4, "too few")
                continue
            plot.line([(x(row[0]), middle), (x(row[4]), middle)], colour, 1.5)
            plot.box(x(row[1]), middle - 5, max(x(row[3]) - x(row[1]), 1), 10, colour)
            plot.line([(x(row[2]), middle - 6), (x(row[2]), middle + 6)], colour, 3)
    digits = max(0, 1 - math.floor(math.log10(span)))  # two that matter in the width of the axis
    for value, anchor in ((low, "start"), ((low + high) / 2, "middle"), (high, "end")):
        plot.text(x(value), plot.height - 6, f"{round(value, digits) + 0.0:.{digits}f}", anchor)
    return plot


def profiles(rows: Sequence[Sequence[float]], title: str, ends: tuple[str, str]) -> Drawing:
    """Return lines over equally spaced places, such as the share of each level; `ends` names the two ends."""
    width, bottom = 420, 150
    high = max(value for row in rows for value in row) or 1.0
    plot = Drawing(width, 170, title)
    plot.text(0, 14, title, bold=True)
    plot.line([(8, bottom), (width - 8, bottom)])
    for number, row in enumerate(rows):
        step = (width - 16) / max(len(row) - 1, 1)
        plot.line([(8 + i * step, bottom - value / high * 122) for i, value in enumerate(row)], COLOURS[number], 2)
    plot.text(8, plot.height - 4, ends[0])
    plot.text(width - 8, plot.height - 4, ends[1], "end")
    return plot


NAMES = {"train": "training", "held_out": "held-out real", "synthetic": "synthetic"}
CURVES = (
    REAL,
    DUPLICATED,
    TRANSFORMS,
    BOTH,
    BOTH_TRANSFORMS,
    WITH_SIFTED,
    WITH_SIFTED_TRANSFORMS,
    WITH_SIMULATED,
)


def accuracy(metrics: dict) -> Figure | None:
    """Accuracy against n real, of each arm at its largest ratio."""
    if metrics["usefulness"] is None:
        return None
    arms = metrics["usefulness"]["arms"]
    ticks = list(dict.fromkeys(arm["n_real"] for arm in arms if arm["n_real"] != 0))
    series: dict[str, list[tuple[int, float, float, float]]] = {}
    for name in CURVES:
        last = {arm["n_real"]: arm for arm in arms if arm["arm"] == name}
        points = [(ticks.index(n), *(100 * arm[key] for key in ("accuracy", "low", "high"))) for n, arm in last.items()]
        if points:
            series[name] = points
    return Figure(list(series), [curves(series, [str(tick) for tick in ticks])])


def levels(metrics: dict) -> Figure | None:
    """Shares of levels, and mean levels by Doppler and over time."""
    if metrics["fidelity"] is None:
        return None
    spectra = metrics["fidelity"]["levels"]
    kinds = {
        "histogram": ("Share of pixels at each level", ("floor", "full level")),
        "doppler": ("Mean level by Doppler", ("highest velocity", "lowest")),
        "time": ("Mean level over time", ("start", "end")),
    }
    drawn = [profiles([spectra[name][key] for name in NAMES], *texts) for key, texts in kinds.items()]
    return Figure(list(NAMES.values()), drawn, columns=2)


def kinematics(metrics: dict) -> Figure | None:
    """Distributions of every measure of motion, per class."""
    if metrics["kinematics"] is None:
        return None
    figures = metrics["kinematics"]
    drawn = (
        boxes(metrics["data"]["classes"], [figures["quantiles"][name][measure] for name in NAMES], measure, unit)
        for measure, unit in figures["units"].items()
    )
    known = [plot for plot in drawn if plot is not None]
    return Figure(list(NAMES.values()), known, columns=2) if known else None


FILES = {"accuracy.png": accuracy, "levels.png": levels, "kinematics.png": kinematics}

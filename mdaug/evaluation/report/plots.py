"""The plots of the report, drawn from its metrics by matplotlib: as SVG within the page and as PNG beside it."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, MultipleLocator

from mdaug.evaluation.usefulness import (
    AUXILIARY,
    BOTH,
    BOTH_TRANSFORMS,
    DUPLICATED,
    LIKE,
    REAL,
    TRANSFORMS,
    WITH_SIFTED,
    WITH_SIFTED_TRANSFORMS,
    WITH_SIMULATED,
)
from mdaug.images import drawable

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
    LIKE,
    *AUXILIARY,
)
COLOURS = (
    "#3b6ea8", "#1a7f37", "#c2410c", "#7c3aed", "#57606a", "#b7791f", "#be185d", "#0e7490",
    "#111827", "#65a30d", "#f59e0b", "#06b6d4", "#f472b6", "#8b5e3c",
)  # fmt: skip
MOST_CLASSES = 16  # that are shown one by one
INK, FRAME = "#1b1f24", "#d9dee3"
UNITS = 72  # of a drawing in an inch: a unit is a CSS pixel of the report and a point of matplotlib
PNG_SCALE = 2  # pixels of a PNG per unit
STYLE = {
    "font.size": 14,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; a browser takes the font of the page
    "text.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FRAME,
    "axes.spines.top": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.titlesize": 14,
    "axes.titlelocation": "left",
    "grid.color": FRAME,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "text.parse_math": False,  # $ in the name of a class is a $
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mdaug",  # the same metrics give the same file
}


@dataclass(frozen=True)
class Plot:
    """One pair of axes.

    Attributes:
        label: what it shows, for those who cannot see it.
        size: width and height in units.
        draw: draws it.
    """

    label: str
    size: tuple[int, int]
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class PlotGroup:
    """Plots of the same series, whose colours are those of `COLOURS` in order.

    Attributes:
        series: their names.
        plots: the plots, of one size.
        columns: plots side by side in the PNG.
    """

    series: list[str]
    plots: list[Plot]
    columns: int = 1

    def html(self) -> str:
        """Return legend and plots as a part of the page; as many side by side as the screen is wide."""
        entries = (
            f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
            for name, colour in zip(self.series, COLOURS, strict=False)
        )
        return f'<p class="legend">{" ".join(entries)}</p><div class="plots">{"".join(map(_svg, self.plots))}</div>'

    def save(self, path: Path) -> None:
        """Write legend and plots as one PNG."""
        columns = min(self.columns, len(self.plots))
        rows = -(-len(self.plots) // columns)
        width, height = self.plots[0].size
        per_line = max(1, columns * width // (40 + 9 * max(map(len, self.series))))
        legend = 24 * -(-len(self.series) // per_line) + 12
        with _style():
            figure = _drawn(self.plots, (columns * width, rows * height + legend), rows, columns)
            handles = [Patch(color=colour) for colour, _ in zip(COLOURS, self.series, strict=False)]
            figure.legend(
                handles, self.series, loc="outside upper left", ncols=per_line, handlelength=1, handleheight=1
            )
            figure.savefig(path, dpi=PNG_SCALE * UNITS, metadata={"Software": None}, pil_kwargs={"optimize": True})


def accuracy(metrics: dict) -> PlotGroup | None:
    """Return accuracy against n real, of each arm at its largest ratio."""
    if metrics["usefulness"] is None:
        return None
    arms = metrics["usefulness"]["arms"]
    ticks = {arm["n_real"]: arm["n_used"].partition(" (")[0] for arm in arms if arm["n_real"] != 0}
    places = list(ticks)
    series: dict[str, list[tuple[float, float, float, float]]] = {}
    for name in CURVES:
        largest_ratio = {arm["n_real"]: arm for arm in arms if arm["arm"] == name}
        points = [
            (places.index(n_real), *(100 * arm[key] for key in ("accuracy", "low", "high")))
            for n_real, arm in largest_ratio.items()
        ]
        if points:
            series[name] = points
    label = "mean recall per class against the number of real images per class"
    plot = Plot(label, (640, 360), lambda axes: _draw_curves(axes, list(series.values()), list(ticks.values())))
    return PlotGroup(list(series), [plot])


def levels(metrics: dict) -> PlotGroup | None:
    """Return shares of levels, and mean levels by Doppler and over time."""
    if metrics["fidelity"] is None:
        return None
    figures = metrics["fidelity"]["levels"]

    def plot(key: str, title: str, ends: tuple[str, str]) -> Plot:
        rows = [figures[name][key] for name in NAMES]
        return Plot(title, (420, 190), lambda axes: _draw_profiles(axes, rows, title, ends))

    plots = [
        plot("histogram", "Share of pixels at each level", ("floor", "full level")),
        plot("doppler", "Mean level by Doppler", ("highest velocity", "lowest")),
        plot("time", "Mean level over time", ("start", "end")),
    ]
    return PlotGroup(list(NAMES.values()), plots, columns=2)


def kinematics(metrics: dict) -> PlotGroup | None:
    """Return the distributions of every measure of motion, per class; None where no picture shows any."""
    if metrics["kinematics"] is None:
        return None
    figures, classes = metrics["kinematics"], metrics["data"]["classes"]
    chosen, names = kinematics_classes(metrics), drawable(classes)

    def plot(measure: str, unit: str) -> Plot:
        sets = [[figures["quantiles"][name][measure][label] for label in chosen] for name in NAMES]
        title = f"{measure}, {unit}" if unit else measure
        size, shown = (420, 70 + 60 * len(chosen)), [names[label] for label in chosen]
        return Plot(f"{measure}: quantiles per class", size, lambda axes: _draw_boxes(axes, shown, sets, title))

    plots = [
        plot(measure, unit)
        for measure, unit in figures["units"].items()
        if any(row for name in NAMES for row in figures["quantiles"][name][measure])
    ]
    return PlotGroup(list(NAMES.values()), plots, columns=2) if plots else None


def kinematics_classes(metrics: dict) -> list[int]:
    """Return the labels whose motion is plotted: all, or of many the MOST_CLASSES that differ most from real images.

    That is in the Kolmogorov-Smirnov statistic of synthetic against training images, mean over the measures.
    """
    tables = metrics["kinematics"]["synthetic"]

    def difference(label: int) -> float:
        values = [row["ks"] for row in tables[label].values() if row]
        return sum(values) / max(len(values), 1)

    worst = sorted(range(len(tables)), key=difference, reverse=True)[:MOST_CLASSES]
    return sorted(worst)


FILES = {"accuracy.png": accuracy, "levels.png": levels, "kinematics.png": kinematics}


def _draw_curves(
    axes: Axes, series: Sequence[Sequence[tuple[float, float, float, float]]], ticks: Sequence[str]
) -> None:
    """Draw lines with intervals: per series a list of (index of the tick, value, low, high), values in percent."""
    for number, (points, colour) in enumerate(zip(series, COLOURS, strict=False)):
        offset = 0.7 * (number - (len(series) - 1) / 2) / max(len(series), 2)  # intervals side by side
        places = [position + offset for position, *_ in points]
        axes.plot(places, [value for _, value, _, _ in points], "o-", color=colour, linewidth=1.5, markersize=6)
        axes.vlines(places, [low for *_, low, _ in points], [high for *_, high in points], colour, linewidth=1.5)
    values = [value for points in series for point in points for value in point[1:]]
    high = min(100, 10 * math.ceil(max(values) / 10))
    low = min(10 * math.floor(min(values) / 10), high - 10)
    axes.set(xlim=(-0.5, len(ticks) - 0.5), ylim=(low, high), xticks=range(len(ticks)), xlabel="real images per class")
    axes.set_xticklabels(ticks)
    axes.yaxis.set_major_locator(MultipleLocator(10 if high - low > 20 else 5))
    axes.grid(axis="y")


def _draw_profiles(axes: Axes, rows: Sequence[Sequence[float]], title: str, ends: tuple[str, str]) -> None:
    """Draw lines over equally spaced places, such as the share of each level; `ends` names the two ends."""
    for row, colour in zip(rows, COLOURS, strict=False):
        axes.plot(row, color=colour, linewidth=2)
    last = max(len(row) for row in rows) - 1
    axes.set(title=title, xlim=(0, max(last, 1)), ylim=(0, None), yticks=[], xticks=[0, max(last, 1)])
    start, end = axes.set_xticklabels(ends)
    start.set_horizontalalignment("left")
    end.set_horizontalalignment("right")


def _draw_boxes(axes: Axes, names: Sequence[str], sets: Sequence[Sequence[list[float] | None]], title: str) -> None:
    """Draw, per class, one box for each set from its 5, 25, 50, 75 and 95 % quantiles."""
    height = len(sets) + 1  # of a class, in rows
    for number, (rows, colour) in enumerate(zip(sets, COLOURS, strict=False)):
        for index, row in enumerate(rows):
            middle = index * height + number + 1
            if row is None:
                axes.text(0.01, middle, "too few", transform=axes.get_yaxis_transform(), va="center", fontsize=12)
                continue
            lowest, low, median, high, highest = row
            axes.hlines([middle] * 2, [lowest, high], [low, highest], colour, linewidth=1.5)
            axes.barh(middle, high - low, 0.65, left=low, color=colour, alpha=0.45)
            axes.vlines(median, middle - 0.4, middle + 0.4, colour, linewidth=3)
    axes.hlines([index * height for index in range(len(names))], 0, 1, FRAME, transform=axes.get_yaxis_transform())
    axes.use_sticky_edges = False  # a box has a margin, too
    axes.set(title=title, ylim=(len(names) * height, 0))
    axes.set_yticks([(index + 0.5) * height for index in range(len(names))], [_shortened(name) for name in names])
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def _shortened(name: str) -> str:
    return name if len(name) <= 15 else f"{name[:14]}…"


@contextlib.contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE):
        yield


def _drawn(plots: Sequence[Plot], size: tuple[int, int], rows: int = 1, columns: int = 1) -> Figure:
    """Return a figure of `size` units with the plots in rows and columns."""
    layout = ConstrainedLayoutEngine(w_pad=6 / UNITS, h_pad=6 / UNITS)
    figure = Figure((size[0] / UNITS, size[1] / UNITS), layout=layout)
    for number, plot in enumerate(plots, start=1):
        plot.draw(figure.add_subplot(rows, columns, number))
    for artist in figure.findobj():
        artist.set_clip_on(False)  # all data are within the axes; a dot at 100 % is whole
    return figure


def _svg(plot: Plot) -> str:
    """Return a plot as an SVG element of an HTML page, without what only a file of its own needs."""
    file = io.StringIO()
    with _style():
        _drawn([plot], plot.size).savefig(file, format="svg", transparent=True, metadata={"Date": None})
    body = " ".join(file.getvalue().split()).partition("<svg")[2].partition(">")[2]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|(?<=<g) id=\"[\w.]+\"|font-family: [^;]*;", "", body)
    width, height = plot.size
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(plot.label)}">{body}'

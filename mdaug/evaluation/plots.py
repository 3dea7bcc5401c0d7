"""The plots of the report: accuracy curves with intervals, quantile boxes, profiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mdaug.evaluation.drawing import COLOURS, Drawing

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

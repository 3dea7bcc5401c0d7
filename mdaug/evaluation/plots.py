"""Plots of the report as inline SVG: accuracy curves with intervals, quantile boxes, profiles."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

COLOURS = ("#3b6ea8", "#1a7f37", "#c2410c", "#7c3aed", "#57606a", "#b7791f", "#be185d")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 300, 40, 12, 12, 34


def curves(series: dict[str, list[tuple[int, float, float, float]]], ticks: Sequence[str]) -> str:
    """Return lines with intervals: per name a list of (index of the tick, value, low, high), values in percent."""
    values = [value for points in series.values() for point in points for value in point[1:]]
    low, high = 10 * int(min(values) // 10), min(100, 10 * int(-(-max(values) // 10)))
    low = min(low, high - 10)

    def x(position: float) -> float:
        return LEFT + (position + 0.5) * (WIDTH - LEFT - RIGHT) / len(ticks)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in range(low, high + 1, 10 if high - low > 20 else 5):
        parts.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value), "#d9dee3"))
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value}", "end"))
    for position, tick in enumerate(ticks):
        parts.append(_text(x(position), HEIGHT - 16, tick, "middle"))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 2, "real images per class", "middle"))
    for number, points in enumerate(series.values()):
        colour = COLOURS[number % len(COLOURS)]
        offset = 0.25 * (number - (len(series) - 1) / 2) / max(len(series), 2)  # intervals side by side
        places = [(x(position + offset), y(value)) for position, value, _, _ in points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (px, py), (_, _, bottom, top) in zip(places, points, strict=True):
            parts.append(_line(px, y(bottom), px, y(top), colour, 1.5))
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"/>')
    return _legend(list(series)) + _svg(parts, WIDTH, HEIGHT, "accuracy against the number of real images per class")


def boxes(names: Sequence[str], groups: dict[str, list[list[float] | None]], title: str, unit: str) -> str:
    """Return, per class, one box for each set from its 5, 25, 50, 75 and 95 % quantiles."""
    known = [value for rows in groups.values() for row in rows if row for value in (row[0], row[-1])]
    if not known:
        return ""
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    left, row_height, width = 110, 16, 420
    band = row_height * len(groups) + 8
    height = 22 + band * len(names) + 22

    def x(value: float) -> float:
        return left + (value - low) / span * (width - left - 14)

    parts = [_text(0, 14, f"{title} in {unit}" if unit else title, "start", bold=True)]
    for index, name in enumerate(names):
        top = 22 + index * band
        parts.append(_text(left - 6, top + band / 2 + 2, name[:14], "end"))
        parts.append(_line(0, top, width, top, "#d9dee3"))
        for number, rows in enumerate(groups.values()):
            row, colour = rows[index], COLOURS[number]
            middle = top + 6 + row_height * (number + 0.5)
            if row is None:
                parts.append(_text(left, middle + 4, "too few", "start"))
                continue
            parts.append(_line(x(row[0]), middle, x(row[4]), middle, colour, 1.5))
            parts.append(
                f'<rect x="{x(row[1]):.1f}" y="{middle - 5:.1f}" width="{max(x(row[3]) - x(row[1]), 1):.1f}" '
                f'height="10" fill="{colour}" fill-opacity="0.45"/>'
            )
            parts.append(_line(x(row[2]), middle - 6, x(row[2]), middle + 6, colour, 3))
    for value, anchor in ((low, "start"), ((low + high) / 2, "middle"), (high, "end")):
        parts.append(_text(x(value), height - 6, f"{value:.2g}", anchor))
    return _svg(parts, width, height, f"{title}: quantiles per class")


def profiles(series: dict[str, Sequence[float]], title: str, ends: tuple[str, str]) -> str:
    """Return lines over equally spaced places, such as the share of each level; `ends` names the two ends."""
    width, height, bottom = 420, 170, 150
    high = max(value for row in series.values() for value in row) or 1.0
    parts = [_text(0, 14, title, "start", bold=True), _line(8, bottom, width - 8, bottom, "#d9dee3")]
    for number, row in enumerate(series.values()):
        step = (width - 16) / max(len(row) - 1, 1)
        path = " ".join(f"{8 + i * step:.1f},{bottom - value / high * 122:.1f}" for i, value in enumerate(row))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[number]}" stroke-width="2"/>')
    parts += [_text(8, height - 4, ends[0], "start"), _text(width - 8, height - 4, ends[1], "end")]
    return _svg(parts, width, height, title)


def legend(names: Sequence[str]) -> str:
    """Return the names of series in their colours, as the plots here draw them."""
    return _legend(list(names))


def _legend(names: list[str]) -> str:
    entries = (
        f'<span><i style="background:{COLOURS[number % len(COLOURS)]}"></i>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{" ".join(entries)}</p>'


def _svg(parts: list[str], width: float, height: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"/>'


def _text(x: float, y: float, text: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'

"""Pieces of HTML that pages are made of: tables, confusion matrices, pictures, notes, numbers."""

from __future__ import annotations

import base64
import math
from html import escape

from mdaug.evaluation.report.plots import MOST_CLASSES
from mdaug.images import drawable

MOST_PAIRS = 20  # of classes, in place of a large confusion matrix


def table(head: list[str], rows: list[list]) -> str:
    """Return a table of HTML cells that scrolls by itself where the screen is narrow."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><tr>{header}</tr>\n{body}</table></div>'


def confusion(title: str, names: list[str], matrix: list[list[int]]) -> str:
    """Return a confusion matrix, each row shaded by its shares; of many classes the worst pairs. `names` are HTML."""
    if len(names) > MOST_CLASSES:
        return f"<p>{escape(title)}</p>" + _worst_pairs(names, matrix)
    rows = []
    for name, row in zip(names, matrix, strict=True):
        total = max(sum(row), 1)
        cells = (
            f'<td style="background:rgba(59,110,168,{value / total:.2f})">{value}</td>' if value else "<td>0</td>"
            for value in row
        )
        rows.append(f"<tr><th>{name}</th>{''.join(cells)}</tr>")
    header = "".join(f"<th>{name}</th>" for name in names)
    body = f'<table class="confusion"><tr><th></th>{header}</tr>{"".join(rows)}</table>'
    return f'<p>{escape(title)}</p><div class="scroll">{body}</div>'


def _worst_pairs(names: list[str], matrix: list[list[int]]) -> str:
    """Return the pairs of classes that are most often taken for each other, as shares of the true class."""
    shares = [
        (value / sum(row), value, true, predicted)
        for true, row in enumerate(matrix)
        for predicted, value in enumerate(row)
        if value and predicted != true
    ]
    worst = sorted(shares, key=lambda pair: (-pair[0], pair[2:]))[:MOST_PAIRS]
    rows = [[names[true], names[predicted], share(part), value] for part, value, true, predicted in worst]
    return table(["true class", "taken for", "% of it", "images"], rows) if rows else "<p>No image is misjudged.</p>"


def legend(names: list[str]) -> str:
    """Return what the numbers in a picture stand for, which has `names` as far as its font can draw them."""
    numbers = [(shown, name) for shown, name in zip(drawable(names), names, strict=True) if shown != name]
    text = ", ".join(f"{number}: {escape(name)}" for number, name in numbers)
    return f"<p class=note>Numbers stand for classes: {text}</p>" if text else ""


def chosen(shown: list[str], names: list[str]) -> str:
    """Return a note where only the worst of many classes are shown."""
    if len(shown) == len(names):
        return ""
    return (
        f"<p class=note>Of {len(names)} classes {len(shown)} are shown, the worst by what was measured: "
        f"{escape(', '.join(shown))}. The files beside the report have all.</p>"
    )


def inline(png: bytes, description: str) -> str:
    """Return a PNG as part of the page."""
    encoded = base64.b64encode(png).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{encoded}">'


def share(value: float | None) -> str:
    """Return a share in percent without sign, a dash for None."""
    return "–" if value is None else f"{100 * value:.0f}"


def number(value: float | None) -> str:
    """Return three significant digits, a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"

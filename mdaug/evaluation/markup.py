"""Pieces of the report: tables, pictures put inline, numbers as text."""

from __future__ import annotations

import base64
from html import escape


def table(head: list[str], rows: list[list]) -> str:
    """Return a table of HTML cells that scrolls by itself where the screen is narrow."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><tr>{header}</tr>\n{body}</table></div>'


def confusion(title: str, names: list[str], matrix: list[list[int]]) -> str:
    """Return a confusion matrix, each row shaded by its shares; `names` are HTML."""
    rows = []
    for name, row in zip(names, matrix, strict=True):
        total = max(sum(row), 1)
        cells = (f'<td style="background:rgba(59,110,168,{value / total:.2f})">{value}</td>' for value in row)
        rows.append(f"<tr><th>{name}</th>{''.join(cells)}</tr>")
    header = "".join(f"<th>{name}</th>" for name in names)
    body = f'<table class="confusion"><tr><th></th>{header}</tr>{"".join(rows)}</table>'
    return f'<p>{escape(title)}</p><div class="scroll">{body}</div>'


def inline(png: bytes, description: str) -> str:
    """Return a PNG as part of the page."""
    encoded = base64.b64encode(png).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{encoded}">'


def share(value: float | None) -> str:
    """Return a share in percent without sign, a dash for None."""
    return "–" if value is None else f"{100 * value:.0f}"


def number(value: float | None) -> str:
    """Return three significant digits, a dash for None."""
    return "–" if value is None else f"{value:.3g}"

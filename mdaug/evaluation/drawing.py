"""A plot as a list of shapes, drawn as SVG for the report or as pixels for a PNG; and several under one legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

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

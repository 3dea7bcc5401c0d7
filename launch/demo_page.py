"""The page of a running demo: stages with the time left, loss curves, the newest pictures, at the end the report.

One file that loads nothing and refreshes itself until the end. Everything on it is read from the folders of the stages.
"""

from __future__ import annotations

import base64
import html
import json
import time
from pathlib import Path

from shards import atomic
from shards.output_folder import is_finished, read_progress

FILE = "index.html"
REFRESH_S = 5
WIDTH, HEIGHT = 560, 180  # of a curve
PICTURES = (  # title, stage, files below its folder
    ("Held-out images and what the VQ-VAE makes of them", "train-vqvae", "images/*.png"),
    ("Samples of the diffusion model while it learns, above the training images nearest to them", "train-ldm",
     "generated_images/*.png"),
    ("Synthetic images", "generate", "grid.png"),
)  # fmt: skip
CURVES = (("Loss of the VQ-VAE", "train-vqvae"), ("Loss of the diffusion model", "train-ldm"))
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% } td { padding: .2rem .6rem .2rem 0; white-space: nowrap }
td.bar { width: 60% } .bar div { background: #eee; height: .8rem } .bar div div { background: #3a6ea5 }
img { max-width: 100%; image-rendering: pixelated } svg { max-width: 100%; height: auto } figure { margin: 1rem 0 }
iframe { width: 100%; height: 90vh; border: 1px solid #ccc } pre { white-space: pre-wrap } .failed { color: #a00 }
"""


class Page:
    """`index.html` of a demo, and the line in the terminal.

    Args:
        out: folder of all stages.
        folders: stage -> its output folder.
        commands: the stages that run, in their order.
        planned: command -> seconds that it is expected to take; None where that is not known.
    """

    def __init__(self, out: Path, folders: dict[str, Path], commands: list[str], planned: dict[str, float] | None):
        self.out, self.folders, self.commands, self.planned = out, folders, commands, planned
        self.path = out / FILE
        self.running: str | None = None
        self.failed: str | None = None
        self._begun = time.monotonic()
        self._ended: dict[str, float] = {}
        self._summary = ""

    def begin(self, command: str) -> None:
        """A stage begins."""
        self.running, self._begun = command, time.monotonic()
        self._write()

    def end(self, command: str, failed: bool = False) -> None:
        """The running stage has ended."""
        self._ended[command], self.running = time.monotonic() - self._begun, None
        if failed:
            self.failed = command
        self._write()

    def tell(self) -> None:
        """Print one line of overall progress, and write the page again."""
        if line := self.line():
            print(line, flush=True)
        self._write()

    def finish(self, summary: str) -> None:
        """Write the page for the last time, with the summary and the report."""
        self._summary = summary
        self._write()

    def share(self, command: str) -> float:
        """Return how much of a stage is done, in [0, 1]; of the running one 0 where it does not say."""
        if command in self._ended and command != self.failed:
            return 1.0
        if command != self.running or command not in self.folders:
            return 0.0
        progress = read_progress(self.folders[command])
        if progress is not None and not is_finished(self.folders[command]):
            return min(1.0, progress.done / max(progress.total, 1))
        return 0.0

    def seconds_left(self) -> float | None:
        """Return the time until all stages are done as planned; None where nothing was planned."""
        if self.planned is None:
            return None
        left = 0.0
        for command in self.commands:
            if command not in self._ended:
                left += self.planned.get(command, 0.0) * (1 - self.share(command))
        return left

    def line(self) -> str:
        """Return the line of overall progress; nothing between two stages."""
        if self.running is None:
            return ""
        left = self.seconds_left()
        if self.planned is None or left is None:
            return f"demo: {self.running}, {100 * self.share(self.running):.0f} %"
        whole = sum(self.planned.get(command, 0.0) for command in self.commands)
        return (
            f"demo: {100 * (1 - left / max(whole, 1e-9)):.0f} % of all | {self.running} "
            f"{100 * self.share(self.running):.0f} % | {in_words(left)} left"
        )

    def _write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self.path, self._html())

    def _html(self) -> str:
        over = bool(self._summary) or self.failed is not None
        refresh = "" if over else f'<meta http-equiv="refresh" content="{REFRESH_S}">'
        left = self.seconds_left()
        if self.failed is not None:
            state = f'<p class="failed">{self.failed} failed; its message is in the terminal.</p>'
        elif self._summary:
            state = "<p>Done.</p>"
        else:
            state = f"<p>{in_words(left)} left, this page refreshes itself.</p>" if left is not None else ""
        parts = [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">', refresh,
            '<meta name="viewport" content="width=device-width"><title>mdaug demo</title>',
            f"<style>{STYLE}</style></head><body><h1>mdaug demo</h1>", state, self._table(),
        ]  # fmt: skip
        if self._summary:
            parts.append(f"<h2>Summary</h2><pre>{html.escape(self._summary.strip())}</pre>")
        parts += [self._picture(*picture) for picture in PICTURES]
        parts += [self._curve(*curve) for curve in CURVES]
        report = self.folders["evaluate"] / "report.html" if "evaluate" in self.folders else None
        if self._summary and report is not None and report.is_file():
            text = html.escape(report.read_text(encoding="utf-8"), quote=True)
            parts.append(f'<h2>Report</h2><iframe title="report" srcdoc="{text}"></iframe>')
        return "\n".join([*parts, "</body></html>\n"])

    def _table(self) -> str:
        rows = []
        for command in self.commands:
            note = ""
            if command in self._ended:
                note = f"{self._ended[command]:.0f} s"
            elif self.planned is not None and command in self.planned:
                note = f"about {self.planned[command]:.0f} s"
            bar = f'<div><div style="width:{100 * self.share(command):.0f}%;height:100%"></div></div>'
            rows.append(f'<tr><td>{command}</td><td class="bar">{bar}</td><td>{note}</td></tr>')
        return f"<table>{''.join(rows)}</table>"

    def _picture(self, title: str, command: str, pattern: str) -> str:
        """Return the newest picture of a stage, within the page; nothing where there is none yet."""
        files = sorted(self.folders[command].glob(pattern)) if command in self.folders else []
        if not files:
            return ""
        data = base64.b64encode(files[-1].read_bytes()).decode()
        return f'<h2>{title}</h2><figure><img alt="{title}" src="data:image/png;base64,{data}"></figure>'

    def _curve(self, title: str, command: str) -> str:
        """Return the training loss of a run so far as a drawing; nothing for fewer than two reports."""
        path = self.folders[command] / "metrics.jsonl" if command in self.folders else self.out
        points = losses(path) if path.is_file() else []
        if len(points) < 2:
            return ""
        first, last = points[0][0], points[-1][0]
        high = max(loss for _, loss in points)
        low = min(0.0, min(loss for _, loss in points))
        across, down = WIDTH / max(last - first, 1), HEIGHT / max(high - low, 1e-9)
        places = " ".join(f"{across * (samples - first):.1f},{down * (high - loss):.1f}" for samples, loss in points)
        return (
            f'<h2>{title}</h2><svg viewBox="-50 -10 {WIDTH + 60} {HEIGHT + 35}" width="{WIDTH + 60}">'
            f'<path d="M0,0V{HEIGHT}H{WIDTH}" fill="none" stroke="#999"/>'
            f'<polyline points="{places}" fill="none" stroke="#3a6ea5" stroke-width="2"/>'
            f'<text x="-6" y="5" text-anchor="end" font-size="12">{high:.3g}</text>'
            f'<text x="-6" y="{HEIGHT}" text-anchor="end" font-size="12">{low:.3g}</text>'
            f'<text x="{WIDTH}" y="{HEIGHT + 18}" text-anchor="end" font-size="12">{last:,} samples</text></svg>'
        )


def losses(path: Path) -> list[tuple[int, float]]:
    """Return (samples, training loss) of the reports in metrics.jsonl; a line that is being written is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record.get("loss"), float) and record["loss"] == record["loss"]:
            found.append((int(record["samples"]), record["loss"]))
    return found


def in_words(seconds: float) -> str:
    """Return a duration such as "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

"""The Kaggle notebook at tiny size: read-only inputs, a session that stops early, one that continues it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import demo, stages
from mdaug import cli, config
from tests.toy import CLASSES, toy_image

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "kaggle.ipynb"
LDM_CELL = 7  # the code cell that trains the diffusion model
STEPS = 60  # of the diffusion model at the tiny size


def cells() -> list[str]:
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


class Session:
    """One session on Kaggle: its own working folder, its own variables, and what the cells have printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, inputs: Path, working: Path, **variables: str):
        working.mkdir()
        variables = {"INPUT": str(inputs), "WORKING": str(working), "SIZE": "tiny", "GPUS": "1", **variables}
        for name, value in variables.items():
            monkeypatch.setenv(f"MDAUG_{name}", value)
        self.runs = working / "mdaug-runs"
        self.variables: dict = {"print": self._print}
        self.printed: list[str] = []
        self.interrupt_at: str | None = None

    def _print(self, text: str, end: str = "\n") -> None:
        self.printed.append(text + end)
        if self.interrupt_at and text.startswith(self.interrupt_at):
            self.interrupt_at = None
            raise KeyboardInterrupt

    def run(self, cell: str) -> str:
        """Execute a cell and return what it printed."""
        self.printed.clear()
        exec(compile(cell, "cell", "exec"), self.variables)
        return "".join(self.printed)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """The folder of inputs: mdaug itself and a small image folder, as Kaggle mounts data sets."""
    import numpy as np
    from PIL import Image

    folder = tmp_path / "input"
    images = folder / "datasets" / "somebody" / "gestures" / "gestures"
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (images / name).mkdir(parents=True)
        for i in range(12):
            picture = Image.fromarray(toy_image(label, rng, 16)[:, :, 0])
            picture.save(images / name / f"{name}_r{i // 3}_e{i:03d}.png")
    (folder / "mdaug").symlink_to(ROOT)
    return folder


def fingerprint(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "mdaug" not in path.parts)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def logged_steps(run: Path) -> list[int]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["step"] for record in records if "img_s" in record]


@pytest.mark.slow
def test_a_second_session_continues_the_first_from_its_attached_output(inputs, tmp_path, monkeypatch):
    first = Session(monkeypatch, inputs, tmp_path / "first")
    *preparation, training = cells()[: LDM_CELL + 1]
    for cell in preparation:
        first.run(cell)
    first.interrupt_at = "samples"  # the first line of its log
    with pytest.raises(KeyboardInterrupt):
        first.run(training)
    begun = logged_steps(first.runs / "ldm")
    assert 1 <= len(begun) < STEPS
    assert begun == list(range(1, len(begun) + 1))

    # The output of the first session is an input of the second: everything is there, and read-only.
    attached = inputs / "notebooks" / "somebody" / "my-run" / "mdaug-runs"
    attached.parent.mkdir(parents=True)
    shutil.move(first.runs, attached)
    for path in [attached, *attached.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = fingerprint(inputs)

    second = Session(monkeypatch, inputs, tmp_path / "second")
    said = "".join(second.run(cell) for cell in cells())
    assert f"continued from {attached}" in said
    assert f"{second.runs / 'vqvae'} is finished" in said
    assert f"{second.runs / 'ldm' / 'latents'} is finished" in said
    assert logged_steps(second.runs / "ldm") == list(range(1, STEPS + 1))  # each step once, over both sessions
    assert (second.runs / "synthetic" / "manifest.csv").is_file()
    assert (second.runs / "evaluation" / "report.html").is_file()
    assert fingerprint(inputs) == before


def test_the_flags_of_full_size_parse(inputs, tmp_path, monkeypatch):
    session = Session(monkeypatch, inputs, tmp_path / "full", SIZE="full")
    for cell in cells()[: LDM_CELL - 2]:
        session.run(cell)
    flags = session.variables["FLAGS"]
    for command in stages.CHAIN[1:]:
        cli.parse(
            command, [*stages.flags(command, Path("out"), None, flags["preset"]), *flags.get(command, "").split()]
        )


def test_the_demo_runs_first_where_minutes_are_given_and_once(inputs, tmp_path, monkeypatch):
    session = Session(monkeypatch, inputs, tmp_path / "demo", DEMO_MINUTES="5")
    *preparation, demo_cell = cells()[: LDM_CELL - 2]
    for cell in preparation:
        session.run(cell)
    lines = []

    def popen(line, **_):
        lines.append(line)
        return SimpleNamespace(stdout=["demo: done\n"], wait=lambda: 0)

    session.variables["subprocess"] = SimpleNamespace(Popen=popen, PIPE=None, STDOUT=None)
    assert session.run(demo_cell) == "demo: done\n"
    options = config.parse(demo.DemoConfig, lines[0][3:], prog="demo")
    assert (options.out, options.minutes) == (session.runs / "demo", 5)
    report = session.runs / "demo" / "evaluation" / "report.html"
    report.parent.mkdir(parents=True)
    report.touch()
    session.run(demo_cell)
    session.variables["DEMO_MINUTES"] = 0
    report.unlink()
    session.run(demo_cell)
    assert len(lines) == 1


def test_when_the_hours_are_over_the_rest_waits(inputs, tmp_path, monkeypatch):
    session = Session(monkeypatch, inputs, tmp_path / "late", HOURS="1")
    *preparation, pack, vqvae = cells()[:LDM_CELL]
    for cell in preparation:
        session.run(cell)
    session.variables["BEGUN"] = time.time() - 3600 + 0.05
    assert "pack: stopped. Add the output of this session as an input" in session.run(pack)
    assert session.run(vqvae) == "train-vqvae: left for the next session\n"
    assert not session.runs.exists()

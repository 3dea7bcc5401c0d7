"""The page of a running demo in a browser: stages, pictures and curves as they come, at the end the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from launch.demo_page import Page, in_words, losses
from shards.output_folder import claim, disown_all
from tests import browser

COMMANDS = ["simulate", "train-vqvae", "evaluate"]
PLANNED = {"simulate": 10.0, "train-vqvae": 60.0, "evaluate": 30.0}


def write_picture(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def running(tmp_path):
    """A page while its second stage is half done."""
    out = tmp_path / "out"
    folders = {"simulate": out / "images", "train-vqvae": out / "vqvae", "evaluate": out / "evaluation"}
    page = Page(out, folders, COMMANDS, PLANNED)
    page.begin("simulate")
    page.end("simulate")
    page.begin("train-vqvae")
    folder = claim(tmp_path / "out" / "vqvae", "train-vqvae", {}, {})
    folder.progress(400, 800, "sample", saved=0)
    reports = [{"samples": 80 * i, "loss": 1 / i, "img_s": 40.0} for i in range(1, 6)]
    text = "".join(json.dumps(report) + "\n" for report in reports) + '{"samples": 480, "lo'
    (folder.path / "metrics.jsonl").write_text(text)
    write_picture(folder.path / "images" / "samples-000000000400.png")
    yield page
    disown_all()


def test_one_line_tells_the_progress_of_all_and_the_time_left(running, capsys):
    running.tell()
    assert capsys.readouterr().out == "demo: 40 % of all | train-vqvae 50 % | 1 min 00 s left\n"


def test_a_stage_that_has_failed_is_named_and_the_page_stops_refreshing(running):
    running.end("train-vqvae", failed=True)
    text = running.path.read_text()
    assert "train-vqvae failed" in text
    assert 'http-equiv="refresh"' not in text


def test_losses_leave_out_a_line_that_is_being_written(running):
    assert losses(running.folders["train-vqvae"] / "metrics.jsonl")[-1] == (400, 0.2)


def test_durations_are_words():
    assert [in_words(seconds) for seconds in (4.6, 59.7, 200)] == ["5 s", "1 min 00 s", "3 min 20 s"]


def test_a_browser_shows_it_while_it_runs_and_at_the_end(running, tmp_path):
    if (found := browser.executable()) is None:
        pytest.skip("no Chromium is installed here (Debian: apt-get install chromium)")
    running.tell()
    with browser.page(found, tmp_path / "browser") as tab:
        for width in (400, 1200):
            tab.open(running.path, width, 800)
            assert tab.requests[0] == running.path.as_uri()
            assert all(url.startswith("data:") for url in tab.requests[1:])
            assert tab.value("document.documentElement.scrollWidth") <= width
        bars = "Array.from(document.querySelectorAll('.bar div div')).map(b => b.style.width).join()"
        assert tab.value(bars) == "100%,50%,0%"
        assert tab.value("document.querySelectorAll('img').length") == 1
        assert tab.value("document.querySelector('img').naturalWidth") == 80
        assert tab.value("document.querySelectorAll('polyline').length") == 1
        assert tab.value("document.querySelector('meta[http-equiv=refresh]').content") == "5"

        running.end("train-vqvae")
        running.begin("evaluate")
        report = tmp_path / "out" / "evaluation" / "report.html"
        report.parent.mkdir()
        report.write_text('<!doctype html><p id="verdict" title="a &amp; b">Synthetic data "helped" &lt;a lot&gt;.</p>')
        running.end("evaluate")
        running.finish("train-vqvae <b>60 s</b>")
        tab.open(running.path, 1200, 800)
        assert tab.value("document.querySelector('meta[http-equiv=refresh]')") is None
        assert tab.value("document.querySelector('pre').textContent") == "train-vqvae <b>60 s</b>"
        inner = "document.querySelector('iframe').contentDocument.getElementById('verdict')"
        assert tab.value(f"{inner}.textContent") == 'Synthetic data "helped" <a lot>.'
        assert tab.value(f"{inner}.title") == "a & b"

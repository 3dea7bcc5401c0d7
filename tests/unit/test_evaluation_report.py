"""report.html: the numbers of the metrics in one file, readable on a phone and on a desktop."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdaug.artifacts import GEOMETRY_FILE
from mdaug.evaluation.comparisons import judge
from mdaug.evaluation.evaluate import run as evaluate
from mdaug.evaluation.options import EvaluateConfig
from mdaug.evaluation.report import pictures, plots
from mdaug.evaluation.report.page import METRICS, REPORT, html
from mdaug.evaluation.report.verdict import mean_and_spread
from mdaug.models.vqvae import build_vqvae
from shards import provenance
from tests import browser
from tests.toy import CLASSES, toy_packed, toy_synthetic

SIZE = 32
WIDTHS = {"phone": 390, "desktop": 1280}
# What sticks out at the right and does not scroll within a frame of its own, and by how many pixels.
OVERFLOW = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll'))
              .map(e => [e.getBoundingClientRect().right - innerWidth, e.outerHTML.slice(0, 99)])
              .filter(o => o[0] > 0)"""
PICTURES = "[...document.images].map(i => [i.complete, i.naturalWidth, i.alt])"


@pytest.fixture(scope="module")
def vqvae(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vqvae") / "best"
    build_vqvae(image_channels=1, latent_channels=4, num_codes=8, n_layers=2, max_channels=32).save_pretrained(folder)
    (folder / GEOMETRY_FILE).write_text(json.dumps({"image_shape": [SIZE, SIZE, 1], "latent_shape": [4, 8, 8]}))
    return folder


@pytest.fixture(scope="module")
def evaluated(vqvae, tmp_path_factory) -> tuple[Path, dict]:
    """Return the folder of an evaluation of all parts, and its metrics."""
    folder = tmp_path_factory.mktemp("evaluation")
    packed = toy_packed(folder / "packed", size=SIZE, train=96, val=80)
    synthetic = toy_synthetic(folder / "synthetic", packed)
    made_from = {"images": provenance.read(packed, "images")["hash"]}
    provenance.write(vqvae, kind="vqvae", content_hash="v", made_from=made_from, config={})
    options = {"steps": 2, "batch_size": 8, "image_size": SIZE, "seeds": 2, "workers": 1}
    numbers = {"n_real_per_class": [2], "synthetic_per_real": [1]}
    metrics = evaluate(EvaluateConfig(packed, synthetic, folder / "out", vqvae.parent, **numbers, **options))
    assert metrics is not None
    return folder / "out", metrics


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    found = browser.executable()
    if found is None:
        pytest.skip("no Chromium is installed here (Debian: apt-get install chromium)")
    with browser.page(found, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def test_one_classifier_has_no_spread():
    one, three = judge([[0, 1]], np.arange(2), 2), judge([[0, 1], [0, 0]], np.arange(2), 2)
    assert [mean_and_spread(one), mean_and_spread(three)] == ["100.0", "75.0 ± 35.4"]


def test_one_file_with_the_numbers_of_the_metrics(evaluated):
    folder, metrics = evaluated
    text = (folder / REPORT).read_text(encoding="utf-8")
    assert json.loads((folder / METRICS).read_text(encoding="utf-8")) == metrics
    for arm in metrics["usefulness"]["arms"]:
        assert f"{100 * arm['accuracy']:.1f} ± {100 * arm['std']:.1f}" in text
    assert "<p>" + metrics["verdict"]["sentences"][1] in text
    assert [f"{row['ratio']:.3g}" in text for row in metrics["targets"]] == [True] * 3
    # Self-contained: whatever a browser would load is in the file; #name refers to a part of the page itself.
    sources = re.findall(r"""(?:src|href|srcset|data)\s*=\s*["']?([^#"'\s>][^"'\s>]*)""", text)
    assert len(sources) == 2 * len(CLASSES) + 2  # pictures; the plots are part of the page
    assert text.count("<svg") >= 10
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    for name in (pictures.GRID, pictures.PAIRS, pictures.RECONSTRUCTION, *plots.FILES):
        assert Image.open(folder / name).size > (200, 200)
    assert provenance.read(folder, "evaluation")["made_from"] == metrics["data"]["made_from"]


def test_reconstructions_of_held_out_images_are_in_it(evaluated):
    folder, metrics = evaluated
    figures = metrics["reconstruction"]
    assert {name: row["count"] for name, row in figures["classes"].items()} == dict.fromkeys(CLASSES, 20)
    assert f"{figures['rows']['VQ-VAE']['psnr']['mean']:.2f}" in (folder / REPORT).read_text(encoding="utf-8")


def test_plots_are_the_same_files_for_the_same_metrics_and_say_what_they_show(evaluated, tmp_path):
    folder, metrics = evaluated
    text = (folder / REPORT).read_text(encoding="utf-8")
    for name, plot in plots.FILES.items():
        group = plot(metrics)
        group.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
        svgs = group.html()
        assert svgs in text
        assert svgs.count('role="img" aria-label="') == len(group.plots) > 0
        assert all(series in svgs for series in group.series)


@pytest.mark.parametrize("device", WIDTHS)
def test_a_browser_shows_it_without_sideways_scrolling_and_loads_nothing_else(evaluated, page, tmp_path, device):
    folder, metrics = evaluated
    names = ["$^$a_class_whose_folder_has_a_name_without_any_break_" + name for name in CLASSES]
    shown = {**metrics, "data": {**metrics["data"], "classes": names}}
    file = tmp_path / REPORT
    file.write_text(html(folder, shown), encoding="utf-8")
    page.open(file, WIDTHS[device], 844)
    assert page.value("document.querySelector('.verdict').getBoundingClientRect().top") < 844 / 4
    assert page.value("document.querySelectorAll('.verdict p').length") == 3
    page.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.value("innerWidth") == WIDTHS[device]
    assert page.value("document.documentElement.scrollWidth") <= WIDTHS[device]
    assert page.value(OVERFLOW) == []
    # The targets are seen whole, without sideways scrolling in their own frame either.
    frame = "document.querySelector('.verdict ~ .scroll')"
    assert "reached" in page.value(f"{frame}.textContent")
    assert page.value(f"{frame}.scrollWidth <= {frame}.clientWidth")
    pictures = page.value(PICTURES)
    assert len(pictures) == 2 * len(CLASSES) + 2
    assert all(complete and width > 100 for complete, width, _ in pictures), pictures
    assert page.requests[0] == file.as_uri()
    assert all(url.startswith("data:") for url in page.requests[1:])


def test_on_a_phone_synthetic_images_stand_below_the_real_ones_and_on_a_desktop_beside_them(evaluated, page):
    folder, _ = evaluated
    places = {}
    for device, width in WIDTHS.items():
        page.open(folder / REPORT, width, 844)
        boxes = "[...document.querySelectorAll('figure')].map(e => e.getBoundingClientRect())"
        places[device] = page.value(f"{boxes}.map(b => [b.left, b.top, b.width])")
    (real, synthetic), (wide_real, wide_synthetic) = (places[device][:2] for device in WIDTHS)
    assert (real[0], real[2]) == (synthetic[0], synthetic[2])
    assert synthetic[1] > real[1]
    assert real[2] > 0.85 * WIDTHS["phone"]
    assert wide_synthetic[0] > wide_real[0] + wide_real[2]
    assert wide_synthetic[1] == wide_real[1]

"""A set with one class only: what needs none works, and what needs two says so."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdaug import cli
from mdaug.evaluation.evaluate import run as evaluate
from mdaug.evaluation.options import EvaluateConfig
from mdaug.pipeline.folder import save_pipeline
from shards import provenance
from shards.errors import UserError
from shards.options import PackConfig
from shards.pack import run as pack
from tests import tiny_pipeline
from tests.toy import toy_image


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Packed images of one class, and a pipeline of it."""
    root = tmp_path_factory.mktemp("one")
    rng = np.random.default_rng(0)
    for i in range(48):
        path = root / "images" / "wavy" / f"w_r{i % 6}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(toy_image(3, rng, 16)[:, :, 0]).save(path)
    pack(PackConfig(root / "images", root / "packed", group_by=r"_(r\d)_", workers=1))
    made_from = {"images": provenance.read(root / "packed", "images")["hash"], "vqvae": "2" * 64, "latents": "3" * 64}
    pipeline = tiny_pipeline.tiny_pipeline(channels=1, classes=["wavy"])
    save_pipeline(pipeline, root / "ldm" / "best", made_from=made_from, config={})
    return root / "packed", root / "ldm"


def test_one_class_is_generated_and_evaluated_without_the_experiment(folders, tmp_path, capsys):
    packed, ldm = folders
    flags = ["--num_samples", "20", "--num_inference_steps", "2", "--guidance_scale", "2", "--grid"]
    assert cli.main(["generate", "--ldm_path", str(ldm), "--output_dir", str(tmp_path / "out"), *flags]) == 0
    with open(tmp_path / "out" / "manifest.csv", encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["wavy"] * 20
    numbers = {"n_real_per_class": [4], "synthetic_per_real": [1], "seeds": 1, "steps": 4}
    config = EvaluateConfig(packed, tmp_path / "out", tmp_path / "report", image_size=16, workers=1, **numbers)
    metrics = evaluate(config)
    assert metrics is not None
    assert metrics["usefulness"] is None
    assert all(metrics[part] for part in ("fidelity", "kinematics", "memorization"))
    sentence = "one class ('wavy'), so whether synthetic images help a classifier cannot be measured"
    assert sentence in capsys.readouterr().out
    report = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "one class (&#x27;wavy&#x27;)" in report
    assert "not been measured yet" not in report
    assert evaluate(config) == metrics
    assert "holds this evaluation already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"only one class \('wavy'\), and a classifier has nothing to tell apart"):
        evaluate(EvaluateConfig(packed, tmp_path / "out", tmp_path / "other", part="usefulness"))

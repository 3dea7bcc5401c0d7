"""`mdaug evaluate` on a real Slurm: four ranks of two nodes share the classifiers, and the last one reports."""

from __future__ import annotations

import json

from mdaug.evaluation.evaluate import EvaluateConfig, evaluate
from tests.slurm.jobs import batch_log, launch, profile
from tests.toy import toy_packed
from tests.unit.test_evaluation_usefulness import toy_synthetic

SETTINGS = {"n_real_per_class": [2], "synthetic_per_real": [1], "seeds": 2, "steps": 4, "image_size": 16, "workers": 1}


def test_the_last_of_four_ranks_on_two_nodes_reports_what_one_rank_alone_finds(tmp_path):
    packed = toy_packed(tmp_path / "packed", size=16, train=96, val=80)
    synthetic, together = toy_synthetic(tmp_path / "synthetic", packed, size=16), tmp_path / "together"
    flags = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
    folders = ["--data_dir", packed, "--synthetic_dir", synthetic, "--output_dir", together]
    done = launch(
        "evaluate", "--cluster", "slurm", "--nodes", 2, "--gpus_per_node", 2, "--profile", profile(tmp_path), "--",
        *folders, *flags, wait=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + batch_log(together)
    alone = evaluate(EvaluateConfig(packed, synthetic, tmp_path / "alone", **SETTINGS))
    assert alone is not None
    metrics = json.loads((together / "metrics.json").read_text(encoding="utf-8"))
    for part in ("verdict", "targets", "usefulness", "fidelity", "kinematics", "memorization"):
        assert metrics[part] == alone[part], part
    assert (together / "report.html").is_file()
    said = [path.read_text(encoding="utf-8") for path in together.rglob("rank-*.log")]
    assert len(said) == 4
    assert sum("this rank is done; the last rank" in text for text in said) == 3

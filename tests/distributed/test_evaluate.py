"""Several ranks evaluate together: the same figures as one, the work shared, and a lost rank made up for."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mdaug.evaluation import jobs, measure
from mdaug.evaluation.evaluate import run as evaluate
from mdaug.evaluation.options import EvaluateConfig
from mdaug.evaluation.report import page
from mdaug.measures import features
from shards.validation import WORKER, WORKERS
from tests.ranks import run_ranks, start_ranks
from tests.toy import toy_packed, toy_synthetic


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> EvaluateConfig:
    folder = tmp_path_factory.mktemp("evaluate")
    packed = toy_packed(folder / "packed", size=16, train=96, val=80)
    synthetic = toy_synthetic(folder / "synthetic", packed, size=16)
    numbers = {"n_real_per_class": [2, "all"], "synthetic_per_real": [1], "seeds": 2}
    return EvaluateConfig(packed, synthetic, folder / "one", steps=8, image_size=16, workers=1, **numbers)


@pytest.fixture(scope="module")
def alone(config) -> dict:
    return evaluate(config)


def _evaluate(config: EvaluateConfig) -> tuple[dict | None, set[str]]:
    """Return what a rank gets, and which pieces of the work it did itself."""
    features.PIECE = 40  # so that small sets have several pieces
    done: set[str] = set()
    run, extract = jobs.usefulness.run_job, features.extract

    def counted_run(job, **inputs):
        done.add(job.name)
        return run(job, **inputs)

    def counted_extract(network, images):
        done.add(f"features of {images.tobytes()[:4096]!r}")
        return extract(network, images)

    jobs.usefulness.run_job, features.extract = counted_run, counted_extract
    return evaluate(config), done


def without_names(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if key not in ("config", "commands")}


def test_two_ranks_share_the_work_and_find_the_figures_of_one(config, alone):
    together = replace(config, output_dir=config.output_dir.with_name("two"))
    (first, its), (second, others) = run_ranks(2, _evaluate, together)
    metrics = first or second
    assert metrics is not None
    assert without_names(metrics) == without_names(alone)
    assert not its & others
    for kind in ("features", "real"):
        assert any(name.startswith(kind) for name in its)
        assert any(name.startswith(kind) for name in others)
    results = {path.stem for path in (together.output_dir / "results").iterdir()}
    assert {name for name in its | others if not name.startswith("features")} == results
    assert len(list((together.output_dir / "features").iterdir())) == 3 + 2 + 2  # 96, 80 and 64 images by 40
    assert (together.output_dir / "report.html").is_file()


def test_what_a_lost_rank_left_is_made_up_for_on_any_number_of_ranks(config, alone, monkeypatch):
    resumed = replace(config, output_dir=config.output_dir.with_name("resumed"))
    monkeypatch.setenv(WORKERS, "3")
    monkeypatch.setenv(WORKER, "1")
    assert evaluate(resumed) is None  # the other two never come
    monkeypatch.delenv(WORKERS)
    monkeypatch.delenv(WORKER)
    left: dict[Path, int] = {path: path.stat().st_mtime_ns for path in (resumed.output_dir / "results").iterdir()}
    assert without_names(evaluate(resumed)) == without_names(alone)
    assert left
    assert all(path.stat().st_mtime_ns == changed for path, changed in left.items())


def _end_together(config: EvaluateConfig, writer_dies: bool) -> None:
    """Evaluate as one of two ranks that find in the same moment that all shares are done."""
    share, write = measure.share, page.write
    met, written = config.output_dir / "logs/met", config.output_dir / "logs/written"

    def share_and_meet(inputs, wanted):
        share(inputs, wanted)
        met.mkdir(parents=True, exist_ok=True)
        (met / os.environ[WORKER]).touch()
        deadline = time.monotonic() + 120
        while len(list(met.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        return share(inputs, wanted)

    def noted_write(folder, metrics):
        written.mkdir(exist_ok=True)
        (written / os.environ[WORKER]).touch()
        if writer_dies and len(list(written.iterdir())) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        write(folder, metrics)

    measure.share, page.write = share_and_meet, noted_write
    evaluate(config)


@pytest.mark.parametrize("writer_dies", [False, True], ids=["both-live", "writer-dies"])
def test_of_ranks_that_end_together_one_writes_the_report_and_another_where_that_one_dies(config, alone, writer_dies):
    together = replace(config, part="kinematics", output_dir=config.output_dir.with_name(f"together-{writer_dies}"))
    processes = start_ranks(2, _end_together, together, writer_dies)
    for process in processes:
        process.join()
    assert sorted(process.exitcode for process in processes) == ([-signal.SIGKILL, 0] if writer_dies else [0, 0])
    assert len(list((together.output_dir / "logs/written").iterdir())) == 1 + writer_dies
    metrics = json.loads((together.output_dir / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["kinematics"] == alone["kinematics"]
    assert (together.output_dir / "report.html").is_file()

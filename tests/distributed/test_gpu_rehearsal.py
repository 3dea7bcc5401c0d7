"""The rehearsal of benchmarks/gpu.py: every command of the proof on a GPU runs, at toy size, and nothing is judged."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.ranks import _CONTEXT

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402  (scripts beside each other, no package)
import gpu_results  # noqa: E402

# Left out here: finding the tests, and benchmarks whose like is run.
SLOW = {"tests", "generate-50", "train_ldm-zero1", "train_ldm-full-attention", "memory-gpu-16gb"}


def _python(command: list[str], log: str) -> None:
    """Do what `python <command>` does, in a process that has imported the heavy libraries already."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(ROOT / "benchmarks"))
        runpy.run_path(command[0], run_name="__main__")


def forked(command: list[str], log: Path, limit: float) -> tuple[str, str]:
    if log.stem in SLOW:
        return "left out", ""
    process = _CONTEXT.Process(target=_python, args=(command, str(log)))
    process.start()
    process.join(limit)
    said = "ok" if process.exitcode == 0 else f"failed with status {process.exitcode}"
    process.kill()
    return said, log.read_text(encoding="utf-8", errors="replace")


def test_every_command_of_the_proof_runs(tmp_path, monkeypatch):
    out = tmp_path / "proof"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gpu, "execute", forked)
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py", "--rehearse", "--minutes", "60", "--out", str(out)])
    cores = os.sched_getaffinity(0)
    try:
        gpu.main()
    finally:
        os.sched_setaffinity(0, cores)
    text = (out / "rehearsal.md").read_text(encoding="utf-8")
    steps = dict(line.strip("| ").split(" | ")[:2] for line in text.splitlines() if line.endswith(" |"))
    for log in sorted(out.glob("*.log")):
        assert steps[log.stem] == "ok", log.read_text(encoding="utf-8")[-3000:]
    assert {"train_ldm", "generate-few", "train-ldm", "generate", "evaluate"} <= {log.stem for log in out.glob("*.log")}
    targets = text[text.index("| issue |") : text.index("What it shows")].splitlines()[2:]
    said = [line.strip("| ").split(" | ")[-1] for line in targets if line.endswith("|")]
    assert set(said) == {gpu_results.NOT_JUDGED, gpu_results.NOT_MEASURED}
    assert said.count(gpu_results.NOT_MEASURED) == 7  # the tests, and what the steps left out measure


def test_a_target_is_reached_missed_or_not_judged():
    card = {"name": "NVIDIA H200", "memory_gb": 150.0, "tflop_s": 790.0, "low": "bf16", "count": 1}
    measured = {"tflop_s": 316.1, "data_wait": {"ours": 0.02}, "ours_against": {"images": 2.6}, "img_s": {"ours": 1}}
    results = {"card": card, "preset": "gpu-80gb", "train_ldm": measured, "tests": "== 3 passed, 1 failed in 9 s =="}
    said = {row.what: (row.measured, row.said) for row in gpu_results.judged(results, rehearse=False)}
    assert said["tests marked gpu"][1] == "missed"
    assert said["model FLOP utilisation of the measured peak, the preset's attention"] == ("0.4001", "reached")
    assert said["data wait of the diffusion model"] == ("0.02", "missed")
    assert said["img/s at 50 DDIM steps"] == ("", "not measured")
    other = {**results, "card": {**card, "name": "Tesla T4"}, "tests": "== 3 passed in 9 s =="}
    said = {row.what: row.said for row in gpu_results.judged(other, rehearse=False)}
    assert said["model FLOP utilisation of the measured peak, the preset's attention"] == "not judged"
    assert said["tests marked gpu"] == "reached"
    assert {row.said for row in gpu_results.judged(results, rehearse=True)} == {"not judged", "not measured"}


def test_what_fails_is_told_and_the_next_begins(tmp_path, monkeypatch):
    """Here nothing that is compiled runs, nor `simulate`; a library has its say after what a benchmark prints."""
    card = {"name": "NVIDIA H200", "count": 1, "memory_gb": 150.0, "low": "bf16", "tflop_s": 790.0}
    ldm = {"tflop_s": 400.0, "ours_against": {"images": 3.0, "latents": 1.0}, "peak_memory_gb": 4.0}

    def execute(command: list[str], log: Path, limit: float) -> tuple[str, str]:
        if "--card" in command:
            return "ok", json.dumps(card)
        if "--compile" in command or command[0] != "benchmarks/train_ldm.py":
            return "failed with status 1", "no compiler"
        return "ok", f"a table\n{json.dumps(ldm)}\n[rank0]: destroy_process_group() was not called"

    path = tmp_path / "results.md"
    monkeypatch.setattr(gpu, "execute", execute)
    monkeypatch.setattr(gpu, "path_of", lambda *_: path)
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py", "--out", str(tmp_path / "proof")])
    assert gpu.main() == 1
    text = path.read_text(encoding="utf-8")
    assert "| train_ldm | failed with status 1 |" in text
    assert "| train_ldm-plain | ok |" in text
    assert "measured peak, the preset's attention | >= 0.4 | 0.5063 | reached |" in text
    assert "| peak GB of gpu-6gb | <= 5.5 | 4 | reached |" in text
    assert "| simulate | failed with status 1 |" in text
    assert "| pack |" not in text


def test_a_step_that_fails_or_takes_too_long_does_not_end_the_others(tmp_path):
    assert gpu.execute(["-c", "print('done')"], tmp_path / "log", 60) == ("ok", "done\n")
    assert gpu.execute(["-c", "raise SystemExit(3)"], tmp_path / "log", 60) == ("failed with status 3", "")
    waiting = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    assert gpu.execute(["-c", waiting], tmp_path / "log", 1.5)[0].startswith("stopped after")


def test_without_a_gpu_the_proof_does_not_begin(tmp_path, monkeypatch):
    card = '{"name": "CPU", "count": 0, "memory_gb": 8.0, "low": "bf16", "tflop_s": 0.1}'
    monkeypatch.setattr(gpu, "execute", lambda *_: ("ok", card))
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py", "--out", str(tmp_path / "proof")])
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.main()

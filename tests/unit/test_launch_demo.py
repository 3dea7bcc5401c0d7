"""The chain of stages: order, resumption, first failure, signals, memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import demo

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _keep_signal_handlers():
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def stages(monkeypatch, **code: str) -> None:
    lines = {name: [sys.executable, "-c", text] for name, text in code.items()}
    monkeypatch.setattr(demo, "stage_commands", lambda _: lines)


@pytest.mark.usefixtures("elsewhere")
def test_stages_are_the_commands_a_user_would_type(tmp_path):
    commands = demo.stage_commands(demo.DemoConfig(out=Path("out")))
    assert list(commands) == ["simulate", "pack", "train-vqvae", "encode", "train-ldm", "generate", "evaluate"]
    assert commands["pack"][1:] == [
        "-m", "launch", "pack", "--out", "out", "--preset", "demo", "--gpus_per_node", "1", "--cluster", "inline", "--",
    ]  # fmt: skip

    (tmp_path / "mine").mkdir()
    own = demo.stage_commands(demo.DemoConfig(data=Path("mine"), group_by="rec([0-9]+)"))
    assert "simulate" not in own
    assert own["pack"][-3:] == ["--", "--group_by", "rec([0-9]+)"]
    assert all(line[line.index("--data") + 1] == "mine" for line in own.values())
    helped = demo.stage_commands(demo.DemoConfig(aux=Path("mine")))
    assert {name for name, line in helped.items() if line[-2:] == ["--aux_dir", "mine"]} == {"train-vqvae", "train-ldm"}


@pytest.mark.usefixtures("elsewhere")
def test_the_first_failing_stage_ends_the_demo_with_its_status(monkeypatch, tmp_path, capfd):
    stages(
        monkeypatch,
        first="open('first', 'w')",
        second="import sys; print('error: no data; make some', file=sys.stderr); sys.exit(2)",
        third="open('third', 'w')",
    )
    assert demo.main(["--out", "out"]) == 2
    captured = capfd.readouterr()
    assert "error: no data; make some" in captured.err
    assert "second ended with status 2" in captured.out
    assert (tmp_path / "first").exists()
    assert not (tmp_path / "third").exists()


@pytest.mark.usefixtures("elsewhere")
def test_the_summary_gives_times_memory_places_and_the_verdict(monkeypatch, capsys):
    Path("out/evaluation").mkdir(parents=True)
    Path("out/evaluation/report.html").touch()
    Path("out/evaluation/metrics.json").write_text(json.dumps({"verdict": {"sentences": ["Synthetic data helped."]}}))
    stages(monkeypatch, hungry="import time; block = b'x' * 300_000_000; time.sleep(1.5)", quick="pass")
    assert demo.main(["--out", "out"]) == 0
    shown = capsys.readouterr().out
    row = next(line.split() for line in shown.splitlines() if line.startswith("  hungry"))
    assert 1.5 < float(row[1]) < 20
    assert 0.30 <= float(row[3]) < 0.40
    assert "out/evaluation/report.html" in shown
    assert shown.rstrip().endswith("Synthetic data helped.")


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_stage_and_ends_the_demo_even_if_the_stage_ends_well(tmp_path, number):
    stage = (
        "import os, signal, time, pathlib\n"
        "told = []\n"
        f"signal.signal({int(number)}, lambda *_: told.append(1))\n"
        "pathlib.Path('ready').touch()\n"
        "while not told: time.sleep(0.02)\n"
        "time.sleep(0.3); pathlib.Path('saved').write_text(str(len(told)))\n"
    )
    code = (
        "import sys; from launch import demo\n"
        f"demo.stage_commands = lambda _: {{'train': [sys.executable, '-c', {stage!r}],"
        " 'next': [sys.executable, '-c', \"open('next', 'w')\"]}\n"
        "sys.exit(demo.main([]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(running.pid, number)
    assert running.wait(timeout=120) == 128 + number
    assert (tmp_path / "saved").read_text() == "1"
    assert not (tmp_path / "next").exists()


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo.main(["--data", str(tmp_path / "absent")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_command_of_ours_is_forked_and_keeps_status_and_output(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "LIBRARIES", ())
    status, _ = demo._Runner().run([*demo.LAUNCH, "nonsense"], log=tmp_path / "log.txt")
    assert status == 2
    assert (tmp_path / "log.txt").read_text().startswith("error: mdaug: unknown command 'nonsense'")

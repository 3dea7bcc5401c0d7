"""The launcher on real processes: environment, failures, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch import local, status
from shards.errors import UserError
from shards.pool import cores

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _entries_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{HERE.parents[1]}")


def run(entry: str, folder: Path, ranks: int = 2) -> int:
    return local.run(f"launch_entries:{entry}", [str(folder)], folder, ranks)


def start(entry: str, folder: Path, ranks: int = 2) -> subprocess.Popen:
    """Start the launcher as a process of its own and wait until its ranks are at work."""
    code = (
        "import sys; from pathlib import Path; from launch import local;"
        f"sys.exit(local.run('launch_entries:{entry}', [{str(folder)!r}], Path({str(folder)!r}), {ranks}))"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: len(list(folder.glob("ready-*"))) == ranks)
    return launcher


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def rank_pids(folder: Path) -> list[int]:
    wait_for(lambda: all(path.read_text() for path in folder.glob("ready-*")))
    return [int(path.read_text()) for path in folder.glob("ready-*")]


def told_of(folder: Path, capfd: pytest.CaptureFixture) -> str:
    assert status.status(folder) == 0
    return capfd.readouterr().out


def test_every_rank_finds_its_place_and_only_strings_travel(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("SLURM_JOB_ID", "77")  # inside somebody's allocation
    for name in ("OMP_NUM_THREADS", "MASTER_PORT"):  # a group of one process leaves its port in the environment
        monkeypatch.delenv(name, raising=False)
    assert run("environment", tmp_path) == 0
    seen = [json.loads((tmp_path / f"env-{rank}.json").read_text()) for rank in (0, 1)]
    for rank, environment in enumerate(seen):
        assert environment["RANK"] == environment["LOCAL_RANK"] == str(rank)
        assert environment["WORLD_SIZE"] == environment["LOCAL_WORLD_SIZE"] == "2"
        assert environment["CUDA_VISIBLE_DEVICES"] == "3,5"  # the launcher's mask, not submitit's 0..n-1
        assert environment["OMP_NUM_THREADS"] == str(max(1, cores() // 2))
        assert environment["SLURM_JOB_ID"] is None
        assert environment["argv"] == [str(tmp_path)]
        assert environment["stdin"] == ""
        assert f"rank {rank} says hello" in (tmp_path / f"logs/rank-0000{rank}.log").read_text()
    assert seen[0]["MASTER_PORT"] == seen[1]["MASTER_PORT"]
    assert os.environ["SLURM_JOB_ID"] == "77"
    assert "MASTER_PORT" not in os.environ
    output = capfd.readouterr().out
    assert "rank 0 says hello" in output  # streamed
    assert "rank 1" not in output
    assert "state     completed" in told_of(tmp_path, capfd)
    assert status.logs(tmp_path) == 0
    assert capfd.readouterr().out == "rank 0 says hello\n"


def test_ranks_meet_in_a_process_group(tmp_path):
    assert run("all_reduce", tmp_path, ranks=3) == 0
    assert [(tmp_path / f"sum-{rank}").read_text() for rank in range(3)] == ["6.0"] * 3


def test_a_failing_rank_takes_the_others_down_and_is_shown(tmp_path, capfd):
    begun = time.monotonic()
    assert run("one_raises", tmp_path) == 1
    assert time.monotonic() - begun < 60  # rank 0 would have slept for ten minutes
    shown = capfd.readouterr().err
    assert shown.startswith("launch: rank 1 of 2 failed first")
    assert "RuntimeError: the true cause" in shown
    assert "state     failed" in (told := told_of(tmp_path, capfd))
    assert "error     rank 1 of 2 failed first" in told
    assert "RuntimeError: the true cause" in told
    assert status.logs(tmp_path) == 0
    assert capfd.readouterr().out.startswith("launch: rank 1 of 2 failed first")  # above what rank 0 printed


def test_the_earliest_error_comes_first(tmp_path, capfd):
    assert run("both_raise", tmp_path) == 1
    shown = capfd.readouterr().err
    assert shown.index("the true cause") < shown.index("a consequence")
    assert shown.startswith("launch: rank 1 of 2 failed first")


def test_a_killed_rank_takes_the_others_down(tmp_path, capfd):
    begun = time.monotonic()
    assert run("one_is_killed", tmp_path) == 1
    assert time.monotonic() - begun < 60
    assert "rank 1 was killed" in capfd.readouterr().err


def test_a_mistake_of_the_user_is_shown_once_without_traceback(tmp_path, capfd):
    assert run("user_error", tmp_path) == 2
    captured = capfd.readouterr()
    assert (captured.out + captured.err).count("error: no such folder; make it") == 1
    assert "Traceback" not in captured.out + captured.err


def test_the_worst_status_wins(tmp_path):
    assert run("status", tmp_path) == 5


def test_an_entry_that_cannot_be_imported_is_an_error(tmp_path, capfd):
    assert local.run("no_such_module:main", [], tmp_path, 2) == 1
    captured = capfd.readouterr()
    assert "no_such_module" in captured.out + captured.err


@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_is_passed_on_once_and_every_rank_may_save(tmp_path, number, whole_group):
    launcher = start("saves_when_told", tmp_path)
    # A terminal's Ctrl-C goes to the whole process group; kill goes to one process.
    (os.killpg if whole_group else os.kill)(launcher.pid, number)
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 128 + number
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in (0, 1)] == ["1", "1"]
    assert "failed" not in errors


def test_a_command_without_a_handler_is_cancelled_and_cleans_up(tmp_path, capfd):
    launcher = start("sleeps", tmp_path)
    told = told_of(tmp_path, capfd)
    assert told.startswith(f"process   {launcher.pid} on ")
    assert " on 2 rank(s)\nstate     running\n" in told
    with pytest.raises(UserError, match=f"process {launcher.pid} on .* of this folder runs already"):
        status.require_idle(tmp_path)
    assert status.cancel(tmp_path) == 0
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 143
    assert (tmp_path / "cleaned-0").exists()
    assert (tmp_path / "cleaned-1").exists()
    assert "Traceback" not in errors
    assert "state     stopped\nreason    the same command continues" in told_of(tmp_path, capfd)
    status.require_idle(tmp_path)
    assert status.cancel(tmp_path) == 0
    assert "has ended already" in capfd.readouterr().out


def test_a_second_ctrl_c_kills(tmp_path):
    launcher = start("ignores_signals", tmp_path)
    pids = rank_pids(tmp_path)
    os.killpg(launcher.pid, signal.SIGINT)
    time.sleep(0.5)
    assert launcher.poll() is None
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate(timeout=120)
    assert launcher.returncode == 130
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path, capfd):
    launcher = start("saves_when_told", tmp_path)
    pids = rank_pids(tmp_path)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert (tmp_path / "saved-1").exists()
    assert "state     killed\nreason    the launcher was killed" in told_of(tmp_path, capfd)

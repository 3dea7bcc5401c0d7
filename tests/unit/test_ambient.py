"""What surrounds a command costs it nothing: an encoding, a home folder, Ctrl-C, a full disk, other programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from launch import rank
from mdaug import cli, distributed
from shards import atomic
from shards.errors import UserError
from shards.pool import cores
from shards.writer import disk_full_as_user_error
from tests.one_line import one_line, one_line_of

ROOT = Path(__file__).parents[2]
ENCODE = ["encode", "--data_dir", "a", "--vqvae_path", "b", "--output_dir", "c"]


def images(folder: Path, classes: tuple[str, ...] = ("fall", "walk"), count: int = 12) -> Path:
    """Write an image folder of noise."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / name / f"r{i}_{i:03d}.png")
    return folder


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


@pytest.mark.parametrize("program", [["-m", "mdaug"], ["-m", "launch"]])
def test_no_encoding_ends_a_command(program, tmp_path):
    """Nor do names that are no UTF-8; also in the processes of a pool and in errors."""
    folder = images(tmp_path / "gehen_rückwärts", ("走路", "rückwärts"))
    split = [] if program == ["-m", "mdaug"] else ["--cluster", "inline", "--"]
    command = [sys.executable, *program, "pack", *split, "--data_dir", str(folder), "--workers", "2"]
    ascii_only = environment(PYTHONIOENCODING="ascii:strict")
    done = subprocess.run([*command, "--output_dir", str(tmp_path / "ü")], env=ascii_only, capture_output=True)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert b"\\u8d70" in done.stdout
    refused = [*command[:-4], "--data_dir", os.fsencode(tmp_path) + b"/\xff", "--output_dir", str(tmp_path / "x")]
    one_line_of(refused, ascii_only)


def test_a_rank_prints_every_character_too(tmp_path):
    code = f"import os; from launch import rank; rank._redirect({str(tmp_path / 'log')!r}); print('ü走')"
    subprocess.run([sys.executable, "-c", code], env=environment(PYTHONIOENCODING="ascii:strict"), check=True)
    assert (tmp_path / "log").read_text() == "\\xfc\\u8d70\n"


@pytest.mark.parametrize("program", [cli.main, None], ids=["in-process", "process"])
def test_ranks_that_nobody_started_do_not_silence_or_divide_a_command(program, tmp_path, monkeypatch, capsys):
    around = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "SLURM_ARRAY_TASK_ID": "1"}
    argv = [
        "pack",
        "--data_dir",
        str(images(tmp_path / "images")),
        "--output_dir",
        str(tmp_path / "out"),
        "--workers=1",
    ]
    if program is None:
        done = subprocess.run([sys.executable, "-m", "mdaug", *argv], env=environment(**around), capture_output=True)
        assert b"24" in done.stdout
    else:
        for name, value in around.items():
            monkeypatch.setenv(name, value)
        assert program(argv) == 0
        assert "24" in capsys.readouterr().out


def test_ranks_that_cannot_meet_are_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE=3 is in the environment, but MASTER_ADDR is not"):
        distributed.init()


def test_local_ranks_share_the_cores(monkeypatch):
    alone = cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "999")
    assert cores() == 1


@pytest.mark.parametrize(
    ("own", "busy", "policy"), [(None, 90.0, "PASSIVE"), (None, 3.0, None), ("ACTIVE", 90.0, "ACTIVE")]
)
def test_threads_that_wait_sleep_only_where_others_compute(own, busy, policy, monkeypatch):
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: busy)
    monkeypatch.setenv("OMP_WAIT_POLICY", own or "")  # what the command sets is undone, too
    if own is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    cli.share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


@pytest.mark.parametrize(("load", "lines"), [(1e6, 1), (0.0, 0)])
def test_a_busy_machine_is_one_line_before_what_takes_long(load, lines, monkeypatch, capsys):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0, 0))
    monkeypatch.setattr(cli.Command, "load", lambda command, options: SimpleNamespace(run=lambda options: None))
    assert cli.main(ENCODE) == 0
    assert capsys.readouterr().out.count("\n") == lines


@pytest.mark.slow
@pytest.mark.parametrize("program", [["-m", "mdaug"], ["-m", "launch"]])
@pytest.mark.parametrize("after", [0.0, 0.3, 1.0])
def test_ctrl_c_is_one_line_and_the_same_command_continues(program, after, tmp_path):
    split = [] if program == ["-m", "mdaug"] else ["--cluster", "inline", "--"]
    flags = ["--classes", "[drone]", "--images_per_class", "400", "--image_size", "32", "--workers", "2"]
    out = tmp_path / "out"
    command = [sys.executable, *program, "simulate", *split, *flags, "--output_dir", str(out)]
    # As a terminal does it: to all processes of the command, while they start and while they work.
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by what a shell runs with &
    )
    deadline = time.monotonic() + 120
    while not (out / "run.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert printed.endswith("\ninterrupted; the same command continues\n")


def test_ctrl_c_in_this_process_is_130(monkeypatch, capsys):
    def interrupt(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Command, "load", lambda command, options: SimpleNamespace(run=interrupt))
    assert cli.main(ENCODE) == 130
    assert capsys.readouterr().err == "\ninterrupted; the same command continues\n"


def torch_file(folder: Path) -> None:
    torch.save(torch.zeros(100_000), "/dev/full")


def numpy_array(folder: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        np.save(file, np.zeros(100_000))


def numpy_array_in_place(folder: Path) -> None:
    """As the features of evaluate are written, when the disk is full at once, and after a part."""
    with atomic.replacing(folder / "features.npy"):
        raise OSError("100000 requested and 512 written")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("write", [torch_file, numpy_array, numpy_array_in_place])
def test_a_full_disk_is_told_as_such_by_every_library(write, tmp_path):
    said = r"no space left while writing .*; free some or choose another folder"
    with pytest.raises(UserError, match=said), disk_full_as_user_error(tmp_path):
        write(tmp_path)


def test_other_failures_of_a_file_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), disk_full_as_user_error(tmp_path):
        np.save(tmp_path / "absent/x.npy", np.zeros(3))


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid(s) 123) exited unexpectedly",
        "DataLoader worker (pid 123) is killed by signal: Killed. ",
    ],
)
def test_a_killed_data_loading_process_is_one_line(text, monkeypatch, capsys):
    def run(options: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(cli.Command, "load", lambda command, options: SimpleNamespace(run=run))
    assert "--num_workers" in one_line(cli.main, ENCODE, capsys)
    assert rank._call("mdaug.cli:run", ENCODE)[0] == 2

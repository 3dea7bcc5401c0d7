"""What the launcher refuses before anything starts, and what it decides."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch import local, slurm_query
from launch.__main__ import main
from launch.demo import stage_flags
from mdaug import cli, config
from shards.errors import UserError

ROOT = Path(__file__).parents[2]


@dataclass
class FakeConfig:
    """A command for these tests."""

    output_dir: Path
    """Where it writes."""
    size: int = 4
    """A number."""
    deepspeed_config: Path | None = None
    """A file."""

    def __post_init__(self) -> None:
        if self.size > 10:
            raise ValueError(f"size={self.size} must be 10 or less")


def fake(config: FakeConfig) -> None:
    if config.size == 0:
        raise UserError("nothing to do with size=0; choose another")
    if config.size == 1:
        raise KeyboardInterrupt
    Path(config.output_dir).mkdir()


@pytest.fixture(autouse=True)
def _fake_commands(monkeypatch):
    monkeypatch.setattr(slurm_query, "available", lambda: False)  # also where Slurm is installed
    for name in ("one-process", "encode"):
        monkeypatch.setitem(cli.COMMANDS, name, (__name__, "FakeConfig", "fake", "for tests"))


@pytest.fixture
def launched(monkeypatch):
    """Record what the local executor is asked to run, and run nothing."""
    calls = []
    monkeypatch.setattr(local, "run", lambda *arguments: calls.append(arguments) or 0)
    return calls


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["no-such-command"], "unknown command 'no-such-command'"),
        (["encode", "--nodes", "2", "--", "--output_dir", "{out}"], "NODES=1"),
        (["encode", "--profile", "x.yaml", "--", "--output_dir", "{out}"], "profile: only jobs of SLURM"),
        (["encode", "--cluster", "local", "--nodes", "2", "--", "--output_dir", "{out}"], "nodes=1"),
        (["status"], "usage: python -m launch status RUN_DIR"),
        (["logs", "{out}"], "no SLURM job was submitted"),
        (["encode", "--cluster", "moon", "--", "--output_dir", "{out}"], "moon"),
        (["encode", "--gpus_per_node", "0", "--", "--output_dir", "{out}"], "gpus_per_node=0"),
        (["encode", "--cluster", "inline", "--gpus_per_node", "2", "--", "--output_dir", "{out}"], "cluster=local"),
        (["encode", "--gpus_per_node", "2", "--", "--output_dir", "{out}", "--sise", "3"], "sise"),
        (["encode", "--gpus_per_node", "2", "--", "--output_dir", "{out}", "--size", "many"], "size"),
        (
            ["encode", "--gpus_per_node", "2", "--", "--output_dir", "{out}", "--size", "11"],
            "size=11 must be 10 or less",
        ),
        (["encode", "--gpus_per_node", "2", "--"], "output_dir"),
        (["encode", "--output_dir", "{out}"], "output_dir"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(argv, said, tmp_path, capsys, launched):
    out = tmp_path / "out"
    assert main([argument.format(out=out) for argument in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not out.exists()
    assert not launched


def test_local_ranks_are_told_the_resolved_configuration_and_nothing_else(tmp_path, launched, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (preset := Path("preset.yaml")).write_text("size: 3\n")
    Path("own.json").write_text("{}")
    flags = ["--config", str(preset), "--output_dir", "out", "--deepspeed_config", "own.json"]
    assert main(["encode", "--gpus_per_node", "2", "--", *flags]) == 0
    (entry, (command, *told), output_dir, ranks) = launched[0]
    assert (entry, command, output_dir, ranks) == ("mdaug.cli:run", "encode", tmp_path / "out", 2)
    assert told == ["--config", str(tmp_path / "out/logs/local/config.yaml")]
    # Whatever changes from here on changes nothing for ranks that start late.
    preset.write_text("size: 9\n")
    Path("own.json").write_text('{"train_batch_size": 1}')
    monkeypatch.chdir("/")
    read = config.parse(FakeConfig, told, prog="encode")
    assert (read.output_dir, read.size) == (tmp_path / "out", 3)
    assert read.deepspeed_config.read_text() == "{}"
    # Its own record can be given again.
    assert main(["encode", "--gpus_per_node", "2", "--", *told]) == 0
    assert config.parse(FakeConfig, launched[1][1][1:], prog="encode") == read
    assert read.deepspeed_config.read_text() == "{}"


def test_what_ranks_could_not_be_told_is_one_line_before_they_start(tmp_path, launched, capsys):
    (tmp_path / "file").touch()
    assert main(["encode", "--gpus_per_node", "2", "--", "--output_dir", str(tmp_path / "file/out")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    absent = ["--deepspeed_config", str(tmp_path / "absent.json"), "--output_dir", str(tmp_path / "out")]
    assert main(["encode", "--gpus_per_node", "2", "--", *absent]) == 2
    assert "absent.json does not exist; correct --deepspeed_config" in capsys.readouterr().err
    assert not launched
    assert not (tmp_path / "out").exists()


def test_one_rank_runs_in_this_process(tmp_path, launched):
    assert main(["encode", "--gpus_per_node", "1", "--", "--output_dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").is_dir()
    assert not launched


def test_a_command_for_one_process_says_so_and_runs_alone(tmp_path, launched, capsys):
    assert main(["one-process", "--gpus_per_node", "2", "--", "--output_dir", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "launch: one-process runs in one process; gpus_per_node=2 is not used\n"
    assert (tmp_path / "out").is_dir()
    assert not launched


def test_dry_run_prints_the_resolved_configuration_and_starts_nothing(tmp_path, launched, capsys):
    out = tmp_path / "out"
    assert main(["encode", "--gpus_per_node", "2", "--dry_run", "--", "--output_dir", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "2 rank(s)" in shown
    assert f"output_dir: {out}" in shown
    assert "size: 4" in shown
    assert not out.exists()
    assert not launched


def test_status_of_a_command_in_this_process(tmp_path, capsys):
    assert main(["one-process", "--", "--output_dir", str(tmp_path / "out"), "--size", "0"]) == 2
    assert "nothing to do with size=0" in capsys.readouterr().err
    assert main(["one-process", "--", "--output_dir", str(tmp_path / "out"), "--size", "1"]) == 130


@pytest.mark.parametrize("command", stage_flags(Path("o"), Path("d")))
def test_make_and_the_demo_run_the_same_stages(command):
    make = ["make", "-n", "-s", command, "OUT=o", "DATA=d", "CONFIG=demo", "ARGS=--extra"]
    planned = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = shlex.split(planned.splitlines()[-1])
    assert words[:4] == [".venv/bin/python", "-m", "launch", command]
    flags = words[words.index("--") + 1 :]
    if flags[0] == "--config":
        assert flags[1] == f"configs/demo/{command}.yaml"
        flags = flags[2:]
    assert flags == [*stage_flags(Path("o"), Path("d"))[command], "--extra"]


def test_make_refuses_a_preset_that_is_not_there():
    done = subprocess.run(["make", "-n", "pack", "CONFIG=typo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "CONFIG=typo: there is no configs/typo" in done.stderr


def test_make_help_names_every_target_and_variable():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for word in ("demo", "test", "check", "fix", "weights", "bench-", "clean", *cli.COMMANDS):
        assert word == "one-process" or f"make {word}" in shown
    for variable in ("PROFILE", "WAIT", "DATA", "OUT", "CONFIG", "GPUS", "NODES", "CLUSTER", "ARGS"):
        assert f"\n{variable} " in shown

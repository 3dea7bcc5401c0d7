"""What the launcher refuses before anything starts, and what it decides."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch import local, slurm_query, stages
from launch.__main__ import main
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


def run(options: FakeConfig) -> None:
    if options.size == 0:
        raise UserError("nothing to do with size=0; choose another")
    if options.size == 1:
        raise KeyboardInterrupt
    Path(options.output_dir).mkdir()
    Path(options.output_dir, "ran.yaml").write_text(config.dump(options))


@pytest.fixture(autouse=True)
def _fake_commands(monkeypatch):
    monkeypatch.setattr(slurm_query, "available", lambda: False)  # also where Slurm is installed
    for name in ("one-process", "encode"):
        fake = cli.Command(
            f"{__name__}:FakeConfig", __name__, "for tests", given=("deepspeed_config",), parallel=name == "encode"
        )
        monkeypatch.setitem(cli.COMMANDS, name, fake)


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
        (["plan", "--nodes", "2"], "is now 'mdaug estimate'"),
        (["weights"], "run: mdaug weights"),
        (
            ["encode", "--preset", "typo", "--", "--output_dir", "{out}"],
            "typo does not exist; presets are base, default, demo",
        ),
        (
            ["encode", "--config", "demo", "--", "--output_dir", "{out}"],
            "is a preset for commands; give it as --preset, or after '--' as --config",
        ),
        (["encode", "--data", "images", "--", "--output_dir", "{out}"], "give --out"),
        (["one-process", "--out", "{out}"], "one-process is not a stage"),
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


def test_local_ranks_read_the_resolved_configuration_and_nothing_else(tmp_path, launched, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (preset := Path("preset.yaml")).write_text("size: 3\n")
    Path("own.json").write_text("{}")
    flags = ["--config", str(preset), "--output_dir", "out", "--deepspeed_config", "own.json"]
    assert main(["encode", "--gpus_per_node", "2", "--", *flags]) == 0
    (entry, (command, *argv), output_dir, ranks) = launched[0]
    assert (entry, command, output_dir, ranks) == ("mdaug.cli:run", "encode", tmp_path / "out", 2)
    assert argv == ["--config", str(tmp_path / "out/logs/local/config.yaml")]
    # Whatever changes from here on changes nothing for ranks that start late.
    preset.write_text("size: 9\n")
    Path("own.json").write_text('{"train_batch_size": 1}')
    monkeypatch.chdir("/")
    options = config.parse(FakeConfig, argv, prog="encode")
    assert (options.output_dir, options.size) == (tmp_path / "out", 3)
    assert options.deepspeed_config.read_text() == "{}"
    # Its own record can be given again.
    assert main(["encode", "--gpus_per_node", "2", "--", *argv]) == 0
    assert config.parse(FakeConfig, launched[1][1][1:], prog="encode") == options
    assert options.deepspeed_config.read_text() == "{}"


def test_what_ranks_could_not_be_told_is_one_line_before_they_start(tmp_path, launched, capsys):
    (tmp_path / "file").touch()
    assert main(["encode", "--gpus_per_node", "2", "--", "--output_dir", str(tmp_path / "file/out")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    absent = ["--deepspeed_config", str(tmp_path / "absent.json"), "--output_dir", str(tmp_path / "out")]
    assert main(["encode", "--gpus_per_node", "2", "--", *absent]) == 2
    assert "absent.json does not exist; correct --deepspeed_config" in capsys.readouterr().err
    assert not launched
    assert not (tmp_path / "out").exists()


def test_one_rank_runs_in_this_process_from_the_same_file(tmp_path, launched, monkeypatch):
    read = []
    parse = cli.parse
    monkeypatch.setattr(cli, "parse", lambda command, argv: read.append(argv) or parse(command, argv))
    flags = ["--output_dir", str(tmp_path / "out"), "--size", "3"]
    assert main(["encode", "--gpus_per_node", "1", "--", *flags]) == 0
    assert config.parse(FakeConfig, ["--config", str(tmp_path / "out/ran.yaml")], prog="") == parse("encode", flags)
    assert [argv[0] for argv in read] == ["--output_dir", "--config"]  # once from flags, once from the file
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


def test_every_stage_reads_what_the_stage_before_it_writes():
    """And takes the user's images in the place of the simulator's."""
    written = {Path("d")}
    for command in stages.CHAIN[1:]:
        folders = stages.folders(command, Path("o"), Path("d"))
        output = folders.pop("output_dir")
        assert {folder for name, folder in folders.items() if name != "latents_dir"} <= written, command
        written.add(output)
    assert stages.folders("train-ldm", Path("o"))["latents_dir"] == stages.folders("encode", Path("o"))["output_dir"]
    assert stages.folders("pack", Path("o"))["data_dir"] == stages.folders("simulate", Path("o"))["output_dir"]


def resolved(*command: str) -> str:
    """Return the options that a command resolves to, as YAML."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\n")[2]


@pytest.mark.parametrize("command", ["pack", "reconstruct", "generate"])
def test_make_starts_a_stage_with_preset_folders_and_further_flags(command, tmp_path):
    variables = ["OUT=o", "DATA=d", "CONFIG=demo", "SAMPLES=7", "CLUSTER=inline", "ARGS=--batch_size 3"]
    if command == "pack":
        variables[-1] = "ARGS=--seed 3"
    make = ["make", "-n", "-s", command, *variables]
    planned = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    line = planned[planned.index(".venv/bin/python -m launch") :]
    shown = resolved(
        "bash", "-c", line.replace(".venv/bin/python", sys.executable).replace(" -- ", " --dry_run -- ", 1)
    )
    flags = {
        "pack": ["--image_mode", "level", "--image_size", "64", "--shard_size", "128", "--seed", "3"],
        "reconstruct": ["--preset", "demo", "--batch_size", "3"],
        "generate": ["--config", "demo", "--num_samples", "7", "--batch_size", "3"],
    }[command]
    expected = cli.parse(command, [*stages.flags(command, Path("o"), Path("d")), *flags])
    assert shown == config.dump(expected)


@pytest.mark.parametrize("command", ["pack", "augment", "demo", "pipeline"])
def test_make_hands_a_regular_expression_on_as_it_is(command):
    rule = r"(a|b$)_\d+\.png$"
    make = ["make", "-n", "-s", command, "OUT=o", "DATA=d", f"GROUP_BY={rule}"]
    planned = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"--group_by '{rule}'" in planned


def test_make_help_names_every_target_and_variable():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for word in ("demo", "test", "check", "fix", "weights", "bench-", "clean", *cli.COMMANDS):
        assert word in ("one-process", "estimate", "verify") or f"make {word}" in shown
    for variable in ("PROFILE", "WAIT", "DATA", "OUT", "CONFIG", "GPUS", "NODES", "CLUSTER", "ARGS"):
        assert f"\n{variable} " in shown

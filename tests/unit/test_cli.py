"""The command line as a whole: quick help, commands that agree with their table, mistakes in one line."""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from launch import rank
from mdaug import cli
from shards import atomic, errors

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "deepspeed", "wandb", "matplotlib", "lpips", "accelerate")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_answers_at_once():
    def seconds() -> float:
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "mdaug", "--help"], check=True, capture_output=True, cwd=ROOT)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5  # of a processor: the machine may be busy


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_explains_every_field_and_loads_nothing_heavy(command):
    code = f"""
import sys
from mdaug import cli
try:
    cli.main([{command!r}, "--help"])
except SystemExit as stop:
    assert not stop.code
print("loaded:", [name for name in {HEAVY} if name in sys.modules])
"""
    shown, _, loaded = python(code).rpartition("loaded: ")
    explained = {text.split()[0].rstrip(","): text for text in re.split(r"\n  --", shown)}  # 3.13 lists names first
    for field in dataclasses.fields(cli.find(command).load_options()):
        words = re.sub(r"\((type|required|default).*|\{.*?\}", "", explained[field.name], flags=re.S).split()
        assert len([word for word in words[1:] if not word.isupper()]) >= 2, f"{command} --{field.name} says nothing"
    assert loaded == "[]\n"


def test_unknown_command_and_unknown_flag_are_one_line(capsys):
    assert cli.main(["no-such-command"]) == 2
    assert cli.main(["pack", "--no_such_flag", "1"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "train-vqvae" in errors[0]
    assert "no_such_flag" in errors[1]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_table_agrees_with_the_command(command):
    """Options that are named have the field, and what writes a folder can say beforehand whether it may."""
    entry = cli.find(command)
    fields = {field.name for field in dataclasses.fields(entry.load_options())}
    assert fields >= {*entry.inputs, *entry.given}
    assert set(entry.given) <= set(entry.inputs)
    instead = {} if entry.instead is None else {entry.instead[0]: "given"}
    for options in (SimpleNamespace(), SimpleNamespace(**instead)):
        module = entry.load(options)
        assert callable(module.run)
        if "output_dir" in fields:
            assert callable(module.check)
    assert set(instead) <= fields


def test_version_is_that_of_the_package():
    assert python("from mdaug import cli; cli.main(['--version'])") == f"mdaug {importlib.metadata.version('mdaug')}\n"


ENCODE = ["encode", "--data_dir", "a", "--vqvae_path", "b", "--output_dir"]


def run_instead(monkeypatch: pytest.MonkeyPatch, function) -> None:
    """Replace what every command does."""
    monkeypatch.setattr(cli.Command, "load", lambda command, options: SimpleNamespace(run=function))


def export_on_a_full_disk(config) -> None:
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def picture_on_a_full_disk(config) -> None:
    raise OSError(errno.EDQUOT, "Disk quota exceeded")  # as Pillow's, without the name of the file


def text_on_a_full_disk(config) -> None:
    config.output_dir.mkdir(exist_ok=True)
    with atomic.replacing(config.output_dir / "report.html", "w"):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("function", "named"),
    [(export_on_a_full_disk, "out"), (picture_on_a_full_disk, "out"), (text_on_a_full_disk, "out/report.html")],
)
def test_a_full_disk_is_one_line_in_every_command_and_rank(function, named, monkeypatch, tmp_path, capsys):
    run_instead(monkeypatch, function)
    argv = [*ENCODE, str(tmp_path / "out")]
    assert cli.main(argv) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert f"no space left while writing {tmp_path / named} (" in printed
    assert "free some or choose another folder, then run the same command again" in printed
    assert rank._call("mdaug.cli:run", argv)[0] == 2
    assert "Traceback" not in capsys.readouterr().err


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(config):
        raise OSError(errno.EACCES, "Permission denied")

    run_instead(monkeypatch, fail)
    with pytest.raises(PermissionError):
        cli.main([*ENCODE, "c"])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"", "does not hold 'flag: value' lines"),
        (b"- image_size", "does not hold 'flag: value' lines: - image_size"),
        (b"\xff\xfe", "not text in UTF-8"),
        (b"seed: null", "seed is null; give it a value or leave it out"),
        (b"seed: 99999999999999999999", "seed=99999999999999999999 must be between"),
        (b"image_sze: 3", "image_sze"),
        (b"gap: [1, 2]", "gap"),
    ],
)
def test_a_file_that_holds_no_configuration_is_one_line(written, message, tmp_path, capsys):
    (tmp_path / "c.yaml").write_bytes(written)
    assert cli.main(["pack", "--config", str(tmp_path / "c.yaml"), "--data_dir", "a", "--output_dir", "b"]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_an_output_folder_that_cannot_be_is_one_line(tmp_path, capsys):
    image = tmp_path / "images/a/1.png"
    image.parent.mkdir(parents=True)
    Image.new("L", (16, 16)).save(image)
    (tmp_path / "file").touch()
    for output in ("file", "file/packed", "x" * 300):
        assert cli.main(["pack", "--data_dir", str(tmp_path / "images"), "--output_dir", str(tmp_path / output)]) == 2
        printed = capsys.readouterr().err
        assert str(tmp_path / output) in printed
        assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 256000000 bytes."),
        MemoryError("Unable to allocate 18.2 TiB"),
    ],
    ids=["gpu", "cpu", "numpy"],
)
def test_too_little_memory_is_one_line(error, monkeypatch, capsys):
    def run(config):
        raise error

    run_instead(monkeypatch, run)
    assert cli.main([*ENCODE, "c"]) == 2
    printed = capsys.readouterr().err
    assert "allocate" in printed
    assert "--batch_size" in printed
    assert printed.count("\n") == 1


def test_a_process_ends_with_its_status_after_its_threads_and_handlers_but_clears_nothing(tmp_path):
    code = f"""
import atexit, sys, threading, time
from pathlib import Path
from shards.errors import run_process

class Held:
    def __del__(self):
        Path({str(tmp_path / "cleared")!r}).touch()

sys.held = Held()

def late():
    time.sleep(0.2)
    print("thread", end=" ")

def main():
    atexit.register(lambda: print("handler", end=""))
    threading.Thread(target=late).start()
    print("main", end=" ")
    return 3

run_process(main)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "main thread handler", "")
    assert not (tmp_path / "cleared").exists()


def test_nothing_is_registered_for_the_end_before_a_command_runs():
    """What is registered before `run_process` would not be called."""
    assert python("import atexit, mdaug.__main__; print(atexit._ncallbacks())") == "0\n"


@pytest.mark.parametrize(("end", "status"), [("raise SystemExit(143)", 143), ("raise ValueError('what')", 1)])
def test_a_process_that_an_exception_ends_ends_as_any_other(end, status):
    code = f"""
from shards.errors import run_process
def main():
    print("said", end="")
    {end}
run_process(main)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "said")
    assert ("ValueError: what" in done.stderr) == (status == 1)


@pytest.mark.parametrize("program", [["-m", "mdaug"], ["-m", "launch"], ["-m", "mdaug", "augment"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_ends_a_program_without_a_word(program, unbuffered):
    unread, output = os.pipe()
    os.close(unread)
    command = [sys.executable, *program, "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.PIPE, text=True)
    os.close(output)
    swallowed = unbuffered and "augment" in program  # by argparse, which sees it itself
    assert (done.returncode, done.stderr) == (0 if swallowed else 141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("program", [["-m", "mdaug"], ["-m", "launch"], ["-m", "mdaug", "augment"]])
def test_output_that_cannot_be_written_is_one_line_and_no_success(program):
    with open("/dev/full", "w") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": ""}
        command = [sys.executable, *program, "--help"]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "output of this command cannot be written: No space left" in done.stderr


def test_a_program_without_an_output_ends_as_any_other():
    command = f"{shlex.quote(sys.executable)} -m mdaug --version >&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_pipe_of_something_else_keeps_its_traceback():
    @errors.entry_point
    def main(argv: list[str]) -> int:
        raise BrokenPipeError(errno.EPIPE, "of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        main([])


def test_a_command_is_imported_without_a_search_for_garbage(tmp_path):
    (tmp_path / "many_objects.py").write_text("import gc\nheld = [[] for _ in range(100_000)]\nwas = gc.isenabled()\n")
    (tmp_path / "broken_module.py").write_text("raise ImportError('broken')\n")
    code = f"""
import gc, sys
from mdaug import cli
sys.path.insert(0, {str(tmp_path)!r})
searched = []
gc.callbacks.append(lambda phase, about: searched.append(phase))
module = cli.imported("many_objects")
assert not searched
assert not module.was and gc.isenabled()
assert gc.get_freeze_count() > 100_000
assert cli.imported("many_objects") is module
try:
    cli.imported("broken_module")
except ImportError:
    print(gc.isenabled())
"""
    assert python(code) == "True\n"


@pytest.mark.slow
def test_generate_brings_neither_the_training_nor_pandas(tmp_path):
    """Pandas would come with pyarrow.dataset, which reading a table with `parquet.read_table` imports."""
    code = f"""
import sys
from pathlib import Path
from mdaug import cli
cli.imported("mdaug.generation.generate")
from mdaug.generation import inspected
assert inspected._read(Path({str(tmp_path)!r}), "000000.tar") is None
print([name for name in ("deepspeed", "pandas", "pyarrow.dataset", "lpips", "wandb") if name in sys.modules])
"""
    assert python(code) == "[]\n"

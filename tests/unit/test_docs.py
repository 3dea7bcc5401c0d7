"""What the documentation says is what the code does: links, commands, defaults, and the files and tests it names."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from launch import stages
from launch.__main__ import ON_JOBS, LaunchConfig, _split
from launch.demo import DemoConfig
from launch.pipeline import PipelineConfig
from mdaug import cli, config

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "docs", "docs/results", "configs", "benchmarks", "benchmarks/results")
DOCUMENTS = {str(path.relative_to(ROOT)): path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))}
HISTORY = {"CHANGELOG.md", "docs/decisions.md"}  # these speak of what was, too
PRESENT = sorted(DOCUMENTS.keys() - HISTORY)
MODULES = {"launch.demo": DemoConfig, "launch.pipeline": PipelineConfig}


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_pictures_are_there(name):
    document = DOCUMENTS[name]
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in map(_slug, headings), link


def _commands(document: Path) -> list[str]:
    """Return the commands in the code blocks of a document, optional parts in brackets included."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```|((?:^    [^\n]*\n)+)", text, flags=re.M | re.S)
    lines = "\n".join("".join(block) for block in blocks).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\[(--[^]]*)\]", r"\1", line.strip().removeprefix("$ ")) for line in lines]
    return [line for line in lines if line.startswith(("mdaug ", "make ", "python -m launch ", "python benchmarks/"))]


@pytest.mark.parametrize("name", [name for name in PRESENT if _commands(DOCUMENTS[name])])
def test_commands_parse(name, tmp_path, monkeypatch):
    for path in ROOT.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "gestures").mkdir()  # the reader's own images
    monkeypatch.chdir(tmp_path)
    for line in _commands(DOCUMENTS[name]):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            planned = subprocess.run(["make", "-n", *words[1:]], capture_output=True, text=True)
            assert planned.returncode == 0, f"{line}: {planned.stderr}"
            started = planned.stdout.replace("\\\n", " ").splitlines()
            for command in [shlex.split(text.removeprefix("@")) for text in started if " -m launch" in text]:
                _check_module(command[command.index("-m") + 1 :])
        elif words[1] == "-m":
            _check_module(words[2:])
        elif words[0] == "python":
            _check_benchmark(Path(words[1]), words[2:])
        elif not words[1].startswith("-"):
            _check_command(words[1], words[2:])


def _check_module(words: list[str]) -> None:
    module, first, *rest = words
    if module in MODULES:
        config.parse(MODULES[module], [first, *rest], prog=module)
    elif first not in ON_JOBS:
        launcher_flags, flags = _split(rest)
        where = config.parse(LaunchConfig, launcher_flags, prog="launch")
        _check_command(first, [*stages.flags(first, where.out, where.data, where.preset), *flags])


def _check_command(command: str, flags: list[str]) -> None:
    if flags != ["--help"]:
        cli.parse(command, flags)


def _check_benchmark(script: Path, flags: list[str]) -> None:
    source = script.read_text(encoding="utf-8")
    assert [flag for flag in flags if flag.startswith("--") and f'"{flag}"' not in source] == []


def _defaults(command: str) -> dict[str, object]:
    return {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in dataclasses.fields(cli.find(command).load_options())
    }


def _agrees(said: str, default: object) -> bool:
    if isinstance(default, bool):
        return (said == "off") != default
    if isinstance(default, str):
        return default in said.split()
    numbers = default if isinstance(default, list | tuple) else [default]
    found = [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", said)]
    return found == [number for number in numbers if number != "all"]


def test_defaults_in_the_documents_are_those_of_the_commands():
    text = DOCUMENTS["docs/commands.md"].read_text(encoding="utf-8")
    compared = 0
    for command, section in re.findall(r"^## ([\w-]+)[^\n]*\n(.*?)(?=^##|\Z)", text, flags=re.M | re.S):
        if command not in cli.COMMANDS:
            continue
        said = re.findall(r"`--(\w+)` (\[[^]]*\]|\d[\d.]*\d|\d)", section)
        for flags, values in re.findall(r"^\| (`--.*?) \| ([^|]+) \|", section, flags=re.M):
            names, parts = re.findall(r"`--(\w+)`", flags), re.split(r"[,;] ?(?![^[]*\])", values)
            said += zip(names, parts, strict=True) if len(names) == len(parts) else []
        defaults = _defaults(command)
        known = [(flag, value) for flag, value in said if defaults[flag] is not None]
        assert [(flag, value) for flag, value in known if not _agrees(value, defaults[flag])] == [], command
        compared += len(known)
    assert compared > 50


@pytest.mark.parametrize("name", PRESENT)
def test_files_and_tests_that_are_named_are_there(name):
    text = DOCUMENTS[name].read_text(encoding="utf-8")
    tests = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    for path in re.findall(r"`((?:mdaug|shards|launch|tests|benchmarks|configs|docs)/[\w./-]+\.\w+)(?:::\w+)?`", text):
        assert (ROOT / path).is_file(), path
    for test in re.findall(r"`(?:[\w/]+\.py::)?(test_\w+)(?:\.\.\.)?`", text):
        assert any(f"def {test}" in source for source in tests.values()), test
    for file in re.findall(r"`(test_\w+\.py)(?:::\w+)?`", text):
        assert file in tests, file


def test_the_readmes_name_the_same_commands_and_links():
    """What is said between them only a reader can compare."""
    english, chinese = DOCUMENTS["README.md"], DOCUMENTS["README.zh-CN.md"]
    assert [line.partition(" # ")[0].strip() for line in _commands(english)] == [
        line.partition(" # ")[0].strip() for line in _commands(chinese)
    ]
    named, also_named = (
        set(re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8").replace(".zh-CN.md", ".md")))
        for path in (english, chinese)
    )
    assert named == also_named


def test_every_module_has_a_line_in_the_architecture():
    text = DOCUMENTS["docs/architecture.md"].read_text(encoding="utf-8")
    modules = [path for top in ("shards", "mdaug", "launch") for path in (ROOT / top).rglob("*.py")]
    absent = [
        str(path.relative_to(ROOT))
        for path in modules
        if not path.name.startswith("__") and not re.search(rf"^  (report/)?{re.escape(path.name)} +\S", text, re.M)
    ]
    assert not absent

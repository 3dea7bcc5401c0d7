"""`--config`: a file of fields, or a preset with a section for each command; mistakes in either are errors."""

from __future__ import annotations

import pytest

from mdaug import cli, config
from shards.errors import UserError

REQUIRED = ["--data_dir", "a", "--output_dir", "b"]
PRESET = """
common: {image_size: 64, seed: 5}
pack: {gap: 7, seed: 6}
train-vqvae: {n_layers: 2}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "c.yaml").write_text(text)
        return str(tmp_path / "c.yaml")

    return write


def test_a_section_wins_over_what_is_common_and_others_are_left_out(write):
    pack = cli.parse("pack", ["--config", write(PRESET), *REQUIRED])
    assert (pack.image_size, pack.gap, pack.seed) == (64, 7, 6)
    vqvae = cli.parse("train-vqvae", ["--config", write(PRESET), *REQUIRED])
    assert (vqvae.image_size, vqvae.n_layers, vqvae.seed) == (64, 2, 5)


def test_a_command_without_a_section_takes_what_is_common(write):
    assert cli.parse("simulate", ["--config", write(PRESET), "--output_dir", "b"]).seed == 5
    assert cli.parse("pack", ["--config", write("train-vqvae: {n_layers: 2}"), *REQUIRED]).seed == 0
    assert cli.parse("pack", ["--config", write("common:\npack:"), *REQUIRED]).seed == 0


def test_a_file_of_fields_needs_no_section(write):
    assert cli.parse("pack", ["--config", write("image_size: 32\ngap: 1"), *REQUIRED]).gap == 1


def test_the_last_of_flags_and_files_wins(write):
    path = write(PRESET)
    assert cli.parse("pack", ["--config", path, "--gap", "1", *REQUIRED]).gap == 1
    assert cli.parse("pack", ["--gap", "1", f"--config={path}", *REQUIRED]).gap == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("common: {seed: 5}\npakc: {gap: 7}", "has a section 'pakc'; sections are common, simulate, "),
        ("common: {sede: 5}\npack: {gap: 7}", "has 'sede' under common, but no command has such a field"),
        ("common: {seed: 5}\npack: {gpa: 7}", "gpa"),
        ("common: {seed: 5}\ngap: 7", "common"),
        ("common: {seed: null}", "seed is null"),
    ],
)
def test_what_no_command_knows_is_refused(write, text, message):
    with pytest.raises(UserError, match=message) as error:
        cli.parse("pack", ["--config", write(text), *REQUIRED])
    assert "\n" not in str(error.value)


def test_a_preset_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "tiny.yaml").write_text(PRESET)
    monkeypatch.setattr(config, "PRESETS", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    assert cli.parse("pack", ["--config", "tiny", *REQUIRED]).gap == 7
    with pytest.raises(UserError, match="--config tyni does not exist; presets are tiny"):
        cli.parse("pack", ["--config", "tyni", *REQUIRED])

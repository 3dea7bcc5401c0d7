"""`--config`: a file of fields, or a preset with a section for each command; mistakes in either are errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from launch import slurm_profile
from mdaug import cli, config
from shards.errors import UserError

REQUIRED = ["--data_dir", "a", "--output_dir", "b"]
REQUIRED_OF = {
    "spectrogram": ["--v_max_m_s=3"],
    "ema": ["--reconstruct=0.1"],
    "train-ldm": ["--latent_channels=2"],
    "augment": ["--generate=true"],
}
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


GENERATE = ["--ldm_path", "a", "--output_dir", "b"]


@pytest.mark.parametrize(
    "word", ["1", "007", "1e3", "1.5e-3", "12:30", "2024-01-01", "yes", "off", "null", "1.0", "0x1f"]
)
def test_names_are_text_however_yaml_reads_them(word, write):
    """In files with and without sections and in flags; numbers of the same fields stay numbers."""
    for text in (f"per_class: {{{word}: 3}}", f"generate: {{per_class: {{{word}: 3}}}}"):
        assert cli.parse("generate", [*GENERATE, "--config", write(text)]).per_class == {word: 3}
    assert cli.parse("generate", [*GENERATE, "--per_class", f"{{{word}: 3}}"]).per_class == {word: 3}
    for text in (f"classes: [{word}, fall]", f"common:\ngenerate: {{classes: [{word}, fall]}}"):
        assert cli.parse("generate", [*GENERATE, "--config", write(text)]).classes == [word, "fall"]
    for flag in (["--classes", f"[{word}, fall]"], [f"--classes=[{word}, fall]"], [f"--classes={word},fall"]):
        assert cli.parse("generate", [*GENERATE, *flag]).classes == [word, "fall"]
    if word != "null":  # which is the lack of a value
        assert slurm_profile.load(Path(write(f"account: {word}\nenvironment: {{A: {word}}}"))).account == word
        assert cli.parse("generate", ["--ldm_path=a", "--config", write(f"output_dir: {word}")]).output_dir == Path(
            word
        )


def test_what_is_no_name_is_read_as_before(write):
    numbers = "guidance_scale: 1e1\nsift_quantile: 1e-5\nseed: 7\nconditions: {speed: 1}\nguidance_interval: [0, 1]\n"
    text = numbers + "mixed_precision: no\ngrid: yes\nclasses: null\nper_class: {1: 3}"  # names beside them
    options = cli.parse("generate", [*GENERATE, "--config", write(text)])
    assert (options.seed, options.conditions, options.mixed_precision) == (7, {"speed": 1.0}, "no")
    assert (options.grid, options.classes, options.guidance_interval) == (True, None, [0, 1])
    assert (options.guidance_scale, options.sift_quantile, options.per_class) == (10, 1e-5, {"1": 3})


def test_a_tilde_is_the_home_folder_in_every_path_of_flags_and_files(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for command, entry in cli.COMMANDS.items():
        if command == "estimate":  # --config is its path
            assert cli.parse("estimate", ["train-ldm", "--config=~/x"]).training == tmp_path / "x"
            continue
        types = get_type_hints(entry.load_options())
        paths = [name for name, kind in types.items() if Path in (kind, *get_args(kind))]
        paths = [name for name in paths if (command, name) != ("distil", "init_from")]
        expected = dict.fromkeys(paths, tmp_path / "x")
        given = write("".join(f"{name}: ~/x\n" for name in paths))
        for flags in ([f"--{name}=~/x" for name in paths], ["--config", given]):
            if paths:
                options = cli.parse(command, [*flags, *REQUIRED_OF.get(command, [])])
                assert {name: getattr(options, name) for name in paths} == expected, command
    (tmp_path / "own.yaml").write_text("gap: 7")
    assert cli.parse("pack", ["--config=~/own.yaml", *REQUIRED]).gap == 7


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_accepted_spelling_is_listed(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    shown, options = " ".join(capsys.readouterr().out.split()), cli.find(command).load_options()
    for alias, meant in getattr(options, "ALIASES", {}).items():
        assert f"--{alias} is short for --{meant}" in shown
    if positional := getattr(options, "POSITIONAL", None):
        assert f"a first word without dashes, {positional.upper()}, is short for --{positional}" in shown
    assert "--a-name is --a_name" in shown


VQVAE, LDM = "train-vqvae --data_dir=a --output_dir=b", "train-ldm --data_dir=a --vqvae_path=a --output_dir=b"
EVALUATE = "evaluate --data_dir=a --synthetic_dir=a --output_dir=b"
SIMULATE, SPECTROGRAM = "simulate --output_dir=b", "spectrogram --data_dir=a --output_dir=b --v_max_m_s=3"
PACK, ENCODE = "pack --data_dir=a --output_dir=b", "encode --data_dir=a --vqvae_path=a --output_dir=b"
CLUMSY = [
    (f"{EVALUATE} --n_real_per_class [5,All]", "n_real_per_class takes a list such as [5, all], not 'All'"),
    (f"{EVALUATE} --n_real_per_class 5", "n_real_per_class takes a list such as [5, all], not '5'"),
    (f"{EVALUATE} --steps 1.5", "steps takes a whole number or 'settled', not '1.5'"),
    (f"{EVALUATE} --part fidelty", "part takes one of all, usefulness, fidelity, "),
    (f"{VQVAE} --batch_size Auto", "batch_size takes a whole number or 'auto', not 'Auto'"),
    (f"{VQVAE} --bathc_size 4", "there is no flag --bathc_size; did you mean --batch_size?"),
    (f"{VQVAE} --lr 1,5", "lr takes a number, not '1,5'"),
    (f"{VQVAE} --lr", "--lr needs a value"),
    (f"{VQVAE} --use_perceptual maybe", "'maybe' belongs to no flag"),
    (f"{LDM} --block_out_channels [16,a]", "block_out_channels takes a list such as [1, 2], not 'a'"),
    (f"{LDM} --ema_profiles 0.05", "ema_profiles takes a list such as [0.1, 0.5], not '0.05'"),
    (f"{LDM} --scheduler_type DDIM", "scheduler_type takes one of ddpm, ddim, "),
    ("generate --ldm_path=a --output_dir=b --num_samples many", "num_samples takes a whole number, not 'many'"),
    ("generate --ldm_path=a --output_dir=b --guidance_scale nan", "guidance_scale takes a number, not 'nan'"),
    (f"{ENCODE} --num_copies 2", "there is no flag --num_copies; did you mean --augment_copies?"),
    (f"{SIMULATE} --classes walking,bird", "classes takes a list such as [fall, walk], not 'walking,bird'"),
    (f"{SIMULATE} --carrier_hz 24GHz", "carrier_hz takes a number, not '24GHz'"),
    (f"{SPECTROGRAM} --range_m 3", "range_m takes a list such as [0.1, 0.5], not '3'"),
    ("augment --data_dir=a --output_dir=b --n_per_class [5,a]", "n_per_class takes a list such as [1, 2], not 'a'"),
    ("ema --run_dir=a", "--reconstruct must be given"),
    ("reconstruct --data_dir=a --vqvae_path=a --split tset", "split takes one of auto, train, val, test, not 'tset'"),
    ("estimate foo", "command takes one of train-ldm, train-vqvae, distil, not 'foo'"),
    ("verify a b", "'b' belongs to no flag"),
    ("weights --output_dir=b", "there is no flag --output_dir"),
    (f"{PACK} --größe 3", "there is no flag --größe"),
    (f"{PACK} --config", "--config needs a value"),
    (f"{PACK} --config .", "--config . is a folder; presets are "),
]
FILES = [
    ("", "does not hold 'flag: value' lines"),
    ("- 1\n- 2", "does not hold 'flag: value' lines: - 1 - 2"),
    ("gap: 3\n\tseed: 1", "is not YAML: "),
    ("gap: *x", "is not YAML: found undefined alias, line 1, column 6"),
    ("? [1]\n: 3", "is not YAML: while constructing a mapping"),
    ("3: 4", "has a name that is not text: 3"),
    ("gapp: 3", "has 'gapp', which is not a field; did you mean gap?"),
    ("pack: [1]", "has 'pack', which is not a field"),
    ("pack: {gap: {a: 1}}", "gap takes a whole number, not '{'a': 1}'"),
    ("gap: 2024-01-01", "gap takes a whole number, not '2024-01-01'"),
    ("config: absent.yaml", "the file of --config: File does not exist"),
    ("image_size: [64, 128]", "image_size takes a whole number or text, not '[64, 128]'"),
]


@pytest.mark.parametrize(("line", "message"), CLUMSY)
def test_clumsy_flags_are_told_in_plain_words(line, message):
    command, *flags = line.split()
    with pytest.raises(UserError) as error:
        cli.parse(command, flags)
    assert message in str(error.value)
    assert not re.search("subtypes|typing|<class|Parser key|NoneType", str(error.value))


@pytest.mark.parametrize(("text", "message"), FILES)
def test_clumsy_files_are_told_in_plain_words(text, message, write):
    with pytest.raises(UserError) as error:
        cli.parse("pack", [*REQUIRED, "--config", write(text)])
    assert message in str(error.value)
    assert not re.search("subtypes|typing|<class|Parser key|NoneType|unicode string", str(error.value))

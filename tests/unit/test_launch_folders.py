"""An output folder that holds something else is refused when a job is submitted, as the command itself would."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from launch import preflight, slurm, slurm_query
from launch.__main__ import main
from mdaug import cli, distributed
from mdaug.generation.make_plan import wanted_plan
from mdaug.generation.plan import claim_folder
from shards import provenance
from shards.errors import UserError
from shards.output_folder import claim, disown_all
from shards.validation import identity_of
from tests.toy_latents import toy_latents

FLAGS = {
    "simulate": "--classes [drone] --images_per_class 4 --image_size 32 --workers 1",
    "pack": "--data_dir {images} --workers 1",
    "train-vqvae": "--data_dir {packed} --image_size 16",
    "encode": "--data_dir {packed} --vqvae_path {vqvae}",
    "train-ldm": "--data_dir {packed} --image_size 16 --vqvae_path {vqvae} --latent_channels 2",
    "generate": "--ldm_path {ldm} --num_samples 3 --num_inference_steps 2",
}
ROLES = {"images": "packed", "vqvae": "vqvae"}
OTHER = {
    "simulate": ("seed", 1, "seed: 0 there, 1 now"),
    "pack": ("seed", 1, "seed: 0 there, 1 now"),
    "train-vqvae": ("lr", 0.5, "lr: 5e-05 there, 0.5 now"),
    "encode": ("augment_copies", 1, "augment_copies"),
    "train-ldm": ("dropout", 0.5, "dropout: 0.0 there, 0.5 now"),
    "generate": ("seed", 1, "seed: 42 there, 1 now"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, ldm) -> dict[str, Path]:
    """Inputs and results of every command, each made from the one before it, but for the pipeline."""
    root = tmp_path_factory.mktemp("made")
    folders = {**toy_latents(root, train=8, val=4), "ldm": ldm, "images": root / "images"}
    folders |= {command: root / command for command in FLAGS} | {"simulate": root / "images"}
    for command in ("simulate", "pack"):
        run(command, config_of(command, folders, folders[command]))
    claim_folder(folders["generate"], wanted_plan(config_of("generate", folders, folders["generate"]), "cpu"))
    made_from = {role: provenance.read(folders[key], role)["hash"] for role, key in ROLES.items()}
    for command in ("train-vqvae", "encode", "train-ldm"):
        settings = config_of(command, folders, folders[command])
        identity = settings.identity if command == "encode" else identity_of(settings)
        roles = ("images",) if command == "train-vqvae" else ROLES
        claim(folders[command], command, identity, {role: made_from[role] for role in roles})
    for command in ("train-vqvae", "encode", "train-ldm", "generate"):
        (folders[command] / "result").write_text("a run that has made nothing owns nothing")
    disown_all()
    return folders


def config_of(command: str, folders: dict[str, Path], output_dir: Path):
    flags = FLAGS[command].format(**folders).split()
    return cli.parse(command, [*flags, "--output_dir", str(output_dir)])


def run(command: str, settings) -> None:
    cli.find(command).load(settings).run(settings)


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value)


def refused_alike(command: str, settings, monkeypatch) -> str:
    """Return the words in which the check and the command refuse the same; nothing may be written."""
    monkeypatch.setattr(distributed, "init", lambda: None)
    monkeypatch.setattr(distributed, "barrier", lambda: pytest.fail("it began"))
    before = seen(settings.output_dir)
    early, late = refusal(preflight.check, command, settings, 1), refusal(run, command, settings)
    assert early == late
    assert seen(settings.output_dir) == before
    return early


def seen(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.name[0] != "."]


@pytest.mark.parametrize("command", OTHER)
def test_other_settings_are_refused_in_the_words_of_the_command_and_the_same_go_on(command, made, monkeypatch):
    same = config_of(command, made, made[command])
    for inputs_later in (False, True):
        preflight.check(command, same, 1, inputs_later=inputs_later)
    name, value, words = OTHER[command]
    error = refused_alike(command, dataclasses.replace(same, **{name: value}), monkeypatch)
    assert f"belongs to another run of mdaug {command} ({words}" in error


@pytest.mark.parametrize("command", sorted(OTHER.keys() - {"encode"}))
def test_files_of_somebody_else_are_refused_even_before_the_inputs_are_there(command, made, tmp_path, monkeypatch):
    (tmp_path / "thesis.tex").touch()
    settings = config_of(command, made, tmp_path)
    words = refused_alike(command, settings, monkeypatch)
    assert refusal(lambda: preflight.check(command, settings, 1, inputs_later=True)) == words


@pytest.mark.parametrize("command", ["train-vqvae", "encode", "train-ldm"])
def test_a_folder_made_from_other_images_is_refused(command, made, tmp_path, monkeypatch):
    shutil.copytree(made["packed"], packed := tmp_path / "packed")
    record = json.loads((packed / "provenance.json").read_text())
    (packed / "provenance.json").write_text(json.dumps(record | {"hash": "f" * 64}))
    settings = config_of(command, made | {"packed": packed}, made[command])
    assert "images" in refused_alike(command, settings, monkeypatch)
    preflight.check(command, settings, 1, inputs_later=True)  # a job before it may still make them


def test_inputs_that_do_not_fit_are_refused(made, tmp_path, monkeypatch):
    larger = dataclasses.replace(config_of("train-vqvae", made, tmp_path / "new"), image_size=32)
    assert "--image_size 16" in refused_alike("train-vqvae", larger, monkeypatch)
    wide = dataclasses.replace(config_of("train-ldm", made, tmp_path / "new"), latent_channels=3)
    assert "latent_channels=3" in refused_alike("train-ldm", wide, monkeypatch)
    unknown = dataclasses.replace(config_of("generate", made, tmp_path / "new"), classes=["submarine"])
    assert "submarine" in refused_alike("generate", unknown, monkeypatch)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_another_command_is_no_run(made):
    settings = config_of("train-vqvae", made, made["images"])
    assert "holds the output of mdaug simulate" in refusal(preflight.check, "train-vqvae", settings, 1)


def test_a_refused_folder_is_never_submitted(made, monkeypatch, capsys):
    monkeypatch.setattr(slurm_query, "available", lambda: True)
    monkeypatch.setattr(slurm_query, "nodes_of", lambda partition: {0: 2})
    monkeypatch.setattr(slurm_query, "reports_gpus", lambda: True)
    monkeypatch.setattr(slurm, "submit", lambda *_, **__: pytest.fail("it was submitted"))
    flags = [*FLAGS["train-vqvae"].format(**made).split(), "--output_dir", str(made["train-vqvae"]), "--lr", "0.5"]
    assert main(["train-vqvae", "--cluster", "slurm", "--", *flags]) == 2
    assert "(lr: 5e-05 there, 0.5 now); choose another --output_dir" in capsys.readouterr().err

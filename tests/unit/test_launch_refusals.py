"""What a command would refuse after an hour in the queue is refused when it is submitted."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import preflight, slurm, slurm_query
from launch.__main__ import main
from mdaug import cli
from mdaug.generation.make_plan import wanted_plan
from mdaug.generation.plan import claim_folder
from shards.errors import UserError
from shards.packed import open_packed
from tests.toy import toy_synthetic
from tests.toy_latents import toy_latents

FLAGS = {
    "simulate": "--classes [drone] --images_per_class 4 --image_size 32",
    "spectrogram": "--data_dir {recordings} --v_max_m_s 3",
    "pack": "--data_dir {images}",
    "train-vqvae": "--data_dir {packed} --image_size 16",
    "reconstruct": "--data_dir {packed} --vqvae_path {vqvae}",
    "encode": "--data_dir {packed} --vqvae_path {vqvae}",
    "train-ldm": "--data_dir {packed} --image_size 16 --vqvae_path {vqvae} --latent_channels 2",
    "ema": "--run_dir {ldm} --reconstruct 0.075",
    "generate": "--ldm_path {ldm}",
    "evaluate": "--data_dir {packed} --synthetic_dir {synthetic}",
}
MADE = {"output_dir", "latents_dir"}  # paths that a command makes itself
INPUTS = [(command, name) for command in FLAGS for name in cli.COMMANDS[command].inputs]
FP16 = "needs a GPU"
REPORTS_GPUS = slurm_query.reports_gpus


@pytest.fixture(scope="module")
def there(tmp_path_factory, ldm) -> dict[str, Path]:
    """Inputs of every command, and folders that are none."""
    root = tmp_path_factory.mktemp("there")
    folders = {**toy_latents(root, train=8, val=4), "ldm": ldm}
    for name in ("empty", "images/walk", "recordings/walk"):
        (root / name).mkdir(parents=True)
    (root / "images/walk/0.png").touch()
    (root / "recordings/walk/0.npy").touch()
    (root / "file").touch()
    synthetic = toy_synthetic(root / "synthetic", folders["packed"], size=16)
    return (
        folders | {name: root / name for name in ("empty", "images", "recordings", "file")} | {"synthetic": synthetic}
    )


def settings(command: str, there: dict[str, Path], out: Path, extra: str = "") -> typing.Any:
    return cli.parse(command, f"{FLAGS[command]} {extra} --output_dir {out}".format(**there).split())


def refused(command: str, asked: typing.Any, *, gpus: bool | None = None, inputs_later: bool = False) -> str:
    with pytest.raises(UserError) as error:
        preflight.check(command, asked, 1, gpus=gpus, inputs_later=inputs_later)
    return str(error.value)


@pytest.mark.parametrize("command", sorted(FLAGS.keys() - {"ema"}))  # the tiny pipeline has no snapshots; see below
def test_what_can_run_passes_and_leaves_nothing(command, there, tmp_path):
    preflight.check(command, settings(command, there, tmp_path / "out"), 1, gpus=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", FLAGS)
def test_every_path_of_every_command_is_known_as_input_or_made_by_it(command):
    types = typing.get_type_hints(cli.COMMANDS[command].load_options())
    paths = {name for name, kind in types.items() if Path in (kind, *typing.get_args(kind))}
    assert paths - MADE == set(cli.COMMANDS[command].inputs)


@pytest.mark.parametrize(("command", "name"), INPUTS)
def test_an_input_that_is_not_there_is_refused_unless_a_job_before_makes_it(command, name, there, tmp_path):
    absent = tmp_path / "absent"
    extra = "--from_dir {packed}" if (command, name) == ("generate", "data_dir") else ""  # goes with it only
    asked = dataclasses.replace(settings(command, there, tmp_path / "out", extra), **{name: absent})
    assert refused(command, asked) == f"{name}={absent} does not exist; make it first, or correct --{name}"
    if name in cli.COMMANDS[command].given:
        assert "does not exist" in refused(command, asked, inputs_later=True)
    else:
        preflight.check(command, asked, 1, inputs_later=True)


@pytest.mark.parametrize("command", FLAGS)
def test_an_output_folder_that_cannot_be_written_is_refused(command, there):
    asked = settings(command, there, there["file"] / "out")
    assert f"output_dir={asked.output_dir} cannot be written ({there['file']}: " in refused(
        command, asked, inputs_later=True
    )
    if sys.platform == "linux":  # not even root can make a file there
        asked = settings(command, there, Path("/proc/out"))
        assert "output_dir=/proc/out cannot be written (/proc: " in refused(command, asked, inputs_later=True)


@pytest.mark.parametrize(
    ("command", "extra", "words"),
    [
        ("train-vqvae", "--mixed_precision fp16", FP16),
        ("encode", "--mixed_precision fp16", FP16),
        ("train-ldm", "--mixed_precision fp16", FP16),
        ("generate", "--mixed_precision fp16", FP16),
        ("generate", "--compile", "--compile is for a GPU"),
    ],
)
def test_what_needs_a_gpu_is_refused_for_nodes_without(command, extra, words, there, tmp_path):
    asked = settings(command, there, tmp_path / "out", extra)
    said = refused(command, asked, gpus=False)
    assert words in said
    assert said.endswith("(the nodes of this partition have no GPUs)")
    preflight.check(command, asked, 1, gpus=True)


def test_what_needs_a_gpu_is_not_refused_where_the_cluster_does_not_report_gpus(
    there, tmp_path, elsewhere, monkeypatch, slurm_says, capsys
):
    monkeypatch.setattr(slurm_query, "single_machine", lambda partition: True)
    flags = [*FLAGS["train-vqvae"].format(**there).split(), "--output_dir", str(tmp_path / "out")]
    command = ["train-vqvae", "--cluster", "slurm", "--dry_run", "--", *flags, "--mixed_precision", "fp16"]
    monkeypatch.setattr(slurm_query, "reports_gpus", REPORTS_GPUS)
    slurm_says("scontrol", "FooTypes = gpu\nGresTypes               = gpu,nvme")
    assert main(command) == 2
    assert FP16 in capsys.readouterr().err
    slurm_says("scontrol", "GresTypes               = (null)\nFooTypes = gpu")
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "this Slurm does not report GPUs (no GresTypes); ranks use those that they find" in shown
    assert "gpus-per-node" not in shown


def test_a_set_begun_on_gpus_is_not_continued_without_except_by_what_needs_none(there, tmp_path):
    asked = settings("generate", there, tmp_path / "out")
    claim_folder(asked.output_dir, wanted_plan(asked, "cuda"))
    assert f"the plan of {tmp_path}/out is for GPUs" in refused("generate", asked, gpus=False)
    preflight.check("generate", asked, 1, gpus=True)
    preflight.check("generate", dataclasses.replace(asked, step="finalize"), 1, gpus=False)


@pytest.mark.parametrize(
    ("command", "extra", "words"),
    [
        ("spectrogram", "--data_dir {empty}", "{empty} holds no recording"),
        ("pack", "--data_dir {empty}", "{empty}"),
        ("train-vqvae", "--data_dir {empty}", "{empty}"),
        ("train-vqvae", "--use_perceptual --perceptual_weights {empty}", "--use_perceptual needs the weights"),
        ("encode", "--data_dir {empty}", "{empty}"),
        ("encode", "--vqvae_path {images}", "{images}"),
        ("train-ldm", "--vqvae_path {images}", "{images}"),
        ("reconstruct", "--vqvae_path {empty}", "{empty}"),
        ("reconstruct", "--split test", "{packed} has no images in test"),
        ("ema", "", "{ldm} holds no "),
        ("ema", "--run_dir {empty}", "{empty} holds no pipeline"),
        ("generate", "--ldm_path {empty}", "{empty} holds no pipeline"),
        ("generate", "--sift {images}", "{images}"),
        ("generate", "--include_real {images}", "{images}"),
        ("generate", "--balance_to {images}", "{images} does not say how many images each class has"),
        ("evaluate", "--synthetic_dir {packed}", "{packed}"),
        ("evaluate", "--simulated_dir {images}", "{images}"),
        ("evaluate", "--simulated_dir {packed}", "holds the very images of data_dir"),
        ("evaluate", "--vqvae_path {empty}", "{empty}"),
        ("evaluate", "--classifier moon", "moon"),
    ],
)
def test_inputs_that_are_not_what_they_should_be_are_refused(command, extra, words, there, tmp_path):
    asked = settings(command, there, tmp_path / "out", extra)
    said = refused(command, asked)
    assert words.format(**there) in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train-vqvae", "reconstruct", "encode", "train-ldm"])
def test_an_image_folder_beside_which_nothing_can_be_packed_is_refused(command, there, tmp_path):
    (tmp_path / "images/walk").mkdir(parents=True)
    (tmp_path / "images/walk/0.png").touch()
    asked = dataclasses.replace(settings(command, there, tmp_path / "out"), data_dir=tmp_path / "images")
    preflight.check(command, asked, 1)
    (cache := tmp_path / ".mdaug-cache").touch()  # no folder: also root cannot write into it
    said = refused(command, asked)
    assert f"nothing can be packed beside it ({cache}: Not a directory); run: mdaug pack" in said
    with pytest.raises(UserError) as late:
        open_packed(asked.data_dir, 16)
    assert str(late.value) == said
    preflight.check(command, asked, 1, inputs_later=True)


@pytest.fixture
def elsewhere(monkeypatch):
    """A cluster whose nodes are other machines, and this machine's file systems."""
    mounts = [("/", "ext4"), ("/dev/shm", "tmpfs"), ("/scratch", "ramfs"), ("/scratch/nfs", "nfs4"), ("/tmp", "ext4")]
    parts = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: parts)
    monkeypatch.setattr(slurm_query, "available", lambda: True)
    monkeypatch.setattr(slurm_query, "nodes_of", lambda partition: {0: 2})
    monkeypatch.setattr(slurm_query, "reports_gpus", lambda: True)
    monkeypatch.setattr(slurm_query, "single_machine", lambda partition: False)
    monkeypatch.setattr(sys, "executable", "/shared/venv/bin/python")


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/tmp/run", "/tmp"),
        ("/dev/shm/run", "/dev/shm"),
        ("/scratch/run", "/scratch"),
        ("/run/user/run", "/run"),
        ("/scratch/nfs/run", None),
        ("/home/me/tmp/run", None),
    ],
)
def test_a_path_that_only_this_machine_has_is_refused_unless_the_profile_knows_better(path, own, elsewhere):
    if own is None:
        preflight.require_shared({"output_dir": Path(path)}, [])
        return
    with pytest.raises(UserError, match=f"^output_dir={path} lies below {own}, .*: shared: \\[{own}\\]$"):
        preflight.require_shared({"output_dir": Path(path)}, ["/scratch/other"])
    preflight.require_shared({"output_dir": Path(path)}, [own])


def test_a_link_to_a_folder_of_this_machine_is_refused(elsewhere, tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/scratch/data")
    with pytest.raises(UserError, match="data_dir=/scratch/data lies below /scratch"):
        preflight.require_shared({"data_dir": link}, [str(tmp_path)])


def test_nothing_is_submitted_that_the_nodes_cannot_find(
    there, tmp_path, tmp_path_factory, elsewhere, monkeypatch, capsys
):
    own = str(tmp_path_factory.getbasetemp())
    monkeypatch.setattr(preflight, "ON_ONE_MACHINE", (own,))
    monkeypatch.setattr(slurm, "submit", lambda *_, **__: pytest.fail("it was submitted"))
    out, given = tmp_path / "out", tmp_path / "profile.yaml"
    flags = [*FLAGS["train-vqvae"].format(**there).split(), "--output_dir", str(out)]
    command = ["train-vqvae", "--cluster", "slurm", "--profile", str(given), "--dry_run", "--snapshot", "false", "--"]

    def said(**profile: object) -> str:
        given.write_text(json.dumps(profile))
        main([*command, *flags])
        return capsys.readouterr().err

    monkeypatch.setattr(slurm, "CODE", Path("/shared/mdaug"))
    assert f"data_dir={there['packed']} lies below {own}" in said()
    assert said(shared=[own]) == ""
    monkeypatch.setattr(slurm, "CODE", Path("/dev/shm/mdaug"))
    assert "checkout=/dev/shm/mdaug lies below /dev/shm" in said(shared=[own])
    monkeypatch.setattr(slurm, "CODE", Path("/shared/mdaug"))
    assert "python=/scratch/bin/python lies below /scratch" in said(shared=[own], python="/scratch/bin/python")
    assert said(shared=[own], python="/scratch/bin/python", container="apptainer exec img") == ""
    monkeypatch.setattr(slurm_query, "single_machine", lambda partition: True)
    assert said() == ""

"""An interrupted encoding goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mdaug.models.latent_statistics import LatentStatistics
from mdaug.models.vqvae import build_vqvae, save_vqvae
from mdaug.training.encode import encode as encode_images
from mdaug.training.options_vqvae import EncodeConfig
from shards import provenance
from shards.errors import UserError
from shards.output_folder import FORMAT, RUN_FILE
from tests.toy import toy_packed


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file, but for the provenance, which holds the time."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*") if p.name != provenance.FILE_NAME}


def inputs(folder: Path) -> tuple[Path, Path]:
    """Return packed images and a VQ-VAE for them."""
    torch.manual_seed(0)
    model = build_vqvae(image_channels=1, latent_channels=2, num_codes=8, n_layers=1, base_channels=8).eval()
    save_vqvae(model, folder / "vqvae", image_shape=[16, 16, 1], made_from={}, config={}, floor=[0])
    return toy_packed(folder / "packed", train=40, val=8, per_shard=16), folder / "vqvae"


@pytest.mark.parametrize("copies", [0, 1])
def test_a_second_run_ends_with_the_bytes_of_an_undisturbed_one(copies, tmp_path, monkeypatch, capsys):
    packed, vqvae = inputs(tmp_path)

    def encode(output: Path) -> None:
        config = EncodeConfig(packed, vqvae, output, batch_size=5, num_workers=0, augment_copies=copies)
        encode_images(config)

    encode(tmp_path / "whole")
    add, left = LatentStatistics.add, [20]  # the second shard of 16 images

    def interrupt(self, latent):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        add(self, latent)

    output = tmp_path / "latents"
    with monkeypatch.context() as patch:
        patch.setattr(LatentStatistics, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            encode(output)
    assert sorted(path.name for path in (output / "train").iterdir()) == ["000000.json", "000000.tar"]
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (output / "train").iterdir()}
    encode(output)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before} == before
    assert contents(output) == contents(tmp_path / "whole")
    hashes = [provenance.read(folder, "latents")["hash"] for folder in (output, tmp_path / "whole")]
    assert hashes[0] == hashes[1]
    capsys.readouterr()
    encode(output)
    assert "is finished" in capsys.readouterr().out


@pytest.mark.parametrize("claimed", [False, True])
def test_a_folder_of_something_else_is_left_alone(claimed, tmp_path):
    """Packed images above all, whose shards have the same names; with the run.json of their own that pack writes."""
    packed, vqvae = inputs(tmp_path)
    if claimed:
        record = {"format": FORMAT, "command": "pack", "made_from": {}, "identity": {"augment_copies": 0}}
        (packed / RUN_FILE).write_text(json.dumps(record))
    (tmp_path / "file").touch()
    before = contents(tmp_path)
    for output in (packed, vqvae, tmp_path / "file"):
        with pytest.raises(UserError, match="--output_dir"):
            encode_images(EncodeConfig(packed, vqvae, output, num_workers=0))
    assert contents(tmp_path) == before


def test_impossible_values_are_named():
    for name, value in (("batch_size", 0), ("num_workers", -1), ("augment_copies", -1)):
        with pytest.raises(ValueError, match=f"{name}={value} must be"):
            EncodeConfig(Path("a"), Path("b"), Path("c"), **{name: value})

"""An interrupted encoding goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mdaug.models.latent_statistics import LatentStatistics
from mdaug.models.vqvae import build_vqvae, save_vqvae
from mdaug.training.encode import EncodeConfig, encode_packed
from shards import provenance
from tests.toy import toy_packed


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file, but for the provenance, which holds the time."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*") if p.name != provenance.FILE_NAME}


@pytest.mark.parametrize("copies", [0, 1])
def test_a_second_run_ends_with_the_bytes_of_an_undisturbed_one(copies, tmp_path, monkeypatch, capsys):
    packed = toy_packed(tmp_path / "packed", train=40, val=8, per_shard=16)
    torch.manual_seed(0)
    model = build_vqvae(image_channels=1, latent_channels=2, num_codes=8, n_layers=1, base_channels=8).eval()
    vqvae = tmp_path / "vqvae"
    save_vqvae(model, vqvae, image_shape=[16, 16, 1], made_from={}, config={}, floor=[0])

    def encode(output: Path) -> None:
        config = EncodeConfig(packed, vqvae, output, batch_size=5, num_workers=0, augment_copies=copies)
        encode_packed(packed, vqvae, output, config)

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

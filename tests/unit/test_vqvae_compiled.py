"""The compiled VQ-VAE, on a GPU, and what compiling needs."""

from __future__ import annotations

import pytest
import torch

from mdaug import distributed
from mdaug.training.options_vqvae import VQVAEConfig
from mdaug.training.vqvae_task import VQVAETask
from shards.errors import UserError
from tests.toy import toy_packed


@pytest.mark.gpu
def test_compiling_changes_neither_the_loss_nor_the_names_of_the_weights(tmp_path):
    packed = toy_packed(tmp_path / "packed")
    config = VQVAEConfig(data_dir=packed, output_dir=tmp_path / "run", image_size=16, n_layers=1, base_channels=8)
    task = VQVAETask(config, packed, {})
    task.module.to("cuda")
    task.codebook.codes.normal_()
    images = torch.rand(8, 1, 16, 16, device="cuda") * 2 - 1
    names = list(task.module.state_dict())
    losses = []
    for _ in range(2):
        loss, _ = task.loss(task.module, {"image": images})
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in task.module.parameters()])
        task.module.zero_grad()
        losses.append((float(loss.detach()), float(gradient.norm())))
        task.compile()
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert list(task.module.state_dict()) == names


@pytest.mark.parametrize(("compiler", "header", "words"), [
    (False, True, "needs a C compiler"), (True, False, r"Python\.h, which is missing; install the headers"),
])  # fmt: skip
def test_what_compiling_lacks_is_one_line(compiler, header, words, tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(distributed.shutil, "which", lambda name: f"/usr/bin/{name}" if compiler else None)
    monkeypatch.setattr(distributed.sysconfig, "get_path", lambda name: str(tmp_path))
    if header:
        (tmp_path / "Python.h").touch()
    with pytest.raises(UserError, match=words) as error:
        distributed.require_compiler()
    assert "\n" not in str(error.value)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(distributed.shutil, "which", lambda name: f"/usr/bin/{name}")
    distributed.require_compiler()

"""First weights: a training begins with those of another model, whose classes are found by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mdaug.models.vqvae import save_vqvae, stock_model
from mdaug.pipeline.folder import save_pipeline
from mdaug.training import initial
from mdaug.training.options_vqvae import VQVAEConfig
from mdaug.training.vqvae_task import VQVAETask
from shards.errors import UserError
from tests.tiny_pipeline import save_tiny
from tests.toy import unequal_packed
from tests.toy_latents import task_of, toy_config, toy_latents


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    return toy_latents(tmp_path / "toy", train=24, val=4)


def test_weights_of_a_pipeline_come_with_their_classes_by_name(folders, tmp_path, capsys):
    base = task_of(folders, [])
    with torch.no_grad():
        for parameter in base.module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    pipeline = base.pipeline(base.module)
    pipeline.register_to_config(classes=["wavy", "old", "flat", "gone"])
    settings = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
    made_from = {"images": "1", "vqvae": "2", "latents": "3"}
    save_pipeline(pipeline, tmp_path / "base", made_from=made_from, config=settings)
    capsys.readouterr()
    trained = task_of(folders, [], init_from=tmp_path / "base", dropout=0.1)
    rows, there = trained.module.class_embedding.weight, base.module.class_embedding.weight
    mean = there[:4].mean(0)
    expected = torch.stack([there[2], mean, mean, there[0], there[4]])  # flat, rising, falling, wavy, none
    torch.testing.assert_close(rows, expected)
    for (name, value), other in zip(trained.module.named_parameters(), base.module.parameters(), strict=True):
        if name != "class_embedding.weight":
            torch.testing.assert_close(value, other)
    for average in (name for name in trained.ema.state() if name.endswith("/conv_in.bias")):
        torch.testing.assert_close(trained.ema.state()[average], base.module.conv_in.bias)
    line = capsys.readouterr().out
    assert "classes found by name: flat, wavy; new, as the mean of the known ones: rising, falling" in line
    assert "left out: old, gone; its VQ-VAE was another one" in line

    for options, message in (
        ({"block_out_channels": (16, 48)}, r"block_out_channels \[16, 32\] there, \[16, 48\] here"),
        ({"prediction_type": "epsilon"}, "prediction_type v_prediction there, epsilon here"),
    ):
        with pytest.raises(UserError, match=f"base holds a network that does not fit: {message}") as error:
            task_of(folders, [], init_from=tmp_path / "base", **options)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"latent shape \[4, 8, 8\] there, \[2, 4, 4\] here"):
        task_of(folders, [], init_from=save_tiny(tmp_path / "tiny"))
    with pytest.raises(UserError, match="holds no pipeline"):
        initial.made_from(toy_config(folders, init_from=folders["vqvae"]))


def test_a_vqvae_starts_from_another_one_or_from_that_of_a_pipeline(tmp_path):
    target = unequal_packed(tmp_path / "t", {"a": (9, 2), "b": (3, 2)}, size=16)
    sizes = {"image_size": 16, "n_layers": 1, "base_channels": 8, "vq_num_embed": 16}

    def build(**options) -> VQVAETask:
        chosen = VQVAEConfig(data_dir=target, output_dir=tmp_path / "run", **{**sizes, **options})
        return VQVAETask(chosen, target, {})

    base = build(seed=9)
    torch.nn.init.normal_(base.codebook.codes)
    saved = {"image_shape": [16, 16, 1], "made_from": {"images": ""}, "config": {}}
    save_vqvae(stock_model(base.model_config, base.module.state_dict()), tmp_path / "base", **saved)
    trained = build(init_from=tmp_path / "base")
    expected = base.module.state_dict()
    for name, value in trained.module.state_dict().items():
        if name not in ("codebook.sums", "codebook.counts"):
            torch.testing.assert_close(value, expected[name])
    torch.testing.assert_close(trained.codebook.sums, base.codebook.codes)
    trained.prepare(None)  # nothing is placed anew
    torch.testing.assert_close(trained.codebook.codes, base.codebook.codes)
    with pytest.raises(UserError, match="num_vq_embeddings 16 there, 32 here; give the options it was trained with"):
        build(init_from=tmp_path / "base", vq_num_embed=32)
    with pytest.raises(UserError, match=r"image_shape \[16, 16, 3\] there, \[16, 16, 1\] here"):
        build(init_from=save_tiny(tmp_path / "pipeline"))

"""Geometry of the VQ-VAE and the perceptual loss."""

from __future__ import annotations

import pytest
import torch

from mdaug.artifacts import find_vqvae, load_geometry
from mdaug.models.perceptual import BACKBONES, PerceptualLoss
from mdaug.models.quantizer import Codebook
from mdaug.models.vqvae import TrainableVQVAE, build_vqvae, save_vqvae, stock_model
from shards.errors import UserError


@pytest.mark.parametrize(("n_layers", "latent"), [(2, 16), (3, 8), (4, 4)])
def test_n_layers_halvings(n_layers, latent):
    model = build_vqvae(image_channels=3, latent_channels=4, num_codes=8, n_layers=n_layers, base_channels=8)
    with torch.no_grad():
        latents = model.encode(torch.zeros(1, 3, 64, 64)).latents
        assert latents.shape == (1, 4, latent, latent)
        assert model.decode(latents).sample.shape == (1, 3, 64, 64)


def test_channels_double_up_to_256():
    model = build_vqvae(image_channels=3, latent_channels=4, num_codes=8, n_layers=4)
    assert tuple(model.config.block_out_channels) == (32, 64, 128, 256, 256)


def test_stock_model_decodes_as_the_trained_one(tmp_path):
    torch.manual_seed(0)
    book = Codebook(16, 4)
    book.codes.normal_()
    model = build_vqvae(image_channels=1, latent_channels=4, num_codes=16, n_layers=1, base_channels=8)
    module = TrainableVQVAE(model, book).eval()
    images = torch.rand(2, 1, 12, 20) * 2 - 1  # not square
    with torch.no_grad():
        expected, latents, _, _ = module(images)
        stock = stock_model(dict(model.config), module.state_dict())
        assert torch.allclose(stock.encode(images).latents, latents, atol=1e-6)
        assert torch.allclose(stock.decode(latents).sample, expected, atol=1e-5)
    extra = {"image_shape": [12, 20, 1], "floor": [3], "colormap": "viridis"}
    save_vqvae(stock, tmp_path / "best", made_from={"images": "x"}, config={}, **extra)
    assert load_geometry(tmp_path) == {**extra, "latent_shape": [4, 6, 10]}


def test_folder_without_vqvae_is_refused(tmp_path):
    with pytest.raises(UserError, match="train-vqvae"):
        find_vqvae(tmp_path)


@pytest.mark.parametrize("net", BACKBONES)
@pytest.mark.parametrize("channels", [1, 3])
def test_perceptual_distance(net, channels):
    torch.manual_seed(0)
    loss = PerceptualLoss(net, random_backbone=True)
    images = torch.rand(2, channels, 64, 64) * 2 - 1
    other = (images + 0.3 * torch.randn_like(images)).requires_grad_()
    assert loss(images, images).tolist() == pytest.approx([0, 0], abs=1e-6)
    distance = loss(images, other)
    assert (distance > 0).all()
    assert torch.allclose(distance[1:], loss(images[1:], other[1:]), rtol=1e-4)
    distance.sum().backward()
    assert other.grad is not None
    assert other.grad.abs().sum() > 0


def test_missing_perceptual_weights_name_the_file_and_the_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth.*" + str(tmp_path)):
        PerceptualLoss("vgg")


def test_perceptual_weights_come_from_a_file(tmp_path):
    from torchvision.models import squeezenet1_1

    network = squeezenet1_1(weights=None)
    torch.save(network.state_dict(), tmp_path / "squeeze.pth")
    loss = PerceptualLoss("squeeze", tmp_path / "squeeze.pth")
    images = torch.rand(2, 3, 64, 64)
    features = loss.lpips.net(images)
    assert torch.equal(features[0], network.features[:2](images))
    assert torch.allclose(features[-1], network.features.eval()(images))
    with pytest.raises(UserError, match="does not hold the weights of alex"):
        PerceptualLoss("alex", tmp_path / "squeeze.pth")

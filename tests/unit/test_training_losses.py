"""The losses of the VQ-VAE against their definitions, and the discriminator beside the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from mdaug.models.discriminator import PatchDiscriminator
from mdaug.training.adversary import Adversary
from mdaug.training.losses import (
    adaptive_weight,
    doppler_distance,
    edge_distance,
    floor_in_range,
    pixel_distance,
    spectrogram_distance,
)
from mdaug.training.options_vqvae import VQVAEConfig
from shards.colormap import most_frequent

FLOOR = floor_in_range([0, 0, 131], torch.device("cpu"))


def on_floor(*boxes: tuple[slice, slice], size: int = 16) -> torch.Tensor:
    """A picture of floor with boxes of red signal, (1, 3, size, size)."""
    image = FLOOR.expand(3, size, size).clone()
    for rows, columns in boxes:
        image[:, rows, columns] = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    return image[None]


def adversary(**changes) -> Adversary:
    torch.manual_seed(0)
    options = {"use_discriminator": True, "disc_start": 0, "disc_channels": 8, "image_size": 16, **changes}
    return Adversary(VQVAEConfig(data_dir=Path("d"), output_dir=Path("o"), **options), [16, 16, 1], "no")


def test_floor_is_the_most_frequent_colour():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    images[:, :3] = (0, 0, 131)
    assert most_frequent(images) == [0, 0, 131]
    assert most_frequent(np.full((1, 4, 4, 1), 7, np.uint8)) == [7]


def test_spectrogram_distance_looks_above_the_floor_alone():
    image = on_floor((slice(2, 4), slice(0, 4)))
    elsewhere, there = image.clone(), image.clone()
    elsewhere[..., 10:, :] += 0.5
    there[..., 2:4, 0:4] += 0.5
    assert float(spectrogram_distance(elsewhere, image, FLOOR, "l2")) == 0
    assert float(spectrogram_distance(there, image, FLOOR, "l2")) == pytest.approx(0.25)
    assert float(spectrogram_distance(elsewhere, on_floor(), FLOOR, "l2")) == 0
    mixed = spectrogram_distance(torch.cat([elsewhere, there]), torch.cat([image, image]), FLOOR, "l1")
    assert mixed.tolist() == pytest.approx([0, 0.5])


def test_edge_distance_is_least_for_edges_as_strong_as_the_originals():
    """Noise that the codes cannot hold: pixel by pixel its mean is the best guess, here another draw is."""
    draws = 0.2 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    image, other = draws[:1], draws[1:]
    distances = [float(edge_distance(gain * other, image)) for gain in (0.0, 0.5, 1.0, 1.5)]
    assert distances[2] == min(distances)
    assert distances[2] < 0.1 * distances[0]
    assert float(pixel_distance(other, image, "l2")) > 1.5 * float(pixel_distance(0 * other, image, "l2"))
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)  # steps of 2 / 31 to the right, none in the last column
    expected = ((np.array([1, 1, 15 / 16]) * (2 / 31) ** 2 + 1e-4) ** 0.5 - 1e-2).mean()
    assert float(edge_distance(ramp, torch.zeros_like(ramp))) == pytest.approx(expected, rel=1e-4)
    assert float(edge_distance(ramp, ramp.mT)) == pytest.approx(2 * expected, rel=1e-4)  # no stand-in for each other


def test_doppler_distance_grows_with_the_shift():
    image = on_floor((slice(4, 6), slice(0, 16)))
    distances = [float(doppler_distance(on_floor((slice(4 + k, 6 + k), slice(0, 16))), image, FLOOR)) for k in range(6)]
    assert distances[0] == 0
    assert np.diff(distances) == pytest.approx(distances[1], rel=1e-3)  # earth mover: in proportion to the shift


def test_doppler_distance_is_the_earth_movers_between_unit_columns():
    rng = np.random.default_rng(0)
    levels = rng.random((2, 1, 32, 5)).astype(np.float32)
    levels /= levels.sum(2, keepdims=True)
    first, second = torch.from_numpy(2 * levels - 1)[:, None]
    dark = torch.full((1, 1, 1), -1.0)
    expected = np.abs(np.cumsum(levels[0] - levels[1], axis=1)).mean() / 32
    assert float(doppler_distance(first, second, dark)) == pytest.approx(expected, rel=0.02)  # sqrt(x^2 + 1e-6)


def test_losses_have_gradients_where_the_pictures_agree():
    image = on_floor((slice(2, 4), slice(0, 4)))
    for loss in (
        lambda a, b, floor: edge_distance(a, b),
        doppler_distance,
        lambda a, b, floor: spectrogram_distance(a, b, floor, "l1"),
    ):
        copy = image.clone().requires_grad_()
        loss(copy, image, FLOOR).sum().backward()
        assert copy.grad.isfinite().all()


def test_adaptive_weight_is_the_formula_at_the_reconstruction():
    """Equation 7 of Esser et al. with plain torch, an image at a time, against what the adversary hands on."""
    opponent = adversary(lambda_adversarial=0.5)
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    source = (torch.rand(3, 1, 16, 16) * 2 - 1).requires_grad_()  # stands for the generator

    def distance(reconstruction, originals):
        return pixel_distance(reconstruction, originals, "l2"), {}

    loss, figures = opponent.loss(torch.tanh(source), images, distance)
    loss.backward()

    expected, weights, values = torch.zeros_like(source), [], []
    for i in range(3):
        leaf = source[i : i + 1].detach().requires_grad_()
        reconstruction = torch.tanh(leaf)
        nll = functional.mse_loss(reconstruction, images[i : i + 1])
        g_loss = -opponent.network(reconstruction).mean()
        nll_gradient = torch.autograd.grad(nll, reconstruction, retain_graph=True)[0]
        g_gradient = torch.autograd.grad(g_loss, reconstruction, retain_graph=True)[0]
        weight = torch.clamp(torch.norm(nll_gradient) / (torch.norm(g_gradient) + 1e-4), 0.0, 1e4).detach()
        total = nll + 0.5 * weight * g_loss
        expected[i] = torch.autograd.grad(total, leaf)[0][0] / 3
        weights.append(0.5 * float(weight))
        values.append(float(total.detach()))
    assert torch.allclose(source.grad, expected, rtol=1e-4, atol=1e-8)
    assert float(figures["adaptive_weight"]) == pytest.approx(np.mean(weights), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(np.mean(values), rel=1e-5)


def test_adaptive_weight_depends_on_no_other_image():
    gradients = torch.randn(2, 4, 1, 8, 8)
    whole = adaptive_weight(*gradients)
    assert torch.equal(whole, torch.cat([adaptive_weight(*gradients[:, i : i + 1]) for i in range(4)]))


def test_generator_step_leaves_the_discriminator_alone_until_its_own():
    opponent = adversary()
    before = {name: value.clone() for name, value in opponent.network.state_dict().items()}
    images = torch.rand(2, 1, 16, 16)
    reconstruction = torch.rand(2, 1, 16, 16, requires_grad=True)
    loss, _ = opponent.loss(reconstruction, images, lambda a, b: (pixel_distance(a, b, "l2"), {}))
    gradients = [p.grad.clone() for p in opponent.network.parameters()]
    loss.backward()  # as the engine does
    assert all(torch.equal(p.grad, g) for p, g in zip(opponent.network.parameters(), gradients, strict=True))
    assert all(torch.equal(before[name], value) for name, value in opponent.network.state_dict().items())
    opponent.step(2)
    assert not any(torch.equal(before[n], p) for n, p in opponent.network.named_parameters() if n.endswith("weight"))


def test_gradient_penalty_is_r1_and_pushes_the_slope_down():
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    opponent = adversary(gradient_penalty=1.0)
    penalty = float(opponent._penalty(images))
    expected = []
    for image in images.split(1):
        leaf = image.clone().requires_grad_()
        expected.append(float(torch.autograd.grad(opponent.network(leaf).mean(), leaf)[0].square().sum()))
    assert penalty == pytest.approx(np.mean(expected), rel=1e-4)

    slopes = {}
    for gamma in (0.0, 1000.0):
        opponent = adversary(gradient_penalty=gamma, disc_lr=1e-3)
        for step in range(10):
            opponent.loss(-images.requires_grad_(), images.detach(), lambda a, b: (pixel_distance(a, b, "l2"), {}))
            opponent.step(step)
        slopes[gamma] = float(opponent._penalty(images))
    assert slopes[1000.0] < 0.5 * slopes[0.0]


def test_discriminator_waits_for_its_start():
    opponent = adversary(disc_start=10)
    images = torch.rand(2, 1, 16, 16)
    distance = lambda a, b: (pixel_distance(a, b, "l2"), {})  # noqa: E731
    loss, figures = opponent.loss(images.flip(0), images, distance)
    assert float(loss) == pytest.approx(float(functional.mse_loss(images.flip(0), images)))
    assert float(figures["discriminator"]) == 0
    opponent.step(10)
    _, figures = opponent.loss(images.flip(0).requires_grad_(), images, distance)
    assert float(figures["discriminator"]) > 0


@pytest.mark.parametrize("size", [(16, 16), (64, 40), (256, 256)])
def test_discriminator_judges_patches(size):
    network = PatchDiscriminator(3, size, channels=8)
    logits = network(torch.rand(2, 3, *size))
    assert logits.shape[:2] == (2, 1)
    assert logits[0].numel() > 1
    changed = torch.rand(1, 3, *size)
    alone, beside = network(changed), network(torch.cat([changed, torch.rand(1, 3, *size)]))[:1]
    assert torch.allclose(alone, beside, atol=1e-6)  # GroupNorm: no image depends on its batch

"""The training codebook: the loss on the right side, honest use figures, and codes that do not die."""

from __future__ import annotations

import math

import pytest
import torch

from mdaug.models.quantizer import Codebook, code_usage


def filled(num_codes: int = 8, dim: int = 4, **options) -> Codebook:
    book = Codebook(num_codes, dim, **options)
    book.codes.copy_(torch.randn(num_codes, dim, generator=torch.Generator().manual_seed(1)))
    return book


def test_every_vector_gets_its_nearest_code():
    book = filled()
    z = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(2))
    quantized, indices, _ = book(z)
    expected = torch.cdist(z.movedim(1, -1).reshape(-1, 4), book.codes).argmin(1).view(2, 5, 3)
    assert (indices == expected).all()
    assert torch.allclose(quantized.movedim(1, -1), book.codes[indices], atol=1e-6)


def test_commitment_pulls_the_encoder_and_gradients_pass_straight_through():
    book = filled(commitment=0.5)
    z = torch.randn(1, 4, 2, 2, requires_grad=True)
    quantized, _, loss = book(z)
    (gradient,) = torch.autograd.grad(loss, z, retain_graph=True)
    assert torch.allclose(gradient, 0.5 * 2 * (z - quantized).detach() / z.numel(), atol=1e-6)
    (through,) = torch.autograd.grad((quantized * torch.arange(16.0).view(1, 4, 2, 2)).sum(), z)
    assert torch.equal(through, torch.arange(16.0).view(1, 4, 2, 2))


def test_distances_are_fp32_under_bf16():
    book = filled(num_codes=64)
    z = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, indices, loss = book(z)
        half, _, _ = book(z.bfloat16())
    assert (indices == book(z)[1]).all()
    assert loss.dtype == torch.float32
    assert half.dtype == torch.bfloat16


def test_codes_move_to_the_mean_of_their_vectors():
    book = filled(num_codes=2, dim=1, decay=0.0, dead_below=0.0)
    book.codes.copy_(torch.tensor([[-1.0], [1.0]]))
    book(torch.tensor([-3.0, -1.0, 2.0, 4.0]).view(1, 1, 2, 2))
    book.update(seed=0, step=0)
    assert book.codes[:, 0].tolist() == pytest.approx([-2.0, 3.0])


def test_no_code_dies_on_latents_that_are_far_from_the_origin():
    """The classic collapse: a latent mean of two standard deviations and many codes (K = 512)."""
    generator = torch.Generator().manual_seed(4)
    book = Codebook(512, 4)
    latents = 2 + torch.randn(64, 4, 8, 8, generator=generator)
    book.start_from(latents[:32].movedim(1, -1).reshape(-1, 4), seed=0)
    for step in range(50):
        book(2 + torch.randn(64, 4, 8, 8, generator=generator))
        book.update(seed=0, step=step)
    book.eval()
    _, indices, _ = book(2 + torch.randn(256, 4, 8, 8, generator=generator))
    perplexity, used = code_usage(torch.bincount(indices.flatten(), minlength=512))
    assert used > 0.98
    assert perplexity > 512 / 3


def test_codes_left_behind_are_restarted_where_the_latents_are():
    book = Codebook(16, 2)
    book.start_from(torch.randn(1000, 2), seed=0)
    generator = torch.Generator().manual_seed(5)
    for step in range(400):
        book(100 + 10 * torch.randn(8, 2, 4, 4, generator=generator))
        book.update(seed=0, step=step)
    assert (book.codes > 50).all()


def test_usage_of_known_counts():
    assert code_usage(torch.tensor([5, 5, 5, 5])) == pytest.approx((4.0, 1.0))
    assert code_usage(torch.tensor([7, 0, 0, 0])) == pytest.approx((1.0, 0.25))
    perplexity, used = code_usage(torch.tensor([3, 1, 0, 0]))
    assert perplexity == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert used == 0.5


def test_rotation_trick_gives_the_code_and_the_turned_gradient():
    """Gradients keep their length up to |e| / |z| and their angle to the vector (Fifty et al. 2024)."""
    straight, rotated = filled(), filled(gradient="rotation")
    z = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(6), requires_grad=True)
    quantized, _, _ = rotated(z)
    assert torch.allclose(quantized, straight(z)[0], atol=1e-5)
    seed = torch.randn(quantized.shape, generator=torch.Generator().manual_seed(7))
    (gradient,) = torch.autograd.grad((quantized * seed).sum(), z)

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().movedim(1, -1).reshape(-1, 4)

    vectors, codes, above, below = rows(z), rows(quantized), rows(seed), rows(gradient)
    scale = codes.norm(dim=1) / vectors.norm(dim=1)
    assert torch.allclose(below.norm(dim=1), scale * above.norm(dim=1), rtol=1e-4)
    cosine = torch.nn.functional.cosine_similarity
    assert torch.allclose(cosine(below, vectors), cosine(above, codes), atol=1e-4)

"""Images redrawn by the pipeline: where the path begins, what of the image stays, and what is refused."""

import math

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from PIL import Image

from mdaug.pipeline import schedulers
from mdaug.pipeline.schedulers import FLOW, build_scheduler
from shards.colormap import colormap
from tests.schedulers import CASES, coefficients
from tests.tiny_pipeline import sample, seeded, tiny_pipeline

STEPS = 20


class _Output:
    def __init__(self, value):
        self.sample = value


def perfect(pipeline, choice: tuple, std: float, calls: list | None = None):
    """Let the network be the best predictor for latents N(0, std^2), and the images be the latents."""

    def forward(latents, timestep, class_labels):
        if calls is not None:
            calls.append(float(timestep))
        a, s, p, q = coefficients(float(timestep), *choice[1:])
        score = latents / ((a * std) ** 2 + s**2)
        return _Output(p * a * std**2 * score + q * s * score)

    pipeline.unet.forward = forward
    pipeline.encode = lambda images: images.repeat(1, 4, 1, 1)[:, :4, ::2, ::2]
    return pipeline


def images(count: int, channels: int = 1) -> torch.Tensor:
    return torch.rand(count, channels, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("choice", CASES, ids=str)
def test_a_perfect_predictor_finds_the_data_from_every_strength(choice):
    """Data of std 1 keep it, data of std 0 are found, and the weaker the strength the more of the source stays."""
    source = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    given = source.repeat(1, 4, 1, 1)[:, :, ::2, ::2]
    kept = []
    for strength in (0.3, 0.6, 0.9):
        options = {"image": source / 2 + 0.5, "strength": strength, "num_inference_steps": 50, "output_type": "latent"}
        pipeline = tiny_pipeline(build_scheduler(choice[0], choice[1], choice[2], 1000, choice[3]), 1)
        found = sample(perfect(pipeline, choice, 1), [0] * 64, 1, **options)
        assert float(found.std()) == pytest.approx(1, abs=0.1), strength
        kept.append(float((found * given).mean()))
        single = sample(perfect(pipeline, choice, 1e-3), [0] * 64, 1, **options)
        assert float(single.abs().mean()) < 0.05, strength
    assert 1 > kept[0] > kept[1] > kept[2] > -0.1


@pytest.mark.parametrize("choice", CASES, ids=str)
def test_the_steps_are_the_last_ones_of_the_whole_path(choice):
    scheduler = build_scheduler(choice[0], choice[1], choice[2], 1000, choice[3])
    calls: list = []
    pipeline = perfect(tiny_pipeline(scheduler, 1), choice, 1, calls)
    for strength, done in ((0.25, 5), (0.6, 12), (1.0, 20)):
        assert schedulers.steps_of(strength, STEPS) == done
        calls.clear()
        sample(pipeline, [0], 1, image=images(1), strength=strength, num_inference_steps=STEPS, output_type="latent")
        scheduler.set_timesteps(STEPS)
        whole = sorted({float(t) for t in scheduler.timesteps}, reverse=True)
        assert sorted(set(calls), reverse=True) == whole[-done:]
        assert len(calls) == {"heun": 2 * done - 1, "pndm": done + 1}.get(choice[0], done)
        if choice[2] != FLOW:
            assert calls[0] / 1000 == pytest.approx(strength, abs=0.061)


@pytest.mark.parametrize("scheduler_type", schedulers.SCHEDULERS)
def test_an_image_depends_on_its_own_source_generator_and_label_alone(scheduler_type):
    pipeline = tiny_pipeline(build_scheduler(scheduler_type, "cosine", "v_prediction"))
    options = {"strength": 0.6, "num_inference_steps": 10}
    source = images(3, 3)
    together = sample(pipeline, ["walk", "fall", "bird"], 1, image=source, generator=seeded(3), **options)
    alone = sample(pipeline, ["bird"], 1, image=source[2], generator=[seeded(3)[2]], **options)
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-4)
    other = sample(pipeline, ["bird"], 1, image=source[1], generator=[seeded(3)[2]], **options)
    assert (other - alone).abs().max() > 0.01


def test_one_image_is_redrawn_as_several_classes_and_several_times():
    pipeline = tiny_pipeline()
    source, options = images(2, 3), {"strength": 0.6, "num_inference_steps": 10}
    drawn = sample(pipeline, ["walk", "bird"], 2, image=source[0], generator=seeded(4), **options)
    alone = sample(pipeline, ["bird"], 1, image=source[0], generator=[seeded(4)[3]], **options)
    torch.testing.assert_close(drawn[3:], alone, rtol=0, atol=1e-4)
    each = sample(pipeline, ["walk", "bird"], 2, image=source, generator=seeded(4), **options)
    torch.testing.assert_close(each[:2], drawn[:2], rtol=0, atol=1e-4)
    assert (each[2:] - drawn[2:]).abs().max() > 0.01


def test_encode_undoes_decode():
    """Latents of code vectors are images, and those are encoded as the VQ-VAE encodes them."""
    pipeline = tiny_pipeline()
    pixels = images(2, 3) * 2 - 1
    expected = pipeline.vqvae.encode(pixels).latents
    found = pipeline.encode(pixels)
    for channel, (mean, std) in enumerate(zip([0.1, 0.0, -0.1, 0.2], [1.0, 0.9, 1.1, 1.0], strict=True)):
        torch.testing.assert_close(found[:, channel] * std + mean, expected[:, channel])


@pytest.mark.parametrize(("channels", "colours"), [(1, None), (3, None), (1, "jet-64"), (1, "viridis"), (1, "parula")])
def test_pictures_arrays_and_tensors_are_the_same_image(channels, colours):
    pipeline = tiny_pipeline(channels=channels, colormap=colours)
    levels = torch.randint(0, 256, (16, 16, channels), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    array = levels.numpy()
    wanted = pipeline._pixels(levels.movedim(-1, 0) / 255, 1)
    flat = array[..., 0] if channels == 1 else array
    forms = [Image.fromarray(flat), array, array.astype(np.float32) / 255, [Image.fromarray(flat)]]
    if colours:
        forms += [colormap(colours).picture(flat)]
    for form in forms:
        torch.testing.assert_close(pipeline._pixels(form, 1), wanted)
    if colours:  # in colours, as the pipeline itself paints them: up to five levels of jet-64 share one
        painted = pipeline._pixels(colormap(colours).picture(flat).convert("RGB"), 1)
        assert (painted - wanted).abs().max() * 127.5 <= (2.1 if colours == "jet-64" else 0.6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": torch.rand(3, 16, 16)}, "image and strength belong together"),
        ({"strength": 0.5}, "image and strength belong together"),
        ({"image": torch.rand(3, 16, 16), "strength": 0.0}, "strength=0.0 must be greater than 0 and at most 1"),
        ({"image": torch.rand(3, 16, 16), "strength": 1.1}, "strength=1.1 must be greater than 0 and at most 1"),
        ({"image": torch.rand(3, 16, 16), "strength": math.nan}, "strength=nan must be greater than 0 and at most 1"),
        (
            {"image": torch.rand(3, 16, 16), "strength": 0.15},
            r"of 5 steps leaves none .* num_inference_steps=7 or more",
        ),
        ({"image": torch.rand(3, 8, 16), "strength": 0.5}, "an image is 8 x 16 x 3 .* the model makes 16 x 16 x 3"),
        ({"image": torch.rand(1, 16, 16), "strength": 0.5}, "16 x 16 x 1"),
        ({"image": torch.rand(3, 3, 16, 16), "strength": 0.5}, "3 images for 2 labels"),
    ],
)
def test_what_cannot_be_redrawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny_pipeline(), ["walk", "fall"], 1, **options)


def test_pndm_with_a_runge_kutta_start_is_refused():
    pipeline = tiny_pipeline()
    pipeline.scheduler = PNDMScheduler()
    with pytest.raises(ValueError, match="skip_prk_steps=True"):
        sample(pipeline, [0], 1, image=images(1, 3), strength=0.5, num_inference_steps=10)

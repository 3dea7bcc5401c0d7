"""Distilling a pipeline: begins at the teacher, the same on any ranks and after a stop, a pipeline like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.generation import make
from tests.ranks import run_ranks
from tests.toy import CLASSES, toy_packed, unequal_packed
from tests.trainings import averaged, distil, losses, tensors_in, train_ldm_with, train_vqvae, untimed_records


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A packed toy set, a VQ-VAE and a diffusion model trained on it."""
    root = tmp_path_factory.mktemp("toy")
    packed = toy_packed(root / "packed")
    run_ranks(1, train_vqvae, packed, root / "vqvae")
    run_ranks(1, train_ldm_with, (packed, root / "vqvae"), root / "ldm", {"save_samples": 64})
    return packed, root / "vqvae", root / "ldm"


@pytest.fixture(scope="module")
def distilled(folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("distilled") / "run"
    run_ranks(1, distil, folders, output, {})
    return output


def unet(pipeline: Path) -> dict[str, np.ndarray]:
    return load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")


def test_it_begins_at_the_teacher(folders, tmp_path):
    run_ranks(1, distil, folders, tmp_path / "run", {"lr": 1e-12, "train_samples": 16})
    teacher = unet(folders[2] / "best")
    for name, value in unet(tmp_path / "run" / "pipeline").items():
        assert np.abs(value - teacher[name]).max() < 1e-6, name


@pytest.mark.parametrize(("ranks", "stage"), [(2, 0), (2, 3)])
def test_losses_validations_and_average_are_the_same_for_any_ranks(folders, distilled, tmp_path, ranks, stage):
    run_ranks(ranks, distil, folders, tmp_path / "run", {"zero_stage": stage})
    assert len(losses(distilled)) == 16
    assert losses(tmp_path / "run") == pytest.approx(losses(distilled), rel=1e-4)
    expected = averaged(distilled)
    for name, value in averaged(tmp_path / "run").items():
        assert np.abs(value - expected[name]).max() < 1e-4, name


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2)])
def test_interrupted_run_ends_with_the_same_bytes(folders, distilled, tmp_path, ranks, stage):
    undisturbed, output = distilled, tmp_path / "run"
    if stage:
        undisturbed = tmp_path / "undisturbed"
        run_ranks(ranks, distil, folders, undisturbed, {"zero_stage": stage})
    run_ranks(ranks, distil, folders, output, {"zero_stage": stage}, 7)
    run_ranks(ranks, distil, folders, output, {"zero_stage": stage})
    assert untimed_records(output) == untimed_records(undisturbed)
    expected, found = dict(tensors_in(undisturbed)), dict(tensors_in(output))
    assert found.keys() == expected.keys()
    assert all((value == expected[name]).all() for name, value in found.items())


def test_the_result_is_a_pipeline_that_names_what_it_was_made_of(folders, distilled):
    from mdaug.artifacts import find_pipeline
    from mdaug.pipeline.pipeline import MicroDopplerPipeline

    folder, made = find_pipeline(distilled)
    teacher = find_pipeline(folders[2])[1]
    assert folder.name == "best"
    assert made["made_from"] == {**teacher["made_from"], "init_from": teacher["hash"]}
    assert (made["config"]["gap_stages"], made["config"]["prediction_type"]) == (3, "v_prediction")
    assert "Distilled: 1 to 4 steps." in (folder / "README.md").read_text()
    # It keeps classes and guidance, and by itself takes few calls.
    pipeline = MicroDopplerPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    calls = []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    assert pipeline.config.classes == CLASSES
    pipeline(CLASSES[1], output_type="latent")
    assert len(calls) == 4
    guided, plain = (
        pipeline([0, 3], num_inference_steps=2, guidance_scale=scale, output_type="np", generator=_generators()).images
        for scale in (3.0, 1.0)
    )
    assert np.isfinite(guided).all()
    assert (guided != plain).any()


def _generators():
    import torch

    return [torch.Generator().manual_seed(i) for i in range(2)]


def test_validation_judges_samples_of_two_calls(distilled):
    records = [json.loads(line) for line in (distilled / "metrics.jsonl").read_text().splitlines()]
    distances = [record["val/fd"] for record in records if "val/fd" in record]
    assert len(distances) == 4
    (state,) = (distilled / "checkpoints").glob("*/state.json")
    assert json.loads(state.read_text())["best_score"] == min(distances)


def test_generate_knows_how_few_calls_it_needs(folders, distilled, tmp_path):
    for quality, steps in (("draft", 2), ("standard", 4), ("best", 4), (None, 4)):
        options = {"scheduler_type": None, "num_inference_steps": None, "quality": quality, "num_samples": 4}
        folder = make(distilled, tmp_path / str(quality), **options)
        plan = json.loads((folder / "run.json").read_text())["identity"]
        assert (plan["scheduler_type"], plan["num_inference_steps"]) == ("lcm", steps)
    one, two = (make(distilled, tmp_path / name, scheduler_type="lcm", num_samples=8) for name in ("one", "two"))
    assert (one / "000000.tar").read_bytes() == (two / "000000.tar").read_bytes()


def refused(folders, output: Path, changes: dict) -> str:
    from shards.errors import UserError

    try:
        distil(folders, output, changes)
    except UserError as error:
        return str(error)
    return ""


def test_what_does_not_fit_is_refused_before_the_folder_is_claimed(folders, tmp_path):
    packed, vqvae, ldm = folders
    of_epsilon = {"prediction_type": "epsilon", "train_samples": 16}
    run_ranks(1, train_ldm_with, (packed, vqvae), tmp_path / "epsilon", of_epsilon)
    other = unequal_packed(tmp_path / "other", {"flat": (8, 4), "wavy": (8, 4)}, size=16)
    run_ranks(1, train_vqvae, other, tmp_path / "vqvae")
    for given, message in (
        ((packed, vqvae, tmp_path / "epsilon"), "no information about the latent"),
        ((packed, tmp_path / "vqvae", ldm), "their VQ-VAE differ"),
        ((other, vqvae, ldm), "classes flat, rising, falling, wavy"),
    ):
        (said,) = run_ranks(1, refused, given, tmp_path / "run", {})
        assert message in said


def test_flow_matching_is_distilled_and_its_calls_are_spread_from_noise_to_data(folders, tmp_path):
    from mdaug.pipeline.pipeline import MicroDopplerPipeline

    packed, vqvae, _ = folders
    flow = {"prediction_type": "flow_matching", "train_samples": 32}
    run_ranks(1, train_ldm_with, (packed, vqvae), tmp_path / "flow", flow)
    run_ranks(1, distil, (packed, vqvae, tmp_path / "flow"), tmp_path / "run", {"train_samples": 32})
    pipeline = MicroDopplerPipeline.from_pretrained(tmp_path / "run" / "best")
    pipeline.set_progress_bar_config(disable=True)
    times = []
    pipeline.unet.register_forward_pre_hook(lambda _, given: times.append(float(given[1])))
    for steps, expected in ((1, [1000]), (2, [1000, 650]), (3, [1000, 825, 650])):
        times.clear()
        images = pipeline(0, num_inference_steps=steps, output_type="np").images
        assert np.isfinite(images).all()
        assert times == pytest.approx(expected)
    times.clear()
    pipeline(0, image=images[0], strength=0.5, num_inference_steps=4)
    assert times == pytest.approx([500, 325])

"""The diffusion trainer: latents made once, the same path on any ranks, sampling that disturbs nothing."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mdaug.training.deepspeed_json import CONFIGS
from tests.ranks import run_ranks
from tests.toy import CLASSES, toy_packed
from tests.trainings import averaged, losses, tensors_in, train_ldm, train_ldm_with, train_vqvae, untimed_records


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A packed toy set and a VQ-VAE trained on it."""
    root = tmp_path_factory.mktemp("toy")
    packed = toy_packed(root / "packed")
    run_ranks(1, train_vqvae, packed, root / "vqvae")
    return packed, root / "vqvae"


@pytest.fixture(scope="module")
def one_rank(folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one") / "run"
    run_ranks(1, train_ldm, folders, output)
    return output


def test_latents_have_the_measured_scale(one_rank, folders):
    from shards.dataset import ShardDataset

    statistics = json.loads((one_rank / "latents" / "statistics.json").read_text())
    dataset = ShardDataset(one_rank / "latents" / "train", fields=("array",))
    latents = np.stack([dataset[i]["array"] for i in range(len(dataset))]).astype(np.float64)
    assert statistics["mean"] == pytest.approx(latents.mean((0, 2, 3)).tolist(), rel=1e-9)
    assert statistics["std"] == pytest.approx(latents.std((0, 2, 3)).tolist(), rel=1e-9)
    scaled = (latents - latents.mean((0, 2, 3), keepdims=True)) / latents.std((0, 2, 3), keepdims=True)
    assert statistics["excess_kurtosis"] == pytest.approx(((scaled**4).mean((0, 2, 3)) - 3).tolist(), rel=1e-6)
    others = ShardDataset(one_rank / "latents" / "val", fields=("array",))
    held_out = np.stack([others[i]["array"] for i in range(len(others))]).astype(np.float64)
    expected = held_out.std((0, 2, 3)) / latents.std((0, 2, 3))
    assert statistics["held_out_scaled"]["std"] == pytest.approx(expected.tolist(), rel=1e-9)
    images = ShardDataset(folders[0] / "train")
    assert dataset.keys == images.keys
    assert (dataset.labels == images.labels).all()


def test_whoever_may_read_a_folder_may_read_its_files(folders, one_rank):
    """safetensors leaves its files to their owner alone, and people of a group work on one cluster."""
    for path in (path for folder in (*folders, one_rank) for path in folder.rglob("*") if path.is_file()):
        readers = path.parent.stat().st_mode & 0o444
        assert path.stat().st_mode & readers == readers, path


def validations(output: Path) -> list[dict[str, float]]:
    """The validation figures, in order; a resumed run has written none of them twice."""
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k.removeprefix("val/"): v for k, v in r.items() if k != "samples"} for r in records if "val/loss" in r]


def test_validation_loss_is_the_mean_over_bins_of_t_and_the_score_their_geometric_mean(one_rank):
    found = validations(one_rank)
    assert len(found) == 4
    for figures in found:
        bins = [figures[f"loss_t{i}"] for i in range(5)]
        assert figures["loss"] == pytest.approx(np.mean(bins), rel=0.02)  # the bins hold 16 draws each, more or less
        assert figures["score"] == pytest.approx(np.exp(np.mean(np.log(bins))), rel=1e-9)
    state = json.loads(next((one_rank / "checkpoints").glob("*/state.json")).read_text())
    for name in ("score", *(f"loss_t{i}" for i in range(5))):
        assert state["lowest"][name] == min(figures[name] for figures in found)
    assert state["best_score"] == state["lowest"]["score"]


@pytest.mark.parametrize(("ranks", "stage"), [(2, 0), (4, 1), (2, 2), (2, 3)])
def test_loss_curve_latents_and_average_are_the_same_for_any_ranks(folders, one_rank, tmp_path, ranks, stage):
    run_ranks(ranks, train_ldm_with, folders, tmp_path / "run", {"zero_stage": stage})
    assert losses(tmp_path / "run")[:10] == pytest.approx(losses(one_rank)[:10], rel=1e-5)
    assert losses(tmp_path / "run") == pytest.approx(losses(one_rank), rel=1e-4)
    for figures, expected in zip(validations(tmp_path / "run"), validations(one_rank), strict=True):
        assert figures == pytest.approx(expected, rel=1e-4)
    for name in ("train/index.json", "val/index.json", "statistics.json"):
        assert (tmp_path / "run" / "latents" / name).read_bytes() == (one_rank / "latents" / name).read_bytes()
    expected = averaged(one_rank)
    for name, value in averaged(tmp_path / "run").items():
        assert np.abs(value - expected[name]).max() < 1e-4, name


def test_fifty_steps_are_the_same_for_any_ranks_and_micro_batch(folders, tmp_path):
    fifty = {"train_samples": 50 * 16, "val_samples": 50 * 16, "save_samples": 50 * 16}
    for ranks, changes in ((1, {"batch_size": 16}), (2, {"batch_size": 8}), (4, {"batch_size": 4, "zero_stage": 2})):
        run_ranks(ranks, train_ldm_with, folders, tmp_path / str(ranks), {**fifty, **changes})
    expected = losses(tmp_path / "1")
    assert len(expected) == 50
    for ranks in (2, 4):
        assert losses(tmp_path / str(ranks))[:10] == pytest.approx(expected[:10], rel=1e-5)
        assert losses(tmp_path / str(ranks)) == pytest.approx(expected, rel=1e-4)


OWN = {
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-3, "weight_decay": "auto"}},
    "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
    "bf16": {"enabled": "auto"},
    "train_micro_batch_size_per_gpu": 4,
}


@pytest.mark.parametrize("which", ["own", "offload"])
def test_deepspeed_json_given_by_path_trains_on_the_same_curve(folders, one_rank, tmp_path, which):
    path = CONFIGS / "zero3_offload.json"
    if which == "own":
        path = tmp_path / "own.json"
        path.write_text(json.dumps(OWN))
    run_ranks(2, train_ldm_with, folders, tmp_path / "run", {"deepspeed_config": path})
    assert losses(tmp_path / "run") == pytest.approx(losses(one_rank), rel=1e-4)
    expected = averaged(one_rank)
    for name, value in averaged(tmp_path / "run").items():
        assert np.abs(value - expected[name]).max() < 1e-4, name
    (state,) = (tmp_path / "run" / "checkpoints").glob("*/state.json")
    assert json.loads(state.read_text())["zero_stage"] == (2 if which == "own" else 3)


@pytest.mark.parametrize("own", [False, True])
def test_bf16_stays_near_fp32(folders, one_rank, tmp_path, own):
    (tmp_path / "own.json").write_text(json.dumps(OWN))
    which = {"deepspeed_config": tmp_path / "own.json"} if own else {"zero_stage": 2}
    run_ranks(2, train_ldm_with, folders, tmp_path / "run", {**which, "mixed_precision": "bf16"})
    assert losses(tmp_path / "run") == pytest.approx(losses(one_rank), rel=5e-3)  # measured: 5e-4
    assert losses(tmp_path / "run") != losses(one_rank)


def train_compiled(folders, output: Path) -> None:
    """Train with --compile; "eager" traces the U-Net into one graph as always, and calls no C compiler."""
    import torch

    from mdaug import distributed

    distributed.require_compiler = lambda: None
    torch.compile = partial(torch.compile, backend="eager", fullgraph=True)  # this process ends with the test's rank
    train_ldm(folders, output, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # of one batch shape


def test_compiling_changes_neither_losses_nor_what_is_saved(folders, one_rank, tmp_path):
    from mdaug.pipeline.pipeline import MicroDopplerPipeline

    run_ranks(1, train_compiled, folders, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(one_rank), rel=1e-5)
    expected, found = averaged(one_rank), averaged(tmp_path / "run")
    assert found.keys() == expected.keys()
    assert all(np.abs(value - expected[name]).max() < 1e-5 for name, value in found.items())
    MicroDopplerPipeline.from_pretrained(tmp_path / "run" / "best")


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_interrupted_run_ends_with_the_same_bytes(folders, one_rank, tmp_path, ranks, stage):
    undisturbed, output = one_rank, tmp_path / "run"
    if stage:
        undisturbed = tmp_path / "undisturbed"
        run_ranks(ranks, train_ldm_with, folders, undisturbed, {"zero_stage": stage})
    run_ranks(ranks, train_ldm_with, folders, output, {"zero_stage": stage, "stop_after": 7})
    run_ranks(ranks, train_ldm_with, folders, output, {"zero_stage": stage})
    assert untimed_records(output) == untimed_records(undisturbed)  # losses, learning rate, position, validations
    expected, found = dict(tensors_in(undisturbed)), dict(tensors_in(output))  # weights, averages, optimizer
    assert found.keys() == expected.keys()
    assert len(found) > 100
    assert all((value == expected[name]).all() for name, value in found.items())


def test_pictures_during_training_leave_the_training_untouched(folders, one_rank, tmp_path):
    run_ranks(1, train_ldm_with, folders, tmp_path / "run", {"save_images": True, "eval_steps": 3, "num_workers": 2})
    pictures = {int(path.stem.split("-")[1]) // 16 for path in (tmp_path / "run" / "generated_images").glob("*.png")}
    assert pictures == {3, 6, 9, 12, 15} | {4, 8, 12, 16}  # every third step, and at the validations
    expected = averaged(one_rank)
    for name, value in averaged(tmp_path / "run").items():
        assert (value == expected[name]).all(), name


def disturbed_by_pictures(folders, output: Path) -> None:
    train_ldm(folders, output, save_images=True, eval_steps=3, zero_stage=3)


def test_pictures_leave_weights_and_optimizer_of_two_ranks_untouched(folders, tmp_path):
    run_ranks(2, train_ldm_with, folders, tmp_path / "plain", {"zero_stage": 3})
    run_ranks(2, disturbed_by_pictures, folders, tmp_path / "pictures")
    plain, pictures = (
        dict(tensors_in(next((tmp_path / name / "checkpoints").glob("samples-*")))) for name in ("plain", "pictures")
    )
    assert plain.keys() == pictures.keys()
    assert len(plain) > 100
    assert all((value == pictures[name]).all() for name, value in plain.items())


@pytest.mark.parametrize(("first", "then"), [((2, 3), (1, 0)), ((1, 0), (2, 3))])  # (ranks, ZeRO stage)
def test_averages_move_to_other_ranks_and_stages(folders, one_rank, tmp_path, first, then):
    changes = {"zero_stage": first[1], "stop_after": 9}
    run_ranks(first[0], train_ldm_with, folders, tmp_path / "run", changes)
    run_ranks(then[0], train_ldm_with, folders, tmp_path / "run", {"zero_stage": then[1]})
    expected = averaged(one_rank)
    for name, value in averaged(tmp_path / "run").items():
        assert np.abs(value - expected[name]).max() < 1e-4, name


def test_average_of_another_length_is_written_as_a_pipeline(one_rank, tmp_path, capsys):
    from mdaug.artifacts import find_pipeline
    from mdaug.cli import main
    from mdaug.training.background_writer import complete
    from mdaug.training.sharded_tensors import Reader

    last = Reader(complete(one_rank / "ema_snapshots")[-1])
    for width, folder in (("0.1", "tracked"), ("0.075", "between")):
        flags = ["--run_dir", str(one_rank), "--reconstruct", width, "--output_dir", str(tmp_path / folder)]
        assert main(["ema", *flags]) == 0
    assert "profile met to" in capsys.readouterr().out
    tracked, between, plain = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (tmp_path / "tracked", tmp_path / "between", one_rank / "pipeline")
    )
    for name, value in tracked.items():
        assert np.abs(value.ravel() - last.read(f"0.1/{name}", value.size).numpy()).max() < 1e-5, name
    assert any((between[name] != tracked[name]).any() for name in tracked)
    assert any((tracked[name] != plain[name]).any() for name in tracked)
    _, record = find_pipeline(tmp_path / "between")
    assert record["made_from"] == find_pipeline(one_rank / "pipeline")[1]["made_from"]
    assert main(["ema", "--run_dir", str(tmp_path / "between"), "--reconstruct", "0.1"]) == 2
    assert "train with --ema_profiles" in capsys.readouterr().err


def refused(folders, output: Path, changes: dict) -> str:
    from shards.errors import UserError

    try:
        train_ldm(folders, output, **changes)
    except UserError as error:
        return str(error)
    return ""


def test_latents_of_another_vqvae_are_refused(folders, one_rank, tmp_path):
    packed, _ = folders
    run_ranks(1, train_vqvae, packed, tmp_path / "other")
    from shards import provenance

    record = json.loads((tmp_path / "other" / "best" / provenance.FILE_NAME).read_text())
    record["hash"] = "0" * 64  # the same training gives the same weights, so name them differently
    (tmp_path / "other" / "best" / provenance.FILE_NAME).write_text(json.dumps(record, indent=2) + "\n")
    (message,) = run_ranks(
        1, refused, (packed, tmp_path / "other"), tmp_path / "run", {"latents_dir": one_rank / "latents"}
    )
    assert "made from vqvae" in message


def test_sizes_that_disagree_are_refused(folders, tmp_path):
    (message,) = run_ranks(1, refused, folders, tmp_path / "run", {"image_size": 32})
    assert "image_size=32" in message
    (message,) = run_ranks(1, refused, folders, tmp_path / "run", {"latent_channels": 3})
    assert "latent_channels=3" in message


def test_exported_pipeline_samples_by_class_name(one_rank):
    import torch

    from mdaug.pipeline.pipeline import MicroDopplerPipeline

    pipeline = MicroDopplerPipeline.from_pretrained(one_rank / "best")
    pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(i) for i in range(2)]
    images = pipeline(class_labels=[CLASSES[1], 3], generator=generator, num_inference_steps=3, output_type="np").images
    assert images.shape[:3] == (2, 16, 16)
    assert np.isfinite(images).all()

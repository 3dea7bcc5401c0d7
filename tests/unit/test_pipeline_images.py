import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mdaug.artifacts import PARTS, find_pipeline
from mdaug.generation.generate import run as generate
from mdaug.generation.options import GenerateConfig
from mdaug.pipeline.folder import save_pipeline
from mdaug.pipeline.pipeline import MicroDopplerPipeline
from mdaug.pipeline.schedulers import FLOW, SCHEDULERS, build_scheduler, scheduler_like
from shards.dataset import ShardDataset
from shards.errors import UserError
from tests.tiny_pipeline import CLASSES, clean_environment, sample, save_tiny, seeded, tiny_pipeline

# mdaug must not be there, and of its other libraries the lines must need none.
FIRST = """
try:
    import mdaug
except ModuleNotFoundError:
    print("mdaug is absent")
"""
LAST = """
pipe.save_pretrained("again")
import sys
print("also imported:", {"deepspeed", "webdataset", "submitit", "lpips", "jsonargparse", "wandb"} & set(sys.modules))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("pipeline") / "pipe")


def test_what_is_saved_comes_back_the_same(folder, tmp_path):
    pipeline, loaded = tiny_pipeline(), MicroDopplerPipeline.from_pretrained(folder)
    for name in ("classes", "latent_mean", "latent_std", "latent_shape", "image_shape"):
        assert loaded.config[name] == pipeline.config[name]
    assert loaded.scheduler.config.beta_schedule == pipeline.scheduler.config.beta_schedule
    assert torch.equal(sample(loaded, guidance_scale=2.0), sample(pipeline, guidance_scale=2.0))
    loaded.save_pretrained(tmp_path / "again")
    for file in folder.rglob("*"):
        if file.is_file() and file.name not in ("provenance.json", "README.md"):
            assert file.read_bytes() == (tmp_path / "again" / file.relative_to(folder)).read_bytes(), file


def test_the_folder_holds_safetensors_and_no_path_of_this_machine(folder):
    assert {file.suffix for file in folder.rglob("*") if file.is_file()} == {".json", ".safetensors", ".py", ".md"}
    assert not any(str(folder) in file.read_text() for file in folder.rglob("*.json"))


@pytest.mark.slow
def test_the_readme_of_the_folder_works_without_mdaug(folder, tmp_path):
    """The lines of the README, run as they stand, with diffusers alone."""
    lines = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    assert "mdaug" not in lines
    script = tmp_path / "fresh.py"
    script.write_text(FIRST + lines + LAST)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    work = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder, work], check=True)
    python = clean_environment(tmp_path / "venv")
    run = subprocess.run([python, "-I", script], cwd=work, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "mdaug is absent" in run.stdout
    assert "also imported: set()" in run.stdout
    from PIL import Image

    torch.set_num_threads(1)
    ours = sample(tiny_pipeline(), [CLASSES[0]], 4, num_inference_steps=50, output_type="pil")[0]
    theirs = Image.open(work / "sample.png")
    assert np.abs(np.asarray(theirs, dtype=int) - np.asarray(ours, dtype=int)).max() <= 1
    # what diffusers alone saves is a whole pipeline folder again
    assert torch.equal(sample(MicroDopplerPipeline.from_pretrained(work / "again")), sample(tiny_pipeline()))


def test_without_trust_no_code_of_the_folder_runs(folder):
    from diffusers import DiffusionPipeline

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder))


def test_labels_by_name_and_by_index_are_the_same():
    pipeline = tiny_pipeline()
    assert torch.equal(sample(pipeline, ["fall", "bird"]), sample(pipeline, [1, 2]))
    assert torch.equal(sample(pipeline, ["bird"]), sample(pipeline, [2]))
    assert not torch.equal(sample(pipeline, ["bird"]), sample(pipeline, ["walk"]))
    one = pipeline("bird", generator=seeded(2), num_images_per_prompt=2, num_inference_steps=5, output_type="pt").images
    assert torch.equal(one, sample(pipeline, [2]))


@pytest.mark.parametrize("label", ["swim", 3, -1])
def test_an_unknown_class_is_refused_with_those_known(label):
    with pytest.raises(ValueError, match=r"is unknown; the model knows walk, fall, bird \(0 to 2\)"):
        sample(tiny_pipeline(), [label])


def test_an_image_depends_on_its_own_generator_and_label_alone():
    pipeline = tiny_pipeline()
    together = sample(pipeline, ["walk", "fall", "bird"], 1, generator=seeded(3))
    alone = sample(pipeline, ["bird"], 1, generator=[seeded(3)[2]])
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="2 generators for 3 images"):
        sample(pipeline, ["walk", "fall", "bird"], 1, generator=seeded(2))


def test_guidance_is_the_formula_and_one_is_free(monkeypatch):
    pipeline = tiny_pipeline()
    calls = []
    forward = pipeline.unet.forward

    def counted(latents, timestep, class_labels):
        calls.append(class_labels.tolist())
        return forward(latents, timestep, class_labels=class_labels)

    monkeypatch.setattr(pipeline.unet, "forward", counted)
    options = {"num_inference_steps": 1, "output_type": "latent"}
    plain = sample(pipeline, [0], 2, **options)
    assert calls == [[0, 0]]
    guided = sample(pipeline, [0], 2, guidance_scale=3.0, **options)
    assert calls[1] == [3, 3, 0, 0]  # label 3 of three classes is "no class"
    unconditional = sample(pipeline, [0], 2, guidance_scale=0.0, **options)
    # one DDIM step is linear in the prediction
    torch.testing.assert_close(guided, unconditional + 3 * (plain - unconditional), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_output_types_agree(channels):
    pipeline = tiny_pipeline(channels=channels)
    tensor = sample(pipeline)
    assert tensor.shape == (4, channels, 16, 16)
    array = sample(pipeline, output_type="np")
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    images = sample(pipeline, output_type="pil")
    assert images[0].mode == {1: "L", 3: "RGB"}[channels]
    assert np.abs(np.asarray(images[0]).reshape(16, 16, channels) - 255 * array[0]).max() <= 0.5 + 1e-4
    latents = sample(pipeline, output_type="latent")
    assert torch.equal((pipeline.decode(latents) / 2 + 0.5).clamp(0, 1), tensor)
    with pytest.raises(ValueError, match="output_type=jpg must be one of"):
        sample(pipeline, output_type="jpg")


def test_decode_undoes_the_normalisation_and_is_the_decode_of_diffusers():
    pipeline = tiny_pipeline()
    latents = torch.randn(2, 4, 8, 8)
    mean, std = (torch.tensor(pipeline.config[name])[:, None, None] for name in ("latent_mean", "latent_std"))
    with torch.no_grad():
        expected = pipeline.vqvae.decode(latents * std + mean).sample
        torch.testing.assert_close(pipeline.decode(latents), expected, rtol=0, atol=1e-5)


def test_codes_are_chosen_in_float32_whatever_the_precision():
    """In bfloat16 the nearest of many code vectors is often another one."""
    pipeline = tiny_pipeline()
    codes = torch.randn(2048, 4).bfloat16().float()  # so that they are the same numbers in both precisions
    pipeline.vqvae.quantize.embedding = torch.nn.Embedding.from_pretrained(codes)
    latents = torch.randn(4, 4, 8, 8)
    chosen = []
    decode = pipeline.vqvae.decode
    pipeline.vqvae.decode = lambda quantized, **options: (
        chosen.append(quantized.float()),
        decode(quantized, **options),
    )[1]
    with torch.no_grad():
        pipeline.decode(latents)
        pipeline.to(torch.bfloat16).decode(latents)
    assert torch.equal(*chosen)


def test_runs_in_bfloat16():
    exact = sample(tiny_pipeline())
    low = sample(tiny_pipeline().to(torch.bfloat16))
    assert low.dtype is torch.float32
    assert (low - exact).abs().mean() < 0.05


@pytest.mark.parametrize("scheduler_type", SCHEDULERS)
def test_schedulers_are_swapped_the_diffusers_way(scheduler_type):
    pipeline = tiny_pipeline()
    pipeline.scheduler = scheduler_like(pipeline.scheduler, scheduler_type)
    assert torch.equal(sample(pipeline), sample(pipeline))
    assert sample(pipeline, output_type="latent").isfinite().all()


# (sampler stored by the training, betas, prediction type, zero terminal SNR), and other samplers that fit
OBJECTIVES = [
    (("dpmsolver++", None, FLOW, False), ("unipc", "heun")),
    (("euler", None, FLOW, False), ("dpmsolver++",)),
    (("ddim", "cosine", "v_prediction", True), ("unipc",)),
    (("ddpm", "linear", "sample", True), ("euler",)),
]


@pytest.mark.parametrize(("stored", "others"), OBJECTIVES, ids=str)
def test_the_objective_is_read_back_by_pipeline_and_generate(tmp_path, stored, others):
    sampler, *trained = stored
    pipeline = tiny_pipeline(build_scheduler(sampler, *trained[:2], 500, trained[2]))
    made_from = {"images": "1" * 64, "vqvae": "2" * 64, "latents": "3" * 64}
    save_pipeline(pipeline, tmp_path / "best", made_from=made_from, config={})
    loaded = MicroDopplerPipeline.from_pretrained(tmp_path / "best")
    assert torch.equal(sample(loaded), sample(pipeline))
    for name in (None, *others):
        fresh = build_scheduler(name or sampler, *trained[:2], 500, trained[2])
        assert scheduler_like(loaded.scheduler, name).config == fresh.config
        options = {"num_samples": 2, "num_inference_steps": 5, "batch_size": 2, "scheduler_type": name}
        generate(GenerateConfig(ldm_path=tmp_path, output_dir=tmp_path / f"out-{name}", **options))
        images = ShardDataset(tmp_path / f"out-{name}", fields=("image", "meta"))
        pipeline.scheduler = fresh
        noise = [torch.Generator().manual_seed(images[i]["meta"]["seed"]) for i in range(2)]
        expected = sample(pipeline, [images[i]["label"] for i in range(2)], 1, generator=noise, output_type="np")
        assert np.abs(np.stack([images[i]["image"] for i in range(2)]) / 255 - expected).max() < 0.51 / 255


def test_a_sampler_that_cannot_follow_the_objective_is_refused(tmp_path):
    save_tiny(tmp_path / "best", scheduler=build_scheduler("dpmsolver++", None, FLOW))
    card = (tmp_path / "best" / "README.md").read_text()
    assert "Scheduler: DPMSolverMultistepScheduler, flow matching." in card
    for options, message in (
        ({"scheduler_type": "ddim"}, "cannot sample prediction_type 'flow_matching'; choose one of dpmsolver"),
        ({"beta_schedule": "linear"}, "contradicts the model, which was trained with flow_matching"),
    ):
        with pytest.raises(UserError, match=message):
            generate(GenerateConfig(ldm_path=tmp_path, output_dir=tmp_path / "out", **options))


@pytest.mark.parametrize("scheduler", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_flow_matching_survives_a_scheduler_made_from_the_config(scheduler):
    import diffusers

    stored = build_scheduler("dpmsolver++", None, FLOW)
    swapped = getattr(diffusers, scheduler).from_config(stored.config)
    assert (swapped.config.prediction_type, swapped.config.use_flow_sigmas) == ("flow_prediction", True)


def test_schedulers_of_diffusers_are_made_from_the_config():
    from diffusers import DPMSolverMultistepScheduler

    pipeline, ours = tiny_pipeline(), tiny_pipeline()
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    ours.scheduler = scheduler_like(ours.scheduler, "dpmsolver++")
    assert torch.equal(sample(pipeline), sample(ours))


def test_guidance_acts_within_its_interval_only(monkeypatch):
    pipeline = tiny_pipeline()
    sizes = []
    forward = pipeline.unet.forward

    def counted(latents, timestep, class_labels):
        sizes.append((int(timestep), len(latents)))
        return forward(latents, timestep, class_labels=class_labels)

    monkeypatch.setattr(pipeline.unet, "forward", counted)
    options = {"num_inference_steps": 10, "guidance_scale": 2.0}
    some = sample(pipeline, [0], 2, guidance_interval=(0.3, 0.6), **options)
    assert [size for _, size in sizes] == [4 if 300 <= timestep <= 600 else 2 for timestep, _ in sizes]
    assert {size for _, size in sizes} == {2, 4}
    assert not torch.equal(some, sample(pipeline, [0], 2, **options))
    nowhere = sample(pipeline, [0], 2, guidance_interval=(0.998, 0.999), **options)
    assert torch.equal(nowhere, sample(pipeline, [0], 2, num_inference_steps=10))


def test_the_model_card_says_what_it_was_trained_on(tmp_path):
    made_from = {"images": "a" * 64, "vqvae": "b" * 64, "latents": "c" * 64}
    save_pipeline(tiny_pipeline(), tmp_path / "pipe", made_from=made_from, config={}, metrics={"loss": 0.33877})
    card = (tmp_path / "pipe" / "README.md").read_text()
    assert "| images | sha256 `" + "a" * 64 in card
    assert "| validation loss | 0.3388 |" in card
    assert "| 1 | fall |" in card
    MicroDopplerPipeline.from_pretrained(tmp_path / "pipe").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == card


@pytest.mark.parametrize("option", [{"push_to_hub": True}, {"safe_serialization": False}])
def test_saving_neither_uploads_half_a_folder_nor_pickles(tmp_path, option):
    with pytest.raises(ValueError, match=r"use push_to_hub|safetensors only"):
        tiny_pipeline().save_pretrained(tmp_path / "pipe", **option)
    assert not (tmp_path / "pipe").exists()


def test_the_whole_folder_is_uploaded_with_its_card(folder, monkeypatch):
    """Up to the calls of huggingface_hub: none of our tests has a network."""
    sent = {}

    def create_repo(self, repo_id, **options):
        sent.update(options, token=self.token)
        return SimpleNamespace(repo_id=f"lab/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, **_):
        sent.update({str(f.relative_to(folder_path)): f.read_bytes() for f in Path(folder_path).rglob("*.*")})
        return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    pipeline = MicroDopplerPipeline.from_pretrained(folder)
    assert pipeline.push_to_hub("radar", private=True, token="secret") == "https://hub/lab/radar"
    assert (sent.pop("private"), sent.pop("token"), sent.pop("exist_ok")) == (True, "secret", True)
    there = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*.*")}
    assert sent == {name: data for name, data in there.items() if name != "provenance.json"}


def test_a_folder_without_a_part_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="holds no pipeline"):
        find_pipeline(tmp_path)
    best = save_tiny(tmp_path / "run" / "best")
    assert find_pipeline(tmp_path / "run")[0] == best
    (best / PARTS[-1]).unlink()
    with pytest.raises(UserError, match=f"{PARTS[-1]} is missing"):
        find_pipeline(best)


def test_saving_over_a_pipeline_replaces_it_whole(tmp_path):
    folder = save_tiny(tmp_path / "pipe")
    first = find_pipeline(folder)[1]["hash"]
    save_tiny(folder, channels=1)
    assert find_pipeline(folder)[1]["hash"] != first
    save_tiny(folder)
    assert find_pipeline(folder)[1]["hash"] == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]

"""`mdaug train-ldm`: options and assembly of the run."""

from __future__ import annotations

from pathlib import Path

from mdaug.artifacts import find_vqvae, load_geometry
from mdaug.training import run_folder
from mdaug.training.encode import refuse_other_latents
from mdaug.training.options import LDMConfig
from mdaug.training.run_folder import images_hash
from shards import provenance
from shards.validation import Preflight


def check(options: LDMConfig, where: Preflight) -> None:
    """Refuse before the start what would be refused at it; raises UserError."""
    made_from = {}
    if where.inputs_there:
        made_from = {**images_hash(options), "vqvae": provenance.read(_fitting_vqvae(options), "vqvae")["hash"]}
    run_folder.check(options, where, made_from)
    if options.latents_dir is not None and where.inputs_there:
        refuse_other_latents(options.latents_dir, made_from)


def _fitting_vqvae(config: LDMConfig) -> Path:
    """Return the folder of the VQ-VAE; raises UserError where its images or latents are of another size."""
    from shards.errors import UserError
    from shards.validation import written

    assert config.vqvae_path is not None
    vqvae = find_vqvae(config.vqvae_path)
    geometry = load_geometry(vqvae)
    trained = written(*geometry["image_shape"][:2])
    if trained != config.image_size:
        raise UserError(f"image_size={config.image_size}, but {vqvae} was trained at {trained} pixels")
    if geometry["latent_shape"][0] != config.latent_channels:
        raise UserError(
            f"latent_channels={config.latent_channels}, but the latents of {vqvae} have {geometry['latent_shape'][0]} "
            "channels; the diffusion model works on them, so the two must agree"
        )
    return vqvae


def run(config: LDMConfig) -> None:
    """Train the diffusion model; the same command again resumes. Latents are made first where they are missing."""
    from mdaug import distributed

    distributed.init()

    from mdaug.training.cost import estimate_ldm
    from mdaug.training.encode import augmentation_of, encode_packed
    from mdaug.training.engine import check_before_data
    from mdaug.training.ldm_task import LDMTask
    from mdaug.training.loop import train
    from mdaug.training.options import EncodeConfig
    from mdaug.training.run_folder import open_run, packing, plan_batches
    from shards import provenance
    from shards.packed import open_packed

    check_before_data(config)
    vqvae = _fitting_vqvae(config)
    packed = open_packed(config.data_dir, config.image_size, **packing(config))
    made_from = {
        "images": provenance.read(packed, "images")["hash"],
        "vqvae": provenance.read(vqvae, "vqvae")["hash"],
    }
    if not open_run(config, **made_from):
        return
    latents = config.latents_dir or config.output_dir / "latents"
    encoding = EncodeConfig(packed, vqvae, latents, num_workers=config.num_workers, **augmentation_of(latents))
    encode_packed(packed, vqvae, latents, encoding)
    task = LDMTask(config, packed, vqvae, latents, made_from)
    if distributed.is_main():
        print(estimate_ldm(task, config.batch_size), flush=True)
    if config.compile:
        task.compile()
    train(task, config, plan_batches(config, task.train_set.num_images))

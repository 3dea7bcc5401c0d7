"""`mdaug train-ldm`: assembly of the run, which `mdaug distil` shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mdaug import distributed
from mdaug.artifacts import find_vqvae, load_geometry
from mdaug.training import auxiliary, encode, initial, run_folder
from mdaug.training.batch_size import choose_batch_size
from mdaug.training.batches import plan_batches
from mdaug.training.cost import memory, sharding
from mdaug.training.engine import check_before_data
from mdaug.training.ldm_task import LDMTask, check_before_latents
from mdaug.training.length import settle
from mdaug.training.loop import train
from mdaug.training.options_ldm import DiffusionConfig, LDMConfig
from mdaug.training.options_vqvae import EncodeConfig
from mdaug.training.run_folder import images_hash, open_run, packing
from shards import provenance
from shards.errors import UserError
from shards.output_folder import refuse_other
from shards.packed import open_packed
from shards.validation import Preflight, written


def check(options: LDMConfig, where: Preflight) -> None:
    """Refuse before the start what would be refused at it; raises UserError."""
    check_with(options, options if where.inputs_there else None, where)


def check_with(options: DiffusionConfig, network: LDMConfig | None, where: Preflight) -> None:
    """Do what `check` does.

    Args:
        options: the options of the command.
        network: those of its network; None where the inputs are not there yet.
        where: where it is about to run.
    """
    made_from: dict[str, str | None] = {}
    of_others: dict[str, str | None] = {}
    if network is not None:
        made_from = {**images_hash(options), "vqvae": provenance.read(_fitting_vqvae(network), "vqvae")["hash"]}
        of_others = {**auxiliary.made_from(options), **initial.made_from(network)}
    run_folder.check(options, where, {**made_from, **of_others})
    if options.latents_dir is not None and where.inputs_there:
        augmentation = encode.augmentation_of(options.latents_dir)
        refuse_other(options.latents_dir, "encode", augmentation, made_from)


def _fitting_vqvae(options: LDMConfig) -> Path:
    """Return the folder of the VQ-VAE; raises UserError where its images or latents are of another size."""
    vqvae = find_vqvae(options.vqvae_path)
    geometry = load_geometry(vqvae)
    trained = written(*geometry["image_shape"][:2])
    if trained != options.image_size:
        raise UserError(f"image_size={options.image_size}, but {vqvae} was trained at {trained} pixels")
    if geometry["latent_shape"][0] != options.latent_channels:
        raise UserError(
            f"latent_channels={options.latent_channels}, but the latents of {vqvae} have {geometry['latent_shape'][0]} "
            "channels; the diffusion model works on them, so the two must agree"
        )
    return vqvae


def run(options: LDMConfig) -> None:
    """Train the diffusion model; the same command again resumes. Latents are made first where they are missing."""
    assemble(options, options, LDMTask)


def assemble(options: Any, network: LDMConfig, make: Callable[..., LDMTask], known: list[str] | None = None) -> None:
    """Train a network on latents, which are made first where they are missing; the same call again resumes.

    Args:
        options: the options of the command, a `DiffusionConfig`.
        network: those of its network.
        make: the class of the task: of options, folders of packed images, VQ-VAE and latents, hashes, auxiliary sets.
        known: the classes that the images must have; None for any.
    """
    distributed.init()
    check_before_data(options)
    if options.compile:
        distributed.require_compiler()
    vqvae = _fitting_vqvae(network)
    packed = open_packed(options.data_dir, options.image_size, **packing(options))
    others = auxiliary.open_sets(options, packed, vqvae)
    made_from = {
        "images": provenance.read(packed, "images")["hash"],
        "vqvae": provenance.read(vqvae, "vqvae")["hash"],
        **auxiliary.made_from(options, others),
        **initial.made_from(network),
    }
    if run_folder.is_done(options, made_from):
        return
    # All that may be refused, before the folder is claimed and anything is encoded.
    check_before_latents(network, packed, load_geometry(vqvae)["latent_shape"], others, known)
    auxiliary.refuse_overlap(options, packed, others)
    output = open_run(options, made_from)
    latents = options.latents_dir or options.output_dir / "latents"
    augmentation = encode.augmentation_of(latents)
    encode.encode(EncodeConfig(packed, vqvae, latents, num_workers=options.num_workers, **augmentation))
    auxiliary.refuse_same_latents(options, latents, others)
    of_others = []
    for number, folder in enumerate(others):
        if auxiliary.is_latents(folder):
            of_others.append(folder)
            continue
        place = options.output_dir / "auxiliary_latents" / str(number)
        encode.encode(EncodeConfig(folder, vqvae, place, num_workers=options.num_workers, **augmentation))
        of_others.append(place)
    auxiliaries = list(zip(others, of_others, strict=True))

    def build(changed: Any) -> LDMTask:
        return make(changed, packed, vqvae, latents, made_from, auxiliaries)

    task = build(options)
    if options.batch_size == "auto":
        options.batch_size = choose_batch_size(options, task.epoch, task.workload(1), task.rehearse)
        task.config.batch_size = options.batch_size
    if options.train_minutes is not None:
        options = settle(options, task.epoch, output, build)
        task = build(options)
    if distributed.is_main():
        print(memory(task.workload(int(options.batch_size)), sharding(options)), flush=True)
    if options.compile:
        task.compile()
    train(task, options, plan_batches(options, task.epoch), output)

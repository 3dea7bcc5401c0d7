"""`mdaug train-vqvae`: options and assembly of the run."""

from __future__ import annotations

from mdaug.models.perceptual import find_weights
from mdaug.training import run_folder
from mdaug.training.options import VQVAEConfig
from mdaug.training.run_folder import images_hash
from shards.validation import Preflight


def check(options: VQVAEConfig, where: Preflight) -> None:
    """Refuse before the start what would be refused at it; raises UserError."""
    run_folder.check(options, where, images_hash(options) if where.inputs_there else {})
    if options.use_perceptual:
        find_weights(options.perceptual_net, options.perceptual_weights)


def run(config: VQVAEConfig) -> None:
    """Train the VQ-VAE; the same command again resumes."""
    from mdaug import distributed

    distributed.init()

    from mdaug.training.cost import choose_batch_size, estimate
    from mdaug.training.engine import check_before_data
    from mdaug.training.loop import train
    from mdaug.training.run_folder import open_run, packing, plan_batches
    from mdaug.training.vqvae_task import VQVAETask
    from shards import provenance
    from shards.packed import open_packed

    check_before_data(config)
    packed = open_packed(config.data_dir, config.image_size, **packing(config))
    images_hash = provenance.read(packed, "images")["hash"]
    if not open_run(config, images=images_hash):
        return
    task = VQVAETask(config, packed, images_hash)
    if config.batch_size == "auto":
        config.batch_size = choose_batch_size(task, len(task.train_set))
    if distributed.is_main():
        print(estimate(task, config.batch_size), flush=True)
    if config.compile:
        task.compile()
    train(task, config, plan_batches(config, len(task.train_set)))

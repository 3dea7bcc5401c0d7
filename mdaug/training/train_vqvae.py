"""`mdaug train-vqvae`: assembly of the run."""

from __future__ import annotations

from mdaug import distributed
from mdaug.models.perceptual import find_weights
from mdaug.training import run_folder
from mdaug.training.batches import plan_batches
from mdaug.training.cost import choose_batch_size, memory, sharding
from mdaug.training.engine import check_before_data
from mdaug.training.length import settle
from mdaug.training.loop import train
from mdaug.training.options import VQVAEConfig
from mdaug.training.run_folder import images_hash, open_run, packing
from mdaug.training.vqvae_task import VQVAETask
from shards import provenance
from shards.packed import open_packed
from shards.validation import Preflight


def check(options: VQVAEConfig, where: Preflight) -> None:
    """Refuse before the start what would be refused at it; raises UserError."""
    run_folder.check(options, where, images_hash(options) if where.inputs_there else {})
    if options.use_perceptual:
        find_weights(options.perceptual_net, options.perceptual_weights)


def run(options: VQVAEConfig) -> None:
    """Train the VQ-VAE; the same command again resumes."""
    distributed.init()
    check_before_data(options)
    packed = open_packed(options.data_dir, options.image_size, **packing(options))
    images = provenance.read(packed, "images")["hash"]
    if run_folder.is_done(options, {"images": images}):
        return
    # All that may be refused, before the folder is claimed.
    task = VQVAETask(options, packed, images)
    num_images = len(task.train_set)
    if options.batch_size == "auto":
        options.batch_size = choose_batch_size(options, num_images, task.workload(1), task.rehearse)
    plan = plan_batches(options, num_images)
    output = open_run(options, {"images": images})
    if options.train_minutes is not None:
        options = settle(options, num_images, output, lambda options: VQVAETask(options, packed, images))
        task, plan = VQVAETask(options, packed, images), plan_batches(options, num_images)
    if distributed.is_main():
        print(memory(task.workload(int(options.batch_size)), sharding(options)), flush=True)
    if options.compile:
        task.compile()
    train(task, options, plan, output)

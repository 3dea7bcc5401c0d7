"""`mdaug train-vqvae`: assembly of the run."""

from __future__ import annotations

from mdaug import distributed
from mdaug.models.perceptual import find_weights
from mdaug.training import auxiliary, initial, run_folder
from mdaug.training.batch_size import choose_batch_size
from mdaug.training.batches import plan_batches
from mdaug.training.cost import memory, sharding
from mdaug.training.engine import check_before_data
from mdaug.training.length import settle
from mdaug.training.loop import train
from mdaug.training.options_vqvae import VQVAEConfig
from mdaug.training.run_folder import images_hash, open_run, packing
from mdaug.training.vqvae_task import VQVAETask
from shards import provenance
from shards.packed import open_packed
from shards.validation import Preflight


def check(options: VQVAEConfig, where: Preflight) -> None:
    """Refuse before the start what would be refused at it; raises UserError."""
    made_from: dict[str, str | None] = {}
    if where.inputs_there:
        made_from = {**images_hash(options), **auxiliary.made_from(options), **initial.made_from(options)}
    run_folder.check(options, where, made_from)
    if options.use_perceptual:
        find_weights(options.perceptual_net, options.perceptual_weights)


def run(options: VQVAEConfig) -> None:
    """Train the VQ-VAE; the same command again resumes."""
    distributed.init()
    check_before_data(options)
    if options.compile:
        distributed.require_compiler()
    packed = open_packed(options.data_dir, options.image_size, **packing(options))
    others = auxiliary.open_sets(options, packed)
    made_from = {
        "images": provenance.read(packed, "images")["hash"],
        **auxiliary.made_from(options, others),
        **initial.made_from(options),
    }
    if run_folder.is_done(options, made_from):
        return
    # All that may be refused, before the folder is claimed.
    auxiliary.refuse_overlap(options, packed, others)
    task = VQVAETask(options, packed, made_from, others)
    if options.batch_size == "auto":
        options.batch_size = choose_batch_size(options, task.epoch, task.workload(1), task.rehearse)
    plan = plan_batches(options, task.epoch)
    output = open_run(options, made_from)
    if options.train_minutes is not None:
        options = settle(options, task.epoch, output, lambda changed: VQVAETask(changed, packed, made_from, others))
        task = VQVAETask(options, packed, made_from, others)
        plan = plan_batches(options, task.epoch)
    if distributed.is_main():
        print(memory(task.workload(int(options.batch_size)), sharding(options)), flush=True)
    if options.compile:
        task.compile()
    train(task, options, plan, output)

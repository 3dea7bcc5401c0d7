"""The run folder of a training: whose it is, its readable `config.yaml`, and the end of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdaug import config as configuration
from mdaug import distributed
from mdaug.training import deepspeed_json
from mdaug.training.batches import accumulation
from mdaug.training.options import LDMConfig, TrainingConfig, VQVAEConfig
from shards import provenance
from shards.output_folder import OutputFolder, claim, is_finished, refuse_other
from shards.packed import packed_hash
from shards.validation import Preflight, identity_of

CONFIG_FILE = "config.yaml"
COMMANDS: dict[type, str] = {VQVAEConfig: "train-vqvae", LDMConfig: "train-ldm"}


def check(options: TrainingConfig, where: Preflight, made_from: Mapping[str, str]) -> None:
    """Refuse before the start what both trainings would refuse: batches, precision, DeepSpeed JSON, run folder.

    Raises UserError.
    """
    accumulation(options, where.ranks)
    if options.deepspeed_config is not None:
        deepspeed_json.check(options, where.ranks)
    if where.device is not None:
        distributed.require_gpu_for_fp16(options.mixed_precision, where.device)
    refuse_other(options.output_dir, COMMANDS[type(options)], identity_of(options), made_from)


def images_hash(options: TrainingConfig) -> dict[str, str]:
    """Return {"images": content hash}, or {} for images that are packed at the start of the run.

    Raises UserError for a packed folder that is not finished or does not fit.
    """
    content = packed_hash(options.data_dir, options.image_size, **packing(options))
    return {} if content is None else {"images": content}


def packing(options: TrainingConfig) -> dict[str, Any]:
    """Return how an image folder is packed for a training: the options of `open_packed`."""
    return {"group_by": options.group_by, "image_mode": options.image_mode, "colormap": options.colormap}


def open_run(options: TrainingConfig, made_from: Mapping[str, str]) -> OutputFolder | None:
    """Create or resume the run folder; return None if its run is finished. Every rank calls it.

    Args:
        options: the resolved options, printed and saved as `config.yaml`.
        made_from: role -> content hash of what the run is made from; a resumed run must agree.

    Raises:
        UserError: the folder holds another run or other files; the message names every difference.
    """
    command = COMMANDS[type(options)]
    output = claim_on_all_ranks(options.output_dir, command, identity_of(options), made_from)
    if output.finished:
        if distributed.is_main():
            print(f"{output.path} is finished: {provenance.read(output.path, kind(command)).get('note')}")
        return None
    if distributed.is_main():
        print(f"mdaug {command}\n{configuration.dump(options)}", flush=True)
        configuration.save(options, output.path / CONFIG_FILE)
        for name in ("checkpoints", "logs"):
            (output.path / name).mkdir(exist_ok=True)
    distributed.barrier()
    return output


def claim_on_all_ranks(
    path: Path, command: str, identity: Mapping[str, Any], made_from: Mapping[str, str]
) -> OutputFolder:
    """Do what `shards.output_folder.claim` does: every rank refuses alike, rank 0 writes. Every rank calls it."""
    refuse_other(path, command, identity, made_from)
    if not is_finished(path):
        distributed.barrier()
        if distributed.is_main():
            claim(path, command, identity, made_from)
        distributed.barrier()
    return OutputFolder(path, command, made_from)


def kind(command: str) -> str:
    """Return the kind in the provenance of a finished run folder: "vqvae-run" or "ldm-run"."""
    return f"{command.removeprefix('train-')}-run"


def finish_run(output: OutputFolder, options: TrainingConfig, last_folder: str, reason: str) -> None:
    """Mark the run as finished, with the reason; the same command then says so and exits.

    Its content hash is that of the best weights, which later commands take from the folder, or of the last ones where
    validation never had a figure.
    """
    if not distributed.is_main():
        return
    folders = (output.path / name for name in ("best", last_folder))
    exported = next(folder for folder in folders if (folder / provenance.FILE_NAME).is_file())
    model = "vqvae" if output.command == "train-vqvae" else "pipeline"
    content = provenance.read(exported, model)["hash"]
    output.finish(kind(output.command), content, configuration.as_dict(options), note=reason)

"""The run folder of a training: whose it is, its readable `config.yaml`, and the end of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdaug import config as configuration
from mdaug import distributed
from mdaug.training import checkpoint, deepspeed_json
from mdaug.training.batches import accumulation
from mdaug.training.ema_snapshots import FOLDER as SNAPSHOTS
from mdaug.training.options import TrainingConfig
from mdaug.training.options_ldm import DistilConfig, LDMConfig
from mdaug.training.options_vqvae import VQVAEConfig
from shards import provenance
from shards.errors import UserError
from shards.output_folder import OutputFolder, claim, is_finished, list_lost, refuse_other
from shards.packed import packed_hash
from shards.validation import Preflight, identity_of

CONFIG_FILE, CHECKPOINTS = "config.yaml", "checkpoints"
COMMANDS: dict[type, str] = {VQVAEConfig: "train-vqvae", LDMConfig: "train-ldm", DistilConfig: "distil"}
# Of the last weights; the best ones are in best/.
LAST_FOLDERS = {"train-vqvae": "last", "train-ldm": "pipeline", "distil": "pipeline"}


def check(options: TrainingConfig, where: Preflight, made_from: Mapping[str, str | None]) -> None:
    """Refuse before the start what all trainings would refuse: batches, precision, DeepSpeed JSON, run folder.

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


def is_done(options: TrainingConfig, made_from: Mapping[str, str | None]) -> bool:
    """Return whether the run of a folder is finished, after saying so; every rank calls it.

    What a finished run has lost is said where no command needs it. Models that the last checkpoint can give again are
    left to `open_run` and the training loop.

    Raises:
        UserError: the folder holds another run or other files, or a finished run has lost what cannot be made again.
    """
    accumulation(options, distributed.world_size())
    folder, command = options.output_dir, COMMANDS[type(options)]
    refuse_other(folder, command, identity_of(options), made_from)
    if not is_finished(folder):
        return False
    lost = provenance.lost(folder)
    if any(_is_needed(command, name) for name, _ in lost):
        _require_checkpoint(folder, command, lost)
        return False
    if distributed.is_main():
        # A checkpoint is for the training itself, and may be deleted as a whole.
        lost = [each for each in lost if (folder / Path(each.name).parts[0]).exists() or "/" not in each.name]
        print(f"{folder} is finished: {(provenance.load(folder) or {}).get('note')}")
        if lost:
            print(f"{folder}: {list_lost(lost)}; no command needs that, and it cannot be made again")
    return True


def _is_needed(command: str, name: str) -> bool:
    """Return whether other commands read a file of a run."""
    return Path(name).parts[0] in ("best", LAST_FOLDERS[command], SNAPSHOTS)


def _require_checkpoint(folder: Path, command: str, lost: list[provenance.Lost]) -> None:
    """Raise UserError where the last checkpoint does not give again, byte for byte, what a finished run has lost."""
    missing = {Path(name).parts[0] for name, _ in lost}
    latest = checkpoint.latest(folder / CHECKPOINTS)
    if latest is None or CHECKPOINTS in missing:
        why = f"{folder / CHECKPOINTS} holds no whole checkpoint"
    elif SNAPSHOTS in missing:
        why = "snapshots are written during the training"
    elif "best" in missing and not checkpoint.is_best(latest):
        why = f"the weights of best/ are older than those of {latest}"
    else:
        return
    needed = [each for each in lost if _is_needed(command, each.name)]
    raise UserError(
        f"{folder}: {list_lost(needed)}, and cannot be made again ({why}); copy it back, or delete {folder} and train "
        "again"
    )


def open_run(options: TrainingConfig, made_from: Mapping[str, str | None]) -> OutputFolder:
    """Create or resume the run folder, once nothing is left to be refused; every rank calls it.

    Args:
        options: the resolved options, printed and saved as `config.yaml`.
        made_from: role -> content hash of what the run is made from, None for what it was made without; a resumed run
            must agree.

    Raises:
        UserError: the folder holds another run or other files; the message names every difference.
    """
    command = COMMANDS[type(options)]
    output = claim_on_all_ranks(options.output_dir, command, identity_of(options), made_from)
    if distributed.is_main():
        output.begin_again()
        print(f"mdaug {command}\n{configuration.dump(options)}", flush=True)
        configuration.save(options, output.path / CONFIG_FILE)
        for name in (CHECKPOINTS, "logs"):
            (output.path / name).mkdir(exist_ok=True)
    distributed.barrier()
    return output


def claim_on_all_ranks(
    path: Path, command: str, identity: Mapping[str, Any], made_from: Mapping[str, str | None], *, wait: bool = False
) -> OutputFolder:
    """Do what `shards.output_folder.claim` does, on rank 0, which owns the folder; every rank calls it.

    Raises UserError on every rank where rank 0 is refused.
    """
    output: OutputFolder | UserError | None = None
    if distributed.is_main():
        try:
            output = claim(path, command, identity, made_from, wait=wait)
        except UserError as error:
            output = error
    output = distributed.from_main(output)
    if isinstance(output, UserError):
        raise output
    assert output is not None
    return output


def kind(command: str) -> str:
    """Return the kind in the provenance of a finished run folder: "vqvae-run", "ldm-run" or "distil-run"."""
    return f"{command.removeprefix('train-')}-run"


def finish_run(output: OutputFolder, options: TrainingConfig, exported: Path, reason: str) -> None:
    """Mark the run as finished, with the reason; the same command then says so and exits.

    Args:
        output: the run folder.
        options: its options.
        exported: folder of the best weights, which later commands take from the run, or of the last ones where
            validation never had a figure; its content hash is that of the run.
        reason: why the training ended.

    Raises UserError where the best weights were lost while the training went on.
    """
    if not distributed.is_main():
        return
    record = provenance.load(exported)
    if record is None or provenance.lost(exported):
        raise UserError(
            f"{exported} was lost or cut while the training went on; copy it back and run the same command again, or "
            f"delete {output.path} and train again"
        )
    config = configuration.as_dict(options)
    output.finish(kind(output.command), record["hash"], config, note=reason, unhashed=(CHECKPOINTS,))

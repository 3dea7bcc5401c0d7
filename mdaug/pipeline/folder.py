"""Pipeline folders on disk: written whole or not at all, and found with errors for people."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from shards import provenance
from shards.errors import UserError

# What a pipeline folder must hold to be loaded.
PARTS = (
    "model_index.json",
    "vqvae/config.json",
    "vqvae/diffusion_pytorch_model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
)


def save_pipeline(
    pipeline: Any, folder: Path, *, made_from: dict[str, str], config: dict, metrics: dict[str, float] | None = None
) -> str:
    """Write a `MicroDopplerPipeline` with its provenance and return its content hash.

    The folder is written beside its final place and renamed, so a killed run leaves the earlier one.

    Args:
        pipeline: the pipeline; its networks may be on any device.
        folder: where to write it; an existing pipeline is replaced.
        made_from: {"images": hash, "vqvae": hash, "latents": hash}.
        config: the resolved configuration of the training, as plain JSON values.
        metrics: what was measured on the validation split, for the model card.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    pipeline.register_to_config(training={"made_from": dict(made_from), "metrics": dict(metrics or {})})
    pipeline.save_pretrained(temporary)
    files = [*temporary.rglob("*.safetensors"), *temporary.rglob("*.json")]
    content_hash = provenance.hash_files(sorted(files))
    provenance.write(temporary, kind="pipeline", content_hash=content_hash, made_from=made_from, config=config)
    replaced = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(temporary, folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return content_hash


def find_pipeline(path: Path) -> tuple[Path, dict]:
    """Return (pipeline folder, its provenance) of a pipeline folder or a train-ldm run (`best/` before `pipeline/`).

    Raises:
        UserError: there is none, or some of its parts are missing, which it names.
    """
    for folder in (path, path / "best", path / "pipeline"):
        if (folder / "model_index.json").is_file():
            break
    else:
        raise UserError(
            f"{path} holds no pipeline (no model_index.json there, in best/ or in pipeline/); "
            "give the output folder of 'mdaug train-ldm' as --ldm_path"
        )
    missing = [part for part in PARTS if not (folder / part).is_file()]
    if missing:
        raise UserError(
            f"the pipeline {folder} is missing {', '.join(missing)}; copy it again whole, or train it again"
        )
    return folder, provenance.read(folder, "pipeline")

"""Trained models on disk: find the folder of a VQ-VAE or a pipeline and read its description. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shards import provenance
from shards.errors import UserError
from shards.packed import open_packed
from shards.validation import written

GEOMETRY_FILE = "geometry.json"  # of a VQ-VAE folder
# What a pipeline folder must hold to be loaded.
PARTS = (
    "model_index.json",
    "vqvae/config.json",
    "vqvae/diffusion_pytorch_model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
)


def find_vqvae(path: Path) -> Path:
    """Return the VQModel folder of a path: itself, or best/ of a run folder.

    Raises UserError where there is none, naming a file of it that is missing or cut.
    """
    _require_whole(path)
    for folder in (path, path / "best"):
        if (folder / GEOMETRY_FILE).is_file():
            return folder
    raise UserError(f"{path} holds no trained VQ-VAE (neither it nor its best/ has {GEOMETRY_FILE}); run train-vqvae")


def load_geometry(path: Path) -> dict[str, Any]:
    """Return {"image_shape": [H, W, C], "latent_shape": [c, h, w], "floor", "colormap"} of a VQ-VAE folder."""
    return json.loads((find_vqvae(path) / GEOMETRY_FILE).read_text(encoding="utf-8"))


def packing_options_of(vqvae: Path) -> tuple[int | str, dict[str, Any]]:
    """Return image size and packing options of the images that trained a VQ-VAE."""
    folder = find_vqvae(vqvae)
    return _packing_options(load_geometry(folder)["image_shape"], provenance.read(folder, "vqvae")["config"])


def packing_options_of_pipeline(pipeline: Path) -> tuple[int | str, dict[str, Any]]:
    """Return image size and packing options of the images that trained a pipeline."""
    folder, made = find_pipeline(pipeline)
    model = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return _packing_options(model["image_shape"], made["config"])


def _packing_options(image_shape: list[int], config: dict[str, Any]) -> tuple[int | str, dict[str, Any]]:
    height, width, channels = image_shape
    options: dict[str, Any] = {name: config[name] for name in ("group_by", "image_mode", "colormap") if name in config}
    if channels == 1 and options.get("image_mode") == "auto":  # its packed folder may have been coloured pictures
        options["image_mode"] = "gray"
    return written(height, width), options


def open_images(data_dir: Path, vqvae: Path) -> Path:
    """Return the packed folder of `data_dir`; an image folder is packed with the options that the VQ-VAE was given.

    So images that trained the VQ-VAE stay training images. Raises UserError as `open_packed` does.
    """
    size, options = packing_options_of(vqvae)
    return open_packed(data_dir, size, **options)


def find_pipeline(path: Path) -> tuple[Path, dict]:
    """Return (pipeline folder, its provenance) of a pipeline folder or a train-ldm run (`best/` before `pipeline/`).

    Raises:
        UserError: there is none, or some of its parts are missing or cut, which it names.
    """
    _require_whole(path)
    for folder in (path, path / "best", path / "pipeline"):
        if (folder / "model_index.json").is_file():
            break
    else:
        raise UserError(
            f"{path} holds no pipeline (no model_index.json there, in best/ or in pipeline/); "
            "name the output folder of 'mdaug train-ldm'"
        )
    missing = [part for part in PARTS if not (folder / part).is_file()]
    if missing:
        raise UserError(
            f"the pipeline {folder} is missing {', '.join(missing)}; copy it again whole, or train it again"
        )
    return folder, provenance.read(folder, "pipeline")


def _require_whole(path: Path) -> None:
    """Raise UserError where a finished run has lost files of best/, or a model folder any of its own."""
    for folder in (path, path / "best"):
        kind = (provenance.load(folder) or {}).get("kind", "")
        provenance.require_whole(folder, "best/" if kind.endswith("-run") else "")

"""Where a training begins with `--init_from`: the weights of a trained VQ-VAE or pipeline, its classes found by name.

The averaged weights are taken, as pipelines hold them. Weights that are only adapted in part (low-rank adapters, frozen
levels) are not offered: on a few images nothing here has shown them to be better.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel

from mdaug import distributed
from mdaug.artifacts import find_pipeline, find_vqvae, load_geometry
from mdaug.models.hybrid_unet import HybridUNet2DModel
from mdaug.models.vqvae import TrainableVQVAE
from mdaug.training.options import TrainingConfig
from mdaug.training.options_ldm import LDMConfig
from shards import provenance
from shards.errors import UserError
from shards.validation import plain

FREE = ("num_classes", "augment_size", "dropout")  # in which a U-Net may differ from the one whose weights it takes
OBJECTIVE = ("prediction_type", "beta_schedule", "rescale_betas_zero_snr", "num_train_timesteps")
AUGMENT = "augment_embedding.weight"
CLASSES = "class_embedding.weight"


def made_from(options: TrainingConfig) -> dict[str, str | None]:
    """Return {"init_from": content hash}, None where the training begins anew; raises UserError for no such model."""
    if options.init_from is None:
        return {"init_from": None}
    if isinstance(options, LDMConfig):
        return {"init_from": find_pipeline(options.init_from)[1]["hash"]}
    return {"init_from": _find_vqvae(options.init_from)[1]}


def _find_vqvae(path: Path) -> tuple[Path, str, dict[str, Any]]:
    """Return (VQModel folder, content hash, {"image_shape", "latent_shape"}) of a VQ-VAE or a pipeline."""
    try:
        folder, made = find_pipeline(path)
    except UserError:
        folder = find_vqvae(path)
        return folder, provenance.read(folder, "vqvae")["hash"], load_geometry(folder)
    return folder / "vqvae", made["hash"], _read(folder / "model_index.json")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def start_vqvae(path: Path, module: TrainableVQVAE, config: Mapping[str, Any], image_shape: Sequence[int]) -> None:
    """Give a VQ-VAE, its codes included, the weights of a trained one.

    Args:
        path: the folder of `--init_from`.
        module: the network.
        config: configuration of its VQModel.
        image_shape: [H, W, C] of the images.

    Raises:
        UserError: a VQ-VAE of another architecture or image shape.
    """
    folder, _, geometry = _find_vqvae(path)
    there = _read(folder / "config.json")
    pairs = {name: (there.get(name), plain(value)) for name, value in config.items() if name[0] != "_"}
    _require_alike(path, {"image_shape": (geometry["image_shape"], list(image_shape)), **pairs})
    state = VQModel.from_pretrained(folder).state_dict()
    codes = state.pop("quantize.embedding.weight")
    module.load_state_dict(state, strict=False)  # the codebook has buffers of its own
    module.codebook.start_at(codes)
    _say(f"starts from the VQ-VAE {folder}, {len(codes)} codes; a discriminator starts anew")


def start_unet(
    path: Path,
    unet: HybridUNet2DModel,
    options: LDMConfig,
    classes: Sequence[str],
    latent_shape: Sequence[int],
    vqvae: str | None,
) -> None:
    """Give a U-Net the averaged weights of a trained pipeline.

    The embedding of a class is that of the class of the same name; one that is new starts as the mean of the known
    ones, and the one of no class is kept.

    Args:
        path: the folder of `--init_from`.
        unet: the network.
        options: the options of the training.
        classes: class names of the model.
        latent_shape: [c, h, w].
        vqvae: content hash of the VQ-VAE.

    Raises:
        UserError: a pipeline with another latent shape, architecture or objective, or with other conditions.
    """
    folder, made = find_pipeline(path)
    index, there = _read(folder / "model_index.json"), _read(folder / "unet" / "config.json")
    known: list[str] = index["classes"]
    names = (index.get("conditions") or {"names": []})["names"]
    alike = {
        "latent shape": (index["latent_shape"], list(latent_shape)),
        "conditions": (names, list(options.condition_on)),
        **{name: (made["config"].get(name), getattr(options, name)) for name in OBJECTIVE if name in made["config"]},
        **{name: (there[name], plain(value)) for name, value in unet.config.items() if name in there},
    }
    _require_alike(path, {name: pair for name, pair in alike.items() if name not in FREE and name[0] != "_"})
    # The weights, then the classes by name.
    state = HybridUNet2DModel.from_pretrained(folder, subfolder="unet").state_dict()
    if unet.augment_embedding is None:
        state.pop(AUGMENT, None)
    else:
        state.setdefault(AUGMENT, unet.state_dict()[AUGMENT])
    rows = state[CLASSES]
    mean = rows[:-1].mean(0)
    found = [rows[known.index(name)] if name in known else mean for name in classes]
    state[CLASSES] = torch.stack([*found, rows[-1]])
    unet.load_state_dict(state)
    # What became of the classes, in one line.
    parts = [
        f"{said} {', '.join(some)}"
        for said, some in (
            ("classes found by name:", [name for name in classes if name in known]),
            ("new, as the mean of the known ones:", [name for name in classes if name not in known]),
            ("left out:", [name for name in known if name not in classes]),
        )
        if some
    ]
    if vqvae != made["made_from"].get("vqvae"):
        parts.append("its VQ-VAE was another one, so the latents are not the ones it knows")
    _say(f"starts from the averaged weights of {folder}; {'; '.join(parts)}")


def _require_alike(path: Path, pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse weights of another network, naming what differs."""
    different = [f"{name} {there} there, {here} here" for name, (there, here) in pairs.items() if there != here]
    if different:
        raise UserError(
            f"--init_from {path} holds a network that does not fit: {'; '.join(different)}; give the options it was "
            "trained with, or begin without it"
        )


def _say(text: str) -> None:
    if distributed.is_main():
        print(text, flush=True)

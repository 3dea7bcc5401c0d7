"""`mdaug distil`: assembly of the run."""

from __future__ import annotations

import json
from pathlib import Path

from mdaug.artifacts import find_pipeline, find_vqvae
from mdaug.training import train_ldm
from mdaug.training.consistency import ConsistencyTask, denoiser_options
from mdaug.training.options_ldm import DistilConfig
from shards import provenance
from shards.validation import Preflight


def check(options: DistilConfig, where: Preflight) -> None:
    """Refuse before the start what would be refused at it; raises UserError."""
    network = None
    if where.inputs_there:
        _require_own_vqvae(options)
        network = denoiser_options(options)
    train_ldm.check_with(options, network, where)


def run(options: DistilConfig) -> None:
    """Distil the pipeline; the same command again resumes. Latents are made first where they are missing."""
    folder = _require_own_vqvae(options)
    known = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["classes"]
    train_ldm.assemble(options, denoiser_options(options), ConsistencyTask, known)


def _require_own_vqvae(options: DistilConfig) -> Path:
    """Return the pipeline; refuse another VQ-VAE than its own, whose latents alone the network knows."""
    folder, made = find_pipeline(options.ldm_path)
    vqvae = find_vqvae(options.vqvae_path)
    own = provenance.read(vqvae, "vqvae")["hash"]
    provenance.require_same("VQ-VAE", folder, made["made_from"]["vqvae"], vqvae, own)
    return folder

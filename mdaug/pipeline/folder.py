"""Pipeline folders: written whole or not at all (mdaug/artifacts.py finds them)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shards import atomic, provenance


def save_pipeline(
    pipeline: Any, folder: Path, *, made_from: dict[str, str], config: dict, metrics: dict[str, float] | None = None
) -> str:
    """Write a `MicroDopplerPipeline` with its provenance and return its content hash.

    Args:
        pipeline: the pipeline; its networks may be on any device.
        folder: where to write it; an existing pipeline is replaced.
        made_from: {"images": hash, "vqvae": hash, "latents": hash}.
        config: the resolved configuration of the training, as plain JSON values.
        metrics: what was measured on the validation split, for the model card.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    pipeline.register_to_config(training={"made_from": dict(made_from), "metrics": dict(metrics or {})})
    with atomic.replacing_folder(folder) as temporary:
        pipeline.save_pretrained(temporary)
        files = [*temporary.rglob("*.safetensors"), *temporary.rglob("*.json")]
        content_hash = provenance.hash_files(sorted(files))
        provenance.write(temporary, kind="pipeline", content_hash=content_hash, made_from=made_from, config=config)
    return content_hash

"""The folders of an evaluation: that those it reads belong together, and that the one it writes is its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdaug.artifacts import find_vqvae
from mdaug.config import as_dict, dump, save
from shards import atomic, provenance
from shards.errors import UserError

if TYPE_CHECKING:
    from mdaug.evaluation.options import EvaluateConfig


IDENTITY, RESULTS, PARTS = "evaluation.json", "results", "parts"


def held_out(data_dir: Path) -> Path:
    """Return the split that judges: `test` where there is one, since `val` had a say in which weights are the best."""
    for split in ("test", "val"):
        if (data_dir / split / "index.json").is_file():
            return data_dir / split
    raise UserError(f"{data_dir} has no val split to judge on; pack the images again, into more than one group a class")


def check_origin(config: EvaluateConfig) -> dict[str, str]:
    """Return role -> hash of all inputs after refusing a generator or VQ-VAE that was trained on other images."""
    images = provenance.read(config.data_dir, "images")
    made_from = {"images": images["hash"]}
    inputs = {"synthetic": config.synthetic_dir}
    if config.vqvae_path is not None:
        inputs["vqvae"] = find_vqvae(config.vqvae_path)
    for kind, folder in inputs.items():
        record = provenance.read(folder, kind)
        provenance.require_same("images", config.data_dir, images["hash"], folder, record["made_from"]["images"])
        made_from[kind] = record["hash"]
    if config.simulated_dir is not None:
        made_from["simulated"] = provenance.read(config.simulated_dir, "images")["hash"]
        if made_from["simulated"] == made_from["images"]:
            raise UserError(
                f"simulated_dir {config.simulated_dir} holds the very images of data_dir {config.data_dir}; "
                "name the packed set of a simulator, or leave simulated_dir out"
            )
    return made_from


def check_alike(config: EvaluateConfig) -> None:
    """Refuse synthetic or simulated images of other classes or another shape than the real ones."""
    from shards.dataset import ShardDataset

    real = ShardDataset(config.data_dir / "train")
    others = {config.synthetic_dir: f"generate again with a pipeline trained on {config.data_dir}"}
    if config.simulated_dir is not None:
        others[config.simulated_dir / "train"] = "simulate the same classes, and pack them with the same --image_size"
    for folder, remedy in others.items():
        other = ShardDataset(folder)
        if not (len(real) and len(other)):
            raise UserError(f"{config.data_dir / 'train'} or {folder} holds no images; make it again")
        for what, mine, theirs in (
            ("classes", real.classes, other.classes),
            ("images of (height, width, channels)", real[0]["image"].shape, other[0]["image"].shape),
        ):
            if mine != theirs:
                raise UserError(
                    f"{config.data_dir} and {folder} do not belong together: they hold {what} {mine} and {theirs}; "
                    f"{remedy}"
                )


def refuse_others(config: EvaluateConfig, made_from: dict[str, str]) -> None:
    """Refuse an output folder that holds another evaluation or anything else; touches nothing.

    Inputs count by their content (`made_from`, empty where they are not there yet) and not by their path; the settings
    count all, but not which part is wanted. A VQ-VAE may be named later, for only its own part depends on it.
    """
    folder = config.output_dir
    path = folder / IDENTITY
    # Looked at before the file: another rank that has written anything here has written the file first.
    foreign = folder.exists() and any(entry.name != "logs" and entry.name[0] != "." for entry in folder.iterdir())
    if path.is_file():
        other = json.loads(path.read_text(encoding="utf-8"))
        mine = {**made_from, **_settings(config)}
        theirs = {**(other["made_from"] if made_from else {}), **other["settings"]}
        differing = sorted(name for name in mine | theirs if mine.get(name) != theirs.get(name))
        if differing and not (differing == ["vqvae"] and None in (mine.get("vqvae"), theirs.get("vqvae"))):
            raise UserError(
                f"{folder} holds another evaluation, of other {', '.join(differing)}; "
                "choose another --output_dir or delete that folder"
            )
    elif foreign:
        raise UserError(f"{folder} is not empty and holds no evaluation; choose another --output_dir")


def claim(config: EvaluateConfig, made_from: dict[str, str]) -> None:
    """Make the output folder that of this evaluation; refuse one that holds another or anything else."""
    refuse_others(config, made_from)
    folder = config.output_dir
    path = folder / IDENTITY
    identity = {"made_from": made_from, "settings": _settings(config)}
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, json.dumps(identity, indent=2) + "\n")
        print(dump(config), end="")
        save(config, folder / "config.yaml")
    elif "vqvae" in made_from and "vqvae" not in json.loads(path.read_text(encoding="utf-8"))["made_from"]:
        atomic.write_text(path, json.dumps(identity, indent=2) + "\n")
    for name in (RESULTS, PARTS):
        (folder / name).mkdir(exist_ok=True)


def _settings(config: EvaluateConfig) -> dict[str, Any]:
    left_out = ("part", "workers")
    return {k: v for k, v in as_dict(config).items() if not k.endswith(("_dir", "_path")) and k not in left_out}

"""The folders that an evaluation reads: whether they belong together, and what can be measured on them."""

from __future__ import annotations

from pathlib import Path

from mdaug.artifacts import find_vqvae
from mdaug.evaluation.options import EvaluateConfig, Part
from mdaug.measures import classifier
from shards import provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import FILE_NAME as INDEX
from shards.index import read_index


def check_inputs(options: EvaluateConfig) -> dict[str, str | None]:
    """Return role -> content hash of all inputs; None for a simulated set that was left out, no role for a VQ-VAE.

    Raises:
        UserError: the synthetic images or the VQ-VAE do not come from data_dir, classes or shapes differ, data_dir has
            no split to judge on or only one class where that is not enough, or the classifier cannot be built.
    """
    made_from = _origins(options)
    _require_alike(options)
    held_out(options.data_dir)
    measurable_parts(options)
    train = read_index(options.data_dir / "train")
    classifier.build(options.classifier, train["image_shape"][2], len(train["classes"]), options.image_size)
    return made_from


def held_out(data_dir: Path) -> Path:
    """Return the split that judges: `test` where there is one, since `val` had a say in which weights are the best."""
    for split in ("test", "val"):
        if (data_dir / split / INDEX).is_file() and read_index(data_dir / split)["nsamples"]:
            return data_dir / split
    raise UserError(f"{data_dir / 'val'} is empty, nothing can judge: pack more images, or a larger --val_fraction")


def measurable_parts(options: EvaluateConfig) -> tuple[Part, ...]:
    """Return the parts that are asked for and that the images allow; raises UserError where none is left."""
    classes = read_index(options.data_dir / "train")["classes"]
    if len(classes) > 1:
        return options.parts
    if options.part == "usefulness":
        raise UserError(
            f"{options.data_dir} has only one class ('{classes[0]}'), and a classifier has nothing to tell apart; "
            "measure something else: mdaug evaluate, or evaluate fidelity, kinematics or memorization"
        )
    return tuple(part for part in options.parts if part != "usefulness")


def _origins(options: EvaluateConfig) -> dict[str, str | None]:
    """Return role -> content hash after refusing a generator or VQ-VAE that was trained on other images."""
    images = provenance.read(options.data_dir, "images")["hash"]
    made_from: dict[str, str | None] = {"images": images, "simulated": None}
    # Of a mixed set the synthetic images are measured, see `image_set.load`.
    kinds = {"synthetic": ("synthetic", "mixed"), "vqvae": ("vqvae",)}
    folders = {"synthetic": options.synthetic_dir}
    if options.vqvae_path is not None:
        folders["vqvae"] = find_vqvae(options.vqvae_path)
    for role, folder in folders.items():
        record = provenance.read(folder, *kinds[role])
        provenance.require_same("images", options.data_dir, images, folder, record["made_from"]["images"])
        made_from[role] = record["hash"]
    if options.simulated_dir is not None:
        made_from["simulated"] = provenance.read(options.simulated_dir, "images")["hash"]
        if made_from["simulated"] == images:
            raise UserError(
                f"simulated_dir {options.simulated_dir} holds the very images of data_dir {options.data_dir}; "
                "name the packed set of a simulator, or leave simulated_dir out"
            )
    return made_from


def _require_alike(options: EvaluateConfig) -> None:
    """Refuse synthetic or simulated images of other classes or another shape than the real ones."""
    real = ShardDataset(options.data_dir / "train")
    others = {options.synthetic_dir: f"generate again with a pipeline trained on {options.data_dir}"}
    if options.simulated_dir is not None:
        others[options.simulated_dir / "train"] = "simulate the same classes, and pack them with the same --image_size"
    for folder, remedy in others.items():
        other = ShardDataset(folder)
        if not (len(real) and len(other)):
            raise UserError(f"{options.data_dir / 'train'} or {folder} holds no images; make it again")
        for what, of_real, of_other in (
            ("classes", real.classes, other.classes),
            ("images of (height, width, channels)", real[0]["image"].shape, other[0]["image"].shape),
        ):
            if of_real != of_other:
                raise UserError(
                    f"{options.data_dir} and {folder} do not belong together: they hold {what} {of_real} and "
                    f"{of_other}; {remedy}"
                )

"""The folders that an evaluation reads: whether they belong together, and what can be measured on them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from mdaug.artifacts import find_vqvae
from mdaug.augment import COPIES, RICHER, TODAY, Policy
from mdaug.evaluation.options import EvaluateConfig, Part
from mdaug.measures import auxiliary, classifier, image_set
from mdaug.measures.image_set import ImageSet
from shards import provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import FILE_NAME as INDEX
from shards.index import read_index
from shards.subset import take_per_class


def check_inputs(options: EvaluateConfig) -> dict[str, str | None]:
    """Return role -> content hash of all inputs; None for a set that was left out, no role for a VQ-VAE.

    Raises:
        UserError: the synthetic images or the VQ-VAE do not come from data_dir, classes or shapes differ, data_dir has
            no split to judge on or only one class where that is not enough, the policy cannot be read, or a classifier
            cannot be built.
    """
    made_from = _origins(options)
    _require_alike(options)
    held_out(options.data_dir)
    measurable_parts(options)
    train = read_index(options.data_dir / "train")
    for network in options.classifiers:
        classifier.build(network, train["image_shape"][2], len(train["classes"]), options.image_size)
    made_from["policy"] = hashlib.sha256(json.dumps(policy_of(options.policy).to_json()).encode()).hexdigest()
    return made_from


def policy_of(name: str) -> Policy:
    """Return the transforms that `--policy` names; raises UserError where it is no recipe of `mdaug augment`."""
    named = {"today": TODAY, "richer": replace(RICHER, copies=COPIES)}
    if name in named:
        return named[name]
    try:
        return Policy.from_json(json.loads(Path(name).expanduser().read_text(encoding="utf-8"))["policy"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"policy is '{name}', which is neither {' nor '.join(named)} nor the recipe.json that mdaug augment wrote "
            f"({type(error).__name__}: {error})"
        ) from None


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
    made_from: dict[str, str | None] = {"images": images, "simulated": None, "auxiliary": None, "like_with_like": None}
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
    if options.aux_dir is not None:
        made_from["auxiliary"] = provenance.read(options.aux_dir, "images")["hash"]
    if options.like_with_like is not None:
        digest = hashlib.sha256()
        for chain in chains(options.like_with_like):
            record, packed = provenance.read(chain / "synthetic", "synthetic"), chain / "packed"
            own = provenance.read(packed, "images")["hash"]
            provenance.require_same("images", packed, own, chain / "synthetic", record["made_from"]["images"])
            digest.update(record["hash"].encode())
        made_from["like_with_like"] = digest.hexdigest()
    return made_from


def chains(folder: Path) -> list[Path]:
    """Return the folders of generators, each with packed and synthetic images; raises UserError where there is none."""
    found = sorted(path for path in folder.iterdir() if (path / "packed").is_dir() and (path / "synthetic").is_dir())
    if not found:
        raise UserError(f"{folder} holds no folder with packed and synthetic in it: name the folder above those")
    return found


def load_like(options: EvaluateConfig, train: ImageSet) -> dict[tuple[int | str, int], ImageSet]:
    """Return (real images per class, seed) -> synthetic images of a generator that saw just the images of that arm.

    Raises UserError where a generator saw other images than the classifier of any arm will see.
    """
    found: dict[tuple[int | str, int], ImageSet] = {}
    most = max(train.counts())
    numbers = {n: "all" if int(n) >= most else n for n in options.n_real_per_class if n != "all"}
    sizes = {"image_size": options.image_size, "max_per_class": options.max_per_class}
    for chain in chains(options.like_with_like) if options.like_with_like is not None else ():
        packing = provenance.read(chain / "packed", "images")["config"]
        number, subset = packing.get("train_per_class"), packing.get("subset") or 0
        if number not in numbers or subset >= options.seeds:
            raise UserError(
                f"{chain / 'packed'} holds subset {subset} of {number} training images per class, which no arm uses: "
                "pack it with --train_per_class and --subset, name the number in --n_real_per_class, and take more "
                "--seeds than its subset"
            )
        expected = train.images[take_per_class(train.labels, number, seed=subset)]
        seen = image_set.load(chain / "packed" / "train", **sizes).images
        if sorted(map(auxiliary.digest, seen)) != sorted(map(auxiliary.digest, expected)):
            raise UserError(
                f"{chain / 'packed'} holds other training images than subset {subset} of {number} per class of "
                f"{options.data_dir}: pack the same folder with the same options, and --train_per_class {number} "
                f"--subset {subset}"
            )
        found[numbers[number], subset] = image_set.load(chain / "synthetic", **sizes)
    return found


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

"""Auxiliary images of a training, beside those of `--data_dir`: opened, kept apart, labelled and drawn.

Both splits of an auxiliary set train: what is validated, and the scale of the latents, is the target's alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mdaug import distributed
from mdaug.measures.auxiliary import require_same_colours
from mdaug.measures.image_set import described
from mdaug.training.options import TrainingConfig
from mdaug.training.options_ldm import LDMConfig
from shards import provenance
from shards.dataset import ShardDataset
from shards.errors import UserError
from shards.index import FILE_NAME as INDEX
from shards.index import SPLITS, read_index
from shards.order import STREAM_AUXILIARY, STREAM_ORDER, BalancedOrder, EpochOrder, Order, SharedOrder
from shards.packed import open_packed, packed_hash

NO_CLASS = -1  # label of an auxiliary image that is shown without its class, until the number of classes is known


def folders_of(options: TrainingConfig) -> list[Path]:
    """Return the folders of `--aux_dir`."""
    given = options.aux_dir
    return given if isinstance(given, list) else [given] if given else []


def is_latents(folder: Path) -> bool:
    """Return whether a folder holds latents rather than images."""
    return (provenance.load(folder) or {}).get("kind") == "latents"


def made_from(options: TrainingConfig, opened: Sequence[Path] | None = None) -> dict[str, str | None]:
    """Return {"auxiliary": content hash}, None without auxiliary images; {} where some have to be packed first.

    Args:
        options: the options of the training.
        opened: the folders that `open_sets` returned; None before anything is packed.

    Raises UserError for a packed folder that is not finished or does not fit.
    """
    if not options.aux_dir:
        return {"auxiliary": None}
    hashes = []
    for folder in folders_of(options) if opened is None else opened:
        if is_latents(folder) or opened is not None:
            hashes.append(provenance.read(folder, "images", "latents")["hash"])
        else:
            hashes.append(packed_hash(folder, options.image_size))
    if None in hashes:
        return {}
    return {"auxiliary": hashes[0] if len(hashes) == 1 else hashlib.sha256(json.dumps(hashes).encode()).hexdigest()}


def open_sets(options: TrainingConfig, packed: Path, vqvae: Path | None = None) -> list[Path]:
    """Return the auxiliary folders, image folders packed; every rank calls it.

    Args:
        options: the options of the training.
        packed: the packed target images.
        vqvae: folder of the VQ-VAE; only with it latents are accepted.

    Raises:
        UserError: images of another size, number of channels or colour map; latents of another VQ-VAE; and what
            `open_packed` refuses.
    """
    opened = []
    target = ShardDataset(packed / "train")
    channels = target.index["image_shape"][2]
    for folder in folders_of(options):
        if vqvae is not None and is_latents(folder):
            record = provenance.read(folder, "latents")
            own = provenance.read(vqvae, "vqvae")["hash"]
            provenance.require_same("VQ-VAE", vqvae, own, folder, record["made_from"]["vqvae"])
            opened.append(folder)
            continue
        # Image folders are packed in the form of the target.
        mode = {1: "gray", 3: "rgb"}[channels]
        auxiliary = open_packed(folder, options.image_size, image_mode=mode, colormap=options.colormap)
        require_same_colours(target, ShardDataset(auxiliary / "train"), packed, auxiliary)
        opened.append(auxiliary)
    return opened


def refuse_overlap(options: TrainingConfig, packed: Path, opened: Sequence[Path]) -> None:
    """Raise UserError where auxiliary images are training or held-out images of the target, by pixels.

    Latents hold no pixels; theirs are compared by `refuse_same_latents`. Every rank calls it, one compares.
    """
    images = [folder for folder in opened if not is_latents(folder)]
    if images:
        _refuse_common(options, packed, images, "image")


def refuse_same_latents(options: TrainingConfig, latents: Path, opened: Sequence[Path]) -> None:
    """Raise UserError where latents of `--aux_dir` are those of target images, by bytes; every rank calls it."""
    given = [folder for folder in opened if is_latents(folder)]
    if given:
        _refuse_common(options, latents, given, "array")


def _refuse_common(options: TrainingConfig, target: Path, others: Sequence[Path], field: str) -> None:
    found: str | None = None
    if distributed.is_main():
        try:
            found = _common(options, target, others, field)
        except UserError as error:  # the other ranks wait for an answer
            found = str(error)
    found = distributed.from_main(found)
    if found is not None:
        raise UserError(found)


def _common(options: TrainingConfig, target: Path, others: Sequence[Path], field: str) -> str | None:
    """Return the refusal of the first set that shares samples with the target; None where none does."""
    known = {
        digest: ("training" if split == "train" else "held-out", dataset, i)
        for split in SPLITS
        for digest, dataset, i in _digests(target / split, field)
    }
    for folder in others:
        shared = [
            (known[digest], dataset, i)
            for split in SPLITS
            for digest, dataset, i in _digests(folder / split, field)
            if digest in known
        ]
        if shared:
            what = sorted({side for (side, *_), *_ in shared}, reverse=True)
            (_, twin, at), own, i = shared[0]
            its, theirs = _named(own, i, field), _named(twin, at, field)
            return (
                f"{len(shared)} images of aux_dir {folder} are {' and '.join(what)} images of {options.data_dir}, such "
                f"as {its}, which is {theirs} there; leave them out of the auxiliary folder"
            )
    return None


def _named(dataset: ShardDataset, i: int, field: str) -> str:
    """Return the file that sample i was packed from, of latents its key."""
    return dataset.key(i) if field == "array" else described(dataset, i)[0]


def _digests(folder: Path, field: str) -> Iterator[tuple[bytes, ShardDataset, int]]:
    """Yield the hash and the place of each sample of a split; nothing if the split does not exist."""
    if (folder / INDEX).is_file():
        dataset = ShardDataset(folder, fields=(field,))
        for i in range(len(dataset)):
            yield hashlib.sha256(dataset[i][field].tobytes()).digest(), dataset, i


def splits(folder: Path) -> list[Path]:
    """Return the splits of an auxiliary folder that train."""
    there = [folder / split for split in ("train", "val") if (folder / split / INDEX).is_file()]
    return [split for split in there if read_index(split)["shardlist"]]


def name_classes(options: LDMConfig, target: list[str], opened: Sequence[Path]) -> tuple[list[str], list[np.ndarray]]:
    """Return the auxiliary classes, and for each folder the label in the model of each of its own labels.

    The model's classes are those of the target, then the auxiliary ones; NO_CLASS stands for none of them.

    Raises UserError for a name that is there twice, if `--same_names` does not say what that means.
    """
    classes, origin, places = list(target), dict.fromkeys(target, options.data_dir), []
    for folder in opened:
        names: list[str] = read_index(folder / "train")["classes"]
        told = options.same_names == "same" and names[0] in origin
        if options.aux_labels == "none" or (options.aux_labels == "auto" and len(names) == 1 and not told):
            places.append(np.full(len(names), NO_CLASS))
            continue
        if options.same_names == "ask" and (shared := [name for name in names if name in origin]):
            raise UserError(
                f"class '{shared[0]}' is in {origin[shared[0]]} and in aux_dir {folder}; say --same_names same, if it "
                "is the same class, or --same_names other, if the names agree by chance"
            )
        called = names if options.same_names == "same" else [_free(name, origin) for name in names]
        origin |= dict.fromkeys(called, folder)
        classes += [name for name in called if name not in classes]
        places.append(np.array([classes.index(name) for name in called]))
    return classes[len(target) :], places


def _free(name: str, taken: dict[str, Path]) -> str:
    """Return a name, or "<name> (auxiliary)", "<name> (auxiliary 2)", ... where it is taken."""
    names = [name, f"{name} (auxiliary)", *(f"{name} (auxiliary {i})" for i in range(2, 2 + len(taken)))]
    return next(each for each in names if each not in taken)


def label_apart(sets: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """Return the labels of sets one behind the other, those of each counted on from the ones before.

    Args:
        sets: (labels, number of classes) of each.
    """
    starts = np.cumsum([0, *(count for _, count in sets)])[:-1]
    apart = [labels + start for (labels, _), start in zip(sets, starts, strict=True)]
    return np.concatenate([np.empty(0, np.int64), *apart])


def order_of(
    options: TrainingConfig,
    labels: np.ndarray,
    others: np.ndarray,
    counts: Sequence[int] | None = None,
    other_counts: Sequence[int] | None = None,
) -> Order:
    """Return position -> image: those of the target, then the auxiliary ones.

    Args:
        options: seed, balance and share.
        labels: of the target images.
        others: of the auxiliary ones, empty without any.
        counts, other_counts: images of each of their shards; default: they are shuffled as a whole.
    """

    def order(of: np.ndarray, shards: Sequence[int] | None, stream: int = STREAM_ORDER) -> Order:
        if options.balance_classes:
            return BalancedOrder(of, options.seed, stream, shards)
        return EpochOrder(len(of) if shards is None else shards, options.seed, stream)

    if not len(others):
        return order(labels, counts)
    own, other = order(labels, counts), order(others, other_counts, STREAM_AUXILIARY)
    return SharedOrder(own, other, len(labels), options.aux_share)

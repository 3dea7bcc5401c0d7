"""`mdaug verify FOLDER`, or `python -m shards.verify FOLDER`: is a folder what was written, to the last byte?"""

from __future__ import annotations

import hashlib
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shards import provenance
from shards.dataset import DECODERS
from shards.errors import UserError
from shards.index import FILE_NAME, SPLITS, content_hash, index_hash, read_index
from shards.options import VerifyConfig
from shards.samples import FIELDS
from shards.writer import finished

FIELD_OF = {extension: field for field, extensions in FIELDS.items() for extension in extensions}
MISSING, DAMAGED, CONSTANT = "missing", "damaged", "constant"


def verify(folder: Path) -> list[str]:
    """Check the files of a finished folder by their hashes, and shards, there or in its splits, down to every sample.

    Returns:
        One sentence per fault; empty if all is well.

    Raises:
        UserError: there is nothing to compare with.
    """
    record = provenance.load(folder)
    lost = {} if record is None else dict(provenance.lost(folder, shards=False))
    problems = [f"{folder / name} {why}" for name, why in lost.items()]
    for name, (_, sha256) in (record or {}).get("files", {}).items():
        if name not in lost and sha256 is not None and provenance.sha256_of(folder / name) != sha256:
            problems.append(f"{folder / name} was changed since it was written (sha256)")
    parts = [part for part in (folder, *(folder / split for split in SPLITS)) if (part / FILE_NAME).is_file()]
    if not parts and record is None:
        raise UserError(f"{folder} is neither a finished folder of mdaug nor one of shards: no {provenance.FILE_NAME}")
    try:
        problems += [problem for part in parts for problem in _folder_problems(part)]
        if parts and record and record["hash"] != content_hash(folder):
            problems.append(f"{folder / provenance.FILE_NAME} names another content than the index")
    except UserError as error:  # an index that cannot be read
        problems.append(str(error))
    return list(dict.fromkeys(problems))


def run(options: VerifyConfig) -> None:
    """`mdaug verify`: print what is wrong with a folder; raises UserError where anything is."""
    problems = verify(options.folder)
    for problem in problems:
        print(problem)
    if problems:
        raise UserError(
            f"{options.folder}: {len(problems)} fault(s), named above; delete these files and run the command that "
            "made the folder again: it makes what is missing, or says why it cannot"
        )
    print(f"{options.folder}: all files are as they were written, and all shards whole and readable")


@dataclass
class Inspection:
    """What one shard holds, read to the last pixel.

    Attributes:
        shard: file name.
        faults: "missing", "damaged" or "constant" (an image of one colour) -> names of what it is in.
        problems: a sentence for everything that is missing or damaged.
        rows: key, file, label, shard and the content of the json of each sample.
        statistics: those of the sidecar.
    """

    shard: str
    faults: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)
    statistics: dict = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing or damaged."""
        return not self.problems

    def fault(self, kind: str, problem: str) -> None:
        """Record a fault of the whole shard or of one of its samples."""
        self.faults[kind] = [self.shard]
        self.problems.append(problem)


def inspect(
    path: Path,
    keys: list[str] | None = None,
    labels: list[int] | None = None,
    image_shape: list[int] | None = None,
    classes: int | None = None,
) -> Inspection:
    """Compare a shard with its sidecar and with what is expected of it, and decode every sample.

    Args:
        path: the tar.
        keys: of the samples that it must hold, where they are known.
        labels: theirs, where they are known.
        image_shape: [H, W, C] of every image, where it is known.
        classes: number of classes, where it is known.
    """
    found = Inspection(path.name)
    record = finished(path)
    if record is None:
        found.fault(MISSING, f"{path} is missing, cut, or has no sidecar")
        return found
    found.statistics = record["statistics"]
    if keys not in (None, record["keys"]) or labels not in (None, record["labels"]):
        found.fault(DAMAGED, f"{path} does not hold the samples that it must")
    # The bytes, and where the members lie in them.
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        found.fault(DAMAGED, f"{path} has other bytes than its sidecar says (sha256)")
    try:
        with tarfile.open(path) as tar:
            members = {member.name: [member.offset_data, member.size] for member in tar}
    except (tarfile.TarError, ValueError) as error:
        found.fault(DAMAGED, f"{path} is not a tar: {error}")
        return found
    expected = {
        f"{key}.{extension}": place
        for extension, places in record["members"].items()
        for key, place in zip(record["keys"], places, strict=True)
    }
    if members != expected:
        found.fault(DAMAGED, f"{path} has other members than its sidecar says")
        return found
    # Every sample.
    for key, label in zip(record["keys"], record["labels"], strict=True):
        row = {"key": key, "file": f"{key}.png", "label": label, "shard": path.name}
        for extension in record["members"]:
            offset, size = members[f"{key}.{extension}"]
            data = content[offset : offset + size]
            if extension == "cls":
                if data != str(label).encode() or not 0 <= label < (label + 1 if classes is None else classes):
                    found.fault(DAMAGED, f"{path}: the label of '{key}' is {data!r}")
                continue
            kind = FIELD_OF.get(extension)
            if kind is None:
                found.fault(DAMAGED, f"{path}: {key}.{extension} is of a kind that no reader supports")
                continue
            try:
                value = DECODERS[kind](data)
                if kind == "meta":
                    row.update(value)
            except Exception as error:  # decoders raise many types for damaged bytes
                found.fault(DAMAGED, f"{path}: {key}.{extension} cannot be read: {error}")
                continue
            if kind == "image" and list(value.shape) != (image_shape or list(value.shape)):
                found.fault(DAMAGED, f"{path}: {key}.{extension} has shape {list(value.shape)}, not {image_shape}")
            elif kind == "image" and (value == value[0, 0]).all():
                found.faults.setdefault(CONSTANT, []).append(f"{path.name}: {key}")
        found.rows.append(row)
    return found


def _folder_problems(folder: Path) -> Iterator[str]:
    """Yield a sentence for each difference between an index, the sidecars and the shards, and within the shards."""
    index = read_index(folder)
    listed = [entry["url"] for entry in index["shardlist"]]
    if index_hash(index) != index["hash"]:
        yield f"{folder / FILE_NAME} was changed: its hash is not that of its shard list"
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed and finished(path):
            yield f"{path} is not in the index"
    keys: dict[str, str] = {}
    for entry in index["shardlist"]:
        path = folder / entry["url"]
        record = finished(path)
        if record is not None:
            in_index = [entry["nsamples"], entry["filesize"], entry["sha256"]]
            if [record["count"], record["bytes"], record["sha256"]] != in_index:
                yield f"{path.with_suffix('.json')} and the index differ"
            for key in record["keys"]:
                if keys.setdefault(key, path.name) != path.name:
                    yield f"{path}: key '{key}' is also in {keys[key]}"
        yield from inspect(path, image_shape=index.get("image_shape"), classes=len(index["classes"])).problems


def main() -> int:
    """Verify the folder named on the command line; the exit status is 0 where all is well, 1 where it is not."""
    if len(sys.argv) != 2:
        print("usage: python -m shards.verify FOLDER", file=sys.stderr)
        return 2
    try:
        problems = verify(Path(sys.argv[1]))
    except UserError as error:
        problems = [str(error)]
    print("\n".join(problems) or f"{sys.argv[1]}: all shards are whole, readable and as the index says")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

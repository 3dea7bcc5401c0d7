"""`python -m shards.verify FOLDER`: are the shards what the index says, whole and readable?"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from shards import provenance
from shards.dataset import DECODERS, FIELDS
from shards.errors import UserError
from shards.index import FILE_NAME, SPLITS, content_hash, index_hash, read_index
from shards.writer import finished

FIELD_OF = {extension: field for field, extensions in FIELDS.items() for extension in extensions}


def verify(folder: Path) -> list[str]:
    """Check a folder of shards, or a data set with such folders train, val and test, down to every sample.

    Returns:
        One sentence per fault; empty if all is well.

    Raises:
        UserError: there is no index to compare with.
    """
    parts = [folder]
    if not (folder / FILE_NAME).is_file():
        parts = [folder / split for split in SPLITS if split == "train" or (folder / split).is_dir()]
    problems = [problem for part in parts for problem in _folder_problems(part)]
    record = folder / provenance.FILE_NAME
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["hash"] != content_hash(folder):
        problems.append(f"{record} names another content than the index")
    return problems


def _folder_problems(folder: Path) -> Iterator[str]:
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
        if record is None:
            yield f"{path} is missing, cut, or has no sidecar"
            continue
        if [record["count"], record["bytes"], record["sha256"]] != [
            entry["nsamples"],
            entry["filesize"],
            entry["sha256"],
        ]:
            yield f"{path.with_suffix('.json')} and the index differ"
        for key in record["keys"]:
            if keys.setdefault(key, path.name) != path.name:
                yield f"{path}: key '{key}' is also in {keys[key]}"
        yield from _shard_problems(path, record, index)


def _shard_problems(path: Path, record: dict, index: dict) -> Iterator[str]:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        yield f"{path} has other bytes than its sidecar says (sha256)"
    try:
        with tarfile.open(path) as tar:
            members = {member.name: [member.offset_data, member.size] for member in tar}
    except (tarfile.TarError, ValueError) as error:
        yield f"{path} is not a tar: {error}"
        return
    expected = {
        f"{key}.{extension}": place
        for extension, places in record["members"].items()
        for key, place in zip(record["keys"], places, strict=True)
    }
    if members != expected:
        yield f"{path} has other members than its sidecar says"
        return
    for key, label in zip(record["keys"], record["labels"], strict=True):
        for extension in record["members"]:
            offset, size = members[f"{key}.{extension}"]
            data = content[offset : offset + size]
            if extension == "cls":
                if data != str(label).encode() or not 0 <= label < len(index["classes"]):
                    yield f"{path}: the label of '{key}' is {data!r}"
            elif problem := _sample_problem(FIELD_OF.get(extension), data, index):
                yield f"{path}: {key}.{extension} {problem}"


def _sample_problem(field: str | None, data: bytes, index: dict) -> str | None:
    if field is None:
        return "is of a kind that no reader knows"
    try:
        value = DECODERS[field](data)
    except Exception as error:  # whatever a decoder says about damaged bytes
        return f"cannot be read: {error}"
    if field == "image" and list(value.shape) != index.get("image_shape", list(value.shape)):
        return f"has shape {list(value.shape)}, the index says {index['image_shape']}"
    return None


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

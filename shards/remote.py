"""Packed folders in a remote store (`s3://`, `gs://`, `https://`): fetched once per node through fsspec."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

import fsspec

from shards import atomic, provenance, samples
from shards.errors import UserError
from shards.index import FILE_NAME, SPLITS
from shards.output_folder import RUN_FILE, exclusive
from shards.writer import disk_full_as_user_error, finished

# Files of a data set besides its shards and its provenance.
BESIDE = ("classes.json", "statistics.json", "report.json", RUN_FILE)


def url_of(path: str | Path) -> str | None:
    """Return the URL in a path, also where pathlib has made it `s3:/bucket`; None for a local path."""
    match = re.fullmatch(r"([a-z][a-z0-9]+):/{1,2}([^/].*)", str(path))
    return f"{match.group(1)}://{match.group(2)}" if match else None


def fetch(url: str, cache_dir: Path | None = None) -> Path:
    """Return a local copy of a packed folder.

    Shards that are here already, with the hash in the remote index, are not fetched again. The processes of a node may
    call this at once: one fetches, the others wait.

    Args:
        url: the folder, in a protocol of fsspec; commands (`pipe:`) are not.
        cache_dir: default: `mdaug-<user id>` in the temporary folder of this node (TMPDIR).

    Raises:
        UserError: an unknown protocol, a file that is missing or not readable there, or bytes that are not those that
            the index names.
    """
    cache_dir = cache_dir or Path(tempfile.gettempdir()) / f"mdaug-{os.getuid()}"
    local = cache_dir / hashlib.sha256(url.encode()).hexdigest()[:32]
    local.mkdir(parents=True, exist_ok=True)
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url} cannot be opened: {error}") from None
    with exclusive(local), disk_full_as_user_error(local):
        _fetch_all(_Remote(filesystem, root.rstrip("/"), url), local)
    return local


class _Remote:
    def __init__(self, filesystem, root: str, url: str):
        self.filesystem, self.root, self.url = filesystem, root, url

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a small file, None where there is none."""
        try:
            return self.filesystem.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return None

    def require(self, name: str) -> bytes:
        data = self.read(name)
        if data is None:
            raise UserError(f"{self.url} is not a finished folder of shards: no {name} there")
        return data

    def download(self, name: str, path: Path, sha256: str) -> None:
        """Copy a file in blocks, and give it its name only if its hash is right."""
        digest = hashlib.sha256()
        try:
            with self.filesystem.open(f"{self.root}/{name}", "rb") as source, atomic.replacing(path) as target:
                while block := source.read(1 << 20):
                    digest.update(block)
                    target.write(block)
                if digest.hexdigest() != sha256:
                    raise UserError(
                        f"{self.url}/{name} is not what the index there names (sha256); write it there again"
                    )
        except FileNotFoundError:
            raise UserError(f"{self.url}/{name} is in the index but not there; write it there again") from None


def _fetch_all(remote: _Remote, local: Path) -> None:
    """Fetch what differs; the provenance last, since it marks the rest as complete."""
    made = remote.require(provenance.FILE_NAME).decode()
    for split in SPLITS:
        text = remote.require(f"{split}/{FILE_NAME}") if split == "train" else remote.read(f"{split}/{FILE_NAME}")
        if text is None:
            continue
        (local / split).mkdir(exist_ok=True)
        for entry in json.loads(text)["shardlist"]:
            name = entry["url"]
            if not re.fullmatch(r"[A-Za-z0-9_-]+\.tar", name):
                raise UserError(f"{remote.url}/{split}/{FILE_NAME} names a shard '{name}', not a plain file name")
            path = local / split / name
            record = finished(path)
            if record is None or record["sha256"] != entry["sha256"]:
                path.with_suffix(".json").unlink(missing_ok=True)
                remote.download(f"{split}/{name}", path, entry["sha256"])
                sidecar = remote.require(f"{split}/{path.stem}.json")
                atomic.write_text(path.with_suffix(".json"), sidecar.decode())
        samples.write(local / split, json.loads(text))
        atomic.write_text(local / split / FILE_NAME, text.decode())
    for name in BESIDE:
        if (data := remote.read(name)) is not None:
            atomic.write_text(local / name, data.decode())
    atomic.write_text(local / provenance.FILE_NAME, made)

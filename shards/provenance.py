"""Which step made a folder, and from what: `provenance.json`, and the refusal of folders that do not fit together."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shards import atomic
from shards.errors import UserError

FILE_NAME = "provenance.json"
VERSION_FILE = "CODE_VERSION"  # beside the packages, in a copy of them outside of a checkout


def hash_files(paths: Iterable[Path]) -> str:
    """Return the sha256 over the names and bytes of files, taken in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(path.name.encode() + b"\0")
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write(
    folder: Path, *, kind: str, content_hash: str, made_from: dict[str, str], config: dict, note: str = ""
) -> None:
    """Write `provenance.json` into `folder`, as the last file of the step that made it.

    Args:
        folder: the folder that the step has made.
        kind: what it holds: "images", "latents", "vqvae", "pipeline", "synthetic", "mixed" or "evaluation".
        content_hash: sha256 of what it holds; a later step repeats it in its own `made_from`.
        made_from: role -> content hash of every folder it was made from, such as {"images": ..., "vqvae": ...}.
        config: the resolved configuration of the step, as plain JSON values.
        note: a remark on how the step ended, such as why a training stopped early.
    """
    record = {
        "kind": kind,
        "hash": content_hash,
        "made_from": made_from,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": code_version(),
        "config": config,
        **({"note": note} if note else {}),
    }
    atomic.write_text(folder / FILE_NAME, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read(folder: Path, *kinds: str) -> dict:
    """Return the provenance of `folder`, or raise UserError if it is not a finished folder of one of the kinds."""
    path, kind = folder / FILE_NAME, "' or '".join(kinds)
    if not path.is_file():
        raise UserError(f"{folder} is not a finished '{kind}' folder: no {FILE_NAME}; run the step that makes it")
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["kind"] not in kinds:
        raise UserError(f"{folder} holds '{record['kind']}', but '{kind}' is needed here; name a folder of that")
    return record


def require_same(role: str, first: Path, first_hash: str, second: Path, second_hash: str) -> None:
    """Refuse two folders that were made from different things in the same role.

    Raises UserError naming both folders and both hashes.
    """
    if first_hash != second_hash:
        raise UserError(
            f"{first} and {second} do not belong together: their {role} differ "
            f"({first_hash[:12]} against {second_hash[:12]}); make one of them again from the other's {role}"
        )


@functools.cache
def code_version() -> str:
    """Return the version of mdaug, with the git commit in a checkout, or in a copy of one that records it."""
    root = Path(__file__).parents[1]
    if (root / VERSION_FILE).is_file():
        return (root / VERSION_FILE).read_text(encoding="utf-8").strip()
    try:
        release = version("mdaug")
    except PackageNotFoundError:
        release = "unknown"
    if shutil.which("git") is None or not (root / ".git").exists():  # an environment may lie in another checkout
        return release
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    described = subprocess.run(command, capture_output=True, text=True)
    return f"{release}+{described.stdout.strip()}" if described.returncode == 0 else release

"""The folder that a packing writes: one process at a time, for one plan, until it is whole."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from shards import atomic, provenance
from shards.errors import UserError
from shards.index import FILE_NAME as INDEX
from shards.index import read_index
from shards.writer import finished

PLAN, REPORT, LOCK = "plan.json", "report.json", ".lock"


def require_apart(data_dir: Path, output: Path) -> None:
    """Refuse to write into the image folder that is read."""
    source, target = data_dir.resolve(), output.resolve()
    if target == source or source in target.parents:
        raise UserError(f"output_dir {output} lies inside data_dir {data_dir}; choose a folder outside of it")


def lock(output: Path) -> contextlib.AbstractContextManager[None]:
    """Let one process at a time pack into a folder; the others wait and then find it finished."""
    return atomic.locked(output / LOCK, lambda: say(f"waiting for another process that packs into {output}"))


def read_plan(output: Path, options: dict[str, Any]) -> dict[str, Any] | None:
    """Return the plan of an earlier run into this folder, None for an empty one; refuse what does not fit."""
    path = output / PLAN
    if not path.is_file():
        if others := sorted(entry.name for entry in output.iterdir() if not entry.name.startswith(".")):
            raise UserError(
                f"output_dir {output} holds something else ('{others[0]}'); choose an empty or a new folder"
            )
        return None
    plan = json.loads(path.read_text(encoding="utf-8"))
    before, now = plan["options"], options
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UserError(
                f"output_dir {output} holds another packing: {name} is {before.get(name)} there and {now.get(name)} "
                "here; choose another output_dir or delete that one"
            )
    return plan


def write_plan(output: Path, before: dict[str, Any] | None, record: dict[str, Any]) -> None:
    """Record what the folder is going to hold, or refuse if it already holds a packing of other images.

    Args:
        output: the folder.
        before: its plan of an earlier run, or None.
        record: the plan: "options", "data_dir", "files" (how many), "listing" and "source" (its hashes).
    """
    if before and before["source"] != record["source"]:
        raise UserError(
            f"output_dir {output} holds a packing of other images ({before['files']} files of {before['data_dir']}; "
            f"now {record['files']} files of {record['data_dir']}, or others); choose another output_dir "
            "or delete that one"
        )
    atomic.write_text(output / PLAN, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def is_complete(output: Path) -> bool:
    """Tell whether a packing came to its end and still has all its shards."""
    if not (output / provenance.FILE_NAME).is_file():
        return False
    sides = [output / side for side in json.loads((output / REPORT).read_text(encoding="utf-8"))["splits"]]
    if not all((side / INDEX).is_file() for side in sides):
        return False
    return all(finished(side / shard["url"]) for side in sides for shard in read_index(side)["shardlist"])


def say(text: str) -> None:
    """Print on the first rank alone."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)

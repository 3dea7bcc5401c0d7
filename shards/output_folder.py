"""The output folder of one run of one command: which run it belongs to, how far it is, whether it is finished.

    run.json         first: the command, the options that decide what it makes, the hashes of what it is made from
    progress.json    while it runs: how much is done of how much; gone at the end
    provenance.json  last: the content hash. A folder with it is finished.

The same command continues in its folder; anything else is refused, and nothing is touched. The launcher reads the first
two and needs nothing else from a command.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards import atomic, provenance
from shards.errors import UserError
from shards.writer import require_writable

RUN_FILE, PROGRESS_FILE, LOCK_FILE, CLAIM_LOCK = "run.json", "progress.json", ".lock", ".claim"
FORMAT = 1  # of run.json; a folder of another one is refused
EVERY_S = 5.0  # seconds between two writings of progress.json
LOGS = "logs"  # of the launcher, which makes it before the command starts
LISTING_FILE = ".listing"  # hash of names, sizes and times of the input files: equal where nothing need be read again


@dataclass(frozen=True)
class Progress:
    """How far a run is, as `progress.json` keeps it.

    Attributes:
        done, total: units made so far, and units at the end.
        unit: what is counted, such as "image", "shard" or "sample".
        saved: units that a killed run would still have; a training has more done than saved.
        time: when this was written, in seconds since the epoch.
        began_done, began_time: the same when this process began, from which a rate follows.
        note: further text, such as the loss of a training.
    """

    done: int
    total: int
    unit: str
    saved: int
    time: float
    began_done: int
    began_time: float
    note: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Return the time until all is done at the rate since this process began; None before there is a rate."""
        made, seconds = self.done - self.began_done, self.time - self.began_time
        return (self.total - self.done) * seconds / made if made > 0 and seconds > 0 else None


class OutputFolder:
    """The folder of a run; `claim` returns it."""

    def __init__(self, path: Path, command: str, made_from: Mapping[str, str | None]):
        self.path, self.command, self.made_from = path, command, dict(made_from)
        self._began: tuple[int, float] | None = None
        self._saved: int | None = None
        self._written = -EVERY_S

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return is_finished(self.path)

    @property
    def progress_due(self) -> bool:
        """Whether `progress` would write now, for counts that cost something."""
        return time.monotonic() - self._written >= EVERY_S

    def progress(self, done: int, total: int, unit: str, *, saved: int | None = None, note: str = "") -> None:
        """Write `progress.json`, at most every few seconds except when all is done or another number is `saved`."""
        now = time.time()
        self._began = self._began or (done, now)
        if done < total and saved == self._saved and not self.progress_due:
            return
        self._written, self._saved = time.monotonic(), saved
        record = Progress(done, total, unit, done if saved is None else saved, now, *self._began, note)
        atomic.write_text(self.path / PROGRESS_FILE, json.dumps(asdict(record)) + "\n")

    def begin_again(self) -> None:
        """Remove the mark of the end, before anything in a finished folder is changed."""
        (self.path / provenance.FILE_NAME).unlink(missing_ok=True)

    def finish(self, kind: str, content_hash: str, config: dict[str, Any], note: str = "") -> None:
        """Write `provenance.json`, which makes the folder finished; see `provenance.write`."""
        (self.path / PROGRESS_FILE).unlink(missing_ok=True)
        made_from = {role: content for role, content in self.made_from.items() if content is not None}
        provenance.write(self.path, kind=kind, content_hash=content_hash, made_from=made_from, config=config, note=note)


def claim(
    path: Path, command: str, identity: Mapping[str, Any], made_from: Mapping[str, str | None] | None = None
) -> OutputFolder:
    """Make `path` the folder of this run, or continue there; `run.json` is the first file in it.

    Any number of processes of one run may claim it at once.

    Args:
        path: the output folder.
        command: the command of mdaug.
        identity: option -> plain JSON value of all that decides what is made (`validation.identity_of`).
        made_from: role -> content hash of the inputs, None for an input that was left out. A role that is absent from
            the mapping is not compared, and may join later.

    Raises:
        UserError: the folder belongs to another run or holds other files (see `refuse_other`), or cannot be written.
    """
    made_from = made_from or {}
    refuse_other(path, command, identity, made_from)
    saved = read_run(path)
    if saved is None or not made_from.keys() <= saved["made_from"].keys():
        require_writable(path)
        path.mkdir(parents=True, exist_ok=True)
        with atomic.locked(path / CLAIM_LOCK):
            refuse_other(path, command, identity, made_from)
            saved = read_run(path) or {"made_from": {}}
            record = {
                "format": FORMAT,
                "command": command,
                "made_from": {**saved["made_from"], **made_from},
                "identity": dict(identity),
            }
            atomic.write_text(path / RUN_FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return OutputFolder(path, command, {**(saved or {}).get("made_from", {}), **made_from})


def refuse_other(
    path: Path, command: str, identity: Mapping[str, Any], made_from: Mapping[str, str | None] | None = None
) -> None:
    """Raise UserError where a folder belongs to another run, naming every difference, or holds other files.

    Touches nothing. The arguments are those of `claim`.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give a folder as --output_dir")
    # Looked at before run.json: another process of this run that has written anything has written run.json first.
    others = sorted(e.name for e in path.iterdir() if e.name[0] != "." and e.name != LOGS) if path.is_dir() else []
    saved = read_run(path)
    if saved is None:
        if others:
            raise UserError(
                f"{path} holds other files ('{others[0]}') and no {RUN_FILE}: it is not the output of this version's "
                f"mdaug {command}; choose an empty or new --output_dir, or delete that folder"
            )
        return
    if saved["command"] != command:
        raise UserError(
            f"{path} holds the output of mdaug {saved['command']}, not of mdaug {command}; choose another --output_dir"
        )
    now = json.loads(json.dumps(dict(identity)))
    pairs = {name: (saved["identity"].get(name), now.get(name)) for name in dict.fromkeys([*now, *saved["identity"]])}
    for role, content in (made_from or {}).items():
        if role in saved["made_from"]:
            pairs[f"made from {role}"] = (saved["made_from"][role] or "none")[:12], (content or "none")[:12]
    differences = [f"{name}: {old!s:.200} there, {new!s:.200} now" for name, (old, new) in pairs.items() if old != new]
    if differences:
        raise UserError(
            f"{path} belongs to another run of mdaug {command} ({'; '.join(differences)}); "
            "choose another --output_dir, or delete that folder"
        )


def read_run(path: Path) -> dict[str, Any] | None:
    """Return {"format", "command", "identity", "made_from"} of a folder, or None where no run has claimed it.

    Raises UserError for a run of another version of mdaug.
    """
    file = path / RUN_FILE
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["format"] == FORMAT:
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{file} is damaged or of another version of mdaug; choose another --output_dir, or delete {path}")


def read_progress(path: Path) -> Progress | None:
    """Return the progress of the run of a folder, or None where there is no record of it."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Progress(**json.loads((path / PROGRESS_FILE).read_text(encoding="utf-8")))
    return None


def is_finished(path: Path) -> bool:
    """Return whether the run of a folder came to its end."""
    return (path / provenance.FILE_NAME).is_file()


def exclusive(path: Path) -> contextlib.AbstractContextManager[None]:
    """Let one process at a time work in an existing folder; the others wait, and then find what it has made."""

    def waiting() -> None:
        if os.environ.get("RANK", "0") == "0":
            print(f"waiting for another process that writes {path}", flush=True)

    return atomic.locked(path / LOCK_FILE, waiting)


def require_apart(data_dir: Path, output_dir: Path) -> None:
    """Refuse to write into the folder that is read."""
    source, target = data_dir.resolve(), output_dir.resolve()
    if target == source or source in target.parents:
        raise UserError(f"output_dir {output_dir} lies inside data_dir {data_dir}; choose a folder outside of it")

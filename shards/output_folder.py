"""The output folder of one run of one command: which run it belongs to, how far it is, whether it is finished.

    run.json         first: the command, the options that decide what it makes, the hashes of what it is made from
    progress.json    while it runs: how much is done of how much; gone at the end
    provenance.json  last: the content hash, and every file that the folder holds. A folder with it is finished, as long
                     as these files are there; the same command makes again what is missing
    .owner           locked by the process that writes the folder

The same command continues in its folder; anything else is refused, and nothing is touched, unless the run there has
made nothing yet. The launcher reads run.json and progress.json and needs nothing else from a command.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from shards import atomic, provenance
from shards.errors import UserError
from shards.provenance import LOGS, PROGRESS_FILE, RUN_FILE, Lost
from shards.writer import require_writable

LOCK_FILE, CLAIM_LOCK, OWNER_FILE = ".lock", ".claim", ".owner"
FORMAT = 1  # of run.json; a folder of another one is refused
EVERY_S = 5.0  # seconds between two writings of progress.json
LISTING_FILE = ".listing"  # hash of names, sizes and times of the input files: equal where nothing need be read again
NO_RESULTS = (RUN_FILE, PROGRESS_FILE, "config.yaml", "log.txt")  # what a run writes before it has made anything


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
    """The folder of a run; `claim` returns it.

    Attributes:
        path: the folder.
        command: the command of mdaug.
        made_from: role -> content hash of the inputs.
        lost: what a finished folder promises and does not hold, when it was claimed.
    """

    def __init__(self, path: Path, command: str, made_from: Mapping[str, str | None], lost: list[Lost] | None = None):
        self.path, self.command, self.made_from, self.lost = path, command, dict(made_from), lost or []
        self._began: tuple[int, float] | None = None
        self._saved: int | None = None
        self._written = -EVERY_S

    @property
    def finished(self) -> bool:
        """Whether the run came to its end, and nothing was missing when the folder was claimed."""
        return is_finished(self.path) and not self.lost

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
        """Remove the mark of the end, before anything in a finished folder is changed, and what is cut.

        Of several processes the first one does it; for the others the folder is not finished.
        """
        with atomic.locked(self.path / CLAIM_LOCK):
            lost = provenance.lost(self.path)
            for name, _ in lost:
                (self.path / name).unlink(missing_ok=True)
                if name.endswith(".tar"):
                    (self.path / name).with_suffix(".json").unlink(missing_ok=True)
            (self.path / provenance.FILE_NAME).unlink(missing_ok=True)
        if lost:
            print(f"{self.path}: {list_lost(lost)}; making that again", flush=True)
        self.lost = []

    def finish(
        self, kind: str, content_hash: str, config: dict[str, Any], note: str = "", unhashed: tuple[str, ...] = ()
    ) -> None:
        """Write `provenance.json`, which makes the folder finished, and let others write; see `provenance.write`."""
        (self.path / PROGRESS_FILE).unlink(missing_ok=True)
        made_from = {role: content for role, content in self.made_from.items() if content is not None}
        provenance.write(
            self.path,
            kind=kind,
            content_hash=content_hash,
            made_from=made_from,
            config=config,
            note=note,
            unhashed=unhashed,
        )
        self.lost = []
        _disown(self.path)


def list_lost(lost: list[Lost]) -> str:
    """Return a few of what is missing as text."""
    more = f" (and {len(lost) - 3} more)" if len(lost) > 3 else ""
    return ", ".join(f"{name} {why}" for name, why in lost[:3]) + more


def claim(
    path: Path,
    command: str,
    identity: Mapping[str, Any],
    made_from: Mapping[str, str | None] | None = None,
    *,
    wait: bool = False,
    together: bool = False,
) -> OutputFolder:
    """Make `path` the folder of this run, or continue there; `run.json` is the first file in it.

    Until `finish` this process owns the folder, and another one that claims it waits or is refused. A process that
    ends, however it ends, owns nothing. Not covered: file systems without locks, where nobody is refused. A folder that
    is finished and whole is returned without being owned or written to.

    Args:
        path: the output folder.
        command: the command of mdaug.
        identity: option -> plain JSON value of all that decides what is made (`validation.identity_of`).
        made_from: role -> content hash of the inputs, None for an input that was left out. A role that is absent from
            the mapping is not compared, and may join later.
        wait: wait for another owner, rather than be refused.
        together: any number of processes of this run own the folder together.

    Raises:
        UserError: the folder belongs to another run or holds other files (see `refuse_other`), another process writes
            it, or it cannot be written.
    """
    made_from = made_from or {}
    refuse_other(path, command, identity, made_from)
    saved = read_run(path)
    if saved and is_finished(path) and made_from.keys() <= saved["made_from"].keys() and not provenance.lost(path):
        return OutputFolder(path, command, {**saved["made_from"], **made_from})
    require_writable(path)
    path.mkdir(parents=True, exist_ok=True)
    is_new = _own(path, command, wait, together)
    with atomic.locked(path / CLAIM_LOCK):
        # Again: another process may have been here meanwhile.
        refuse_other(path, command, identity, made_from)
        saved = read_run(path)
        if saved and (difference := _difference(path, saved, command, identity, made_from)):
            if not is_new or (together and not _owned_alone(path)):  # that run is alive
                raise UserError(difference)
            print(f"{path} was claimed by another run, which has made nothing: taken over", flush=True)
            saved = None
        if saved is None or not made_from.keys() <= saved["made_from"].keys():
            made_from = {**(saved or {}).get("made_from", {}), **made_from}
            record = {"format": FORMAT, "command": command, "made_from": made_from, "identity": dict(identity)}
            atomic.write_text(path / RUN_FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    made_from = {**(saved or {}).get("made_from", {}), **made_from}
    return OutputFolder(path, command, made_from, provenance.lost(path))


def refuse_other(
    path: Path, command: str, identity: Mapping[str, Any], made_from: Mapping[str, str | None] | None = None
) -> None:
    """Raise UserError where a folder belongs to another run, naming every difference, or holds other files.

    A run that has made nothing yet owns nothing. Touches nothing. The arguments are those of `claim`.
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
    difference = _difference(path, saved, command, identity, made_from or {})
    if difference and _has_results(path):
        raise UserError(difference)


def _difference(
    path: Path,
    saved: dict[str, Any],
    command: str,
    identity: Mapping[str, Any],
    made_from: Mapping[str, str | None],
) -> str | None:
    """Return how the run of a folder differs from another one, as a sentence; None where they are the same."""
    if saved["command"] != command:
        other = saved["command"]
        return f"{path} holds the output of mdaug {other}, not of mdaug {command}; choose another --output_dir"
    now = json.loads(json.dumps(dict(identity)))
    pairs = {name: (saved["identity"].get(name), now.get(name)) for name in dict.fromkeys([*now, *saved["identity"]])}
    for role, content in made_from.items():
        if role in saved["made_from"]:
            pairs[f"made from {role}"] = (saved["made_from"][role] or "none")[:12], (content or "none")[:12]
    differences = [f"{name}: {old!s:.200} there, {new!s:.200} now" for name, (old, new) in pairs.items() if old != new]
    if not differences:
        return None
    return (
        f"{path} belongs to another run of mdaug {command} ({'; '.join(differences)}); "
        "choose another --output_dir, or delete that folder"
    )


def _has_results(path: Path) -> bool:
    """Return whether a run has made anything: a file that is not empty, hidden, a log, or of another run inside."""
    for place, folders, names in os.walk(path):
        top = Path(place) == path
        inner = [name for name in folders if name[0] != "." and not (top and name == LOGS)]
        folders[:] = [name for name in inner if not (Path(place) / name / RUN_FILE).is_file()]
        for name in names:
            if name[0] != "." and not (top and name in NO_RESULTS):
                with contextlib.suppress(FileNotFoundError):
                    if (Path(place) / name).stat().st_size:
                        return True
    return False


_owned: dict[Path, IO[bytes]] = {}  # the folders that this process owns, with the open files whose locks say so


def _own(path: Path, command: str, wait: bool, together: bool) -> bool:
    """Lock the owner's file of a folder, for as long as this process lives or until it is disowned.

    A POSIX lock, which no child process inherits: children of a killed owner do not hold the folder. Returns False
    where this process owned the folder already.
    """
    key = path.resolve()
    if key in _owned and os.fstat(_owned[key].fileno()).st_nlink:
        return False
    file = open(path / OWNER_FILE, "a+b")  # noqa: SIM115 - open as long as it is locked
    kind = fcntl.LOCK_SH if together else fcntl.LOCK_EX
    with contextlib.suppress(OSError):  # a file system without locks
        try:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = file.read().decode(errors="replace") or "another process"
            if not wait:
                file.close()
                raise UserError(
                    f"{path} is being written by {owner}; wait until that ends, or choose another --output_dir"
                ) from None
            print(f"waiting for {owner}, which writes {path}", flush=True)
            fcntl.lockf(file, kind)
    file.truncate(0)
    file.write(f"mdaug {command}, process {os.getpid()} on {platform.node()}".encode())
    file.flush()
    _owned[key] = file
    return True


def _owned_alone(path: Path) -> bool:
    """Return whether no other process owns a folder together with this one."""
    file = _owned[path.resolve()]
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    fcntl.lockf(file, fcntl.LOCK_SH)
    return True


def _disown(path: Path) -> None:
    if file := _owned.pop(path.resolve(), None):
        file.close()


def disown_all() -> None:
    """Let others write all folders that this process owns: its command has ended, well or not."""
    for path in list(_owned):
        _disown(path)


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
    """Return whether the run of a folder came to its end; whether all is still there says `provenance.lost`."""
    return provenance.load(path) is not None


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time work in an existing folder; the others wait, and then find what it has made."""
    lock = path / LOCK_FILE

    def waiting() -> None:
        if os.environ.get("RANK", "0") == "0":
            owner = lock.read_text(encoding="utf-8", errors="replace") or "another process"
            print(f"waiting for {owner}, which writes {path}", flush=True)

    with atomic.locked(lock, waiting):
        lock.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield


def require_apart(data_dir: Path, output_dir: Path) -> None:
    """Refuse to write into the folder that is read."""
    source, target = data_dir.resolve(), output_dir.resolve()
    if target == source or source in target.parents:
        raise UserError(f"output_dir {output_dir} lies inside data_dir {data_dir}; choose a folder outside of it")

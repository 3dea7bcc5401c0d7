"""Before a job starts: refuse what its command would refuse, and write the files that its ranks read."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, TypeVar

import psutil

from mdaug import cli, config
from shards.errors import UserError
from shards.packed import require_images
from shards.remote import url_of
from shards.validation import Preflight
from shards.writer import require_writable

Options = TypeVar("Options")
ENTRY = "mdaug.cli:run"  # what every rank runs
CONFIG_FILE = "config.yaml"
COPIED_UP_TO = 1 << 20  # bytes of a file of the user
ON_ONE_MACHINE = ("/tmp", "/var/tmp", "/dev/shm", "/run")
MEMORY = ("tmpfs", "ramfs")


def local_paths(options: Any) -> dict[str, Path]:
    """Return field -> absolute path of every path among the options that is not a URL; of a list "field[0]", ..."""
    found: dict[str, Path] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        named = {field.name: value}
        if isinstance(value, list):
            named = {f"{field.name}[{place}]": item for place, item in enumerate(value)}
        found |= {name: item.absolute() for name, item in named.items() if _is_local(item)}
    return found


def absolute(options: Options) -> Options:
    """Return the options with every local path made absolute: a job starts in another folder."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value = getattr(options, field.name)
        if _is_local(value):
            changed[field.name] = value.absolute()
        elif isinstance(value, list) and any(map(_is_local, value)):
            changed[field.name] = [item.absolute() if _is_local(item) else item for item in value]
    return dataclasses.replace(options, **changed)  # type: ignore[type-var]


def _is_local(value: Any) -> bool:
    return isinstance(value, Path) and url_of(value) is None


def check(command: str, options: Any, ranks: int, *, gpus: bool | None = None, inputs_later: bool = False) -> None:
    """Raise UserError for what the command would refuse at its start.

    Args:
        command: a command of mdaug.
        options: its options.
        ranks: number of ranks it is to run on.
        gpus: whether each of them gets a GPU; None: not known here.
        inputs_later: a job before this one makes the inputs, so they need not be there yet.
    """
    entry = cli.find(command)
    for name in entry.inputs:
        value = getattr(options, name)
        if (inputs_later and name not in entry.given) or value is None:
            continue
        for path in filter(_is_local, value if isinstance(value, list) else [value]):
            if not path.exists():
                raise UserError(f"{name}={path} does not exist; make it first, or correct --{name}")
            if name == "data_dir" and entry.images:
                require_images(path)
    module = entry.load(options)
    if hasattr(module, "check"):
        module.check(options, Preflight(ranks, "cuda" if gpus else None, not inputs_later))
        if gpus is False:  # asked apart, to know what only the lack of GPUs forbids
            try:
                module.check(options, Preflight(ranks, "cpu", not inputs_later))
            except UserError as error:
                raise UserError(f"{error} (the nodes of this partition have no GPUs)") from None
    require_writable(options.output_dir)


def require_shared(paths: dict[str, Path], shared: list[str]) -> None:
    """Raise UserError for a path that each machine has for itself: below a temporary folder, or in its memory.

    Args:
        paths: name -> absolute path that the nodes must find.
        shared: folders that the nodes share, by the user's word.
    """
    for name, given in paths.items():
        for path in (given, given.resolve()):
            root = _private_root(path)
            if root is not None and not any(path.is_relative_to(folder) for folder in shared):
                raise UserError(
                    f"{name}={path} lies below {root}, which each machine has for itself, so the nodes would not find "
                    "it; choose a place that they share or, if they do share this one, name it in the profile: "
                    f"shared: [{root}]"
                )


def _private_root(path: Path) -> str | None:
    """Return the folder above a path that each machine has for itself, as far as that shows, or None."""
    named = next((root for root in ON_ONE_MACHINE if path.is_relative_to(root)), None)
    mounts = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    mount = max(mounts, key=lambda part: len(part.mountpoint), default=None)
    return mount.mountpoint if mount is not None and mount.fstype in MEMORY else named


def write_job_inputs(folder: Path, command: str, options: Any) -> list[str]:
    """Begin the record of a job anew with all that its ranks read, and return the arguments of `ENTRY`.

    A preset, or a file of the user (`Command.given`), that is edited while the job waits or starts changes nothing any
    more. Larger files are weights, which nobody edits; they are read where they are.

    Args:
        folder: the record of the job; whatever an earlier one left there goes.
        command: a command of mdaug.
        options: its options, all paths absolute.

    Raises:
        UserError: for a file of the user that does not exist.
    """
    copies = {}
    for name in cli.find(command).given:
        path = getattr(options, name)
        if path is not None and not path.exists():
            raise UserError(f"{name}={path} does not exist; correct --{name}")
        if path is not None and path.is_file() and path.stat().st_size <= COPIED_UP_TO:
            copies[name] = (folder / f"{name}{path.suffix}", path.read_bytes())  # it may lie in the folder that goes
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for copy, content in copies.values():
        copy.write_bytes(content)
    options = dataclasses.replace(options, **{name: copy for name, (copy, _) in copies.items()})
    return save_options(folder, command, options)


def save_options(folder: Path, command: str, options: Any) -> list[str]:
    """Write the resolved options of a command, and return the arguments of `ENTRY` that read them."""
    config.save(options, folder / CONFIG_FILE)
    return [command, "--config", str(folder / CONFIG_FILE)]

"""What would fail after an hour in the queue fails before the job is queued.

Commands say what they need: `mdaug.cli.INPUTS` names the fields that must exist; a configuration that cannot run on
every number of ranks has a method `check_ranks(ranks)`, one that cannot run on every kind of device has
`check_device(kind)`, and one whose inputs must fit, or whose output folder must not hold anything else, has
`check_output(inputs_there)`. All raise UserError, as the command itself would.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from mdaug import cli
from shards.cache import require_images
from shards.errors import UserError
from shards.remote import url_of

Config = TypeVar("Config")
ON_ONE_MACHINE = ("/tmp", "/var/tmp", "/dev/shm", "/run")


def absolute(config: Config) -> Config:
    """Return the configuration with every local path made absolute: a job starts in another folder."""
    paths = {
        field.name: value.absolute()
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if isinstance(value := getattr(config, field.name), Path) and url_of(value) is None
    }
    return dataclasses.replace(config, **paths)  # type: ignore[type-var]


def check(command: str, config: Any, ranks: int, *, gpus: bool | None = None, inputs_later: bool = False) -> None:
    """Raise UserError for what the command would refuse at its start.

    Args:
        command: a command of mdaug.
        config: its configuration.
        ranks: number of ranks it is to run on.
        gpus: whether each of them gets a GPU; None: not known here.
        inputs_later: a job before this one makes the inputs, so they need not be there yet.
    """
    for name in cli.INPUTS.get(command, ()):
        path = getattr(config, name)
        if inputs_later or path is None or url_of(path) is not None:
            continue
        if not path.exists():
            raise UserError(f"{name}={path} does not exist; make it first, or correct --{name}")
        if name == "data_dir":
            require_images(path)
    if hasattr(config, "check_ranks"):
        config.check_ranks(ranks)
    if gpus is not None and hasattr(config, "check_device"):
        try:
            config.check_device("cuda" if gpus else "cpu")
        except UserError as error:
            raise UserError(f"{error} (the nodes of this partition have no GPUs)") from None
    if hasattr(config, "check_output"):
        config.check_output(not inputs_later)
    require_writable(config.output_dir)


def require_writable(output_dir: Path) -> None:
    """Raise UserError where a folder cannot be made or written; leaves nothing behind."""
    there = next(folder for folder in (output_dir, *output_dir.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"output_dir={output_dir} cannot be written ({there}: {error.strerror}); choose another --output_dir"
        ) from None


def unshared(config: object) -> list[str]:
    """Return warnings for paths that other machines usually cannot see."""
    return [
        f"{field.name}={path} lies below {root}, which on most clusters each machine has for itself"
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if isinstance(path := getattr(config, field.name), Path)
        for root in ON_ONE_MACHINE
        if path.is_relative_to(root)
    ]

"""What would fail after an hour in the queue fails before the job is queued.

Commands say what they need: `mdaug.cli.INPUTS` names the fields that must exist; a configuration that cannot run on
every number of ranks has a method `check_ranks(ranks)`, and one whose output folder must not hold anything else has
`check_output(inputs_there)`. Both raise UserError, as the command itself would.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from mdaug import cli
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


def check(command: str, config: object, ranks: int, *, inputs_later: bool = False) -> None:
    """Raise UserError for what the command would refuse at its start.

    Args:
        command: a command of mdaug.
        config: its configuration.
        ranks: number of ranks it is to run on.
        inputs_later: a job before this one makes the inputs, so they need not be there yet.
    """
    for name in cli.INPUTS.get(command, ()):
        path = getattr(config, name)
        if not inputs_later and path is not None and url_of(path) is None and not path.exists():
            raise UserError(f"{name}={path} does not exist; nothing was submitted")
    if hasattr(config, "check_ranks"):
        config.check_ranks(ranks)
    if hasattr(config, "check_output"):
        config.check_output(not inputs_later)


def unshared(config: object) -> list[str]:
    """Return warnings for paths that other machines usually cannot see."""
    return [
        f"{field.name}={path} lies below {root}, which on most clusters each machine has for itself"
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if isinstance(path := getattr(config, field.name), Path)
        for root in ON_ONE_MACHINE
        if path.is_relative_to(root)
    ]

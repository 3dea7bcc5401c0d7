"""Before a job starts: what can be refused now, and the files that its ranks read."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil

from mdaug import cli
from mdaug import config as configuration
from shards.errors import UserError
from shards.packed import require_images
from shards.remote import url_of
from shards.validation import Preflight
from shards.writer import require_writable

Config = TypeVar("Config")
ON_ONE_MACHINE = ("/tmp", "/var/tmp", "/dev/shm", "/run")
GIVEN = ("deepspeed_config", "perceptual_weights")  # inputs that no command makes
MEMORY = ("tmpfs", "ramfs")


def local_paths(config: Any) -> dict[str, Path]:
    """Return field -> absolute path of every path of a configuration that is no URL."""
    return {
        field.name: value.absolute()
        for field in dataclasses.fields(config)
        if isinstance(value := getattr(config, field.name), Path) and url_of(value) is None
    }


def absolute(config: Config) -> Config:
    """Return the configuration with every local path made absolute: a job starts in another folder."""
    return dataclasses.replace(config, **local_paths(config))  # type: ignore[type-var]


def check(command: str, config: Any, ranks: int, *, gpus: bool | None = None, inputs_later: bool = False) -> None:
    """Raise UserError for what the command would refuse at its start.

    Args:
        command: a command of mdaug.
        config: its configuration.
        ranks: number of ranks it is to run on.
        gpus: whether each of them gets a GPU; None: not known here.
        inputs_later: a job before this one makes the inputs, so they need not be there yet.
    """
    entry = cli.find(command)
    for name in entry.inputs:
        path = getattr(config, name)
        if (inputs_later and name not in entry.given) or path is None or url_of(path) is not None:
            continue
        if not path.exists():
            raise UserError(f"{name}={path} does not exist; make it first, or correct --{name}")
        if name == "data_dir" and entry.images:
            require_images(path)
    device: Literal["cpu", "cuda"] | None = None if gpus is None else "cuda" if gpus else "cpu"
    module = entry.load()
    if hasattr(module, "check"):
        module.check(config, Preflight(ranks, device, not inputs_later))
    require_writable(config.output_dir)


def require_shared(paths: dict[str, Path], shared: list[str]) -> None:
    """Raise UserError for a path that each machine has for itself: below a temporary folder, or in its memory.

    Args:
        paths: name -> absolute path that the nodes must find.
        shared: folders of which the user says that the nodes share them.
    """
    for name, path in paths.items():
        for place in (path, path.resolve()):
            own = _own_folder(place)
            if own is not None and not any(place.is_relative_to(root) for root in shared):
                raise UserError(
                    f"{name}={place} lies below {own}, which each machine has for itself, so the nodes would not find "
                    "it; choose a place that they share or, if they do share this one, name it in the profile: "
                    f"shared: [{own}]"
                )


def _own_folder(place: Path) -> str | None:
    """Return the folder above a place that each machine has for itself, as far as that shows, or None."""
    named = next((root for root in ON_ONE_MACHINE if place.is_relative_to(root)), None)
    mounts = [part for part in psutil.disk_partitions(all=True) if place.is_relative_to(part.mountpoint)]
    mount = max(mounts, key=lambda part: len(part.mountpoint), default=None)
    return mount.mountpoint if mount is not None and mount.fstype in MEMORY else named


ENTRY = "mdaug.cli:run"
CONFIG_FILE, DEEPSPEED_FILE = "config.yaml", "deepspeed.json"


def prepare(folder: Path, command: str, config: Any) -> list[str]:
    """Begin the folder of a job anew with all that its ranks read, and return the arguments of ENTRY.

    A preset, or a DeepSpeed JSON of the user, that is edited while the job waits or starts changes nothing any more.

    Args:
        folder: what the launcher keeps of the job; whatever an earlier one left there goes.
        command: a command of mdaug.
        config: its configuration, all paths absolute.

    Raises:
        UserError: for a DeepSpeed JSON that is not there.
    """
    given = getattr(config, "deepspeed_config", None)
    if given is not None and not given.is_file():
        raise UserError(f"deepspeed_config={given} does not exist; correct --deepspeed_config")
    text = None if given is None else given.read_bytes()  # it may lie in the folder that goes
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if text is not None:
        (folder / DEEPSPEED_FILE).write_bytes(text)
        config = dataclasses.replace(config, deepspeed_config=folder / DEEPSPEED_FILE)
    configuration.save(config, folder / CONFIG_FILE)
    return [command, "--config", str(folder / CONFIG_FILE)]

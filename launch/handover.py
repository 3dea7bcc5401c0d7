"""What ranks are told, in a SLURM job as on this machine: a command by its name, and its resolved configuration."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from mdaug import config as configuration
from shards.errors import UserError

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

"""`python -m launch <command> [launcher flags] -- <flags of the command>`: run a command of mdaug on one or more ranks.

The flags of the command are checked before anything starts. The launcher reads `output_dir` of the checked
configuration, where the logs go, and knows nothing else of what it starts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch import caches
from mdaug import cli, config
from shards.errors import UserError

PARALLEL = {"train-vqvae", "encode", "train-ldm", "generate"}  # the other commands run in one process
USAGE = """usage: python -m launch <command> [--gpus_per_node N] [--cluster auto|local|inline] [--dry_run] -- <flags>

'python -m launch <command> --help' lists the launcher's flags, 'python -m launch <command> -- --help' the command's.
The commands:"""


@dataclass
class LaunchConfig:
    """How many ranks run a command, and where."""

    nodes: int = 1
    """Machines."""
    gpus_per_node: int | Literal["auto"] = "auto"
    """Ranks on each machine, one for each GPU (on CPU: processes). auto: all visible GPUs, or one process on CPU."""
    cluster: Literal["auto", "local", "inline", "slurm"] = "auto"
    """local: ranks on this machine; inline: one rank in this process; auto: inline for one rank, else local."""
    dry_run: bool = False
    """Check everything, print the resolved configuration and the plan, start nothing."""

    def __post_init__(self) -> None:
        """Refuse what cannot be launched; raises ValueError naming field, value and what is accepted."""
        if self.cluster == "slurm" or self.nodes != 1:
            raise ValueError(
                f"nodes={self.nodes}, cluster={self.cluster}: this version launches on one machine only; "
                "use nodes=1 and cluster auto, local or inline (NODES=1 with make)"
            )
        if self.gpus_per_node != "auto" and self.gpus_per_node < 1:
            raise ValueError(f"gpus_per_node={self.gpus_per_node} must be 1 or more, or auto")
        if self.cluster == "inline" and self.gpus_per_node not in ("auto", 1):
            raise ValueError(f"cluster=inline is one rank, but gpus_per_node={self.gpus_per_node}; use cluster=local")


def main(argv: list[str]) -> int:
    """Launch one command. Returns its exit status; 2 for a mistake of the user, found before anything started."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, ", ".join(cli.COMMANDS))
        return 0
    try:
        return launch(argv[0], *_split(argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def launch(command: str, launcher_flags: list[str], flags: list[str]) -> int:
    """Check both sets of flags, then run the command; raises UserError for a mistake in either."""
    config_class, _ = cli.load(command)
    where = config.parse(LaunchConfig, launcher_flags, prog=f"python -m launch {command}")
    resolved = config.parse(config_class, flags, prog=f"mdaug {command}")
    ranks = _ranks(command, where)
    local = ranks > 1 or (where.cluster == "local" and command in PARALLEL)
    if where.dry_run:
        place = f"{ranks} rank(s) on this machine, logs in {resolved.output_dir}/logs" if local else "in this process"
        print(f"# mdaug {command}: {place}\n{config.dump(resolved)}", end="")
        return 0
    caches.prepare()
    if local:
        from launch import local as executor

        return executor.run("mdaug.cli:run", [command, *flags], Path(resolved.output_dir), ranks)
    try:
        return cli.main([command, *flags])
    except KeyboardInterrupt:
        print("\nlaunch: interrupted", file=sys.stderr)
        return 130


def _ranks(command: str, where: LaunchConfig) -> int:
    """Return the number of ranks; raises UserError where a machine has GPUs, but fewer than asked for."""
    wanted = where.gpus_per_node
    if command not in PARALLEL:
        if wanted not in ("auto", 1):
            print(f"launch: {command} runs in one process; gpus_per_node={wanted} is not used", flush=True)
        return 1
    if wanted == 1 or where.cluster == "inline":
        return 1
    import torch

    visible = torch.cuda.device_count()
    if wanted == "auto":
        return max(1, visible)
    if 0 < visible < wanted:
        raise UserError(f"gpus_per_node={wanted}, but {visible} GPU(s) are visible here; use 1 to {visible}, or auto")
    return wanted


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Divide the arguments at the first `--` into those of the launcher and those of the command."""
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m launch <command> [launcher flags] -- <flags of the command>`: run a command of mdaug on one or more ranks.

The flags of the command are checked before anything starts. The launcher reads `output_dir` of the checked
configuration, where the logs go, and knows nothing else of what it starts.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch import caches, slurm_query
from mdaug import cli, config
from shards.errors import UserError

USAGE = """usage: python -m launch <command> [--nodes N] [--gpus_per_node N] [--cluster auto|slurm|local|inline]
                                 [--profile FILE] [--wait] [--dry_run] -- <flags of the command>
       python -m launch status|logs|cancel RUN_DIR         of a SLURM job, or of ranks on this machine

'python -m launch <command> --help' lists the launcher's flags, 'python -m launch <command> -- --help' the command's.
The commands:"""
ON_JOBS = ("status", "logs", "cancel")


@dataclass
class LaunchConfig:
    """How many ranks run a command, and where."""

    nodes: int = 1
    """Machines; more than one needs SLURM."""
    gpus_per_node: int | Literal["auto"] = "auto"
    """Ranks on each machine, one for each GPU (on CPU: processes). auto: all its GPUs, or one process on CPU."""
    cluster: Literal["auto", "local", "inline", "slurm"] = "auto"
    """slurm: a job; local: ranks on this machine; inline: one rank in this process. auto: slurm where sbatch is there
    (not inside a job), else inline for one rank and local for more."""
    profile: Path | None = None
    """What the SLURM cluster wants to know: a YAML file such as configs/launch/gpu-cluster.yaml."""
    wait: bool = False
    """Stay, show the log of rank 0 of the SLURM job and end with the job's status."""
    workers: int = 1
    """generate, evaluate: an array of so many SLURM jobs, each of nodes x gpus_per_node ranks; unused without SLURM."""
    after: str | None = None
    """Id of the SLURM job that must succeed before this one starts."""
    snapshot: bool = True
    """Run a copy of the packages as they are now, whatever is edited while the SLURM job waits. false: no copy."""
    dry_run: bool = False
    """Check everything, print the plan (for SLURM: the batch script) and the configuration, start nothing."""

    def __post_init__(self) -> None:
        """Refuse what cannot be launched; raises ValueError naming field, value and what is accepted."""
        for name in ("nodes", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.cluster == "auto":
            inside_a_job = "SLURM_JOB_ID" in os.environ
            if slurm_query.available() and not inside_a_job:
                self.cluster = "slurm"
        if self.nodes > 1 and self.cluster != "slurm":
            raise ValueError(
                f"nodes={self.nodes}, but without SLURM (sbatch is not here, or cluster={self.cluster} was asked for) "
                "ranks run on this machine only; use nodes=1 (NODES=1 with make)"
            )
        if self.cluster != "slurm":
            given = [name for name in ("profile", "wait", "after") if getattr(self, name)]
            if given:
                raise ValueError(f"{' and '.join(given)}: only jobs of SLURM have that; without it leave them out")
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
        if argv[0] in ON_JOBS:
            return _on_job(*argv)
        return launch(argv[0], *_split(argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def launch(command: str, launcher_flags: list[str], flags: list[str]) -> int:
    """Check both sets of flags, then run the command; raises UserError for a mistake in either."""
    entry = cli.find(command)
    where = config.parse(LaunchConfig, launcher_flags, prog=f"python -m launch {command}")
    if where.workers > 1 and not entry.array:
        arrays = " and ".join(name for name, known in cli.COMMANDS.items() if known.array)
        raise UserError(f"workers={where.workers}: only {arrays} run as a job array; use nodes")
    resolved = cli.parse(command, flags)
    if where.cluster == "slurm":
        return _submit(command, where, resolved)
    ranks = _ranks(command, where)
    if where.workers > 1:
        print(f"launch: workers={where.workers} is for job arrays of SLURM; here {ranks} rank(s) do it all", flush=True)
    local = ranks > 1 or (where.cluster == "local" and cli.find(command).parallel)
    if where.dry_run:
        place = f"{ranks} rank(s) on this machine, logs in {resolved.output_dir}/logs" if local else "in this process"
        print(f"# mdaug {command}: {place}\n{config.dump(resolved)}", end="")
        return 0
    caches.prepare()
    if local:
        return _run_here(command, resolved, ranks)
    try:
        return cli.main([command, *flags])
    except KeyboardInterrupt:
        print("\nlaunch: interrupted", file=sys.stderr)
        return 130


def _run_here(command: str, resolved: Any, ranks: int) -> int:
    """Run a command on ranks of this machine; returns the status of the worst."""
    from launch import local, preflight, status
    from launch import local_job as here

    resolved = preflight.absolute(resolved)
    preflight.require_writable(resolved.output_dir)
    status.require_idle(resolved.output_dir)
    argv = preflight.prepare(here.folder(resolved.output_dir), command, resolved)
    return local.run(preflight.ENTRY, argv, resolved.output_dir, ranks)


def _on_job(action: str, *run_dirs: str) -> int:
    """Run `status`, `logs` or `cancel`."""
    from launch import status

    if len(run_dirs) != 1 or run_dirs[0].startswith("-"):
        raise UserError(f"usage: python -m launch {action} RUN_DIR")
    return getattr(status, action)(Path(run_dirs[0]))


def _submit(command: str, where: LaunchConfig, resolved: Any) -> int:
    """Check and queue a command; returns 0 once it is queued, or with --wait the status of the job."""
    from launch import preflight, slurm, status
    from launch import slurm_profile as profile

    chosen = profile.load(where.profile)
    if where.dry_run and not slurm_query.available():
        gpus, per_node = True, 1 if where.gpus_per_node == "auto" else where.gpus_per_node
    else:
        gpus, per_node = _slurm_ranks(where, chosen.partition)
    nodes = where.nodes
    if not cli.find(command).parallel:
        if nodes * per_node > 1:
            print(f"launch: {command} runs in one process; one task of one node is enough", flush=True)
        nodes, per_node, gpus = 1, 1, False
    resolved = preflight.absolute(resolved)
    told = slurm_query.available() and (gpus or slurm_query.tells_gpus())
    if slurm_query.available() and not told:  # what needs a GPU is not refused then
        print("launch: this Slurm does not tell of GPUs (no GresTypes); ranks use those that they find", flush=True)
    preflight.check(
        command, resolved, nodes * per_node, gpus=gpus if told else None, inputs_later=where.after is not None
    )
    if slurm_query.available() and not slurm_query.only_here(chosen.partition):
        preflight.require_shared(
            preflight.local_paths(resolved) | slurm.code_paths(chosen, where.snapshot), chosen.shared
        )
    place = slurm.place(resolved.output_dir, cli.find(command).parallel)
    size = slurm.Size(nodes, per_node, gpus, where.workers)
    if where.dry_run:
        print(slurm.script(command, place, size, chosen, where.after, where.snapshot))
        print(f"# mdaug {command}: {size}\n{config.dump(resolved)}", end="")
        return 0
    status.require_idle(resolved.output_dir)
    job = slurm.submit(command, resolved, place, size, profile=chosen, after=where.after, snapshot=where.snapshot)
    print(status.describe(job, resolved.output_dir, size), flush=True)
    return status.wait(place.folder) if where.wait else 0


def _slurm_ranks(where: LaunchConfig, partition: str | None) -> tuple[bool, int]:
    """Return whether the ranks get GPUs, and their number on each node; raises UserError for more than there are."""
    wanted, there = where.gpus_per_node, slurm_query.nodes_of(partition)
    if where.nodes > sum(there.values()):
        raise UserError(f"nodes={where.nodes}, but this partition has {sum(there.values())}")
    if set(there) == {0}:
        return False, 1 if wanted == "auto" else wanted
    if wanted == "auto":
        if len(there) > 1:
            raise UserError(
                f"the nodes of this partition have {', '.join(map(str, sorted(there)))} GPUs; say which with "
                "gpus_per_node (GPUS with make)"
            )
        return True, max(there)
    if wanted > max(there):
        raise UserError(f"gpus_per_node={wanted}, but the nodes of this partition have {max(there)} GPUs at most")
    return True, wanted


def _ranks(command: str, where: LaunchConfig) -> int:
    """Return the number of ranks; raises UserError where a machine has GPUs, but fewer than asked for."""
    wanted = where.gpus_per_node
    if not cli.find(command).parallel:
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

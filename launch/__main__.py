"""`python -m launch <command> [launcher flags] -- <flags of the command>`: run a command of mdaug on one or more ranks.

The flags of the command are parsed once, here, before anything starts; its ranks read the resolved options from a file.
The launcher knows the table of commands, `output_dir` of the options, and the records in it (run.json, progress.json):
nothing else of what it starts.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch import caches, job, local, preflight, slurm, slurm_profile, slurm_query, stages, status
from mdaug import cli, config
from shards.errors import UserError, entry_point
from shards.validation import at_least

USAGE = """usage: python -m launch <command> [--out DIR] [--preset NAME] [--nodes N] [--gpus_per_node N]
                                 [--cluster auto|slurm|local|inline] [--profile FILE] [--wait] [--dry_run]
                                 -- <flags of the command>
       python -m launch status|logs|cancel RUN_DIR         of a SLURM job, or of ranks on this machine

'python -m launch <command> --help' lists the launcher's flags, 'python -m launch <command> -- --help' the command's.
The commands:"""
ON_JOBS = {"status": status.status, "logs": status.logs, "cancel": status.cancel}


@dataclass
class LaunchConfig:
    """How many ranks run a command, and where."""

    out: Path | None = None
    """Folder of all stages: names the folders of this stage below it."""
    preset: str | None = None
    """Preset: its name, or a YAML file like those in configs/; --config of the command."""
    data: Path | None = None
    """Image folder of the stages (default: OUT/images)."""
    nodes: int = 1
    """Machines; more than one needs SLURM."""
    gpus_per_node: int | Literal["auto"] = "auto"
    """Ranks on each machine, one for each GPU (on CPU: processes). auto: all its GPUs, or one process on CPU."""
    cluster: Literal["auto", "local", "inline", "slurm"] = "auto"
    """slurm: a job; local: ranks on this machine; inline: one rank in this process. auto: slurm where sbatch is there
    (not inside a job), else inline for one rank and local for more."""
    profile: Path | None = None
    """What the SLURM cluster needs to know: a YAML file such as configs/launch/gpu-cluster.yaml."""
    wait: bool = False
    """Stay, show the log of rank 0 of the SLURM job and end with the job's status."""
    workers: int = 1
    """generate, evaluate, augment: an array of so many SLURM jobs, each of nodes x gpus_per_node ranks, but no more
    than have shards, or generators, to make; unused without SLURM."""
    after: str | None = None
    """Id of the SLURM job that must succeed before this one starts."""
    snapshot: bool = True
    """Run a copy of the packages as they are now, whatever is edited while the SLURM job waits. false: no copy."""
    dry_run: bool = False
    """Check everything, print the plan (for SLURM: the batch script) and the configuration, start nothing."""

    def __post_init__(self) -> None:
        """Refuse what cannot be launched; raises ValueError naming field, value and what is accepted."""
        at_least(self, 1, "nodes", "workers", "gpus_per_node")
        if self.data is not None and self.out is None:
            raise ValueError(f"data={self.data} is the image folder of all stages; give --out, their folder, too")
        if self.cluster == "auto" and slurm_query.available() and "SLURM_JOB_ID" not in os.environ:
            self.cluster = "slurm"
        if self.nodes > 1 and self.cluster != "slurm":
            raise ValueError(
                f"nodes={self.nodes}, but without SLURM (sbatch is not here, or cluster={self.cluster} was asked for) "
                "ranks run on this machine only; use nodes=1 (NODES=1 with make)"
            )
        given = [name for name in ("profile", "wait", "after") if getattr(self, name)]
        if given and self.cluster != "slurm":
            raise ValueError(f"{' and '.join(given)}: only jobs of SLURM have that; without it leave them out")
        if self.cluster == "inline" and self.gpus_per_node not in ("auto", 1):
            raise ValueError(f"cluster=inline is one rank, but gpus_per_node={self.gpus_per_node}; use cluster=local")


@entry_point
def main(argv: list[str]) -> int:
    """Launch one command. Returns its exit status; 2 for a mistake of the user, found before anything started."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, ", ".join(cli.COMMANDS))
        return 0
    if argv[0] == "plan":
        raise UserError("'python -m launch plan' is now 'mdaug estimate'; 'mdaug estimate --help' lists its flags")
    if argv[0] in ON_JOBS:
        if len(argv) != 2 or argv[1].startswith("-"):
            raise UserError(f"usage: python -m launch {argv[0]} RUN_DIR")
        return ON_JOBS[argv[0]](Path(argv[1]))
    return launch(argv[0], *_split(argv[1:]))


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Divide the arguments at the first `--` into those of the launcher and those of the command."""
    if "--" not in argv:
        return argv, []
    position = argv.index("--")
    return argv[:position], argv[position + 1 :]


def launch(command: str, launcher_flags: list[str], flags: list[str]) -> int:
    """Check both sets of flags, then run the command; raises UserError for a mistake in either."""
    entry = cli.find(command)
    launcher = config.parse(LaunchConfig, launcher_flags, prog=f"python -m launch {command}")
    if launcher.workers > 1 and not entry.array:
        arrays = ", ".join(name for name, known in cli.COMMANDS.items() if known.array)
        raise UserError(f"workers={launcher.workers}: only {arrays} run as a job array; use nodes")
    options = cli.parse(command, [*stages.flags(command, launcher.out, launcher.data, launcher.preset), *flags])
    if not hasattr(options, "output_dir"):
        raise UserError(f"{command} writes no output folder and needs no launcher; run: mdaug {command}")
    if launcher.cluster == "slurm":
        return _submit(command, options, launcher)

    ranks = _local_ranks(command, launcher)
    if launcher.workers > 1:
        print(
            f"launch: workers={launcher.workers} is for job arrays of SLURM; here {ranks} rank(s) do it all", flush=True
        )
    in_ranks = ranks > 1 or (launcher.cluster == "local" and entry.parallel)
    if launcher.dry_run:
        logs = job.logs_of(options.output_dir, parallel=True)
        place = f"{ranks} rank(s) on this machine, logs in {logs}" if in_ranks else "in this process"
        print(f"# mdaug {command}: {place}\n{config.dump(options)}", end="")
        return 0
    caches.prepare()
    return _run_in_ranks(command, options, ranks) if in_ranks else _run_inline(command, options)


def _run_inline(command: str, options: Any) -> int:
    """Run a command in this process, from the saved options as every rank does; returns its status."""
    with tempfile.TemporaryDirectory(prefix="mdaug-launch-") as folder:
        argv = preflight.save_options(Path(folder), command, options)
        options = cli.parse(command, argv[1:])
    cli.start(command, options)
    return 0


def _run_in_ranks(command: str, options: Any, ranks: int) -> int:
    """Run a command on ranks of this machine; returns the status of the worst."""
    options = preflight.absolute(options)
    preflight.require_writable(options.output_dir)
    status.require_idle(options.output_dir)
    argv = preflight.write_job_inputs(job.local_folder(options.output_dir), command, options)
    return local.run(preflight.ENTRY, argv, options.output_dir, ranks)


def _local_ranks(command: str, launcher: LaunchConfig) -> int:
    """Return the number of ranks on this machine; raises UserError where it has GPUs, but fewer than asked for."""
    requested = launcher.gpus_per_node
    if not cli.find(command).parallel:
        if requested not in ("auto", 1):
            print(f"launch: {command} runs in one process; gpus_per_node={requested} is not used", flush=True)
        return 1
    if requested == 1 or launcher.cluster == "inline":
        return 1
    import torch  # seconds, which --help and one rank need not wait for

    visible = torch.cuda.device_count()
    if requested == "auto":
        return max(1, visible)
    if 0 < visible < requested:
        raise UserError(
            f"gpus_per_node={requested}, but {visible} GPU(s) are visible here; use 1 to {visible}, or auto"
        )
    return requested


def _submit(command: str, options: Any, launcher: LaunchConfig) -> int:
    """Check and queue a command; returns 0 once it is queued, or with --wait the status of the job."""
    profile, here = slurm_profile.load(launcher.profile), slurm_query.available()

    # How many ranks, and whether each gets a GPU; a dry run without Slurm assumes so.
    nodes, requested = launcher.nodes, launcher.gpus_per_node
    ranks_per_node, gpus = 1 if requested == "auto" else requested, True
    if here or not launcher.dry_run:
        try:
            ranks_per_node, gpus = _slurm_ranks(launcher, profile.partition)
        except slurm_query.NoAnswer as error:
            if not launcher.dry_run:
                raise
            print(f"launch: {error}; partition, nodes and GPUs are not checked", flush=True)
            here = False
    if not cli.find(command).parallel:
        if nodes * ranks_per_node > 1:
            print(f"launch: {command} runs in one process; one task of one node is enough", flush=True)
        nodes, ranks_per_node, gpus = 1, 1, False
    submission = slurm.Submission(
        command, preflight.absolute(options), profile, nodes, ranks_per_node, gpus, launcher.workers, launcher.after,
        launcher.snapshot,
    )  # fmt: skip
    slurm.require_plain_path(submission.folder)

    # Refuse now what the command would refuse after the queue; a lack of GPUs only where Slurm knows of GPUs.
    gpus_known = here and (gpus or slurm_query.reports_gpus())
    if here and not gpus_known:
        print("launch: this Slurm does not report GPUs (no GresTypes); ranks use those that they find", flush=True)
    preflight.check(
        command, submission.options, nodes * ranks_per_node,
        gpus=gpus if gpus_known else None, inputs_later=launcher.after is not None,
    )  # fmt: skip
    workers, pieces, ranks = launcher.workers, _pieces(submission), nodes * ranks_per_node
    if pieces is not None and workers > (enough := max(1, -(-pieces // ranks))):
        print(
            f"launch: workers={workers}, but {pieces} piece(s) are work for {enough} job(s) of {ranks} rank(s); the "
            "others are left out",
            flush=True,
        )
        workers = enough
        submission = dataclasses.replace(submission, workers=workers)
    if here and workers > 1 and workers > (most := slurm_query.largest_array()):
        raise UserError(
            f"workers={workers}, but a job array of this cluster has {most} tasks at most (MaxArraySize, see scontrol "
            f"show config); use --workers {most} or fewer, with more --nodes or --gpus_per_node"
        )
    if here and not slurm_query.single_machine(profile.partition):
        paths = preflight.local_paths(submission.options) | submission.code_paths()
        preflight.require_shared(paths, profile.shared)

    if launcher.dry_run:
        print(slurm.script(submission))
        print(f"# {submission}\n{config.dump(submission.options)}", end="")
        return 0
    status.require_idle(submission.options.output_dir)
    print(slurm.describe(submission, slurm.submit(submission)), flush=True)
    return status.wait(submission.folder) if launcher.wait else 0


def _pieces(submission: slurm.Submission) -> int | None:
    """Return the number of pieces that the work of a command has, one for a rank at least; None where not known."""
    pieces = getattr(cli.find(submission.command).load(submission.options), "pieces", None)
    return None if pieces is None else pieces(submission.options)


def _slurm_ranks(launcher: LaunchConfig, partition: str | None) -> tuple[int, bool]:
    """Return the ranks of each node and whether they get GPUs; raises UserError for more than the partition has."""
    requested, nodes = launcher.gpus_per_node, slurm_query.nodes_of(partition)
    if launcher.nodes > sum(nodes.values()):
        raise UserError(f"nodes={launcher.nodes}, but this partition has {sum(nodes.values())}")
    if set(nodes) == {0}:
        return 1 if requested == "auto" else requested, False
    if requested == "auto":
        if len(nodes) > 1:
            raise UserError(
                f"the nodes of this partition have {', '.join(map(str, sorted(nodes)))} GPUs; say which with "
                "gpus_per_node (GPUS with make)"
            )
        return max(nodes), True
    if requested > max(nodes):
        raise UserError(f"gpus_per_node={requested}, but the nodes of this partition have {max(nodes)} GPUs at most")
    return requested, True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

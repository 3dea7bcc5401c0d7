"""`python -m launch.pipeline`: every stage as a SLURM job, each waiting for the success of the one before it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch import slurm_query, stages, status
from launch.__main__ import launch
from launch.job import find, read_job
from mdaug import cli, config
from shards.errors import UserError, entry_point


@dataclass
class PipelineConfig(stages.ChainConfig):
    """Queue simulate, pack, train-vqvae, encode, train-ldm, generate and evaluate as one chain of SLURM jobs."""

    nodes: int = 1
    """Machines of the stages that can use several."""
    gpus_per_node: int | Literal["auto"] = "auto"
    """Ranks on each machine of the stages that can use several; auto: all GPUs of a machine."""
    profile: Path | None = None
    """What the SLURM cluster needs to know: a YAML file such as configs/launch/gpu-cluster.yaml."""
    wait: bool = False
    """Stay until the last stage has ended, and end with the status of the first stage that failed."""


@entry_point
def main(argv: list[str]) -> int:
    """Queue the chain. Returns 0 once it is queued, or with --wait the status of the first stage that failed."""
    chain = config.parse(PipelineConfig, argv, prog="python -m launch.pipeline")
    if not slurm_query.available():
        raise UserError("there is no sbatch here; 'make demo CONFIG=... OUT=...' runs all stages on this machine")
    return run(chain)


def run(chain: PipelineConfig) -> int:
    """Submit the stages in order; a mistake in a later one cancels those that are queued already."""
    queued: list[Path] = []
    after: list[str] = []
    profile = ["--profile", str(chain.profile)] if chain.profile is not None else []
    try:
        for command, (launcher_flags, flags) in chain.stages().items():
            nodes, ranks = (chain.nodes, chain.gpus_per_node) if cli.find(command).parallel else (1, 1)
            size = ["--nodes", str(nodes), "--gpus_per_node", str(ranks)]
            launch(command, [*launcher_flags, "--cluster", "slurm", *size, *profile, *after], flags)
            queued.append(find(stages.folders(command, chain.out, chain.data)["output_dir"]))
            after = ["--after", read_job(queued[-1]).job_id]
    except UserError:
        for folder in queued:
            slurm_query.cancel(read_job(folder).job_id)
        raise
    if not chain.wait:
        return 0
    return next((code for code in map(status.wait, queued) if code != 0), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Which worker of how many a process is, from its settings and the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shards.errors import UserError

if TYPE_CHECKING:
    from mdaug.sampling.generate import GenerateConfig


def place(config: GenerateConfig, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return (number of this worker, number of workers): ranks within array tasks.

    Raises:
        UserError: a SLURM array with gaps, whose tasks cannot tell their place among the others.
    """
    outer, count = config.worker, config.num_workers
    if outer is None or count is None:
        count = int(environment.get("SLURM_ARRAY_TASK_COUNT", "1"))
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        outer, rest = divmod(
            int(environment.get("SLURM_ARRAY_TASK_ID", "0")) - first, int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
        )
        if rest or not 0 <= outer < count:
            raise UserError(
                f"array task {environment['SLURM_ARRAY_TASK_ID']} of {count} from {first} has no place in a row; "
                "submit --array=0-N without gaps (finished shards are skipped), or give --worker and --num_workers"
            )
    ranks = int(environment.get("WORLD_SIZE", "1"))
    return outer * ranks + int(environment.get("RANK", "0")), count * ranks

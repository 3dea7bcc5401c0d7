"""What the tests of bulk generation share: the command, its steps, and the files it writes."""

from pathlib import Path

from mdaug.generation.generate import run as generate
from mdaug.generation.options import GenerateConfig
from shards.output_folder import PROGRESS_FILE
from shards.provenance import FILE_NAME

FAST = {"num_inference_steps": 2, "batch_size": 4, "samples_per_shard": 8, "scheduler_type": "dpmsolver++"}

TIMED = (FILE_NAME, PROGRESS_FILE)


def make(ldm: Path, folder: Path, **options) -> Path:
    generate(GenerateConfig(ldm_path=ldm, output_dir=folder, **(FAST | options)))
    return folder


def step(ldm: Path, folder: Path, name: str, **options) -> None:
    """A step that knows no more than where the pipeline and the plan are."""
    generate(GenerateConfig(ldm_path=ldm, output_dir=folder, step=name, **options))


def files(folder: Path) -> dict[str, bytes]:
    """The files of a data set but for locks and those that hold the time."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name not in TIMED and name[0] != "."}


def debris(folder: Path) -> list[Path]:
    """Temporary files that should have gone."""
    return list(folder.rglob("*.tmp"))

"""What the tests of bulk sampling share: the command, its steps, and the files it writes."""

from pathlib import Path

from mdaug.generation.generate import run as generate
from mdaug.generation.options import GenerateConfig
from shards import provenance

FAST = {"num_inference_steps": 2, "batch_size": 4, "samples_per_shard": 8, "scheduler_type": "dpmsolver++"}


def make(ldm: Path, folder: Path, **options) -> Path:
    generate(GenerateConfig(ldm_path=ldm, output_dir=folder, **(FAST | options)))
    return folder


def step(ldm: Path, folder: Path, name: str, **options) -> None:
    """A step that knows no more than where the pipeline and the plan are."""
    generate(GenerateConfig(ldm_path=ldm, output_dir=folder, step=name, **options))


def files(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != provenance.FILE_NAME}

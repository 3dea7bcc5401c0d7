"""`mdaug generate`: exactly the labelled samples asked for, as tar shards.

A plan fixes what is made; workers make its shards by a rule, skipping what is there; finalize looks at
every sample and writes the index. Workers are array tasks of SLURM, ranks of the environment (RANK,
WORLD_SIZE, LOCAL_RANK), or both, and need not know of each other.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mdaug import config as configuration
from mdaug.generation import make_plan
from mdaug.generation.options import GenerateConfig
from mdaug.generation.worker import place
from mdaug.pipeline import schedulers
from shards import atomic, provenance
from shards.errors import UserError
from shards.validation import Preflight

if TYPE_CHECKING:
    from mdaug.generation.plan import Plan


PIPELINE_FOLDER = "vq_diffusion_pipeline"


def check(options: GenerateConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds samples of another plan, or inputs that are there do not fit.

    Where the job will run need not be like here, so a plan that is there is taken to be for that kind of device.
    """
    from mdaug.generation import plan as plans

    if where.device == "cpu":
        make_plan.require_cpu_compatible(options)
    begun = (options.output_dir / plans.FILE_NAME).is_file()
    kind = plans.read_plan(options.output_dir).device if begun else "cuda"
    plans.refuse_other(options.output_dir, make_plan.wanted_plan(options, kind) if where.inputs_there else None)


def run(config: GenerateConfig) -> None:
    """Make the samples of a configuration; see the module's docstring.

    Raises:
        UserError: folders that do not fit, classes that the model does not know, no space left.
    """
    from mdaug.generation import plan as plans

    worker, workers = place(config, os.environ)
    folder = config.output_dir
    plan = make_plan.wanted_plan(config, make_plan.device().split(":")[0])
    plans.claim_folder(folder, plan)
    if worker == 0 and config.step != "finalize":
        make_plan.print_plan(plan, folder)
    if config.step in ("all", "plan"):
        make_plan.prepare(plan, config, worker)
    before = _finished(folder)
    if config.step == "work" or (config.step == "all" and (config.repair or not before)):
        _work(plan, config, worker, workers)
    if config.step == "finalize" or (config.step == "all" and (config.repair or not before)):
        if not _finalize(plan, config, worker, workers, before):
            return
    elif config.step == "all":
        print(_found(plan, folder), flush=True)
    if config.grid and config.step in ("all", "finalize") and not (folder / "grid.png").is_file():
        from mdaug.generation.finalize import write_grid

        write_grid(plan, folder)


def _work(plan: Plan, config: GenerateConfig, worker: int, workers: int) -> None:
    import torch

    from mdaug.generation.worker import work
    from mdaug.measures import sifter as sift
    from mdaug.pipeline import folder as pipeline_folder
    from mdaug.pipeline.pipeline import MicroDopplerPipeline

    source, made = make_plan.open_folder(config)
    device = make_plan.device()
    for what, wanted, here in (
        ("pipeline", plan.pipeline, made["hash"]),
        ("kind of device", plan.device, torch.device(device).type),
    ):
        if wanted != here:
            raise UserError(
                f"the plan of {config.output_dir} is for the {what} {wanted[:12]}, but this is {here[:12]}; "
                "go on with the same, or choose another --output_dir"
            )
    pipeline = MicroDopplerPipeline.from_pretrained(source)
    pipeline.scheduler = schedulers.scheduler_like(pipeline.scheduler, plan.scheduler_type)
    if worker == 0 and _wants_pipeline(config):
        pipeline_folder.save_pipeline(
            pipeline,
            config.output_dir / PIPELINE_FOLDER,
            made_from=made["made_from"],
            config=configuration.as_dict(config),
        )
    sifter = sift.prepare(config.output_dir, plan.sift, config.sift) if plan.sift else None
    work(plan, pipeline.to(device), config.output_dir, worker, workers, sifter=sifter, repair=config.repair)


def _finalize(plan: Plan, config: GenerateConfig, worker: int, workers: int, before: int | None) -> bool:
    """Finalize, one process at a time, unless other workers are still at it; return whether the folder is finished.

    Of workers that come to the end together the first finalizes, and the others find that the folder was finished
    after they began: `before` is what `_finished` said then.
    """
    from mdaug.generation import plan as plans
    from mdaug.generation.finalize import finalize
    from mdaug.generation.worker import missing_shards

    if config.step == "all" and workers > 1 and missing_shards(plan, config.output_dir):
        print(f"worker {worker} is done; the last worker to finish writes the index", flush=True)
        return False
    places = f"--ldm_path {config.ldm_path} --output_dir {config.output_dir}"
    mend = {
        "synthetic": f"mdaug generate --step work {places}",
        "real": f"mdaug generate --step plan {places} --include_real {config.include_real or 'PACKED'}",
    }
    with atomic.locked(config.output_dir / plans.FILE_NAME):
        if config.step == "all" and _finished(config.output_dir) not in (None, before):
            said = _found(plan, config.output_dir)
        else:
            said = finalize(plan, config.output_dir, config=configuration.as_dict(config), mend=mend)
    print(said, flush=True)
    return True


def _finished(folder: Path) -> int | None:
    """Return when a folder was finished, or None for one that is not."""
    path = folder / provenance.FILE_NAME
    return path.stat().st_mtime_ns if path.is_file() else None


def _found(plan: Plan, folder: Path) -> str:
    return f"found {plan.total} = asked {plan.total}: {folder} is finished"


def _wants_pipeline(config: GenerateConfig) -> bool:
    """Ask, as the original command line did, but never where nobody can answer."""
    if config.save_pipeline is None and sys.stdin.isatty():
        return input("Create and save a custom pipeline? (y/n) ").strip().lower() in ("y", "yes")
    return bool(config.save_pipeline)

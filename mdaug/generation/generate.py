"""`mdaug generate`: exactly the labelled samples asked for, as tar shards.

    plan      decide what is made, make the folder that of this plan, copy the real images, train the sifter
    work      make the shards of this worker, skipping those that exist; of several workers each looks at its samples
    finalize  look at the other samples; write index, manifest, card and, last, the mark of the end

Workers are ranks of the launcher, or numbered by --worker and --num_workers, or both, and need not know of each other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from mdaug import config, distributed
from mdaug.generation import inspected, make_plan, real_images
from mdaug.generation import sources as redrawn
from mdaug.generation.finalize import GRID, write_data_set, write_grid
from mdaug.generation.options import GenerateConfig
from mdaug.generation.plan import Plan, claim_folder, read_plan, refuse_other_folder
from mdaug.generation.worker import is_complete, make_shards
from mdaug.measures import sifter
from mdaug.pipeline.folder import save_pipeline
from mdaug.pipeline.pipeline import MicroDopplerPipeline
from mdaug.pipeline.schedulers import scheduler_like
from shards import provenance
from shards.errors import UserError
from shards.output_folder import OutputFolder, exclusive, is_finished
from shards.validation import Preflight, worker_of

PIPELINE_FOLDER = "vq_diffusion_pipeline"


def check(options: GenerateConfig, where: Preflight) -> None:
    """Raise UserError where output_dir holds samples of another plan, or inputs that are there do not fit.

    The job may run on another kind of machine than this one, so the device of a plan that exists is not compared.
    """
    if where.device == "cpu":
        make_plan.require_cpu_compatible(options)
    wanted = read_plan(options.output_dir)
    if where.inputs_there and redrawn.is_ready(options):
        device, gpu = (wanted.device, wanted.gpu) if wanted else ("cuda", None)
        wanted = make_plan.wanted_plan(options, device, gpu)
    refuse_other_folder(options.output_dir, wanted)


@dataclass(frozen=True)
class _Job:
    """A worker and the folder that it works in; `finished_before` is the `_finished_at` of when it began."""

    options: GenerateConfig
    plan: Plan
    output: OutputFolder
    worker: int
    workers: int
    finished_before: int | None


def pieces(options: GenerateConfig) -> int | None:
    """Return how many workers can have work, one shard each; None where that is not known yet, for lack of inputs."""
    try:
        return make_plan.wanted_plan(options, "cuda").num_shards if redrawn.is_ready(options) else None
    except UserError:
        return None


def run(options: GenerateConfig) -> None:
    """Take the step that the options name, or all of them; see the module's docstring.

    Raises:
        UserError: folders that do not fit, classes that the model does not know, no space left.
    """
    worker, workers = worker_of(options, os.environ)
    wanted = make_plan.wanted_plan(options, distributed.device().type, distributed.gpu())
    output = claim_folder(options.output_dir, wanted)
    if output.lost:
        # What was there is made again, asked for or not.
        options.grid |= any(name == GRID for name, _ in output.lost)
        options.save_pipeline |= any(name.startswith(f"{PIPELINE_FOLDER}/") for name, _ in output.lost)
        output.begin_again()
    if worker == 0 and options.step != "finalize":
        make_plan.print_plan(wanted, output.path)
    job = _Job(options, wanted, output, worker, workers, _finished_at(output))
    if options.step == "plan":
        plan(job)
    elif options.step == "work":
        work(job)
    elif options.step == "finalize":
        finalize(job)
    else:
        all_steps(job)


def all_steps(job: _Job) -> None:
    """Plan, work, and finalize if no other worker still has shards to make; a finished folder stays as it is."""
    plan(job)
    if job.finished_before is not None and not job.options.repair:
        print(_found(job), flush=True)
        if job.options.grid and not (job.output.path / GRID).is_file():
            write_grid(job.plan, job.output.path)
        return
    work(job)
    if job.workers > 1 and not is_complete(job.plan, job.output.path):
        print(f"worker {job.worker} is done; the last worker to finish writes the index", flush=True)
    else:
        finalize(job)


def plan(job: _Job) -> None:
    """Make what the workers share: the shards of real images, by worker 0, and the sifter.

    The sifter is made here for `--step plan` only; else the first worker that needs it makes it.
    """
    options = job.options
    if options.include_real and job.worker == 0 and (options.repair or not job.output.finished):
        real_images.write_shards(job.plan, options.include_real, job.output)
    if job.plan.sift and options.step == "plan":
        sifter.prepare(job.output.path, job.plan.sift, options.sift)


def work(job: _Job) -> None:
    """Make the shards of this worker with the pipeline, the kind of device and the GPU of the plan."""
    options, device = job.options, distributed.device()
    source, made = make_plan.open_pipeline(options)
    for what, planned, here in (
        ("pipeline", job.plan.pipeline[:12], made["hash"][:12]),
        ("kind of device", job.plan.device, device.type),
        ("GPU", job.plan.gpu, distributed.gpu()),
    ):
        if planned != here:
            raise UserError(
                f"the plan of {options.output_dir} is for the {what} {planned}, but this is {here}; "
                "go on with the same, or choose another --output_dir"
            )
    if job.plan.compile:
        distributed.require_compiler()
    pipeline = MicroDopplerPipeline.from_pretrained(source)
    pipeline.scheduler = scheduler_like(pipeline.scheduler, job.plan.scheduler_type)
    judge = sifter.prepare(options.output_dir, job.plan.sift, options.sift) if job.plan.sift else None
    sources = redrawn.Sources(job.plan, redrawn.require(job.plan, options, source)) if job.plan.redraw else None
    if options.save_pipeline and job.worker == 0:
        folder = options.output_dir / PIPELINE_FOLDER
        save_pipeline(pipeline, folder, made_from=made["made_from"], config=config.as_dict(options))
    placed, output = pipeline.to(device), job.output
    make_shards(job.plan, placed, output, job.worker, job.workers, sifter=judge, sources=sources, repair=options.repair)
    if job.workers > 1:
        inspected.keep_share(job.plan, output.path, job.worker, job.workers)


def finalize(job: _Job) -> None:
    """Make the shards a data set, one process at a time.

    Of workers that come to the end together the first one does it; the others find that the folder was finished since
    they began.
    """
    with exclusive(job.output.path):
        if _finished_at(job.output) in (None, job.finished_before):
            print(write_data_set(job.plan, job.output, job.options), flush=True)
        else:
            inspected.forget(job.output.path)  # what this worker has kept since
            print(_found(job), flush=True)


def _finished_at(output: OutputFolder) -> int | None:
    """Return when a folder was finished, in ns, or None for one that is not."""
    path = output.path / provenance.FILE_NAME
    return path.stat().st_mtime_ns if is_finished(output.path) else None


def _found(job: _Job) -> str:
    return f"found {job.plan.total} = asked {job.plan.total}: {job.output.path} is finished"

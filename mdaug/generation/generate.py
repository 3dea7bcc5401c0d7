"""`mdaug generate`: exactly the labelled samples asked for, as tar shards.

A plan fixes what is made; workers make its shards by a rule, skipping what is there; finalize looks at
every sample and writes the index. Workers are array tasks of SLURM, ranks of the environment (RANK,
WORLD_SIZE, LOCAL_RANK), or both, and need not know of each other.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from mdaug import config as configuration
from mdaug.generation import counts, make_plan
from mdaug.generation.worker import place
from mdaug.pipeline import schedulers
from shards import atomic, provenance
from shards.errors import UserError

if TYPE_CHECKING:
    from mdaug.generation.plan import Plan


PIPELINE_FOLDER = "vq_diffusion_pipeline"
DEFAULT_STEPS = 50
# Fields that do not describe the samples: any of the others makes a plan rather than go on with the one there is.
# include_real is among them since a plan knows that set by its hash and has to be told where it is.
HOW = {"ldm_path", "output_dir", "vqvae_path", "include_real", "step", "worker", "num_workers", "repair", "grid"}
HOW |= {"save_pipeline"}


@dataclass
class GenerateConfig:
    """Write labelled synthetic spectrograms as tar shards with index, manifest and provenance."""

    ldm_path: Path
    """Run folder of train-ldm (its best/ is taken) or a pipeline folder."""
    output_dir: Path
    """Folder of the data set. The same command again goes on where it stopped."""
    step: Literal["all", "plan", "work", "finalize"] = "all"
    """plan: write plan.json; work: make this worker's shards; finalize: look at every sample, write index and manifest.
    Where plan.json is there, work and finalize need no more than ldm_path and output_dir."""
    vqvae_path: Path | None = None
    """The VQ-VAE is part of the pipeline; a path given here is only checked to be the same."""
    num_samples: int | None = None
    """Number of samples, spread evenly over the classes, the remainder to the first ones (default 16)."""
    per_class: str | dict[str, int] | None = None
    """Samples of each class instead: fall=30,walk=20 or a mapping."""
    classes: str | list[str] | None = None
    """Names of the classes to make, such as fall,walk (default: all that the model knows)."""
    balance_to: Path | None = None
    """Packed set (or JSON file of counts) whose classes are each filled up to its largest one."""
    fill: str | dict[str, int] | None = None
    """Totals to fill classes up to: ID_3=50 makes what lacks to 50 beside the images of balance_to or include_real."""
    include_real: Path | None = None
    """Packed set whose training images are put beside the synthetic ones; num_samples then evens the classes out."""
    output_format: Literal["shards", "folder", "npy"] = "shards"
    """folder: also images/<class>/*.png; npy: also arrays/<class>/*.npy, float32 in dB."""
    dynamic_range_db: float = 40.0
    """Decibels between the lowest and the highest level of the colour scale, for output_format npy."""
    batch_size: int = 32
    """Images denoised together; it changes the images of a plan in the last bits."""
    samples_per_shard: int = 1000
    """Images in a tar. The shard is what a worker makes in one go."""
    quality: Literal["draft", "standard", "best"] | None = None
    """Sampler and steps in one word; docs/sampling.md has what each costs."""
    num_inference_steps: int | None = None
    """Steps of the sampler (default: 50, or those of quality)."""
    scheduler_type: str | None = None
    """ddpm, ddim, pndm, dpmsolver++, unipc, euler or heun (default: that of quality, or the one of the model)."""
    beta_schedule: str | None = None
    """linear, cosine or squaredcos_cap_v2; only checked to be that of the training."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is none and takes half the time."""
    guidance_interval: list[float] = dataclasses.field(default_factory=lambda: [0.0, 1.0])
    """Shares of the training timesteps, low and high, within which guidance acts; 1 is pure noise."""
    conditions: str | dict[str, float] | None = None
    """Continuous conditions of all samples, speed=1.2,aspect=30; those left out are drawn from real training images."""
    sift: Path | None = None
    """Packed set the model was trained on; images unlike its real ones are rejected and made again."""
    sift_quantile: float = 0.05
    """Share of real validation images that each of the four measures of the sifter may reject."""
    sift_steps: int = 400
    """Optimizer steps of the sifter's classifier."""
    max_candidates: int = 8
    """Images made for a sample before the best of the rejected ones is kept and marked."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Arithmetic of the networks."""
    compile: bool = False
    """Run the U-Net through torch.compile; for a GPU."""
    seed: int = 42
    """Base seed; sample i has a seed of its own, listed in manifest.csv."""
    worker: int | None = None
    """Number of this worker, from 0 (default: SLURM_ARRAY_TASK_ID, else 0; several ranks count within it)."""
    num_workers: int | None = None
    """Number of workers (default: SLURM_ARRAY_TASK_COUNT, else 1)."""
    repair: bool = False
    """Look at the bytes of finished shards and make damaged ones again."""
    grid: bool = False
    """Also write grid.png, one row per class."""
    save_pipeline: bool | None = None
    """Also write the pipeline to <output_dir>/vq_diffusion_pipeline (asked when started on a terminal)."""
    cpu_threads: int = 1
    """Threads of a worker without a GPU. Sums depend on it, so it belongs to the plan; more workers scale better."""

    ALIASES: ClassVar[dict[str, str]] = {
        "vqvae_model_path": "vqvae_path",
        "fp16": "mixed_precision=fp16",
        "format": "output_format",
    }

    def __post_init__(self):
        self.per_class, self.fill = (
            counts.parse(field, value) if isinstance(value, str) else value
            for field, value in (("per_class", self.per_class), ("fill", self.fill))
        )
        if isinstance(self.conditions, str):
            self.conditions = make_plan.parse(self.conditions)
        if isinstance(self.classes, str):
            self.classes = [name.strip() for name in self.classes.split(",")]
        if self.per_class is not None and (self.classes or self.num_samples is not None):
            raise ValueError("per_class says which classes and how many; leave out classes and num_samples")
        if (self.balance_to or self.fill) and (self.per_class or self.classes or self.num_samples is not None):
            raise ValueError(
                "balance_to and fill say how many of each class; leave out per_class, classes and num_samples"
            )
        for field in ("per_class", "fill"):
            for name, count in (getattr(self, field) or {}).items():
                if count < 1:
                    raise ValueError(
                        f"{field} asks for {count} of '{name}'; ask for at least 1, or leave the class out"
                    )
        positive = ("num_samples", "batch_size", "samples_per_shard", "num_inference_steps", "cpu_threads")
        for field in (*positive, "num_workers", "max_candidates", "sift_steps"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} is {value}; it must be at least 1")
        if self.cpu_threads > 1024:
            raise ValueError(f"cpu_threads is {self.cpu_threads}; it must be at most 1024")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        if (self.worker is None) != (self.num_workers is None):
            raise ValueError("worker and num_workers belong together; give both, such as worker 0 of num_workers 4")
        if self.worker is not None and not 0 <= self.worker < (self.num_workers or 1):
            raise ValueError(
                f"worker is {self.worker}; with num_workers {self.num_workers} it must be 0 or more and less"
            )
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be 0 or more (1 is no guidance)")
        if len(self.guidance_interval) != 2 or not 0 <= self.guidance_interval[0] < self.guidance_interval[1] <= 1:
            raise ValueError(
                f"guidance_interval is {self.guidance_interval}; it must be two shares, such as [0.1, 0.7]"
            )
        if not 0 < self.sift_quantile < 0.5:
            raise ValueError(f"sift_quantile is {self.sift_quantile}; it must be above 0 and below 0.5")
        if not self.dynamic_range_db > 0:
            raise ValueError(f"dynamic_range_db is {self.dynamic_range_db}; it must be above 0, such as 40")
        if self.repair and self.step in ("plan", "finalize"):
            raise ValueError(f"repair makes shards again, which step {self.step} does not; use step work or all")
        schedulers.validate(self.scheduler_type or "ddim", self.beta_schedule or "linear")
        if self.scheduler_type:
            schedulers.validate_steps(self.scheduler_type, self.steps)

    @property
    def steps(self) -> int:
        """The steps of the sampler."""
        return self.num_inference_steps or (schedulers.QUALITY[self.quality][1] if self.quality else DEFAULT_STEPS)

    def describes_samples(self) -> bool:
        """Return whether anything beside where and how is given, so that it has to agree with a plan."""
        plain = GenerateConfig(self.ldm_path, self.output_dir)
        names = {field.name for field in dataclasses.fields(self)} - HOW
        return any(getattr(self, name) != getattr(plain, name) for name in names)

    def check_device(self, kind: str) -> None:
        """Raise UserError for what a CPU cannot do, if that is the kind of device: "cpu" or "cuda"."""
        from mdaug.generation import make_plan

        if kind == "cpu":
            make_plan.require_nothing_of_a_gpu(self)

    def check_output(self, inputs_there: bool) -> None:
        """Raise UserError where output_dir holds samples of another plan, or inputs that are there do not fit.

        Where the job will run need not be like here, so a plan that is there is taken to be for that kind of device.
        """
        from mdaug.generation import make_plan
        from mdaug.generation import plan as plans

        begun = (self.output_dir / plans.FILE_NAME).is_file()
        kind = plans.read_plan(self.output_dir).device if begun else "cuda"
        plans.refuse_other(self.output_dir, make_plan.wanted_plan(self, kind) if inputs_there else None)


def generate(config: GenerateConfig) -> None:
    """Make the samples of a configuration; see the module's docstring.

    Raises:
        UserError: folders that do not fit, classes that the model does not know, no space left.
    """
    from mdaug.generation import make_plan
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

    from mdaug.generation import make_plan
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

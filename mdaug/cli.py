"""The command line: `mdaug <command> [--config FILE] [--field value ...]`, and the one table of all commands.

`mdaug --help` and `mdaug <command> --help` import the options alone; torch, diffusers and deepspeed come with the
command itself.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from shards.errors import UserError, entry_point

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # as the launchers of torch.distributed name them
NO_MEMORY = ("out of memory", "can't allocate memory")  # in torch's errors, of a GPU and of a CPU

LOOK_S, BUSY = 0.2, 25.0  # seconds, and the share of all cores in % that others use, see `share_cores`


@dataclass(frozen=True)
class Command:
    """What is known of a command before any of its code is imported.

    Attributes:
        options: "module:class" of its options, a dataclass.
        module: the module of its `run(options)` and, if it writes a folder, its `check(options, where: Preflight)`.
        help: one line.
        inputs: options that name a folder or file, which must exist when the command starts (if the option is given).
        given: those of them that no other command makes, so that they exist before any command has run.
        parallel: whether several ranks share the work; else it runs in one process.
        array: whether its ranks need not run at the same time, nor know of each other.
        images: whether `data_dir` is packed shards or an image folder.
        instead: an option, and the module in place of `module` where it is given.
    """

    options: str
    module: str
    help: str
    inputs: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    parallel: bool = False
    array: bool = False
    images: bool = True
    instead: tuple[str, str] | None = None

    def load_options(self) -> type:
        """Import and return the options class."""
        module, _, name = self.options.partition(":")
        return getattr(importlib.import_module(module), name)

    def load(self, options: Any) -> ModuleType:
        """Import and return the module with `run` and `check` for these options."""
        option, module = self.instead or ("", "")
        return imported(module if getattr(options, option, None) is not None else self.module)


def imported(module: str) -> ModuleType:
    """Import and return a module that brings many others, without searching for garbage meanwhile.

    Python would go again and again through a million objects while they are made. None of them is garbage, so later
    searches leave them out, too.
    """
    if module not in sys.modules:
        gc.disable()
        try:
            importlib.import_module(module)
        finally:
            gc.freeze()
            gc.enable()
            atexit.register(gc.unfreeze)  # else nanobind takes them for leaks at the end, and says so
    return sys.modules[module]


COMMANDS = {
    "simulate": Command(
        "mdaug.radar.options:SimulateConfig",
        "mdaug.radar.simulate",
        "make a labelled image folder from physics",
        inputs=("like",),
        instead=("like", "mdaug.measures.imitate"),
    ),
    "spectrogram": Command(
        "mdaug.radar.options:SpectrogramConfig",
        "mdaug.radar.spectrogram",
        "raw radar recordings -> labelled image folder",
        inputs=("data_dir", "inspect"),
        images=False,
    ),
    "pack": Command(
        "shards.options:PackConfig",
        "shards.pack",
        "image folder -> tar shards + index, split by group",
        inputs=("data_dir",),
    ),
    "train-vqvae": Command(
        "mdaug.training.options_vqvae:VQVAEConfig",
        "mdaug.training.train_vqvae",
        "train the VQ-VAE on packed images",
        inputs=("data_dir", "aux_dir", "init_from", "deepspeed_config", "perceptual_weights"),
        given=("deepspeed_config", "perceptual_weights"),
        parallel=True,
    ),
    "reconstruct": Command(
        "mdaug.evaluation.options:ReconstructConfig",
        "mdaug.evaluation.reconstruct",
        "measure what the VQ-VAE keeps of held-out images",
        inputs=("data_dir", "vqvae_path", "perceptual_weights"),
        given=("perceptual_weights",),
    ),
    "encode": Command(
        "mdaug.training.options_vqvae:EncodeConfig",
        "mdaug.training.encode",
        "packed images -> latent shards with their mean and std",
        inputs=("data_dir", "vqvae_path"),
        parallel=True,
    ),
    "train-ldm": Command(
        "mdaug.training.options_ldm:LDMConfig",
        "mdaug.training.train_ldm",
        "train the latent diffusion model",
        inputs=("data_dir", "aux_dir", "init_from", "vqvae_path", "deepspeed_config"),
        given=("deepspeed_config",),
        parallel=True,
    ),
    "distil": Command(
        "mdaug.training.options_ldm:DistilConfig",
        "mdaug.training.distil",
        "fine-tune a trained pipeline to sample in 1 to 4 steps",
        inputs=("data_dir", "aux_dir", "ldm_path", "vqvae_path", "deepspeed_config"),
        given=("deepspeed_config",),
        parallel=True,
    ),
    "ema": Command(
        "mdaug.training.options_ldm:EmaConfig",
        "mdaug.training.ema_snapshots",
        "averaged diffusion model of another length, after the training",
        inputs=("run_dir",),
    ),
    "generate": Command(
        "mdaug.generation.options:GenerateConfig",
        "mdaug.generation.generate",
        "write labelled synthetic tar shards",
        inputs=("ldm_path", "vqvae_path", "balance_to", "include_real", "sift", "from_dir", "data_dir"),
        parallel=True,
        array=True,
    ),
    "evaluate": Command(
        "mdaug.evaluation.options:EvaluateConfig",
        "mdaug.evaluation.evaluate",
        "fidelity and usefulness, with a report",
        inputs=("data_dir", "synthetic_dir", "vqvae_path", "simulated_dir", "aux_dir", "like_with_like"),
        parallel=True,
        array=True,
    ),
    "augment": Command(
        "mdaug.recipe.options:AugmentConfig",
        "mdaug.recipe.recipe",
        "how to train a classifier on few images, chosen by the data",
        inputs=("data_dir", "aux_dir", "synthetic_dir", "unlabelled_dir", "init_from"),
        parallel=True,
        array=True,
    ),
    "estimate": Command(
        "mdaug.training.options:EstimateConfig",
        "mdaug.training.estimate",
        "memory, hours and GPU-hours of a training, before it is queued",
    ),
    "verify": Command(
        "shards.options:VerifyConfig",
        "shards.verify",
        "compare a finished folder with what was written, by hashes",
        inputs=("folder",),
    ),
    "weights": Command(
        "mdaug.models.options:WeightsConfig",
        "mdaug.models.perceptual",
        "fetch the weights of the perceptual loss (needs a network)",
    ),
}


def find(name: str) -> Command:
    """Return a command by its name; raises UserError for one that does not exist."""
    if name not in COMMANDS:
        raise UserError(f"mdaug: unknown command '{name}'; the commands are {', '.join(COMMANDS)}")
    return COMMANDS[name]


def parse(name: str, argv: list[str]) -> Any:
    """Return the options of a command from its flags; raises UserError for a mistake in them."""
    from mdaug import config

    sections = {each: command.load_options for each, command in COMMANDS.items()}
    return config.parse(find(name).load_options(), argv, f"mdaug {name}", section=name, sections=sections)


def run(argv: list[str]) -> None:
    """Parse and run one command; the user's mistakes, a full disk and too little memory arrive as UserError."""
    start(argv[0], parse(argv[0], argv[1:]))


def start(name: str, options: Any) -> None:
    """Run a command with its options; raises UserError as `run` does."""
    from shards.output_folder import disown_all
    from shards.provenance import compare_hashes
    from shards.validation import WORKERS
    from shards.writer import disk_full_as_user_error, require_writable

    command = find(name)
    if not command.parallel or (command.array and WORKERS not in os.environ):
        _forget_ranks(name, options)
    if command.parallel:
        share_cores()
        _say_where_busy()
    output = getattr(options, "output_dir", Path.cwd())  # a command without one writes no folder
    if getattr(options, "verify", False):
        compare_hashes(output)
        options.verify = False  # what is made again is recorded as it was
    try:
        with disk_full_as_user_error(output):
            command.load(options).run(options)
    except OSError:
        require_writable(output)  # says so in one line, if that is the reason; a finished folder may be read-only
        raise
    except (MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if text.startswith("DataLoader worker") and ("exited unexpectedly" in text or "killed by signal" in text):
            raise UserError(
                "a data loading process was killed, perhaps because memory ran out; run the same command with fewer "
                "--num_workers"
            ) from None
        if not isinstance(error, MemoryError) and not any(words in text for words in NO_MEMORY):
            raise
        raise UserError(
            f"out of memory ({text[:160]}); a smaller --batch_size needs less, and in a training "
            "--gradient_accumulation_steps makes up for it"
        ) from None
    finally:
        disown_all()


def _forget_ranks(name: str, options: Any) -> None:
    """Take ranks out of the environment that are those of something else around this command, and say so.

    Workers of generate, evaluate and augment need not meet, so that a missing one would go unnoticed: what an array
    over seeds, a pod or torchrun leaves in the environment must not give away a share of the work.
    """
    foreign = [each for each in ("WORLD_SIZE", "SLURM_ARRAY_TASK_COUNT") if os.environ.get(each, "1") != "1"]
    if foreign and find(name).array and options.worker is None:
        print(
            f"{foreign[0]} is set, but does not divide the work of {name}: this process does all of it; --worker and "
            "--num_workers divide it, and so does python -m launch",
            flush=True,
        )
    for variable in RANKS:
        os.environ.pop(variable, None)


def share_cores() -> None:
    """Let threads sleep while they wait for each other, where other processes compute at this moment.

    Spinning threads train twice as fast alone on two cores, and half as fast beside others, whose cores they keep
    (docs/performance.md). libgomp reads this when torch is loaded.
    """
    import psutil

    if "OMP_WAIT_POLICY" not in os.environ and psutil.cpu_percent(interval=LOOK_S) > BUSY:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _say_where_busy() -> None:
    """Print a line on the first rank where other processes take the cores."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores and os.environ.get("RANK", "0") == "0":
        print(
            f"load average {load:.1f} on {cores} cores: others compute here, too, so this takes longer; with "
            "OMP_NUM_THREADS=1 its threads do not wait for each other",
            flush=True,
        )


@entry_point
def main(argv: list[str]) -> int:
    """Entry point of the `mdaug` script. Returns the exit status: 0 done, 2 a mistake of the user, 130 Ctrl-C."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: mdaug <command> [--config FILE] [--field value ...]\n")
        for name, command in COMMANDS.items():
            print(f"  {name:12s} {command.help}")
        print("\n'mdaug <command> --help' lists the fields of a command.")
        return 0
    if argv[0] == "--version":
        from mdaug import __version__

        print(f"mdaug {__version__}")
        return 0
    run(argv)
    return 0
